//! How fast pods are evicted: one pod per workload at a time, and all evictions within a rate limit. Pure.
//!
//! A workload can limit disruptions with a PodDisruptionBudget. Many have none, and after a loop of execs over all
//! replicas of a Deployment the deadline would be an outage. So a pod waits until as many pods are Ready as before the
//! last eviction, for [`REPLACEMENT_TIMEOUT`] at most, counted from when the evicted pod is gone: after that, the
//! workload is short for a reason other than our eviction. The last Ready pod of several waits for as long as it is the
//! last.
//!
//! An owner is the controller of a pod. An eviction is in flight from its start until the pod is replaced. A new leader
//! knows the evictions of the last one by the pods that it sees terminating, and for [`REPLACEMENT_TIMEOUT`] it reads the
//! pods of each workload before it evicts one of them.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

pub use self::flight::Owner;
use self::{flight::Flight, rate_limit::RateLimit};
use crate::mark::owner::{Counts, Look};

mod flight;
pub mod permit;
mod rate_limit;

/// The longest wait for a replacement, or for an owner that is not fully Ready for another reason.
pub const REPLACEMENT_TIMEOUT: SignedDuration = SignedDuration::from_secs(300);
/// The longest wait for a replacement on the node of a DaemonSet. A replacement that does not become Ready is the first
/// sign that no node can start the pod, for example because its image is gone.
const DAEMON_TIMEOUT: SignedDuration = SignedDuration::from_secs(3600);
/// The wait for a replacement whose readiness is unknown, because the owner is of a kind whose replicas cannot be
/// counted.
const UNKNOWN_OWNER_WAIT: SignedDuration = SignedDuration::from_secs(30);
/// A controller needs a moment to stop counting a pod that has just begun to terminate.
const STATUS_DELAY: SignedDuration = SignedDuration::from_secs(1);
/// The longest pause between two reads of the same owner.
const MAX_ASK_PAUSE: SignedDuration = SignedDuration::from_secs(30);

/// The evictions in flight, and the rate limit.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Pacing {
    /// By UID of the owner.
    owners: HashMap<String, Flight>,
    /// By group: the owner of the last pod that was evicted.
    groups: HashMap<String, String>,
    /// By UID of the owner: the pod that is being reconciled.
    asking: HashMap<String, String>,
    /// The limit of all evictions together.
    rate: RateLimit,
    /// By UID of a pod that was seen terminating: when its grace period ends.
    leaving: HashMap<String, Timestamp>,
    /// When this replica became the leader.
    leads_since: Option<Timestamp>,
}

impl Pacing {
    /// This replica became the leader. What another one started since is known only as far as pods are terminating.
    pub fn took_over(&mut self, now: Timestamp) {
        self.leads_since = Some(now);
        self.owners.retain(|_, flight| !flight.is_short());
        for flight in self.owners.values_mut() {
            (flight.version, flight.ready_before, flight.before) = (None, None, None);
        }
    }

    fn leads_for_less_than(&self, time: SignedDuration, now: Timestamp) -> bool {
        self.leads_since.is_some_and(|since| now.duration_since(since) < time)
    }

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
            let is_early = flight.gone.is_none() && now.duration_since(flight.since) < MAX_ASK_PAUSE;
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

    /// What to read of this owner.
    fn look(&self, owner: &str, now: Timestamp) -> Look {
        match self.owners.get(owner) {
            Some(flight) if !flight.is_short() && flight.version.is_some() => Look::Status,
            Some(flight) if !flight.is_short() => Look::Pods,
            _ if self.leads_for_less_than(REPLACEMENT_TIMEOUT, now) => Look::Pods,
            _ => Look::PodsIfShort,
        }
    }

    /// Whether the pod may be evicted now, given its controller as of now and whether the pod is Ready. If so, the
    /// eviction is in flight.
    fn begin(&mut self, owner: Owner<'_>, pod: &str, is_ready: bool, now: Timestamp) -> bool {
        let flight = self.owners.get(owner.uid);
        let is_free = match flight {
            // Its eviction was already started, and the result of that attempt is unknown.
            Some(flight) if flight.pod == pod => true,
            Some(flight) if flight.is_short() => {
                !is_ready || self.is_untouched(owner, now) || flight.is_timed_out(owner, now)
            }
            Some(flight) => flight.is_replaced(owner, now) || flight.is_timed_out(owner, now),
            // The eviction of a pod that is not Ready does not reduce the number of Ready pods.
            None => !is_ready || self.is_untouched(owner, now),
        };
        let is_own = flight.is_some_and(|flight| flight.pod == pod);
        let must_wait = owner.is_last(is_ready)
            || (is_ready && !is_own && owner.is_leaving(now))
            || self.is_sibling_in_flight(owner, now);
        if is_free && !must_wait {
            self.start(owner, pod, now);
        } else if flight.is_none() {
            // The wait starts now and not at the deadline, because a new leader does not know what is in flight.
            self.owners.insert(owner.uid.to_owned(), Flight::short(now));
        }
        is_free && !must_wait
    }

