//! How long the Secret has been of no use: another replica may restore it from its memory meanwhile. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{Stored, is_far_ahead};
use crate::{
    certs::{Lifetimes, after},
    clock::Now,
};

/// How long a replica without the CA in memory waits for another replica to restore the Secret, if the webhook
/// configuration shows that there was a CA. More than twice the 30 s after which a replica observes the Secret without
/// a watch event: its watch may be interrupted at that moment, and the Secret may be damaged again right after the
/// restore.
pub const RESTORE_WAIT: Duration = Duration::from_secs(65);

/// Whether the Secret is of no use now: it is absent, unreadable, older than what was published, or its CA becomes valid
/// only in the future.
#[must_use]
pub fn is_missing(stored: &Stored, published_generation: u64, lifetimes: &Lifetimes, now: &Now) -> bool {
    match stored {
        Stored::Absent | Stored::Unreadable(_) => true,
        Stored::Store(store) => {
            store.generation < published_generation || is_far_ahead(store.active.certificate.not_before, lifetimes, now)
        }
    }
}

/// How long this replica has observed that the Secret is of no use.
#[derive(Clone, Copy, Debug)]
pub struct Missing {
    waited: Duration,
    observed_at: Timestamp,
}

impl Missing {
    /// Returns the wait after one more observation, `elapsed` after the last one by a clock that does not jump. A
    /// replica that missed a full [`RESTORE_WAIT`] by its wall clock, `own`, was suspended: its earlier observations
    /// prove nothing, so the wait restarts.
    #[must_use]
    pub fn observe(before: Option<Self>, is_missing: bool, own: Timestamp, elapsed: Duration) -> Option<Self> {
        if !is_missing {
            return None;
        }
        let awake = before.filter(|before| own < after(before.observed_at, RESTORE_WAIT));
        Some(Self { waited: awake.map_or(Duration::ZERO, |before| before.waited + elapsed), observed_at: own })
    }

    /// How long.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }
}
