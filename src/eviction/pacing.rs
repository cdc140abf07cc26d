//! How fast pods go: one of each owner at a time, and not too many at once. Pure.
//!
//! A disruption budget is the owner's own word on this; many have none, and a loop of execs over all replicas of a
//! Deployment would be an outage at the deadline. So a pod waits until the last one's replacement is Ready, or for
//! [`PATIENCE`], after which it is not us who keep the owner from being whole. The last Ready pod of several waits for as
//! long as it is the last.

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::mark::owner::Counts;

/// The longest wait for a replacement, or for an owner that is not whole for reasons of its own.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(300);
/// The wait for a replacement where nobody can tell whether it is Ready: an owner of a kind that is not known here.
const BLIND: SignedDuration = SignedDuration::from_secs(30);
/// Owners need a moment to count a pod out that has just begun to terminate.
const SETTLE: SignedDuration = SignedDuration::from_secs(1);

/// The controller of a pod that may go, as the API server has it.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// UID of its own controller: the Deployment of a ReplicaSet, which has two of them while it is rolled out.
    pub group: Option<&'a str>,
    /// How many pods it wants and has; none if that cannot be told.
    pub counts: Option<Counts>,
    /// Its resourceVersion.
    pub version: &'a str,
}

/// A pod that goes, and whose replacement is waited for.
#[derive(Clone, Debug)]
struct Flight {
    /// Empty where somebody else's doing is waited for.
    pod: String,
    since: Timestamp,
    /// The owner's resourceVersion before. While that is still its own, its status does not count the pod out yet: a controller
    /// manager that lags would have us believe that nothing is missing.
    version: String,
    /// When somebody was last let through to ask about the owner.
    asked: Timestamp,
    /// The pod is gone for good.
    gone: bool,
    /// What was waited for before, and is again if this one comes to nothing.
    before: Option<Box<Self>>,
}

impl Flight {
    /// Whether the pod was replaced, by what its owner says now.
    fn is_over(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let is_counted = owner.version != self.version && now.duration_since(self.since) >= SETTLE;
        self.gone && is_counted && owner.counts.is_some_and(Counts::is_fully_ready)
    }

    /// Whether another pod may go although it was not replaced.
    fn is_waited_for_no_longer(&self, owner: Owner<'_>, is_ready: bool, now: Timestamp) -> bool {
        let waited = now.duration_since(self.since);
        match owner.counts {
            // Not even then the last one that serves.
            Some(counts) => waited >= PATIENCE && !(is_ready && counts.is_last_ready()),
            None => waited >= PATIENCE || (self.gone && waited >= BLIND),
        }
    }
}

/// What is in flight.
#[derive(Debug, Default)]
pub struct Pacing {
    owners: HashMap<String, Flight>,
    /// Of which owner the last pod of a group went.
    groups: HashMap<String, String>,
    /// Owners about whom the API server is being asked, and for which pod.
    asking: HashMap<String, String>,
    /// Evictions that may begin now, in thousandths, and when that was counted.
    budget: Option<(i64, Timestamp)>,
}

impl Pacing {
    /// Whether a look at this pod of this owner could lead to an eviction; if so, no other pod of the owner is looked at
    /// until [`Pacing::asked`]. Of the many that may wait for one owner, one is let through now and then.
    pub fn ask(&mut self, owner: Option<&str>, pod: &str, now: Timestamp) -> bool {
        let Some(owner) = owner else { return true };
        if self.asking.get(owner).is_some_and(|other| other != pod) {
            return false;
        }
        if let Some(flight) = self.owners.get_mut(owner) {
            // The longer it takes, the less often: a look costs two calls of the API server.
            let pause = SETTLE.max(flight.asked.duration_since(flight.since) / 2).min(BLIND);
            // Until the pod counts no more, no look could lead to anything.
            let is_early = !flight.gone && now.duration_since(flight.since) < BLIND;
            if flight.pod != pod && (is_early || now.duration_since(flight.asked) < pause) {
                return false;
            }
            flight.asked = now;
        }
        self.asking.insert(owner.to_owned(), pod.to_owned());
        true
    }

    /// The look is over, whatever came of it.
    pub fn asked(&mut self, owner: Option<&str>, pod: &str) {
        if let Some(owner) = owner
            && self.asking.get(owner).is_some_and(|asking| asking == pod)
        {
            self.asking.remove(owner);
        }
    }

    /// Whether the pod may go now, where `owner` is its controller as of now, and `is_ready` whether the pod counts as one
    /// of the Ready ones. If so, it is in flight.
    pub fn begin(&mut self, owner: Owner<'_>, pod: &str, is_ready: bool, now: Timestamp) -> bool {
        let flight = self.owners.get(owner.uid);
        let free = !self.is_sibling_in_flight(owner, now)
            && match flight {
                // It was let go before, and what became of that is not known.
                Some(flight) if flight.pod == pod => true,
                Some(flight) => {
                    let is_short_by_itself = flight.pod.is_empty();
                    (is_short_by_itself && !is_ready)
                        || flight.is_over(owner, now)
                        || flight.is_waited_for_no_longer(owner, is_ready, now)
                }
                // Taking away one that is not Ready takes nothing away.
                None => !is_ready || owner.counts.is_none_or(Counts::is_fully_ready),
            };
        if free {
            self.depart(owner, pod, now);
        } else if flight.is_none() {
            // From now on, and not from the deadline: after a change of leader nobody remembers what is in flight.
            self.depart(Owner { group: None, version: "", ..owner }, "", now);
            self.gone(Some(owner.uid), "");
        }
        free
    }

