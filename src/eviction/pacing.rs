//! How fast pods are evicted: one pod per owner at a time, and all evictions within a rate limit. Pure.
//!
//! A workload can limit disruptions with a PodDisruptionBudget. Many have none, and after a loop of execs over all
//! replicas of a Deployment the deadline would be an outage. So a pod waits until the replacement of the last evicted
//! pod is Ready, for [`REPLACEMENT_TIMEOUT`] at most: after that, the workload is short for a reason other than our
//! eviction. The last Ready pod of several waits for as long as it is the last.
//!
//! An owner is the controller of a pod. An eviction is in flight from its start until the pod is replaced.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use self::rate_limit::RateLimit;
use crate::mark::owner::Counts;

pub mod permit;
mod rate_limit;

/// The longest wait for a replacement, or for an owner that is not fully Ready for another reason.
pub const REPLACEMENT_TIMEOUT: SignedDuration = SignedDuration::from_secs(300);
/// The wait for a replacement whose readiness is unknown, because the owner is of a kind whose replicas cannot be
/// counted.
const UNKNOWN_OWNER_WAIT: SignedDuration = SignedDuration::from_secs(30);
/// A controller needs a moment to stop counting a pod that has just begun to terminate.
const STATUS_DELAY: SignedDuration = SignedDuration::from_secs(1);
/// The longest pause between two reads of the same owner.
const MAX_ASK_PAUSE: SignedDuration = SignedDuration::from_secs(30);

/// The controller of a pod that is due, as read from the API server.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// UID of its own controller: for a ReplicaSet the Deployment, which has two ReplicaSets during a rollout.
    pub group: Option<&'a str>,
    /// How many pods it wants, and how many are Ready; none if that is unknown.
    pub counts: Option<Counts>,
    /// Its resourceVersion.
    pub version: &'a str,
}

/// An eviction whose replacement is not Ready yet.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Flight {
    /// UID of the pod. Empty if the owner lacks Ready pods for another reason than an eviction.
    pod: String,
    since: Timestamp,
    /// The owner's resourceVersion at the start. While it is unchanged, the owner's status still counts the pod: with a
    /// controller manager that lags, no pod would seem to be missing.
    version: String,
    /// When [`Pacing::ask`] last let a pod of the owner through.
    asked: Timestamp,
    /// The pod is gone, or its owner no longer counts it.
    gone: bool,
    /// The flight that this one replaced, and which continues if this eviction is abandoned.
    before: Option<Box<Self>>,
}

impl Flight {
    /// Whether the pod was replaced, according to its owner's current status.
    fn is_replaced(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let is_counted = owner.version != self.version && now.duration_since(self.since) >= STATUS_DELAY;
        self.gone && is_counted && owner.counts.is_some_and(Counts::is_fully_ready)
    }

    /// Whether another pod may be evicted although this one was not replaced in time.
    fn is_timed_out(&self, owner: Owner<'_>, is_ready: bool, now: Timestamp) -> bool {
        let waited = now.duration_since(self.since);
        match owner.counts {
            // The last Ready pod has no timeout.
            Some(counts) => waited >= REPLACEMENT_TIMEOUT && !(is_ready && counts.is_last_ready()),
            None => waited >= REPLACEMENT_TIMEOUT || (self.gone && waited >= UNKNOWN_OWNER_WAIT),
        }
    }
}

/// The evictions in flight, and the rate limit.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Pacing {
    /// By UID of the owner.
    owners: HashMap<String, Flight>,
    /// By UID of a group: the owner of the last pod that was evicted.
    groups: HashMap<String, String>,
    /// By UID of the owner: the pod that is being reconciled.
    asking: HashMap<String, String>,
    /// The limit of all evictions together.
    rate: RateLimit,
}

impl Pacing {
    /// Whether reconciling this pod could lead to an eviction. If so, no other pod of the owner is reconciled until
    /// [`Pacing::asked`]. Of the many pods that can wait for one owner, one is let through from time to time.
    fn ask(&mut self, owner: Option<&str>, pod: &str, now: Timestamp) -> bool {
        let Some(owner) = owner else { return true };
        if self.asking.get(owner).is_some_and(|other| other != pod) {
            return false;
        }
        if let Some(flight) = self.owners.get_mut(owner) {
            // The longer the wait, the longer the pause, because each reconciliation costs two requests.
            let pause = STATUS_DELAY.max(flight.asked.duration_since(flight.since) / 2).min(MAX_ASK_PAUSE);
            // While the owner still counts the pod, no other pod could be evicted.
            let is_early = !flight.gone && now.duration_since(flight.since) < MAX_ASK_PAUSE;
            if flight.pod != pod && (is_early || now.duration_since(flight.asked) < pause) {
                return false;
            }
            flight.asked = now;
        }
        self.asking.insert(owner.to_owned(), pod.to_owned());
        true
    }

    /// The reconciliation that [`Pacing::ask`] let through has ended, with any result.
    fn asked(&mut self, owner: Option<&str>, pod: &str) {
        if let Some(owner) = owner
            && self.asking.get(owner).is_some_and(|asking| asking == pod)
        {
            self.asking.remove(owner);
        }
    }

