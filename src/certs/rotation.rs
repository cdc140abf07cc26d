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
//!
//! A replica's own clock may be wrong by any amount, so a plan takes an interval, [`Now`]. Its earliest end decides
//! what must not happen early, its latest end what must happen in time. The steps that depend on the time and that
//! other replicas depend on ([`Step::needs_agreement`]) are planned only while an API server confirms this replica's
//! clock: one replica with a wrong clock never makes the others' certificates untrusted.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use self::{
    missing::{Missing, RESTORE_WAIT, is_missing},
    serving::{Serving, may_be_ready, trusted},
    step::{STEPS, Step},
};
use super::{Certificate, Lifetimes, after, bundle, secret::Store};
use crate::clock::Now;

mod missing;
mod serving;
mod step;

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

/// Everything that a plan is made from.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one observation, and all combinations occur")]
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
    /// How long the Secret has been of no use ([`is_missing`]), by a clock that does not jump.
    pub missing_for: Option<Duration>,
    /// Generation of the store that caBundle was written from. A Secret with a lower one was restored from a backup.
    pub published_generation: u64,
    /// Whether the secret path has to be written ([`crate::api::webhook::path`]).
    pub path_due: bool,
    /// Whether our namespace owns the webhook configuration, so that it is garbage-collected with the namespace.
    pub owned: bool,
    /// Whether our namespace is being deleted.
    pub namespace_terminating: bool,
    /// Whether an operator has requested a new CA.
    pub rotate: bool,
}

/// How far the clocks of a replica and of the API servers may differ while the replica plans for all: as far as a new
/// CA is backdated.
fn tolerance(lifetimes: &Lifetimes) -> Duration {
    Lifetimes::backdate(lifetimes.ca)
}

/// Whether this time is so far in the future that only a wrong clock can have written it.
fn is_far_ahead(at: Timestamp, lifetimes: &Lifetimes, now: &Now) -> bool {
    now.is_agreed(tolerance(lifetimes)) && after(now.latest, tolerance(lifetimes)) < at
}

/// Whether no API server can trust this CA any more, or not for long yet. An API server must confirm the time: a replica
/// with a wrong clock would give up a CA that all the others use.
fn is_lost(ca: &Certificate, lifetimes: &Lifetimes, now: &Now) -> bool {
    let is_expired = ca.not_after <= now.earliest && now.is_agreed(tolerance(lifetimes));
    is_expired || is_far_ahead(ca.not_before, lifetimes, now)
}

/// The pause before the time is asked for again.
const SOON: Duration = Duration::from_secs(1);

/// Idle until this time, or for a second if it has passed and something else is missing.
fn idle(until: Timestamp, now: &Now) -> Step {
    Step::Idle { until: if until <= now.corrected { after(now.corrected, SOON) } else { until } }
}

/// Decides the next step.
#[must_use]
pub fn plan(observed: &Observed, lifetimes: &Lifetimes, now: &Now) -> Step {
    match decide(observed, lifetimes, now) {
        // Another replica takes it, or this one when an API server has confirmed the time.
        step if step.needs_agreement() && !now.is_agreed(tolerance(lifetimes)) => idle(now.corrected, now),
        step => step,
    }
}

