//! What the queue knows of a marked pod between two reconciliations: names, times, and the extension that its users
//! requested. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Next, Settings,
    plan::{backoff, plan, waiting},
    quarantine,
};
use crate::mark::{State, Status, extension::Extension, owner::workload, surge::is_in_surge};

/// The states of an entry, with the words of `pristine_marked_pods`. An extended or quarantined pod counts as marked:
/// its deadline is in the future.
pub const STATES: [(State, &str); 6] = [
    (State::Marked, "marked"),
    (State::EvictionQueued, "queued"),
    (State::EvictionBlocked, "blocked"),
    (State::Suspended, "suspended"),
    (State::Evicting, "evicting"),
    (State::Terminating, "terminating"),
];

/// Those of [`STATES`] in which a pod can be overdue. An alert looks at each by itself: one budget that never allows an
/// eviction must not hide the pods that are overdue for another reason.
pub fn waiting_states() -> impl Iterator<Item = (State, &'static str)> {
    let can_be_overdue =
        |state| matches!(state, State::Marked | State::EvictionQueued | State::EvictionBlocked | State::Terminating);
    STATES.into_iter().filter(move |(state, _)| can_be_overdue(*state))
}

/// A pod to reconcile later.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// See [`workload`]: most often the UID of the pod's controller.
    pub owner: Option<String>,
    /// When to reconcile the pod.
    pub next: Timestamp,
    /// The deadline, with the extension that is granted; of a terminating pod, the end of its grace period.
    pub deadline: Timestamp,
    /// The extension that its users requested.
    pub asked: Extension,
    /// Refused or failed evictions in a row.
    pub refusals: u32,
    /// Reconciliations in a row in which the pod had to wait for other pods or for the rate limit.
    pub queued: u32,
    /// One of [`STATES`].
    pub state: State,
    /// Whether a reconciliation has answered the request for an extension.
    pub is_answered: bool,
    /// Whether the pod's status says that it is queued.
    pub is_shown_queued: bool,
    /// Whether the pod is in a surge: it is reconciled however many others wait.
    pub is_in_surge: bool,
}

/// The result of a reconciliation: whether and when to reconcile the pod again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Requeue {
    /// There is nothing more to do for this UID.
    Done,
    /// Reconcile it at this time.
    Again(Timestamp),
    /// The pod is due and waits for other pods of its owner.
    Queued,
    /// The pod is due, and the rate limit allows no eviction for this long.
    Limited(Duration),
    /// The pod is due, and evictions are suspended.
    Suspended,
    /// The eviction was accepted.
    Accepted,
    /// The pod is terminating: reconcile it at this time.
    Terminating(Timestamp),
    /// The eviction was refused or failed: reconcile the pod after this, or after the usual backoff.
    Refused(Option<Duration>),
}

/// Most terminating pods are gone after this. On the others, a reconciliation records what they wait for.
const TERMINATING_RECHECK: Duration = Duration::from_secs(5);
/// The longest delay of the next attempt that the API server, or another webhook, can request.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// The time between two attempts of all blocked pods together, no matter how many they are.
const BLOCKED_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// A pod is reconciled this long after an accepted eviction, in case it is not terminating.
const EVICTED_RECHECK: Duration = Duration::from_secs(60);
/// A pod that is due while evictions are suspended is looked at again after this; that needs no request.
const SUSPENDED_RECHECK: Duration = Duration::from_secs(30);
/// Reconciliations that find a pod queued before its status says so: about seven seconds.
const QUEUED_UNSHOWN: u32 = 5;
/// The longest wait of a pod that the rate limit delays, so that it is evicted soon after the others are.
const MAX_LIMITED_WAIT: Duration = Duration::from_secs(5);

