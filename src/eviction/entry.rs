//! What is remembered of a marked pod between two looks: names, times, and what its users ask for. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Next, Settings,
    plan::{backoff, plan, waiting},
    quarantine,
};
use crate::mark::{State, Status, extension::Extension, owner::controller};

/// The states of an entry, with the words of `pristine_marked_pods`. An extended or quarantined pod counts as marked: its
/// deadline is in the future.
pub const STATES: [(State, &str); 5] = [
    (State::Marked, "marked"),
    (State::EvictionQueued, "queued"),
    (State::EvictionBlocked, "blocked"),
    (State::Evicting, "evicting"),
    (State::Terminating, "terminating"),
];

/// A pod to look at later.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// UID of its controller.
    pub owner: Option<String>,
    /// When to look.
    pub next: Timestamp,
    /// When it is to go.
    pub deadline: Timestamp,
    /// What its users ask for.
    pub asked: Extension,
    /// Refusals in a row.
    pub refusals: u32,
    /// Looks in a row that found others to go first.
    pub queued: u32,
    /// One of [`STATES`].
    pub state: State,
    /// Whether a look has told what is wrong with what its users ask for.
    pub is_answered: bool,
}

/// What a look at a pod ended with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Requeue {
    /// Nothing more to do for this UID.
    Done,
    /// Look again at this time.
    Again(Timestamp),
    /// Due, and it has to wait for others of its owner.
    Queued,
    /// Due, and no more evictions are allowed before this.
    Limited(Duration),
    /// The eviction was accepted.
    Accepted,
    /// It terminates: look again at this time.
    Terminating(Timestamp),
    /// Refused or failed: look again after this, or after the usual wait.
    Refused(Option<Duration>),
}

/// Most pods that terminate are gone after this; the others are told what they wait for.
const SOON_GONE: Duration = Duration::from_secs(5);
/// The longest that the API server, or a webhook of somebody's, can put off the next attempt.
const MOST_REFUSED: Duration = Duration::from_secs(300);
/// All that are blocked ask no more often than this together, however many they are.
const BETWEEN_REFUSED: Duration = Duration::from_millis(50);
/// An accepted eviction is looked at again after this, should the pod not be terminating after all.
const RECHECK: Duration = Duration::from_secs(60);
/// The longest wait between two looks of a pod that the rate limit holds up, so that it goes soon when the others are gone.
const MOST_LIMITED: Duration = Duration::from_secs(5);

impl Entry {
    /// Whether nothing has changed that matters for when to look.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.deadline, &self.asked, &self.owner) == (other.deadline, &other.asked, &other.owner)
    }

    fn ends(&self) -> bool {
        self.state == State::Terminating
    }

    /// The pod after a look, where `count` says how many pods stand so, and `random` is in `0.0..1.0`; none if nothing is left
    /// to do for it.
    #[must_use]
    pub fn after(&self, end: &Requeue, count: impl Fn(State) -> i64, now: Timestamp, random: f64) -> Option<Self> {
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let crowd = |state| f64::from(u32::try_from(count(state)).unwrap_or(0));
        let (next, state) = match *end {
            Requeue::Done => return None,
            Requeue::Again(at) => (at, State::Marked),
            // Those of one owner do not all look at once.
            Requeue::Queued => (later(Duration::from_secs(1).mul_f64(1.0 + random)), State::EvictionQueued),
            Requeue::Limited(wait) => {
                // Of all that wait, one is let go each time.
                let spread = wait.mul_f64(1.0 + random * (1.0 + crowd(State::EvictionQueued)));
                (later(spread.min(wait.max(MOST_LIMITED))), State::EvictionQueued)
            }
            Requeue::Accepted => (later(RECHECK), State::Evicting),
            Requeue::Terminating(at) => (at, State::Terminating),
            // It goes all the same; only what it waits for could not be told.
            Requeue::Refused(_) if self.ends() => (later(RECHECK), State::Terminating),
            Requeue::Refused(after) => {
                let told = after.unwrap_or(Duration::ZERO).min(MOST_REFUSED);
                let turn = BETWEEN_REFUSED.mul_f64(crowd(State::EvictionBlocked) * (0.75 + random / 2.0));
                (later(told.max(turn).max(backoff(self.refusals, random))), State::EvictionBlocked)
            }
        };
        let refusals = match end {
            Requeue::Refused(_) => self.refusals.saturating_add(1),
            // Waiting for its turn in between does not make a budget more patient.
            Requeue::Queued | Requeue::Limited(_) => self.refusals,
            _ => 0,
        };
        let queued = if state == State::EvictionQueued { self.queued.saturating_add(1) } else { 0 };
        let is_answered = self.is_answered || !matches!(end, Requeue::Refused(_));
        Some(Self { next, refusals, queued, state, is_answered, ..self.clone() })
    }
}

/// What follows from a pod as it was observed.
#[derive(Debug)]
pub enum Observed {
    /// Nothing that was not known.
    Nothing,
    /// There is nothing to do for it, and perhaps something is wrong with its mark.
    Forget(Option<String>),
    /// Look at it when this says.
    Track(Box<Entry>),
}

/// Takes note of a pod, of which this much was `known`.
#[must_use]
pub fn observe(pod: &Pod, known: Option<&Entry>, settings: &Settings, now: Timestamp) -> Observed {
    let said = Status::on(pod).map(|status| status.state);
    let (deadline, ends) = match plan(pod, settings, now) {
        Next::Nothing(_) => return Observed::Forget(None),
        Next::Ignore(why) => return Observed::Forget(Some(why)),
        Next::Finished(_) if said == Some(State::Finished) => return Observed::Forget(None),
        Next::Finished(_) => (now, false),
        Next::NotEvictable(mark, _) => (mark.evict_at.unwrap_or(now), false),
        Next::Terminating { mark, .. } => (mark.evict_at.unwrap_or(now), true),
        Next::Wait { until, .. } => (until, false),
        Next::Evict { due, .. } => (due, false),
    };
    let mut seen = Entry {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        owner: controller(pod).map(|owner| owner.uid.clone()),
        next: deadline,
        deadline,
        asked: Extension::on(pod),
        refusals: 0,
        queued: 0,
        state: if ends { State::Terminating } else { State::Marked },
        is_answered: false,
    };
    let is_put_off = !ends
        && seen.asked.asks()
        && waiting(pod, settings).is_some_and(|waiting| waiting.status.state == State::Extended);
    // Another interaction writes over what the pod said of it.
    let is_silent = is_put_off && now < deadline && said != Some(State::Extended);
    // Our own writes come back as events: they must not undo the wait after a refusal.
    if !is_silent && known.is_some_and(|known| known.is_same(&seen) && known.ends() == ends) {
        return Observed::Nothing;
    }
    if ends {
        seen.next = now.checked_add(SOON_GONE).unwrap_or(Timestamp::MAX);
        return Observed::Track(Box::new(seen));
    }
    // What users ask for is answered on the pod at once; and so is what they take back.
    let was_asked = known.map_or_else(Extension::default, |known| known.asked.clone());
    if is_put_off || seen.asked != was_asked || (settings.quarantine && quarantine::is_wanted(pod)) {
        seen.next = now;
    } else if let Some(before) = settings.warn_before {
        seen.next = deadline.checked_sub(before).ok().filter(|at| now < *at).unwrap_or(deadline);
    }
    Observed::Track(Box::new(seen))
}

#[cfg(test)]
mod tests;
