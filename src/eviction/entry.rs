//! What is remembered of a marked pod between two looks: names, times, and what its users ask for. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Next, Settings,
    plan::{backoff, plan, standing},
    quarantine,
};
use crate::mark::{self, State, extension::Extension, owner::controller};

/// Where a marked pod stands in the eyes of the replica that evicts; a word for the metric.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Standing {
    /// Its deadline is to come.
    Marked,
    /// Due, and it waits for another one of its owner, or for the rate limit.
    Queued,
    /// Due, and refused: by a disruption budget, or an error.
    Blocked,
    /// The eviction was accepted.
    Evicting,
    /// It ends.
    Terminating,
}

impl Standing {
    /// All, with their words.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Marked, "marked"),
        (Self::Queued, "queued"),
        (Self::Blocked, "blocked"),
        (Self::Evicting, "evicting"),
        (Self::Terminating, "terminating"),
    ];
}

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
    /// Where it stands.
    pub standing: Standing,
    /// Whether a look has told what is wrong with what its users ask for.
    pub is_answered: bool,
}

/// What a look at a pod ended with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
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
        self.standing == Standing::Terminating
    }

    /// The pod after a look, where `count` says how many pods stand so, and `random` is in `0.0..1.0`; none if nothing is left
    /// to do for it.
    #[must_use]
    pub fn after(&self, end: &End, count: impl Fn(Standing) -> i64, now: Timestamp, random: f64) -> Option<Self> {
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let crowd = |standing| f64::from(u32::try_from(count(standing)).unwrap_or(0));
        let (next, standing) = match *end {
            End::Done => return None,
            End::Again(at) => (at, Standing::Marked),
            // Those of one owner do not all look at once.
            End::Queued => (later(Duration::from_secs(1).mul_f64(1.0 + random)), Standing::Queued),
            End::Limited(wait) => {
                // Of all that wait, one is let go each time.
                let spread = wait.mul_f64(1.0 + random * (1.0 + crowd(Standing::Queued)));
                (later(spread.min(wait.max(MOST_LIMITED))), Standing::Queued)
            }
            End::Accepted => (later(RECHECK), Standing::Evicting),
            End::Terminating(at) => (at, Standing::Terminating),
            // It goes all the same; only what it waits for could not be told.
            End::Refused(_) if self.ends() => (later(RECHECK), Standing::Terminating),
            End::Refused(after) => {
                let told = after.unwrap_or(Duration::ZERO).min(MOST_REFUSED);
                let turn = BETWEEN_REFUSED.mul_f64(crowd(Standing::Blocked) * (0.75 + random / 2.0));
                (later(told.max(turn).max(backoff(self.refusals, random))), Standing::Blocked)
            }
        };
        let refusals = match end {
            End::Refused(_) => self.refusals.saturating_add(1),
            // Waiting for its turn in between does not make a budget more patient.
            End::Queued | End::Limited(_) => self.refusals,
            _ => 0,
        };
        let queued = if standing == Standing::Queued { self.queued.saturating_add(1) } else { 0 };
        let is_answered = self.is_answered || !matches!(end, End::Refused(_));
        Some(Self { next, refusals, queued, standing, is_answered, ..self.clone() })
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
    let told = mark::condition(pod, mark::CONDITION).and_then(|condition| condition.reason.as_deref());
    let (deadline, ends) = match plan(pod, settings, now) {
        Next::Nothing(_) => return Observed::Forget(None),
        Next::Ignore(why) => return Observed::Forget(Some(why)),
        Next::Finished(_) if told == Some(State::Finished.reason()) => return Observed::Forget(None),
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
        standing: if ends { Standing::Terminating } else { Standing::Marked },
        is_answered: false,
    };
    let is_put_off =
        !ends && seen.asked.asks() && standing(pod, settings).is_some_and(|(state, ..)| state == State::Extended);
    // Another interaction writes over what the pod said of it.
    let is_silent = is_put_off && now < deadline && told != Some(State::Extended.reason());
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
