//! The permission to evict one pod, as values that give everything back when they are dropped. Pure.
//!
//! Three values follow each other. A [`Turn`]: no other pod of the workload is reconciled. A [`Permit`]: the eviction is
//! in flight, so the other pods of the workload wait for the replacement. [`Sent`]: the API server may have received the
//! request. A reconciliation that ends early, in any way, drops what it holds. Only a dropped [`Sent`] gives nothing
//! back: without an answer, the eviction may have been accepted.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::{Owner, Pacing};
use crate::mark::owner::Look;

/// The pacing that all reconciliations share. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pacer(Arc<Mutex<Pacing>>);

impl Pacer {
    /// The pacing, to report what was observed. A panic while it was locked leaves it usable.
    pub fn lock(&self) -> MutexGuard<'_, Pacing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long until the rate limit allows an eviction; none if it does now.
    #[must_use]
    pub fn limit(&self, per_minute: u32, now: Timestamp) -> Option<Duration> {
        self.lock().rate.wait(per_minute, now)
    }

    /// Counts an eviction against the rate limit alone. For a pod in a surge: its replacement is Ready, and its workload has
    /// waited for it since the surge began.
    ///
    /// # Errors
    /// How long to wait, when the rate limit allows no eviction now.
    pub fn spend(&self, per_minute: u32, now: Timestamp) -> Result<Spent, Duration> {
        self.lock().rate.spend(per_minute, now)?;
        Ok(Spent { pacer: self.clone(), is_kept: false })
    }

    /// The surge of this pod ended without an eviction: the others of its workload do not wait for it any more.
    pub fn surge_ended(&self, workload: Option<&str>, pod: &str) {
        self.lock().refused(workload, pod);
    }

    /// The turn of this pod, unless reconciling it could not lead to an eviction now. `workload` is none for a pod that
    /// waits for no other.
    #[must_use]
    pub fn turn(&self, workload: Option<&str>, pod: &str, now: Timestamp) -> Option<Turn> {
        self.lock().ask(workload, pod, now).then(|| Turn {
            pacer: self.clone(),
            workload: workload.map(str::to_owned),
            pod: pod.to_owned(),
        })
    }
}

/// A place in the rate limit. Dropped: it is given back.
#[derive(Debug)]
#[must_use]
pub struct Spent {
    pacer: Pacer,
    is_kept: bool,
}

impl Spent {
    /// The pod was evicted, or the API server did not answer.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        if !self.is_kept {
            self.pacer.lock().rate.refund();
        }
    }
}

/// While it exists, no other pod of the workload is reconciled.
#[derive(Debug)]
#[must_use]
pub struct Turn {
    pacer: Pacer,
    workload: Option<String>,
    pod: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pacer.lock().asked(self.workload.as_deref(), &self.pod);
    }
}

impl Turn {
    /// What to read of the pod's controller.
    #[must_use]
    pub fn look(&self, now: Timestamp) -> Look {
        self.workload.as_deref().map_or(Look::Status, |workload| self.pacer.lock().look(workload, now))
    }

    /// The permit to evict the pod, if its workload can spare it now; `owner` is its controller as of now, if it has
    /// one.
    #[must_use]
    pub fn begin(&self, owner: Option<Owner<'_>>, is_ready: bool, now: Timestamp) -> Option<Permit<'_>> {
        let is_free = owner.is_none_or(|owner| self.pacer.lock().begin(owner, &self.pod, is_ready, now));
        is_free.then(|| Permit { turn: self, is_spent: false, is_sent: false })
    }

    /// The permit to quarantine the pod.
    #[must_use]
    pub fn begin_quarantine(&self, owner: Owner<'_>, now: Timestamp) -> Option<Permit<'_>> {
        let is_free = self.pacer.lock().begin_quarantine(owner, &self.pod, now);
        is_free.then(|| Permit { turn: self, is_spent: false, is_sent: false })
    }
}

/// The eviction is in flight, and was not sent.
#[derive(Debug)]
#[must_use]
pub struct Permit<'a> {
    turn: &'a Turn,
    is_spent: bool,
    is_sent: bool,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.is_sent {
            return;
        }
        let mut pacing = self.turn.pacer.lock();
        pacing.give_back(self.turn.workload.as_deref(), &self.turn.pod);
        if self.is_spent {
            pacing.rate.refund();
        }
    }
}

impl<'a> Permit<'a> {
    /// Counts the eviction against the rate limit.
    ///
    /// # Errors
    /// How long to wait, when the rate limit allows no eviction now.
    pub fn spend(&mut self, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        self.turn.pacer.lock().rate.spend(per_minute, now)?;
        self.is_spent = true;
        Ok(())
    }

    /// Right before the request is sent: from now on, only an answer gives anything back. If the request is accepted,
    /// the pod's grace period ends at `gone_by`.
    pub fn send(mut self, gone_by: Timestamp) -> Sent<'a> {
        self.is_sent = true;
        self.turn.pacer.lock().sent(self.turn.workload.as_deref(), &self.turn.pod, gone_by);
        Sent { turn: self.turn, is_spent: self.is_spent }
    }
}

/// The request was sent. Dropped: the others of the workload wait, and the rate limit counts it.
#[derive(Debug)]
#[must_use]
pub struct Sent<'a> {
    turn: &'a Turn,
    is_spent: bool,
}

impl Sent<'_> {
    /// The pod was evicted, or the API server did not answer.
    pub const fn keep(self) {}

    /// The API server refused the eviction, or answered with an error.
    pub fn refused(self) {
        let mut pacing = self.turn.pacer.lock();
        pacing.refused(self.turn.workload.as_deref(), &self.turn.pod);
        if self.is_spent {
            pacing.rate.refund();
        }
    }

    /// Another client deleted the pod: the others of its workload wait for its replacement.
    pub fn pod_was_gone(self, now: Timestamp) {
        let mut pacing = self.turn.pacer.lock();
        pacing.gone(self.turn.workload.as_deref(), &self.turn.pod, now);
        if self.is_spent {
            pacing.rate.refund();
        }
    }

    /// The pod's owner no longer counts it, and creates its replacement.
    pub fn is_released(self, now: Timestamp) {
        self.turn.pacer.lock().gone(self.turn.workload.as_deref(), &self.turn.pod, now);
    }
}

#[cfg(test)]
mod tests;
