//! The rotation: decides from what a replica observes, and the time, which step the certificates need now. Pure.
//!
//! [`plan`] returns one [`Step`]. [`super::controller`] executes it, observes and plans again, until the plan is
//! [`Step::Idle`]. The progress of a rotation is recorded only in the Secret and the webhook configuration. So a
//! replica can crash or be suspended between any two steps, and any other replica continues. The table in [`super`]
//! shows the steps of one rotation in order.
//!
//! Two properties always hold. `rotation/model.rs` checks them with replicas that crash, API servers that lag behind,
//! and an adversary:
//!
//! - **Safety**: a CA signs serving certificates only after every caBundle has been seen to contain it (or the
//!   predecessor that signed it), and it leaves caBundle only after the last certificate under it has expired. The
//!   exception is a CA whose predecessor has expired or is lost, and the first CA: no trust is left to protect, so it
//!   signs at once, and a new replica is not Ready until caBundle trusts it.
//! - **Progress**: from any observation, finitely many steps lead to [`Step::Idle`].
//!
//! The store in the Secret has a generation, which grows with every write. The webhook configuration records the
//! generation that its caBundle was written from. A Secret with a lower generation was restored from a backup, and a
//! replica with a newer store in memory writes that one back ([`Step::Restore`]).

use std::time::Duration;

use jiff::Timestamp;

use super::{Certificate, Lifetimes, after, bundle, secret::Store};

/// The content of the Secret.
#[derive(Clone, Debug)]
pub enum Stored {
    /// There is no Secret.
    Absent,
    /// The Secret cannot be decoded, and why.
    Unreadable(String),
    /// The CA, and its successor and predecessors.
    Store(Box<Store>),
}

/// The serving certificate that this replica has in memory.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The leaf.
    pub leaf: Certificate,
    /// The CA that issued it.
    pub issuer: Certificate,
    /// The issuer signed by its predecessor, if it is served behind the leaf.
    pub cross: Option<Certificate>,
}

/// Everything that a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Secret.
    pub stored: Stored,
    /// The newest store that this replica has read or written. It restores a Secret that was deleted, damaged or
    /// replaced by a backup.
    pub memory: Option<Store>,
    /// caBundle of each of our entries in the webhook configuration; `None` if the configuration does not exist.
    pub bundles: Option<Vec<Vec<u8>>>,
    /// The certificate that this replica serves.
    pub serving: Option<Serving>,
    /// Since when the Secret has been absent, unreadable or older than the store that was published.
    pub missing_since: Option<Timestamp>,
    /// Generation of the store that caBundle was written from. A Secret with a lower one was restored from a backup.
    pub published_generation: u64,
    /// Whether our namespace owns the webhook configuration, so that it is garbage-collected with the namespace.
    pub owned: bool,
    /// Whether our namespace is being deleted.
    pub namespace_terminating: bool,
    /// Whether an operator has requested a new CA.
    pub rotate: bool,
}

/// One step, which the controller executes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Create a CA without a predecessor, and write it to the Secret if the Secret has not changed since it was read.
    Create,
    /// Write the store in memory to the Secret.
    Restore,
    /// Create the next CA, and add it to the Secret.
    Stage,
    /// Write this caBundle into the webhook configuration.
    Publish(String),
    /// Accept the Secret although its generation is lower than what was published: no replica has a newer store.
    Adopt,
    /// Record in the Secret that every caBundle contains the next CA: the hold begins.
    BeginHold,
    /// Record that a caBundle no longer contains the next CA: the hold will restart.
    BreakHold,
    /// Let the next CA sign, and erase the key of the active one.
    Activate,
    /// Stop trusting the previous CAs.
    Retire,
    /// Issue a serving certificate, in memory.
    Issue,
    /// Delete the webhook configuration: soon no replica is left to answer, and every exec would be denied.
    Withdraw,
    /// Nothing to do before this time, unless something changes.
    Idle {
        /// When to plan again.
        until: Timestamp,
    },
}

impl Step {
    /// The step in one word, for logs and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Restore => "restore",
            Self::Adopt => "adopt",
            Self::Stage => "stage",
            Self::Publish(_) => "publish",
            Self::BeginHold => "begin_hold",
            Self::BreakHold => "break_hold",
            Self::Activate => "activate",
            Self::Retire => "retire",
            Self::Issue => "issue",
            Self::Withdraw => "withdraw",
            Self::Idle { .. } => "idle",
        }
    }
}

/// Every word of [`Step::as_str`] but `idle`, which changes nothing: the values of the metric's label.
pub const STEPS: [&str; 11] = [
    "create",
    "restore",
    "adopt",
    "stage",
    "publish",
    "begin_hold",
    "break_hold",
    "activate",
    "retire",
    "issue",
    "withdraw",
];

