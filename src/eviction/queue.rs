//! The pods to look at, by UID and by time. Pure: it is told what to keep and what time it is.
//!
//! Memory follows the marked pods, not the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::entry::Entry;
use crate::mark::State;

/// All of them.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Entry>,
    order: BTreeSet<(Timestamp, String)>,
    running: HashSet<String>,
    counts: BTreeMap<State, i64>,
}

impl Queue {
    /// What is known of a pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Entry> {
        self.pods.get(uid)
    }

    /// The UIDs.
    #[must_use]
    pub fn uids(&self) -> impl ExactSizeIterator<Item = &String> {
        self.pods.keys()
    }

    /// How many stand so.
    #[must_use]
    pub fn count(&self, state: State) -> i64 {
        self.counts.get(&state).copied().unwrap_or(0)
    }

    /// Adds a pod, or what is new about it.
    pub fn put(&mut self, uid: String, entry: Entry) {
        self.remove(&uid);
        *self.counts.entry(entry.state).or_default() += 1;
        self.order.insert((entry.next, uid.clone()));
        self.pods.insert(uid, entry);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Entry> {
        let old = self.pods.remove(uid)?;
        self.order.remove(&(old.next, uid.to_owned()));
        *self.counts.entry(old.state).or_default() -= 1;
        Some(old)
    }

    /// The next pod that is due and not being worked on; it stays on the queue until its attempt says otherwise.
    pub fn take_due(&mut self, now: Timestamp) -> Option<String> {
        let due = self.order.iter().take_while(|(next, _)| *next <= now);
        let uid = due.map(|(_, uid)| uid).find(|uid| !self.running.contains(*uid))?.clone();
        self.running.insert(uid.clone());
        Some(uid)
    }

    /// Its attempt is over.
    pub fn done(&mut self, uid: &str) {
        self.running.remove(uid);
    }

    /// The earliest deadline: of the pod that is the most overdue, or will be next.
    #[must_use]
    pub fn earliest(&self) -> Option<Timestamp> {
        let goes = |pod: &&Entry| !matches!(pod.state, State::Evicting | State::Terminating);
        let waiting = self.pods.values().filter(goes);
        waiting.map(|pod| pod.deadline).min()
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.order.iter().find(|(_, uid)| !self.running.contains(uid)).map(|(next, _)| *next)
    }
}