    /// Whether a pod of another owner of the same group goes. What that owner says of itself is not known here, so that its pod is
    /// waited for as where nobody can tell.
    fn is_sibling_in_flight(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let last = owner.group.and_then(|group| self.groups.get(group)).filter(|last| *last != owner.uid);
        last.and_then(|last| self.owners.get(last)).is_some_and(|flight| {
            let waited = now.duration_since(flight.since);
            !flight.pod.is_empty() && waited < if flight.gone { BLIND } else { PATIENCE }
        })
    }

    /// A pod of this owner terminates, whoever wanted that. So a new leader knows what the last one has begun.
    pub fn terminates(&mut self, owner: &str, pod: &str, now: Timestamp) {
        if !self.owners.contains_key(owner) {
            self.depart(Owner { uid: owner, group: None, counts: None, version: "" }, pod, now);
        }
    }

    /// Whether the pod may be taken out of service now, of an owner that has all it wants. There is no bound to this wait: the
    /// pod keeps its place in quotas and on its node, so that its replacement may never come.
    pub fn begin_quarantine(&mut self, owner: Owner<'_>, pod: &str, now: Timestamp) -> bool {
        let free = owner.counts.is_some_and(Counts::is_fully_ready)
            && !self.is_sibling_in_flight(owner, now)
            && self.owners.get(owner.uid).is_none_or(|flight| flight.pod == pod || flight.is_over(owner, now));
        if free {
            self.depart(owner, pod, now);
        }
        free
    }

    fn depart(&mut self, owner: Owner<'_>, pod: &str, now: Timestamp) {
        if let Some(group) = owner.group {
            self.groups.insert(group.to_owned(), owner.uid.to_owned());
        }
        let before = self.owners.remove(owner.uid).filter(|flight| flight.pod != pod && !flight.is_over(owner, now));
        let before = before.map(|flight| Box::new(Flight { before: None, ..flight }));
        let (pod, version) = (pod.to_owned(), owner.version.to_owned());
        self.owners.insert(owner.uid.to_owned(), Flight { pod, since: now, version, asked: now, gone: false, before });
    }

    /// The eviction was refused, or came to nothing.
    pub fn abandon(&mut self, owner: Option<&str>, pod: &str) {
        if let Some(owner) = owner
            && let Some(flight) = self.owners.remove(owner)
        {
            let stays = if flight.pod == pod { flight.before } else { Some(Box::new(flight)) };
            self.owners.extend(stays.map(|flight| (owner.to_owned(), *flight)));
        }
    }

    /// The pod of an eviction does not count any more: it is gone, or its owner makes the next one without waiting for that.
    pub fn gone(&mut self, owner: Option<&str>, pod: &str) {
        let flight = owner.and_then(|owner| self.owners.get_mut(owner));
        if let Some(flight) = flight.filter(|flight| flight.pod == pod) {
            flight.gone = true;
        }
    }

    /// Forgets flights that hold up nobody any more. Times that are to come are of a clock that was set back since.
    pub fn sweep(&mut self, now: Timestamp) {
        // Nobody has asked about them for longer than anybody waits.
        self.owners.retain(|_, flight| now.duration_since(flight.asked) < PATIENCE * 2);
        self.groups.retain(|_, last| self.owners.contains_key(last));
        for flight in self.owners.values_mut() {
            (flight.since, flight.asked) = (flight.since.min(now), flight.asked.min(now));
        }
        self.budget = self.budget.map(|(left, at)| (left, at.min(now)));
    }

    /// How long until the budget allows an eviction; none if it does now.
    #[must_use]
    pub fn wait(&self, per_minute: u32, now: Timestamp) -> Option<Duration> {
        let (left, rate) = (self.left(per_minute, now), i64::from(per_minute.max(1)));
        // What was earned is not lost to rounding: the time it is counted from stays until something is spent.
        (left < 1000).then(|| Duration::from_millis(u64::try_from((1000 - left) * 60 / rate).unwrap_or(0).max(10)))
    }

    fn left(&self, per_minute: u32, now: Timestamp) -> i64 {
        let (rate, most) = (i64::from(per_minute.max(1)), i64::from((per_minute / 10).max(1)) * 1000);
        let (left, at) = self.budget.unwrap_or((most, now));
        let earned = now.duration_since(at).as_millis().clamp(0, 60_000);
        (left + rate * i64::try_from(earned).unwrap_or(0) / 60).min(most)
    }

    /// Takes one eviction out of the budget of `per_minute`, of which a tenth may be spent at once; or says how long to
    /// wait.
    ///
    /// # Errors
    /// The wait, when the budget is spent.
    pub fn spend(&mut self, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        if let Some(wait) = self.wait(per_minute, now) {
            return Err(wait);
        }
        self.budget = Some((self.left(per_minute, now) - 1000, now));
        Ok(())
    }

    /// Gives back what was spent on an eviction that was refused: those that wait for a disruption budget must not keep
    /// others from going.
    pub fn refund(&mut self) {
        self.budget = self.budget.map(|(left, at)| (left + 1000, at));
    }
}

#[cfg(test)]
mod tests;