/// How long a replica without the CA in memory waits for another replica to restore the Secret, if the webhook
/// configuration shows that there was a CA. More than twice the 30 s after which a replica observes the Secret without
/// a watch event: its watch may be interrupted at that moment, and the Secret may be damaged again right after the
/// restore.
pub const RESTORE_WAIT: Duration = Duration::from_secs(65);

/// How long this replica has observed that the Secret is absent, unreadable or older than what was published.
#[derive(Clone, Copy, Debug)]
pub struct Missing {
    waited: Duration,
    observed_at: Timestamp,
}

impl Missing {
    /// Returns the wait after one more observation, `elapsed` after the last one by a clock that does not jump. A
    /// replica that missed a full [`RESTORE_WAIT`] was suspended: its earlier observations prove nothing, so the wait
    /// restarts.
    #[must_use]
    pub fn observe(
        before: Option<Self>,
        stored: &Stored,
        published_generation: u64,
        now: Timestamp,
        elapsed: Duration,
    ) -> Option<Self> {
        if matches!(stored, Stored::Store(store) if store.generation >= published_generation) {
            return None;
        }
        let awake = before.filter(|before| now < after(before.observed_at, RESTORE_WAIT));
        Some(Self { waited: awake.map_or(Duration::ZERO, |before| before.waited + elapsed), observed_at: now })
    }

    /// Since when, by the wall clock of the last observation.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        super::before(self.observed_at, self.waited)
    }
}

/// Decides the next step.
#[must_use]
pub fn plan(observed: &Observed, lifetimes: &Lifetimes, now: Timestamp) -> Step {
    if observed.namespace_terminating {
        let withdrawn = observed.bundles.is_none();
        return if withdrawn { Step::Idle { until: Timestamp::MAX } } else { Step::Withdraw };
    }
    let store = match &observed.stored {
        // A restored backup must not bring back a CA that is no longer trusted.
        Stored::Store(store) if observed.memory.as_ref().is_none_or(|known| known.generation <= store.generation) => {
            store
        }
        Stored::Store(_) | Stored::Absent | Stored::Unreadable(_) => match &observed.memory {
            // Only if the memory is as new as what was published: a replica that was suspended during a rotation would
            // restore a CA that is no longer trusted, and the other replicas would follow.
            Some(known)
                if known.active.certificate.is_valid(now) && known.generation >= observed.published_generation =>
            {
                return Step::Restore;
            }
            _ => return create(observed, now),
        },
    };
    if store.generation < observed.published_generation {
        // Publishing it would end the trust in what the other replicas serve. Those that still run have a newer store.
        return wait_for_others(observed, now).unwrap_or(Step::Adopt);
    }
    let active = &store.active.certificate;
    if now < active.not_before {
        // Our clock is behind by more than the hour by which certificates are backdated. The other replicas are right.
        return Step::Idle { until: active.not_before };
    }
    if active.not_after <= now {
        // Every replica was suspended until the CA had expired. No trust is left to protect: no hold, no cross-signing.
        let successor = store.next.as_ref().is_some_and(|next| next.certificate.is_valid(now));
        return if successor { Step::Activate } else { Step::Create };
    }
    if is_due(store, observed.serving.as_ref(), now) {
        // Before the steps below, which can fail: a rejected write must not let the serving certificate expire.
        return Step::Issue;
    }
    let published = match &observed.bundles {
        None => false,
        Some(bundles) => {
            let wanted = bundle::pem(store.roots());
            // Once the next CA signs, no replica may restore a store from before. The published generation prevents it.
            let fenced = store.previous.is_empty() || observed.published_generation >= store.generation;
            if !observed.owned || !fenced || bundles.iter().any(|live| live != wanted.as_bytes()) {
                let holding = store.next.is_some() && store.published_at.is_some();
                let next = store.next.as_ref().map(|next| &next.certificate).into_iter().collect::<Vec<_>>();
                if holding && !bundles.iter().all(|live| bundle::trusts(live, &next, now)) {
                    return Step::BreakHold;
                }
                return Step::Publish(wanted);
            }
            true
        }
    };
    // The active CA is trusted by now. This comes before every step that ends the trust in another CA.
    if is_outdated(store, observed.serving.as_ref()) {
        return Step::Issue;
    }
    if published && let Some(step) = advance(store, observed.rotate, lifetimes, now) {
        return step;
    }
    Step::Idle { until: next_deadline(store, observed.serving.as_ref(), lifetimes, now) }
}

/// Idle while another replica may still restore the Secret from its memory.
fn wait_for_others(observed: &Observed, now: Timestamp) -> Option<Step> {
    let until = after(observed.missing_since?, RESTORE_WAIT);
    (now < until).then_some(Step::Idle { until })
}

/// Create, but only after the other replicas had the time to restore a CA that was trusted before.
fn create(observed: &Observed, now: Timestamp) -> Step {
    let trusted_before =
        observed.published_generation > 0 || observed.bundles.iter().flatten().any(|live| !live.is_empty());
    wait_for_others(observed, now).filter(|_| trusted_before).unwrap_or(Step::Create)
}

