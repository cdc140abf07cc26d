//! Counts the groups of a LeaderWorkerSet. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::members::Member;
use crate::mark::owner::Seen;

/// The label with the number of a pod's group, which its leader and its workers have in common.
const GROUP_INDEX: &str = "leaderworkerset.sigs.k8s.io/group-index";
/// The annotation with the pods of a group.
const SIZE: &str = "leaderworkerset.sigs.k8s.io/size";

/// The groups, by their number.
#[derive(Debug)]
pub(super) struct Groups {
    now: Timestamp,
    /// How many Ready pods each has, and how many it should have.
    by_index: BTreeMap<String, (usize, usize)>,
    seen: Seen,
}

impl Groups {
    /// None, as of `now`.
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, by_index: BTreeMap::new(), seen: Seen::default() }
    }

    /// Counts one pod.
    pub(super) fn add(&mut self, pod: &Member) {
        let Some(index) = pod.label(GROUP_INDEX) else { return };
        let size = pod.annotation(SIZE).and_then(|size| size.parse().ok()).unwrap_or(1);
        let (ready, wanted) = self.by_index.entry(index.to_owned()).or_default();
        *wanted = size.max(*wanted);
        if let Some(until) = pod.leaves_at() {
            self.seen.leaving_until = self.seen.leaving_until.max(Some(until));
        } else if pod.is_ready() {
            *ready += 1;
        } else {
            self.seen.starting_since = self.seen.starting_since.max(Some(pod.changed_at().unwrap_or(self.now)));
        }
    }

    /// How many groups have all their pods, Ready, and whether one of these `expected` is being replaced.
    pub(super) fn count(mut self, expected: i32) -> (i32, Seen) {
        let ready = self.by_index.values().filter(|(ready, wanted)| ready >= wanted).count();
        let ready = i32::try_from(ready).unwrap_or(i32::MAX);
        let is_being_replaced = self.seen.leaving_until.is_some() || self.seen.starting_since.is_some();
        if ready < expected && !is_being_replaced {
            self.seen.starting_since = Some(self.now);
        }
        (ready, self.seen)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(group: &str, is_ready: bool, leaves: Option<&str>) -> Member {
        let ready = if is_ready { "True" } else { "False" };
        let at = "2026-01-01T00:00:00Z";
        serde_json::from_value(json!({
            "metadata": {
                "labels": {GROUP_INDEX: group}, "annotations": {SIZE: "2"},
                "creationTimestamp": at, "deletionTimestamp": leaves,
            },
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": at}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_group_is_ready_if_all_its_pods_are() {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let count = |pods: &[Member]| {
            let mut groups = Groups::new(now);
            pods.iter().for_each(|pod| groups.add(pod));
            groups.count(2)
        };
        let whole = || [pod("0", true, None), pod("0", true, None)];
        let with = |more: [Member; 2]| -> Vec<Member> { whole().into_iter().chain(more).collect() };
        assert_eq!(count(&with([pod("1", true, None), pod("1", true, None)])), (2, Seen::default()));
        let (ready, seen) = count(&with([pod("1", true, None), pod("1", false, None)]));
        assert_eq!((ready, seen.starting_since.is_some(), seen.leaving_until), (1, true, None));
        let until = "2026-01-01T01:00:30Z";
        let (ready, seen) = count(&with([pod("1", true, None), pod("1", true, Some(until))]));
        assert_eq!((ready, seen.leaving_until), (1, Some(until.parse().unwrap())));
        assert_eq!(count(&whole()), (1, Seen { leaving_until: None, starting_since: Some(now) }), "a group is missing");
    }
}
