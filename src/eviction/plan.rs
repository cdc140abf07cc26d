//! Decides what happens next to a marked pod, from the pod as it is now and the time. Pure.
//!
//! Level-triggered: no decision depends on an earlier one, so a lost, repeated or late wake-up changes nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::Settings;
use crate::mark::{
    Found, Mark, State, Status,
    extension::Extension,
    owner::{STATIC, is_static},
};

/// What happens next to a pod.
#[derive(Debug, Eq, PartialEq)]
pub enum Next {
    /// Nothing: the pod is not marked, or the interaction is only recorded. A watch event reports a change.
    Nothing(&'static str),
    /// All containers have terminated and none restarts: the pod is kept for its logs.
    Finished(Mark),
    /// The pod is already terminating.
    Terminating {
        /// The mark.
        mark: Mark,
        /// When its grace period ends.
        gone_by: Timestamp,
    },
    /// The pod has Pristine's label or annotations, but they are not a mark of this pod; with the reason.
    Ignore(String),
    /// A rule asks for an eviction of the pod, and it is never evicted; with the reason.
    NotEvictable(Mark, &'static str),
    /// The deadline is in the future.
    Wait {
        /// The mark.
        mark: Mark,
        /// The deadline, with the extension that is granted.
        until: Timestamp,
    },
    /// The pod is due: evict it now.
    Evict {
        /// The mark.
        mark: Mark,
        /// The deadline.
        due: Timestamp,
    },
}

/// Decides. Never returns [`Next::Evict`] before the deadline, or for a pod with a UID other than the mark's.
#[must_use]
pub fn plan(pod: &Pod, settings: &Settings, now: Timestamp) -> Next {
    let mark = match Found::on(pod) {
        Found::None => return Next::Nothing("not marked"),
        Found::NotAMark(why) => return Next::Ignore(why),
        Found::Mark(mark) => mark,
    };
    let granted = Extension::on(pod).grant(&mark, settings.max_extension);
    let Some(due) = granted.deadline else { return Next::Nothing("recorded only") };
    if let Some(at) = &pod.metadata.deletion_timestamp {
        return Next::Terminating { mark, gone_by: at.0 };
    }
    // Terminated containers run nothing that could differ from what was deployed. An eviction would only lose logs.
    if is_finished(pod) {
        return Next::Finished(mark);
    }
    // Before the deadline too, so that no user waits for an eviction that never happens.
    if is_static(pod) {
        return Next::NotEvictable(mark, STATIC);
    }
    if now < due {
        return Next::Wait { mark, until: due };
    }
    Next::Evict { mark, due }
}

/// Whether all containers have terminated and none restarts. The phase lags the containers' states by up to two
/// seconds.
fn is_finished(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let never = pod.spec.as_ref().is_some_and(|spec| spec.restart_policy.as_deref() == Some("Never"));
    let mut containers = status.container_statuses.iter().flatten().peekable();
    let is_terminated =
        |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        || (never && containers.peek().is_some() && containers.all(is_terminated))
}

/// A pod that still exists this long after its grace period is stuck.
const STUCK_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// What a terminating pod is waiting for, as far as the pod shows it; none until it counts as stuck.
#[must_use]
pub fn stuck(pod: &Pod, gone_by: Timestamp, now: Timestamp) -> Option<String> {
    if now.duration_since(gone_by) < STUCK_AFTER {
        return None;
    }
    let finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    Some(if finalizers.is_empty() {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("none");
        format!("node {node:?} has not confirmed that its containers have terminated")
    } else {
        format!("its finalizers have not been removed: {}", finalizers.join(", "))
    })
}

/// The status of a pod whose deadline is in the future.
#[derive(Debug, Eq, PartialEq)]
pub struct Waiting {
    /// What programs read.
    pub status: Status,
    /// What people read.
    pub message: String,
}

impl Waiting {
    /// Whether the pod must get this status, where `written` is the one it has: an extension began or ended, or there is
    /// another answer to a request for one. A pod in quarantine keeps the status that says so.
    #[must_use]
    pub fn is_news(&self, written: Option<&Status>) -> bool {
        let state = written.map(|written| written.state);
        let answer = |status: &Status| (status.cause.clone(), status.answers.clone());
        let is_answer =
            matches!(state, None | Some(State::Marked)) && answer(&self.status) != written.map_or((None, None), answer);
        self.status.state == State::Extended || state == Some(State::Extended) || is_answer
    }
}

/// What [`Waiting`] holds for this pod; none without a mark. The status's cause is why the extension that a user requested is
/// not granted, or not in full.
#[must_use]
pub fn waiting(pod: &Pod, settings: &Settings) -> Option<Waiting> {
    let mark = Found::on(pod).mark()?;
    let extension = Extension::on(pod);
    let granted = extension.grant(&mark, settings.max_extension);
    let (state, message) = if granted.is_extended {
        (State::Extended, format!("{}; {}", mark.summary(), extension.summary(granted.deadline)))
    } else {
        (State::Marked, mark.summary())
    };
    let status = Status { answers: extension.request(), ..Status::due(state, granted.deadline, granted.problem) };
    Some(Waiting { status, message })
}

/// The grace period for the eviction, in seconds; none if the pod's own applies.
#[must_use]
pub fn grace_period(pod: &Pod, settings: &Settings) -> Option<i64> {
    let longest = i64::try_from(settings.max_grace_period?.as_secs()).ok()?;
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    (own > longest).then_some(longest)
}

/// When the grace period of a pod ends that is evicted now with this grace period, or with its own.
#[must_use]
pub fn gone_by(pod: &Pod, grace: Option<i64>, now: Timestamp) -> Timestamp {
    let own = || pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let grace = grace.or_else(own).unwrap_or(30).max(0);
    now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX)
}

/// How long to wait after the n-th refusal in a row (the first is 0): 2 s, doubling to 30 s, with a jitter of a quarter
/// either way from `random` in `0.0..1.0`. Retries never stop.
#[must_use]
pub fn backoff(refusals: u32, random: f64) -> Duration {
    let seconds = 2_u64.saturating_pow(refusals.saturating_add(1).min(8)).min(30);
    Duration::from_secs(seconds).mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
