//! Plans the life of the certificates: what was observed → the one step to take now. Pure.
//!
//! Safety: a serving certificate is issued only by a CA that every caBundle has been seen to hold (or whose
//! predecessor signed it), and a root leaves the bundle only after the last certificate under it has expired.
//! Progress: from any observation, finitely many steps lead to [`Step::Idle`].

use std::time::Duration;

use jiff::Timestamp;

use super::{Certificate, Lifetimes, after, bundle, secret::Store};

/// The Secret as it is now.
#[derive(Clone, Debug)]
pub enum Stored {
    /// There is none.
    Absent,
    /// There is one, and it cannot be understood.
    Unreadable(String),
    /// The CA.
    Store(Box<Store>),
}

/// The serving certificate in memory.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The leaf.
    pub leaf: Certificate,
    /// The CA it was issued by.
    pub issuer: Certificate,
    /// Whether the issuer signed by its predecessor is served too.
    pub cross: Option<Certificate>,
}

/// Everything a plan is made from.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Secret.
    pub stored: Stored,
    /// The newest store this replica has read, to restore a Secret that was deleted, garbled or put back from a backup.
    pub memory: Option<Store>,
    /// caBundle of each of our entries in the webhook configuration; `None` if there is no such configuration.
    pub bundles: Option<Vec<Vec<u8>>>,
    /// What this replica serves.
    pub serving: Option<Serving>,
    /// Since when there has been no Secret to go by, while a CA is trusted that must be somewhere.
    pub missing_since: Option<Timestamp>,
    /// Generation of the store that caBundle was written from; a Secret with a lower one was put back from a backup.
    pub published_generation: u64,
    /// Whether the webhook configuration goes when our namespace goes.
    pub owned: bool,
    /// Whether our namespace is going.
    pub leaving: bool,
    /// Whether an operator asks for a new CA.
    pub rotate: bool,
}

/// One step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make a first CA, and write it to the Secret if there is still none (or the same unreadable one).
    Create,
    /// Write the store in memory to the Secret.
    Restore,
    /// Add a next CA to the Secret.
    Stage,
    /// Write this caBundle into the webhook configuration.
    Publish(String),
    /// Take the Secret as the newest, although its generation is older than what was published: nobody has a newer one.
    Adopt,
    /// Note in the Secret that every bundle holds the next CA; the hold begins.
    BeginHold,
    /// Note that one does not any more; the hold will begin anew.
    BreakHold,
    /// Let the next CA sign, and erase the key of the active one.
    Activate,
    /// Stop trusting the previous CAs.
    Retire,
    /// Mint a serving certificate.
    Issue,
    /// Delete the webhook configuration: nobody will answer it soon, and exec would be refused everywhere.
    Withdraw,
    /// Nothing to do before this time, unless something changes.
    Idle {
        /// When to look again.
        until: Timestamp,
    },
}

impl Step {
    /// One word, for logs and metrics.
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

/// The words of the steps that are taken, as [`Step::as_str`] has them.
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

/// How long a replica that knows no CA waits for one that does to put the Secret back, when the webhook
/// configuration shows that there was one. Longer than twice the 30 s after which a replica looks without being woken: its
/// watch may be interrupted at that very moment, and the Secret may be damaged again as soon as it is put back.
pub const RESTORE_WAIT: Duration = Duration::from_secs(65);

/// For how long there has been no Secret to go by, as far as one replica has seen.
#[derive(Clone, Copy, Debug)]
pub struct Missing {
    waited: Duration,
    looked: Timestamp,
}

impl Missing {
    /// After one more look, `elapsed` after the last one by a clock that does not jump. Whoever did not look for longer
    /// than the others may take to put it back has slept, has seen nothing, and begins to wait anew.
    #[must_use]
    pub fn look(
        before: Option<Self>,
        stored: &Stored,
        published_generation: u64,
        now: Timestamp,
        elapsed: Duration,
    ) -> Option<Self> {
        if matches!(stored, Stored::Store(store) if store.generation >= published_generation) {
            return None;
        }
        let awake = before.filter(|before| now < after(before.looked, RESTORE_WAIT));
        Some(Self { waited: awake.map_or(Duration::ZERO, |before| before.waited + elapsed), looked: now })
    }

    /// Since when, by the clock of the last look.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        super::before(self.looked, self.waited)
    }
}

