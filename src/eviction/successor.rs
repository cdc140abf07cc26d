//! The successor of a deleted pod: the pod that gets its name next. It is marked too, as long as an exec that was
//! admitted for the deleted pod may still run in it. Pure; [`super::mark_successor`] does it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::mark::{Disposition, Found, Interaction};

/// Another webhook can delay an admitted exec for 30 s at most. The exec then runs in the pod that has the name by then
/// (seen: `web-0` was deleted meanwhile, and the exec ran in the new `web-0`).
pub const SUCCESSOR_WINDOW: SignedDuration = SignedDuration::from_secs(35);

/// What the successor of a deleted pod is marked with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SuccessorMark {
    /// The last interaction with the deleted pod, which may reach the successor.
    pub interaction: Interaction,
    /// What happens to the successor because of the interaction.
    pub disposition: Disposition,
    /// The interaction cannot reach a pod after this time.
    pub until: Timestamp,
}

/// The mark for the successor of this deleted pod; none if no successor needs one.
#[must_use]
pub fn successor_mark(deleted: &Pod, now: Timestamp) -> Option<SuccessorMark> {
    // These controllers never reuse the name of a pod.
    let owners = deleted.metadata.owner_references.iter().flatten();
    if owners.into_iter().any(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "DaemonSet" | "Job")) {
        return None;
    }
    let mark = Found::on(deleted).mark()?;
    let interaction = mark.last().clone();
    let until = interaction.at.checked_add(SUCCESSOR_WINDOW).unwrap_or(Timestamp::MAX);
    if until <= now {
        return None;
    }
    // The successor is not evicted before `until`: otherwise its own successor would need the mark as well.
    let ttl = |at: Timestamp| Duration::try_from(at.max(until).duration_since(interaction.at)).unwrap_or_default();
    let disposition = match (mark.evict_at, mark.evict_if_owned_at()) {
        (Some(at), _) => Disposition::Evict(ttl(at)),
        (None, Some(at)) => Disposition::EvictIfOwned(ttl(at)),
        (None, None) => Disposition::Record,
    };
    Some(SuccessorMark { interaction, disposition, until })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A pod with UID `u` and a mark of the pod `of`: an exec at second 1000, and a deadline `ttl` seconds later.
    fn pod(of: &str, ttl: Option<i64>) -> Pod {
        let exec = json!({
            "at": at(1000), "operation": "exec", "container": "c", "user": {"name": "a"}, "review": "r", "rule": "d",
        });
        let mut annotations =
            json!({ "pristine/interactions": json!({"pod": of, "total": 1, "first": exec}).to_string() });
        if let Some(ttl) = ttl {
            annotations["pristine/evict-at"] = json!(at(1000 + ttl));
        }
        serde_json::from_value(json!({"metadata": {"uid": "u", "annotations": annotations}})).unwrap()
    }

    #[test]
    fn a_pod_deleted_right_after_an_interaction_leaves_a_mark_for_its_successor() {
        let left = successor_mark(&pod("u", Some(600)), at(1010)).unwrap();
        assert_eq!(
            (left.interaction.at, left.disposition, left.until),
            (at(1000), Disposition::Evict(Duration::from_secs(600)), at(1035))
        );
        assert_eq!(successor_mark(&pod("u", None), at(1010)).unwrap().disposition, Disposition::Record);
    }

    #[test]
    fn a_successor_is_not_evicted_while_it_could_pass_the_mark_on() {
        let left = successor_mark(&pod("u", Some(5)), at(1010)).unwrap();
        assert_eq!(left.disposition, Disposition::Evict(Duration::from_secs(35)));
    }

    #[test]
    fn a_successor_is_not_marked_after_the_window_nor_for_another_pods_mark() {
        assert_eq!(successor_mark(&pod("u", Some(600)), at(1035)), None, "the exec cannot arrive any more");
        assert_eq!(successor_mark(&pod("other", Some(600)), at(1010)), None, "the mark of another pod");
    }

    #[test]
    fn a_pod_whose_name_is_never_reused_has_no_successor() {
        for kind in ["ReplicaSet", "DaemonSet", "Job"] {
            let mut deleted = pod("u", Some(600));
            let owner = json!([{"apiVersion": "x", "kind": kind, "name": "o", "uid": "o"}]);
            deleted.metadata.owner_references = serde_json::from_value(owner).unwrap();
            assert_eq!(successor_mark(&deleted, at(1010)), None, "{kind}");
        }
    }
}
