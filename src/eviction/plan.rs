//! The eviction room. This file decides and is pure: given a pod as it is now and the time, what comes next.
//!
//! Level-triggered: nothing here remembers an earlier answer, so a lost, doubled or late wake-up changes nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::mark::{Disposition, Found, Interaction, Mark, State, Status, extension::Extension};

/// What the configuration says of evictions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// From the first interaction to the latest deadline that users can ask for.
    pub max_extension: Duration,
    /// A longer grace period of a pod is cut to this in its eviction.
    pub max_grace_period: Option<Duration>,
    /// An Event is told this long before the deadline.
    pub warn_before: Option<Duration>,
    /// Evictions of a minute, a tenth of them at once.
    pub per_minute: u32,
    /// Whether marked pods are taken out of service before.
    pub quarantine: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self { max_extension: day, max_grace_period: None, warn_before: None, per_minute: 600, quarantine: false }
    }
}

/// What comes next for a pod.
#[derive(Debug, Eq, PartialEq)]
pub enum Next {
    /// Nothing: not marked, or only recorded. Watch events say if that changes.
    Nothing(&'static str),
    /// Its containers have ended, and nothing will run in it: it is left for its logs.
    Finished(Mark),
    /// It ends already.
    Terminating {
        /// The mark.
        mark: Mark,
        /// When it is to be gone, by its grace period.
        gone_by: Timestamp,
    },
    /// It carries keys of ours that are not a mark of it.
    Ignore(String),
    /// Due, but never to be evicted, and why.
    NotEvictable(Mark, &'static str),
    /// Not before this.
    Wait {
        /// The mark.
        mark: Mark,
        /// The deadline, with what users asked for.
        until: Timestamp,
    },
    /// Evict it now.
    Evict {
        /// The mark.
        mark: Mark,
        /// Since when it is due.
        due: Timestamp,
    },
}

/// Decides. Never [`Next::Evict`] before the deadline, nor for another UID than the mark's own.
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
    // Containers that have ended run nothing that could differ from what was deployed; an eviction would only lose logs.
    if is_finished(pod) {
        return Next::Finished(mark);
    }
    if now < due {
        return Next::Wait { mark, until: due };
    }
    if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror")) {
        // Seen on a real cluster: a new mirror pod without the mark comes within a minute, and the container runs on.
        return Next::NotEvictable(
            mark,
            "a static pod is run by its node; evicting it removes the mark and not the container",
        );
    }
    Next::Evict { mark, due }
}

/// Nothing runs in it, and nothing will. The phase says so up to two seconds after the containers do.
fn is_finished(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let never = pod.spec.as_ref().is_some_and(|spec| spec.restart_policy.as_deref() == Some("Never"));
    let mut containers = status.container_statuses.iter().flatten().peekable();
    let ended = |status: &ContainerStatus| status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        || (never && containers.peek().is_some() && containers.all(ended))
}

/// A pod that is there for so long after its grace period does not end by itself.
const STUCK: SignedDuration = SignedDuration::from_secs(60);

/// What a pod that should have been gone by this time is waiting for, as far as it says so; none while that is not strange.
#[must_use]
pub fn stuck(pod: &Pod, gone_by: Timestamp, now: Timestamp) -> Option<String> {
    if now.duration_since(gone_by) < STUCK {
        return None;
    }
    let finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    Some(if finalizers.is_empty() {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("none");
        format!("its node, {node:?}, has not confirmed that its containers ended")
    } else {
        format!("it is kept by its finalizers: {}", finalizers.join(", "))
    })
}

/// What a pod says while its deadline is in the future.
#[derive(Debug, Eq, PartialEq)]
pub struct Waiting {
    /// For programs.
    pub status: Status,
    /// For people.
    pub message: String,
    /// Why a user does not get all of the extension that was asked for.
    pub problem: Option<String>,
}

/// The status of a pod whose deadline is in the future; none without a mark.
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
    let status = Status::due(state, granted.deadline, granted.problem.clone());
    Some(Waiting { status, message, problem: granted.problem })
}

/// The grace period to send with the eviction of this pod, in seconds; none for its own.
#[must_use]
pub fn grace_period(pod: &Pod, settings: &Settings) -> Option<i64> {
    let most = i64::try_from(settings.max_grace_period?.as_secs()).ok()?;
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    (own > most).then_some(most)
}

/// An exec that was admitted may still be held by another webhook, for 30 s at most, and then runs in whatever pod has the
/// name by then (seen: `web-0` deleted meanwhile, the exec in the new `web-0`).
pub const SUCCESSOR_WINDOW: SignedDuration = SignedDuration::from_secs(35);

/// What a deleted pod leaves to the one that has its name next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SuccessorMark {
    /// The last interaction, which may arrive late.
    pub interaction: Interaction,
    /// What the interaction leads to.
    pub disposition: Disposition,
    /// After this the interaction cannot arrive any more.
    pub until: Timestamp,
}

/// What this pod, which was deleted, leaves.
#[must_use]
pub fn successor_mark(deleted: &Pod, now: Timestamp) -> Option<SuccessorMark> {
    // The names of these pods never come again.
    let owners = deleted.metadata.owner_references.iter().flatten();
    if owners.into_iter().any(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "DaemonSet" | "Job")) {
        return None;
    }
    let mark = Found::on(deleted).mark()?;
    let interaction = mark.last().clone();
    let until = interaction.at.checked_add(SUCCESSOR_WINDOW).unwrap_or(Timestamp::MAX);
    if until <= now {
        return None;
    }
    // Not before it is certain that nothing arrives any more: else the eviction of one heir would make the next one.
    let ttl = |at: Timestamp| Duration::try_from(at.max(until).duration_since(interaction.at)).unwrap_or_default();
    let disposition = match (mark.evict_at, mark.evict_if_owned_at()) {
        (Some(at), _) => Disposition::Evict(ttl(at)),
        (None, Some(at)) => Disposition::EvictIfOwned(ttl(at)),
        (None, None) => Disposition::Record,
    };
    Some(SuccessorMark { interaction, disposition, until })
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
