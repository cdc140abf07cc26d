//! The eviction room. This file decides and is pure: given a pod as it is now and the time, what comes next.
//!
//! Level-triggered: nothing here remembers an earlier answer, so a lost, doubled or late wake-up changes nothing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::mark::{Found, Mark};

pub mod controller;
pub mod lease;

/// What comes next for a pod.
#[derive(Debug, Eq, PartialEq)]
pub enum Next {
    /// Nothing: not marked, only recorded, finished, or terminating already. Watch events say if that changes.
    Nothing(&'static str),
    /// It carries keys of ours that are not a mark of it.
    Ignore(String),
    /// Due, but never to be evicted, and why.
    NotEvictable(Mark, &'static str),
    /// Not before this.
    Wait {
        /// The deadline.
        until: Timestamp,
    },
    /// Evict it now.
    Evict(Mark),
}

/// Decides. Never [`Next::Evict`] before the deadline, nor for another UID than the mark's own.
#[must_use]
pub fn plan(pod: &Pod, now: Timestamp) -> Next {
    let mark = match Found::on(pod) {
        Found::None => return Next::Nothing("not marked"),
        Found::NotAMark(why) => return Next::Ignore(why),
        Found::Mark(mark) => mark,
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Next::Nothing("terminating");
    }
    let Some(deadline) = mark.evict_at else { return Next::Nothing("recorded only") };
    // Containers that have ended run nothing that could differ from what was deployed; an eviction would only lose logs.
    if matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return Next::Nothing("finished");
    }
    if now < deadline {
        return Next::Wait { until: deadline };
    }
    if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror")) {
        // Seen on a real cluster: a new mirror pod without the mark comes within a minute, and the container runs on.
        return Next::NotEvictable(
            mark,
            "a static pod is run by its node; evicting it removes the mark and not the container",
        );
    }
    Next::Evict(mark)
}

/// How long to wait after the n-th refusal in a row (the first is 0), where `random` is in `0.0..1.0`: 2 s, doubling to
/// 30 s, spread by a quarter either way. There is no last attempt.
#[must_use]
pub fn backoff(refusals: u32, random: f64) -> Duration {
    let seconds = 2_u64.saturating_pow(refusals.saturating_add(1).min(8)).min(30);
    Duration::from_secs(seconds).mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