    /// Whether no pod of an owner is being replaced, of which no eviction is known.
    fn is_untouched(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let Some(counts) = owner.counts else { return !self.leads_for_less_than(UNKNOWN_OWNER_WAIT, now) };
        owner.is_settled(now).unwrap_or_else(|| {
            let is_whole = !counts.is_shared || counts.is_fully_ready();
            is_whole && !self.leads_for_less_than(REPLACEMENT_TIMEOUT, now)
        })
    }

    /// Whether an eviction of another owner in the same group is in flight. That owner's status is not read here, so
    /// the wait is that for an owner that cannot be counted.
    fn is_sibling_in_flight(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let last = owner.group.and_then(|group| self.groups.get(group)).filter(|last| *last != owner.uid);
        last.and_then(|last| self.owners.get(last)).is_some_and(|flight| {
            let wait = if flight.gone.is_some() { UNKNOWN_OWNER_WAIT } else { REPLACEMENT_TIMEOUT };
            !flight.is_short() && flight.waited(now) < wait
        })
    }

    /// A pod of this owner is terminating, for any reason, until `gone_by`. So a new leader knows the evictions that the
    /// last leader started.
    pub fn terminates(&mut self, owner: &str, group: Option<&str>, pod: &str, gone_by: Timestamp, now: Timestamp) {
        // Each write of its status, ours too, is another event.
        let is_news = self.leaving.insert(pod.to_owned(), gone_by).is_none();
        match self.owners.get_mut(owner) {
            Some(flight) if flight.pod == pod => flight.gone_by = gone_by,
            _ if !is_news => {}
            // The one before is not gone. Its wait is the longer one, unless it is stuck.
            Some(flight) if flight.gone.is_none() => {}
            known => {
                let ready_before = known.and_then(|flight| flight.ready_before);
                let flight = Flight { ready_before, ..Flight::of_other(pod, gone_by, now) };
                self.owners.insert(owner.to_owned(), flight);
                self.groups.extend(group.map(|group| (group.to_owned(), owner.to_owned())));
            }
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
        self.groups.extend(owner.group.map(|group| (group.to_owned(), owner.uid.to_owned())));
        let before = self.owners.remove(owner.uid).map(|flight| Box::new(Flight { before: None, ..flight }));
        self.owners.insert(owner.uid.to_owned(), Flight { before, ..Flight::new(owner, pod, now) });
    }

    /// The request is sent: the pod may be terminating, until `gone_by`.
    fn sent(&mut self, owner: Option<&str>, pod: &str, gone_by: Timestamp) {
        let flight = owner.and_then(|owner| self.owners.get_mut(owner));
        if let Some(flight) = flight.filter(|flight| flight.pod == pod) {
            flight.gone_by = gone_by;
        }
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

    /// The eviction was refused or failed. If an earlier attempt for the same pod was never answered, it is now: the pod
    /// is not terminating.
    fn refused(&mut self, owner: Option<&str>, pod: &str) {
        self.give_back(owner, pod);
        let is_over = |flight: &Flight| flight.pod == pod && flight.gone.is_none();
        if let Some(owner) = owner.filter(|owner| self.owners.get(*owner).is_some_and(is_over)) {
            self.owners.remove(owner);
        }
    }

    /// The pod of an eviction is gone, or its owner recreates it without waiting for that.
    pub fn gone(&mut self, owner: Option<&str>, pod: &str, now: Timestamp) {
        let mut next = owner.and_then(|owner| self.owners.get_mut(owner));
        while let Some(flight) = next {
            if flight.pod == pod && flight.gone.is_none() {
                flight.gone = Some(now);
            }
            next = flight.before.as_deref_mut();
        }
    }

    /// Forgets flights that no pod waits for any more. Times in the future are corrected: the clock was set back.
    pub fn sweep(&mut self, now: Timestamp) {
        self.owners.retain(|_, flight| {
            // No pod of the owner was reconciled for longer than any pod waits.
            let is_awaited = now.duration_since(flight.asked) < REPLACEMENT_TIMEOUT * 2;
            is_awaited || (flight.gone.is_none() && flight.waited(now) < REPLACEMENT_TIMEOUT)
        });
        self.groups.retain(|_, last| self.owners.contains_key(last));
        self.leaving.retain(|_, gone_by| now.duration_since(*gone_by) < REPLACEMENT_TIMEOUT * 2);
        for flight in self.owners.values_mut() {
            (flight.since, flight.asked) = (flight.since.min(now), flight.asked.min(now));
            flight.gone = flight.gone.map(|gone| gone.min(now));
        }
        self.leads_since = self.leads_since.map(|since| since.min(now));
        self.rate.correct(now);
    }
}

#[cfg(test)]
mod tests;
