//! The pods to look at, by UID and by time. Pure: it is told what to keep and what time it is.
//!
//! Memory follows the marked pods, not the cluster: of each only names, times and what its users ask for are kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use crate::mark::extension::Extension;

/// Where a marked pod stands in the eyes of the replica that evicts; a word for the metric.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Standing {
    /// Its deadline is to come.
    Marked,
    /// Due, and it waits for another one of its owner, or for the rate limit.
    Queued,
    /// Due, and refused: by a disruption budget, or an error.
    Blocked,
    /// The eviction was accepted.
    Evicting,
}

impl Standing {
    /// All, with their words.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Marked, "marked"), (Self::Queued, "queued"), (Self::Blocked, "blocked"), (Self::Evicting, "evicting")];
}

/// A pod to look at later.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// UID of its controller.
    pub owner: Option<String>,
    /// When to look.
    pub next: Timestamp,
    /// When it is to go.
    pub deadline: Timestamp,
    /// What its users ask for.
    pub asked: Extension,
    /// Refusals in a row.
    pub refusals: u32,
    /// Looks in a row that found others to go first.
    pub queued: u32,
    /// Where it stands.
    pub standing: Standing,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Agenda {
    pods: HashMap<String, Tracked>,
    order: BTreeSet<(Timestamp, String)>,
    running: HashSet<String>,
    counts: BTreeMap<Standing, i64>,
}

impl Agenda {
    /// What is known of a pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Tracked> {
        self.pods.get(uid)
    }

    /// The UIDs.
    pub fn uids(&self) -> impl Iterator<Item = &String> {
        self.pods.keys()
    }

    /// How many stand so.
    #[must_use]
    pub fn count(&self, standing: Standing) -> i64 {
        self.counts.get(&standing).copied().unwrap_or(0)
    }

    /// Adds a pod, or what is new about it.
    pub fn put(&mut self, uid: String, tracked: Tracked) {
        self.remove(&uid);
        *self.counts.entry(tracked.standing).or_default() += 1;
        self.order.insert((tracked.next, uid.clone()));
        self.pods.insert(uid, tracked);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) -> Option<Tracked> {
        let old = self.pods.remove(uid)?;
        self.order.remove(&(old.next, uid.to_owned()));
        *self.counts.entry(old.standing).or_default() -= 1;
        Some(old)
    }

    /// The next pod that is due and not being worked on; it stays on the agenda until its attempt says otherwise.
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
        let waiting = self.pods.values().filter(|pod| pod.standing != Standing::Evicting);
        waiting.map(|pod| pod.deadline).min()
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.order.iter().find(|(_, uid)| !self.running.contains(uid)).map(|(next, _)| *next)
    }
}
