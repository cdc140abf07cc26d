//! One eviction in flight, and what its owner shows of the replacement. Pure.

use jiff::{SignedDuration, Timestamp};

use super::{DAEMON_TIMEOUT, REPLACEMENT_TIMEOUT, STATUS_DELAY, UNKNOWN_OWNER_WAIT};
use crate::mark::owner::{Counts, Seen};

/// The controller of a pod that is due, as read from the API server.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// What several owners have in common, see [`crate::mark::owner::group`]: during a rollout, a Deployment has two
    /// ReplicaSets.
    pub group: Option<&'a str>,
    /// How many pods it wants, and how many are Ready; none if that is unknown.
    pub counts: Option<Counts>,
    /// Its resourceVersion.
    pub version: &'a str,
    /// What its pods show, if they were read. Then the counts are from the pods too, and never late.
    pub seen: Option<Seen>,
}

impl Owner<'_> {
    /// Whether this pod is the last Ready one of several.
    pub(super) fn is_last(&self, is_ready: bool) -> bool {
        is_ready && self.counts.is_some_and(Counts::is_last_ready)
    }

    /// Whether a pod is terminating that its controller recreates only when it is gone. A pod that is stuck counts for
    /// [`REPLACEMENT_TIMEOUT`] after its grace period.
    pub(super) fn is_leaving(&self, now: Timestamp) -> bool {
        let until = self.seen.and_then(|seen| seen.leaving_until);
        until.is_some_and(|until| now.duration_since(until) < REPLACEMENT_TIMEOUT)
    }

    /// Whether its pods show that no replacement is on its way; none if they were not read.
    pub(super) fn is_settled(&self, now: Timestamp) -> Option<bool> {
        let starts = |since: Timestamp| now.duration_since(since) < REPLACEMENT_TIMEOUT;
        self.seen.map(|seen| !self.is_leaving(now) && !seen.starting_since.is_some_and(starts))
    }
}

/// An eviction whose replacement is not Ready yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Flight {
    /// UID of the pod. Empty if the owner lacks Ready pods for another reason than an eviction.
    pub pod: String,
    pub since: Timestamp,
    /// The owner's resourceVersion at the start. While it is unchanged, the owner's status still counts the pod: with a
    /// controller manager that lags, no pod would seem to be missing. None if another replica started the eviction.
    pub version: Option<String>,
    /// How many pods of the owner were Ready at the start, if that is known. More are not waited for: a pod that is not
    /// Ready for another reason would delay each eviction.
    pub ready_before: Option<i32>,
    /// When a pod of the owner was last let through.
    pub asked: Timestamp,
    /// When the pod's grace period ends.
    pub gone_by: Timestamp,
    /// When the pod was gone, or its owner no longer counted it.
    pub gone: Option<Timestamp>,
    /// The flight that this one replaced, and which continues if this eviction is not sent.
    pub before: Option<Box<Self>>,
}

impl Flight {
    pub(super) fn new(owner: Owner<'_>, pod: &str, now: Timestamp) -> Self {
        Self {
            pod: pod.to_owned(),
            since: now,
            version: Some(owner.version.to_owned()),
            ready_before: owner.counts.map(|counts| counts.ready),
            asked: now,
            gone_by: now,
            gone: None,
            before: None,
        }
    }

    /// The wait of an owner that lacks Ready pods for another reason than an eviction.
    pub(super) fn short(now: Timestamp) -> Self {
        Self {
            pod: String::new(),
            since: now,
            version: None,
            ready_before: None,
            asked: now,
            gone_by: now,
            gone: Some(now),
            before: None,
        }
    }

    /// The eviction, or the deletion, of a pod by another client.
    pub(super) fn of_other(pod: &str, gone_by: Timestamp, now: Timestamp) -> Self {
        Self { pod: pod.to_owned(), gone_by, gone: None, ..Self::short(now) }
    }

    pub(super) const fn is_short(&self) -> bool {
        self.pod.is_empty()
    }

    /// How long the owner had time to replace the pod: since it is gone, or since its grace period ended. Negative
    /// before that.
    pub(super) fn waited(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.gone.unwrap_or(self.gone_by))
    }

    /// Whether the pod was replaced, according to its owner's pods, or else to its status.
    pub(super) fn is_replaced(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let Some(counts) = owner.counts else { return false };
        let is_current =
            owner.seen.is_some() || self.version.as_deref().is_some_and(|version| version != owner.version);
        let is_whole = match self.ready_before {
            Some(before) => counts.ready >= before.min(counts.wanted),
            None => counts.is_fully_ready() || owner.is_settled(now) == Some(true),
        };
        self.gone.is_some() && is_current && now.duration_since(self.since) >= STATUS_DELAY && is_whole
    }

    /// Whether another pod may be evicted although this one was not replaced in time.
    pub(super) fn is_timed_out(&self, owner: Owner<'_>, now: Timestamp) -> bool {
        let waited = self.waited(now);
        match owner.counts {
            Some(counts) if !counts.is_shared && !self.is_short() => waited >= DAEMON_TIMEOUT,
            Some(_) => waited >= REPLACEMENT_TIMEOUT,
            None => waited >= REPLACEMENT_TIMEOUT || (self.gone.is_some() && waited >= UNKNOWN_OWNER_WAIT),
        }
    }
}

#[cfg(test)]
mod tests;