impl Entry {
    /// Whether everything that decides when to reconcile the pod is unchanged.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.deadline, &self.asked, &self.owner, self.is_in_surge)
            == (other.deadline, &other.asked, &other.owner, other.is_in_surge)
    }

    /// Whether the pod's status must say now that it is queued. Those requests would delay the evictions of this moment, so
    /// a pod that is evicted within some seconds is not written to.
    #[must_use]
    pub fn must_show_queued(&self) -> bool {
        !self.is_shown_queued && self.queued >= QUEUED_UNSHOWN && self.refusals == 0
    }

    fn is_terminating(&self) -> bool {
        self.state == State::Terminating
    }

    /// The entry after a reconciliation; none if there is nothing more to do for the pod. `count` is the number of pods
    /// in a state, and `random` is in `0.0..1.0`.
    #[must_use]
    pub fn after(&self, requeue: &Requeue, count: impl Fn(State) -> i64, now: Timestamp, random: f64) -> Option<Self> {
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let number = |state| f64::from(u32::try_from(count(state)).unwrap_or(0));
        let (next, state) = match *requeue {
            Requeue::Done => return None,
            Requeue::Again(at) => (at, State::Marked),
            // With a jitter, so that the pods of one owner are not all reconciled at once.
            Requeue::Queued => (later(Duration::from_secs(1).mul_f64(1.0 + random)), State::EvictionQueued),
            Requeue::Limited(wait) => {
                // The rate limit allows one eviction per `wait`, so the waiting pods are spread over that many waits.
                let spread = wait.mul_f64(1.0 + random * (1.0 + number(State::EvictionQueued)));
                (later(spread.min(wait.max(MAX_LIMITED_WAIT))), State::EvictionQueued)
            }
            // When the suspension ends, all marked pods are listed again.
            Requeue::Suspended => (later(SUSPENDED_RECHECK.mul_f64(1.0 + random)), State::Suspended),
            Requeue::Accepted => (later(EVICTED_RECHECK), State::Evicting),
            Requeue::Terminating(at) => (at, State::Terminating),
            // The pod is terminating all the same. Only its status could not be written.
            Requeue::Refused(_) if self.is_terminating() => (later(EVICTED_RECHECK), State::Terminating),
            Requeue::Refused(after) => {
                let requested = after.unwrap_or(Duration::ZERO).min(MAX_RETRY_AFTER);
                let shared = BLOCKED_RETRY_INTERVAL.mul_f64(number(State::EvictionBlocked) * (0.75 + random / 2.0));
                (later(requested.max(shared).max(backoff(self.refusals, random))), State::EvictionBlocked)
            }
        };
        let refusals = match requeue {
            Requeue::Refused(_) => self.refusals.saturating_add(1),
            // A wait for other pods or for the rate limit does not reset the backoff.
            Requeue::Queued | Requeue::Limited(_) | Requeue::Suspended => self.refusals,
            _ => 0,
        };
        let queued = if state == State::EvictionQueued { self.queued.saturating_add(1) } else { 0 };
        let is_answered = self.is_answered || !matches!(requeue, Requeue::Refused(_));
        Some(Self { next, refusals, queued, state, is_answered, ..self.clone() })
    }
}

/// What to do with a pod that the watch reported.
#[derive(Debug)]
pub enum Observed {
    /// Nothing: the queue knows it already.
    Nothing,
    /// Remove it from the queue; with the reason, if its annotations are not a valid mark.
    Forget(Option<String>),
    /// Put it on the queue.
    Track(Box<Entry>),
}

/// Decides what to do with a pod that the watch reported, where `known` is its entry on the queue.
#[must_use]
pub fn observe(pod: &Pod, known: Option<&Entry>, settings: &Settings, now: Timestamp) -> Observed {
    let written = Status::on(pod).map(|status| status.state);
    let (deadline, is_terminating) = match plan(pod, settings, now) {
        Next::Nothing(_) => return Observed::Forget(None),
        Next::Ignore(why) => return Observed::Forget(Some(why)),
        Next::Finished(_) if written == Some(State::Finished) => return Observed::Forget(None),
        Next::NotEvictable(..) if written == Some(State::NotEvictable) => return Observed::Forget(None),
        Next::Finished(_) | Next::NotEvictable(..) => (now, false),
        Next::Terminating { gone_by, .. } => (gone_by, true),
        Next::Wait { until, .. } => (until, false),
        Next::Evict { due, .. } => (due, false),
    };
    let mut seen = Entry {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        owner: workload(pod),
        next: deadline,
        deadline,
        asked: Extension::on(pod),
        refusals: 0,
        queued: 0,
        state: if is_terminating { State::Terminating } else { State::Marked },
        is_answered: false,
        is_shown_queued: written == Some(State::EvictionQueued),
        is_in_surge: is_in_surge(pod),
    };
    let is_extended = !is_terminating
        && seen.asked.asks()
        && waiting(pod, settings).is_some_and(|waiting| waiting.status.state == State::Extended);
    // The mark of another interaction overwrites the status `Extended`.
    let lost_its_status = is_extended && now < deadline && written != Some(State::Extended);
    // Our own writes come back as watch events. They must not cut short the wait after a refusal.
    let is_known = known.is_some_and(|known| known.is_same(&seen) && known.is_terminating() == is_terminating);
    if let Some(known) = known.filter(|_| is_known && !lost_its_status) {
        let Entry { is_shown_queued, .. } = seen;
        return if known.is_shown_queued == is_shown_queued {
            Observed::Nothing
        } else {
            Observed::Track(Box::new(Entry { is_shown_queued, ..known.clone() }))
        };
    }
    if is_terminating {
        seen.next = now.checked_add(TERMINATING_RECHECK).unwrap_or(Timestamp::MAX);
        return Observed::Track(Box::new(seen));
    }
    // A request for an extension is answered on the pod at once, and so is its withdrawal.
    let was_asked = known.map_or_else(Extension::default, |known| known.asked.clone());
    if is_extended || seen.is_in_surge || seen.asked != was_asked || (settings.quarantine && quarantine::is_wanted(pod))
    {
        seen.next = now;
    } else if let Some(before) = settings.warn_before {
        seen.next = deadline.checked_sub(before).ok().filter(|at| now < *at).unwrap_or(deadline);
    }
    Observed::Track(Box::new(seen))
}

#[cfg(test)]
mod tests;