/// The next step of the rotation, once every caBundle is as planned.
fn advance(store: &Store, rotate: bool, lifetimes: &Lifetimes, now: Timestamp) -> Option<Step> {
    match (&store.next, store.published_at) {
        (None, _) if !store.previous.is_empty() => (store.retire_at.is_none_or(|at| at <= now)).then_some(Step::Retire),
        (None, _) => (rotate || stage_at(store) <= now).then_some(Step::Stage),
        (Some(_), None) => Some(Step::BeginHold),
        (Some(_), Some(since)) => (after(since, lifetimes.hold) <= now).then_some(Step::Activate),
    }
}

/// When the next CA is staged: at two thirds of the active CA's life.
fn stage_at(store: &Store) -> Timestamp {
    store.active.certificate.part_of_life(2, 3)
}

/// When a serving certificate is renewed: at two thirds of its life.
fn renew_at(leaf: &Certificate) -> Timestamp {
    leaf.part_of_life(2, 3)
}

/// Whether there is no serving certificate, or it ends soon and its issuer can issue a longer one.
fn is_due(store: &Store, serving: Option<&Serving>, now: Timestamp) -> bool {
    serving.is_none_or(|serving| {
        serving.issuer == store.active.certificate
            && renew_at(&serving.leaf) <= now
            // A certificate that ends with its issuer cannot be renewed for longer; the next CA issues the next one.
            && serving.leaf.not_after < serving.issuer.not_after
    })
}

/// Whether the serving certificate is not from the active CA, or is served with another chain than now planned.
fn is_outdated(store: &Store, serving: Option<&Serving>) -> bool {
    serving.is_some_and(|serving| {
        // A change of CA adds or removes the cross-signed certificate.
        serving.issuer != store.active.certificate || serving.cross.as_ref() != store.served_cross()
    })
}

/// The first time at which a step becomes due.
fn next_deadline(store: &Store, serving: Option<&Serving>, lifetimes: &Lifetimes, now: Timestamp) -> Timestamp {
    let hold_ends = store.published_at.filter(|_| store.next.is_some()).map(|since| after(since, lifetimes.hold));
    let times = [Some(stage_at(store)), hold_ends, store.retire_at, serving.map(|serving| renew_at(&serving.leaf))];
    times.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(store.active.certificate.not_after)
}

/// Whether a replica that serves this may become Ready: callers accept the certificate, and it is not in the last tenth
/// of its life. A replica that resumes in that tenth renews first, because its own clock may be the wrong one.
#[must_use]
pub fn may_be_ready(bundles: &[Vec<u8>], serving: &Serving, store: &Store, now: Timestamp) -> bool {
    now < serving.leaf.part_of_life(9, 10) && trusted(bundles, serving, store, now)
}

/// Whether a caller with any of these bundles accepts what is served.
#[must_use]
pub fn trusted(bundles: &[Vec<u8>], serving: &Serving, store: &Store, now: Timestamp) -> bool {
    let mut roots = vec![&serving.issuer];
    if serving.cross.is_some() {
        roots.extend(&store.previous);
    }
    !bundles.is_empty() && serving.leaf.is_valid(now) && bundles.iter().all(|live| bundle::trusts(live, &roots, now))
}

/// The generation that a step writes, where `newest` is the highest one known. A new CA starts a new thousand: its
/// generation must be higher than those of lost writes of the last CA, in case one of them is restored from a backup.
#[must_use]
pub const fn generation_after(step: &Step, newest: u64) -> u64 {
    match step {
        Step::Create => newest.saturating_div(1000).saturating_add(1).saturating_mul(1000),
        _ => newest.saturating_add(1),
    }
}

/// The store after a step that changes it. `fresh` is the CA created for [`Step::Stage`], and that CA signed by the
/// active one.
#[must_use]
pub fn apply(
    step: &Step,
    store: &Store,
    lifetimes: &Lifetimes,
    now: Timestamp,
    fresh: Option<(super::ca::Ca, Option<Certificate>)>,
) -> Option<Store> {
    let mut store = store.clone();
    store.generation += 1;
    match step {
        Step::Stage => {
            let (next, cross) = fresh?;
            store.next = Some(next);
            store.cross = cross;
            store.published_at = None;
        }
        // Only the generation changes: the caller raises it above what was published.
        Step::Adopt => {}
        Step::BeginHold => store.published_at = Some(now),
        Step::BreakHold => store.published_at = None,
        Step::Activate => {
            let next = store.next.take()?;
            let old = std::mem::replace(&mut store.active, next);
            store.previous.push(old.certificate);
            store.published_at = None;
            store.retire_at = Some(after(now, lifetimes.serving + lifetimes.slack()));
        }
        Step::Retire => {
            store.previous.clear();
            store.retire_at = None;
        }
        Step::Create | Step::Restore | Step::Publish(_) | Step::Issue | Step::Withdraw | Step::Idle { .. } => {
            return None;
        }
    }
    Some(store)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