    /// Whether the pod may be evicted now, given its controller as of now and whether the pod is Ready. If so, the
    /// eviction is in flight.
    fn begin(&mut self, owner: Owner<'_>, pod: &str, is_ready: bool, now: Timestamp) -> bool {
        let flight = self.owners.get(owner.uid);
        let free = !self.is_sibling_in_flight(owner, now)
            && match flight {
                // Its eviction was already started, and the result of that attempt is unknown.
                Some(flight) if flight.pod == pod => true,
                Some(flight) => {
                    let is_short_by_itself = flight.pod.is_empty();
                    (is_short_by_itself && !is_ready)
                        || flight.is_replaced(owner, now)
                        || flight.is_timed_out(owner, is_ready, now)
                }
                // The eviction of a pod that is not Ready does not reduce the number of Ready pods.
                None => !is_ready || owner.counts.is_none_or(Counts::is_fully_ready),
            };
        if free {
            self.start(owner, pod, now);
        } else if flight.is_none() {
            // The wait starts now and not at the deadline, because a new leader does not know what is in flight.
            self.start(Owner { group: None, version: "", ..owner }, "", now);
            self.gone(Some(owner.uid), "");
        }
        free
    }

    /// Whether an eviction of another owner in the same group is in flight. That owner's status is not read here, so
    /// the wait is that for an owner that cannot be counted.
    fn is_sibling_in_flight(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let last = owner.group.and_then(|group| self.groups.get(group)).filter(|last| *last != owner.uid);
        last.and_then(|last| self.owners.get(last)).is_some_and(|flight| {
            let waited = now.duration_since(flight.since);
            !flight.pod.is_empty() && waited < if flight.gone { UNKNOWN_OWNER_WAIT } else { REPLACEMENT_TIMEOUT }
        })
    }

    /// A pod of this owner is terminating, for any reason. So a new leader knows the evictions that the last leader
    /// started.
    pub fn terminates(&mut self, owner: &str, pod: &str, now: Timestamp) {
        if !self.owners.contains_key(owner) {
            self.start(Owner { uid: owner, group: None, counts: None, version: "" }, pod, now);
        }
    }

    /// Whether the pod may be quarantined now: only if its owner is fully Ready. This wait has no timeout, because the
    /// pod still uses its quota and its node's resources, so its replacement may never become Ready.
    fn begin_quarantine(&mut self, owner: Owner<'_>, pod: &str, now: Timestamp) -> bool {
        let free = owner.counts.is_some_and(Counts::is_fully_ready)
            && !self.is_sibling_in_flight(owner, now)
            && self.owners.get(owner.uid).is_none_or(|flight| flight.pod == pod || flight.is_replaced(owner, now));
        if free {
            self.start(owner, pod, now);
        }
        free
    }

    fn start(&mut self, owner: Owner<'_>, pod: &str, now: Timestamp) {
        if let Some(group) = owner.group {
            self.groups.insert(group.to_owned(), owner.uid.to_owned());
        }
        let before = self.owners.remove(owner.uid).filter(|flight| !flight.is_replaced(owner, now));
        let before = before.map(|flight| Box::new(Flight { before: None, ..flight }));
        let (pod, version) = (pod.to_owned(), owner.version.to_owned());
        self.owners.insert(owner.uid.to_owned(), Flight { pod, since: now, version, asked: now, gone: false, before });
    }

    /// The eviction was not sent: everything is as before [`Self::begin`].
    fn give_back(&mut self, owner: Option<&str>, pod: &str) {
        if let Some(owner) = owner
            && let Some(flight) = self.owners.remove(owner)
        {
            let continues = if flight.pod == pod { flight.before } else { Some(Box::new(flight)) };
            self.owners.extend(continues.map(|flight| (owner.to_owned(), *flight)));
        }
    }

    /// The eviction was refused or failed. If an earlier attempt for the same pod was never answered, it is now.
    fn refused(&mut self, owner: Option<&str>, pod: &str) {
        self.give_back(owner, pod);
        let is_of_pod = |owner: &&str| self.owners.get(*owner).is_some_and(|flight| flight.pod == pod);
        if let Some(owner) = owner.filter(is_of_pod) {
            self.owners.remove(owner);
        }
    }

    /// The pod of an eviction is gone, or its owner recreates it without waiting for that.
    pub fn gone(&mut self, owner: Option<&str>, pod: &str) {
        let mut next = owner.and_then(|owner| self.owners.get_mut(owner));
        while let Some(flight) = next {
            flight.gone |= flight.pod == pod;
            next = flight.before.as_deref_mut();
        }
    }

    /// Forgets flights that no pod waits for any more. Times in the future are corrected: the clock was set back.
    pub fn sweep(&mut self, now: Timestamp) {
        // No pod of the owner was reconciled for longer than any pod waits.
        self.owners.retain(|_, flight| now.duration_since(flight.asked) < REPLACEMENT_TIMEOUT * 2);
        self.groups.retain(|_, last| self.owners.contains_key(last));
        for flight in self.owners.values_mut() {
            (flight.since, flight.asked) = (flight.since.min(now), flight.asked.min(now));
        }
        self.rate.correct(now);
    }
}

#[cfg(test)]
mod tests;
