//! The queue of marked pods, by UID and by the time of their next reconciliation. Pure.
//!
//! Its memory grows with the number of marked pods and not with the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::entry::Entry;
use crate::mark::State;

/// The entries of all marked pods.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Entry>,
    order: BTreeSet<(Timestamp, String)>,
    running: HashSet<String>,
    counts: BTreeMap<State, i64>,
}

impl Queue {
    /// The entry of a pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Entry> {
        self.pods.get(uid)
    }

    /// The UIDs of all pods.
    #[must_use]
    pub fn uids(&self) -> impl ExactSizeIterator<Item = &String> {
        self.pods.keys()
    }

    /// The number of pods in this state.
    #[must_use]
    pub fn count(&self, state: State) -> i64 {
        self.counts.get(&state).copied().unwrap_or(0)
    }

    /// Adds the entry of a pod, or replaces it.
    pub fn put(&mut self, uid: String, entry: Entry) {
        self.remove(&uid);
        *self.counts.entry(entry.state).or_default() += 1;
        self.order.insert((entry.next, uid.clone()));
        self.pods.insert(uid, entry);
    }

    /// Removes a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Entry> {
        let old = self.pods.remove(uid)?;
        self.order.remove(&(old.next, uid.to_owned()));
        *self.counts.entry(old.state).or_default() -= 1;
        Some(old)
    }

    /// The next pod whose time has come and that is not being reconciled. It stays on the queue, and is not returned
    /// again before [`Queue::done`].
    pub fn take_due(&mut self, now: Timestamp) -> Option<String> {
        let due = self.order.iter().take_while(|(next, _)| *next <= now);
        let uid = due.map(|(_, uid)| uid).find(|uid| !self.running.contains(*uid))?.clone();
        self.running.insert(uid.clone());
        Some(uid)
    }

    /// The reconciliation of the pod has ended.
    pub fn done(&mut self, uid: &str) {
        self.running.remove(uid);
    }

    /// The earliest deadline of the pods in each state.
    #[must_use]
    pub fn earliest(&self) -> BTreeMap<State, Timestamp> {
        let mut earliest = BTreeMap::new();
        for pod in self.pods.values() {
            earliest
                .entry(pod.state)
                .and_modify(|at: &mut Timestamp| *at = pod.deadline.min(*at))
                .or_insert(pod.deadline);
        }
        earliest
    }

    /// The time of the next reconciliation.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.order.iter().find(|(_, uid)| !self.running.contains(uid)).map(|(next, _)| *next)
    }
}
