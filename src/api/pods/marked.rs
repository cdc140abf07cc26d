//! The proof that a mark is on a pod: the pod as the API server returned it.

use k8s_openapi::api::core::v1::Pod;

use super::Error;
use crate::mark::{self, Disposition, Found, Interaction, Mark, status};

/// A pod with these interactions in its mark. Made only from a pod that the API server returned, by [`Marked::proven`].
#[derive(Debug)]
pub struct Marked {
    /// The pod as the API server returned it.
    pub pod: Pod,
    /// The mark on it.
    pub mark: Mark,
    /// The interactions, each as it is recorded.
    pub recorded: Vec<Recorded>,
    /// What this mark replaced, if the pod had annotations that were not a mark of it.
    pub replaced: Option<String>,
}

/// One interaction in the mark of a pod.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The interaction.
    pub interaction: Interaction,
    /// The number of interactions up to this one.
    pub total: u64,
    /// Whether the pod had it already, of this review or of another one with the same interaction.
    pub folded: bool,
}

impl Recorded {
    /// Whether the mark names this very review. A review that is repeated after a lost answer finds itself.
    #[must_use]
    pub fn is_own(&self, mark: &Mark) -> bool {
        mark.has_review(&self.interaction.review)
    }
}

/// The mark after these interactions, and how each is recorded; none without an interaction and without a mark. Stops
/// before an interaction that would push an earlier one of them out of the mark, because then nothing would prove it.
pub(super) fn record(
    found: Option<Mark>,
    uid: &str,
    interactions: Vec<(Interaction, Disposition)>,
) -> Option<(Mark, Vec<Recorded>)> {
    let (mut mark, mut recorded) = (found, Vec::<Recorded>::new());
    for (interaction, disposition) in interactions {
        let next = Mark::after(mark.clone(), uid, interaction.clone(), disposition);
        let is_listed = |next: &Mark, one: &Recorded| one.folded || next.has_review(&one.interaction.review);
        if next.as_ref().is_some_and(|next| !recorded.iter().all(|one| is_listed(next, one))) {
            break;
        }
        let folded = next.is_none();
        mark = next.or(mark);
        recorded.push(Recorded { interaction, total: mark.as_ref().map_or(0, |mark| mark.total), folded });
    }
    mark.map(|mark| (mark, recorded))
}

impl Marked {
    /// Checks that everything that the eviction relies on is on this pod, as the API server returned it: the label, the
    /// record with these interactions, the deadline and the condition, on the pod with the UID of the mark.
    ///
    /// # Errors
    /// [`Error::Stripped`] names what is missing.
    pub(super) fn proven(pod: Pod, mark: Mark, recorded: Vec<Recorded>) -> Result<Self, Error> {
        let missing = |what: &str| Err(Error::Stripped { what: what.to_owned() });
        if !pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(mark::INTERACTED)) {
            return missing(&format!("the label {}", mark::INTERACTED));
        }
        let Found::Mark(found) = Found::on(&pod) else {
            return missing(&format!("the annotation {}", mark::INTERACTIONS));
        };
        let mut written = recorded.iter().filter(|one| !one.folded);
        if found.pod != mark.pod || !written.all(|one| found.has_review(&one.interaction.review)) {
            return missing(&format!("the interaction in the annotation {}", mark::INTERACTIONS));
        }
        // A pod that was bare has a deadline once a controller owns it, so there may be one more than was written.
        if mark.evict_at.is_some() && found.evict_at != mark.evict_at {
            return missing(&format!("the deadline in the annotation {}", mark::EVICT_AT));
        }
        if status::condition(&pod, status::CONDITION).is_none() {
            return missing(&format!("the condition {}", status::CONDITION));
        }
        Ok(Self { pod, mark, recorded, replaced: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{Operation, User};
    use serde_json::json;
    use std::time::Duration;

    type Damage = fn(&mut Pod);

    fn marked() -> (Pod, Mark, Vec<Recorded>) {
        let interaction = Interaction {
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            operation: Operation::Exec,
            container: "app".into(),
            command: vec![],
            stdin: false,
            tty: false,
            user: User::default(),
            review: "r1".into(),
            rule: "default".into(),
        };
        let ttl = Disposition::Evict(Duration::from_secs(600));
        let mark = Mark::after(None, "u1", interaction.clone(), ttl).unwrap();
        let mut pod = mark.patch("1", true);
        let annotations = pod["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.retain(|_, value| !value.is_null());
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        let pod = serde_json::from_value(pod).unwrap();
        (pod, mark, vec![Recorded { interaction, total: 1, folded: false }])
    }

    #[test]
    fn a_pod_without_any_part_of_the_mark_proves_nothing() {
        let (pod, mark, recorded) = marked();
        assert!(Marked::proven(pod.clone(), mark.clone(), recorded.clone()).is_ok());
        let damages: [(&str, Damage); 6] = [
            ("the label pristine/interacted", |pod| pod.metadata.labels = None),
            ("the annotation pristine/interactions", |pod| pod.metadata.annotations = None),
            ("the annotation pristine/interactions", |pod| pod.metadata.uid = Some("u2".into())),
            ("the interaction in the annotation pristine/interactions", |pod| {
                let annotations = pod.metadata.annotations.as_mut().unwrap();
                let text = annotations[mark::INTERACTIONS].replace("\"r1\"", "\"r0\"");
                annotations.insert(mark::INTERACTIONS.into(), text);
            }),
            ("the deadline in the annotation pristine/evict-at", |pod| {
                drop(pod.metadata.annotations.as_mut().unwrap().remove(mark::EVICT_AT));
            }),
            ("the condition pristine/Pristine", |pod| pod.status = None),
        ];
        for (expected, damage) in damages {
            let mut pod = pod.clone();
            damage(&mut pod);
            let error = Marked::proven(pod, mark.clone(), recorded.clone()).unwrap_err();
            assert!(matches!(&error, Error::Stripped { what } if what == expected), "{expected}: {error}");
        }
    }
}