/// Decides the next step.
#[must_use]
pub fn plan(observed: &Observed, lifetimes: &Lifetimes, now: Timestamp) -> Step {
    if observed.leaving {
        let gone = observed.bundles.is_none();
        return if gone { Step::Idle { until: Timestamp::MAX } } else { Step::Withdraw };
    }
    let store = match &observed.stored {
        // Whoever put back a backup did not mean to bring back a CA that is no longer trusted.
        Stored::Store(store) if observed.memory.as_ref().is_none_or(|known| known.generation <= store.generation) => {
            store
        }
        Stored::Store(_) | Stored::Absent | Stored::Unreadable(_) => match &observed.memory {
            // Not from a memory older than what is published: whoever slept through a rotation would bring back an
            // CA that is no longer trusted, and the others would follow.
            Some(known)
                if known.active.certificate.is_valid(now) && known.generation >= observed.published_generation =>
            {
                return Step::Restore;
            }
            _ => return create(observed, now),
        },
    };
    if store.generation < observed.published_generation {
        // Publishing it would take the trust from what the other replicas serve. They have newer in memory, if they live.
        return wait_for_others(observed, now).unwrap_or(Step::Adopt);
    }
    let active = &store.active.certificate;
    if now < active.not_before {
        // Our clock is behind by more than the hour that certificates are backdated. The others are right, not we.
        return Step::Idle { until: active.not_before };
    }
    if active.not_after <= now {
        // Every replica slept through its end. There is nothing left to protect: no hold, and no cross-signing.
        let successor = store.next.as_ref().is_some_and(|next| next.certificate.is_valid(now));
        return if successor { Step::Activate } else { Step::Create };
    }
    if is_due(store, observed.serving.as_ref(), now) {
        // Before anything that may fail for reasons of its own: a write that is refused must not let this one expire.
        return Step::Issue;
    }
    let published = match &observed.bundles {
        None => false,
        Some(bundles) => {
            let wanted = bundle::pem(store.roots());
            // Once the next one signs, nobody may go back to what they remember of the time before.
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
    // Trusted by now, and before any step that takes trust away.
    if is_outdated(store, observed.serving.as_ref()) {
        return Step::Issue;
    }
    if published && let Some(step) = advance(store, observed.rotate, lifetimes, now) {
        return step;
    }
    Step::Idle { until: next_look(store, observed.serving.as_ref(), lifetimes, now) }
}

/// While a replica may still put back what it has in memory.
fn wait_for_others(observed: &Observed, now: Timestamp) -> Option<Step> {
    let until = after(observed.missing_since?, RESTORE_WAIT);
    (now < until).then_some(Step::Idle { until })
}

fn create(observed: &Observed, now: Timestamp) -> Step {
    let trusted_before =
        observed.published_generation > 0 || observed.bundles.iter().flatten().any(|live| !live.is_empty());
    wait_for_others(observed, now).filter(|_| trusted_before).unwrap_or(Step::Create)
}

/// The step from one CA to the next, once every bundle is what it should be.
fn advance(store: &Store, rotate: bool, lifetimes: &Lifetimes, now: Timestamp) -> Option<Step> {
    match (&store.next, store.published_at) {
        (None, _) if !store.previous.is_empty() => (store.retire_at.is_none_or(|at| at <= now)).then_some(Step::Retire),
        (None, _) => (rotate || stage_at(store) <= now).then_some(Step::Stage),
        (Some(_), None) => Some(Step::BeginHold),
        (Some(_), Some(since)) => (after(since, lifetimes.hold) <= now).then_some(Step::Activate),
    }
}

/// Two thirds of the life.
fn stage_at(store: &Store) -> Timestamp {
    store.active.certificate.part_of_life(2, 3)
}

/// When a serving certificate is renewed: at two thirds of its life.
fn renew_at(leaf: &Certificate) -> Timestamp {
    leaf.part_of_life(2, 3)
}

/// There is no serving certificate, or it ends soon and its issuer can give a new one.
fn is_due(store: &Store, serving: Option<&Serving>, now: Timestamp) -> bool {
    serving.is_none_or(|serving| {
        serving.issuer == store.active.certificate
            && renew_at(&serving.leaf) <= now
            // One that ends with its issuer cannot be renewed to last longer; the next CA will issue it.
            && serving.leaf.not_after < serving.issuer.not_after
    })
}

/// It is of another CA than the active one, or with another chain.
fn is_outdated(store: &Store, serving: Option<&Serving>) -> bool {
    serving.is_some_and(|serving| {
        // With another CA it goes, or comes.
        serving.issuer != store.active.certificate || serving.cross.as_ref() != store.served_cross()
    })
}

fn next_look(store: &Store, serving: Option<&Serving>, lifetimes: &Lifetimes, now: Timestamp) -> Timestamp {
    let hold_ends = store.published_at.filter(|_| store.next.is_some()).map(|since| after(since, lifetimes.hold));
    let times = [Some(stage_at(store)), hold_ends, store.retire_at, serving.map(|serving| renew_at(&serving.leaf))];
    times.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(store.active.certificate.not_after)
}

/// Whether a replica with this may become ready: it is accepted, and not in the last tenth of its certificate's life.
/// Whoever woke to that renews first, because its clock may be the wrong one.
#[must_use]
pub fn may_be_ready(bundles: &[Vec<u8>], serving: &Serving, store: &Store, now: Timestamp) -> bool {
    now < serving.leaf.part_of_life(9, 10) && trusted(bundles, serving, store, now)
}

/// Whether a caller that trusts these bundles accepts what is served.
#[must_use]
pub fn trusted(bundles: &[Vec<u8>], serving: &Serving, store: &Store, now: Timestamp) -> bool {
    let mut roots = vec![&serving.issuer];
    if serving.cross.is_some() {
        roots.extend(&store.previous);
    }
    !bundles.is_empty() && serving.leaf.is_valid(now) && bundles.iter().all(|live| bundle::trusts(live, &roots, now))
}

/// The generation that a step writes, where `newest` is the highest one known. A new CA begins a new thousand: it
/// must outrank writes of the last one that nobody remembers, should somebody put those back.
#[must_use]
pub const fn generation_after(step: &Step, newest: u64) -> u64 {
    match step {
        Step::Create => newest.saturating_div(1000).saturating_add(1).saturating_mul(1000),
        _ => newest.saturating_add(1),
    }
}

/// The store after a step that changes it. `fresh` is the CA made for it, and that CA signed by the
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
        // The caller has raised the generation above what was published.
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