fn decide(observed: &Observed, lifetimes: &Lifetimes, now: &Now) -> Step {
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
                if !is_lost(&known.active.certificate, lifetimes, now)
                    && known.generation >= observed.published_generation =>
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
    if now.latest < active.not_before {
        // By every clock that was seen, no API server can trust this CA yet. If that is confirmed, a wrong clock created
        // it, and no trust is left to protect. Otherwise this replica's clock is behind, and the others are right.
        let is_lost = is_lost(active, lifetimes, now);
        return if is_lost { wait_for_others(observed, now).unwrap_or(Step::Create) } else { idle(now.corrected, now) };
    }
    if is_lost(active, lifetimes, now) {
        // Every replica was suspended until the CA had expired. No trust is left to protect: no hold, no cross-signing.
        let successor = store.next.as_ref().is_some_and(|next| next.certificate.is_valid(now.corrected));
        return if successor { Step::Activate } else { Step::Create };
    }
    if is_due(store, observed.serving.as_ref(), lifetimes, now) {
        // Before the steps below, which can fail: a rejected write must not let the serving certificate expire.
        return Step::Issue;
    }
    let published = match &observed.bundles {
        None => false,
        Some(bundles) => {
            let wanted = bundle::pem(store.roots());
            // Once the next CA signs, no replica may restore a store from before. The published generation prevents it.
            let fenced = store.previous.is_empty() || observed.published_generation >= store.generation;
            if !observed.owned || observed.path_due || !fenced || bundles.iter().any(|live| live != wanted.as_bytes()) {
                let holding = store.next.is_some() && store.published_at.is_some();
                let next = store.next.as_ref().map(|next| &next.certificate).into_iter().collect::<Vec<_>>();
                if holding && !bundles.iter().all(|live| bundle::contains(live, &next)) {
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
    // Last: a Secret that cannot be written must hold up nothing else.
    if store.path_key.is_none() {
        return Step::AddPathKey;
    }
    idle(next_deadline(store, observed.serving.as_ref(), lifetimes, now), now)
}

/// Idle while another replica may still restore the Secret from its memory.
fn wait_for_others(observed: &Observed, now: &Now) -> Option<Step> {
    let left = RESTORE_WAIT.checked_sub(observed.missing_for?).filter(|left| !left.is_zero())?;
    Some(Step::Idle { until: after(now.corrected, left) })
}

/// Create, but only after the other replicas had the time to restore a CA that was trusted before.
fn create(observed: &Observed, now: &Now) -> Step {
    let trusted_before =
        observed.published_generation > 0 || observed.bundles.iter().flatten().any(|live| !live.is_empty());
    wait_for_others(observed, now).filter(|_| trusted_before).unwrap_or(Step::Create)
}

/// The next step of the rotation, once every caBundle is as planned.
fn advance(store: &Store, rotate: bool, lifetimes: &Lifetimes, now: &Now) -> Option<Step> {
    match (&store.next, store.published_at) {
        (None, _) if !store.previous.is_empty() => {
            let expired = store.previous.iter().all(|ca| ca.not_after <= now.earliest);
            (expired || store.retire_at.is_none_or(|at| at <= now.earliest)).then_some(Step::Retire)
        }
        (None, _) => (rotate || stage_at(store) <= now.latest).then_some(Step::Stage),
        // A wrong clock created it: no API server would trust what it signs, so another one takes its place.
        (Some(next), _) if is_far_ahead(next.certificate.not_before, lifetimes, now) => Some(Step::Stage),
        (Some(_), None) => Some(Step::BeginHold),
        // A wrong clock began the hold.
        (Some(_), Some(since)) if is_far_ahead(since, lifetimes, now) => Some(Step::BeginHold),
        (Some(next), Some(since)) => {
            let is_held = after(since, lifetimes.hold) <= now.earliest;
            (is_held && next.certificate.not_before <= now.earliest).then_some(Step::Activate)
        }
    }
}

/// When the next CA is staged: at two thirds of the active CA's life.
fn stage_at(store: &Store) -> Timestamp {
    store.active.certificate.part_of_life(2, 3)
}

/// When a serving certificate is renewed: at two thirds of its life.
fn renew_at(serving: &Serving) -> Timestamp {
    serving.part_of_life(2, 3)
}

/// Whether there is no serving certificate, or it ends soon or is not valid yet, and its issuer can issue a better one.
fn is_due(store: &Store, serving: Option<&Serving>, lifetimes: &Lifetimes, now: &Now) -> bool {
    serving.is_none_or(|serving| {
        let Serving { leaf, issuer, issued_at, .. } = serving;
        if *issuer != store.active.certificate {
            return false;
        }
        // Issued by a clock that was ahead: it may not be valid yet, and it may end too late.
        let early = leaf.not_before.max(*issued_at);
        if after(now.latest, Lifetimes::backdate(lifetimes.serving)) < early
            || (now.earliest < leaf.not_before && issuer.not_before < leaf.not_before)
        {
            return true;
        }
        renew_at(serving) <= now.latest
            // With a clock that is far ahead of the API servers', the latest time would renew without a pause.
            && serving.part_of_life(1, 3) <= now.corrected
            // A certificate that ends with its issuer cannot be renewed for longer; the next CA issues the next one.
            && leaf.not_after < issuer.not_after
    })
}

/// Whether the serving certificate is not from the active CA, or is served with another chain than now planned.
fn is_outdated(store: &Store, serving: Option<&Serving>) -> bool {
    serving.is_some_and(|serving| {
        // A change of CA adds or removes the cross-signed certificate.
        serving.issuer != store.active.certificate || serving.cross.as_ref() != store.served_cross()
    })
}

/// The first time at which a step becomes due, as [`Now::corrected`] will show it then.
fn next_deadline(store: &Store, serving: Option<&Serving>, lifetimes: &Lifetimes, now: &Now) -> Timestamp {
    let hold_ends = store.published_at.filter(|_| store.next.is_some()).map(|since| after(since, lifetimes.hold));
    let never_early = [hold_ends, store.retire_at].map(|at| (at, now.earliest));
    let in_time = [Some(stage_at(store)), serving.map(renew_at)].map(|at| (at, now.latest));
    let left = never_early.into_iter().chain(in_time).filter_map(|(at, by)| Some(at?.duration_since(by)));
    let first = left.filter(SignedDuration::is_positive).min();
    let at = first.map(|left| now.corrected.saturating_add(left).unwrap_or(Timestamp::MAX));
    at.unwrap_or(store.active.certificate.not_after)
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
/// active one. The writer of a store without a path key adds one.
#[must_use]
pub fn apply(
    step: &Step,
    store: &Store,
    lifetimes: &Lifetimes,
    now: &Now,
    fresh: Option<(super::ca::Ca, Option<Certificate>)>,
) -> Option<Store> {
    let mut store = store.clone();
    store.generation = store.generation.saturating_add(1);
    match step {
        Step::Stage => {
            let (next, cross) = fresh?;
            store.next = Some(next);
            store.cross = cross;
            store.published_at = None;
        }
        // Only the generation changes: the caller raises it above what was published.
        Step::Adopt | Step::AddPathKey => {}
        Step::BeginHold => store.published_at = Some(now.latest),
        Step::BreakHold => store.published_at = None,
        Step::Activate => {
            let next = store.next.take()?;
            let old = std::mem::replace(&mut store.active, next);
            store.previous.push(old.certificate);
            store.published_at = None;
            store.retire_at = Some(after(now.latest, lifetimes.serving + lifetimes.slack()));
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
