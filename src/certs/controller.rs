//! Observes the Secret and the webhook configuration, takes one planned step, looks again. The edge of this room.
//!
//! No leader: any replica may take any step, and every write is a compare-and-swap. Who loses looks again and finds
//! the step taken.

use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    Certificate, Lifetimes, MINT_WITHIN, after,
    ca::{self, Ca},
    objects::{self, Live, Objects},
    resolver::Resolver,
    rotation::{Missing, Observed, Serving, Step, Stored, apply, generation_after, may_be_ready, plan},
    secret::{PHASES, Store},
};
use crate::{
    api::{Context, events::EventType},
    error::chain,
    server::readiness::Readiness,
    telemetry::{Certificate as Label, Outcome, Phase},
};

/// How long a certificate lives that was issued without asking the API server.
const EMERGENCY: Duration = Duration::from_secs(3600);
/// The wall clock is looked at this often: timers stand still while a machine is suspended.
const TICK: Duration = Duration::from_secs(30);
/// Keeps the certificates.
pub struct Controller {
    /// The Secret and the webhook configuration.
    pub objects: Objects,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// The clock, and where what is done is reported.
    pub context: Context,
    /// Gets the serving certificates.
    pub resolver: Resolver,
    /// Whether the API server can verify what this replica serves.
    pub ready: Readiness,
}

/// How fast steps follow each other.
#[derive(Default)]
struct Pace {
    failures: u32,
    last: Option<(&'static str, Timestamp)>,
    repeats: u32,
}

impl Pace {
    /// The pause after a step. None, but for one that is taken again and again: somebody else undoes it each time, and
    /// every new caBundle makes each API server open new connections.
    fn after(&mut self, step: &Step, now: Timestamp) -> Duration {
        let again = self.last.is_some_and(|(last, at)| last == step.as_str() && now < after(at, AGAIN));
        self.last = Some((step.as_str(), now));
        self.repeats = if again { self.repeats.saturating_add(1) } else { 0 };
        // Never long: a caBundle that is repaired late is an admission that is lost.
        if again { spread(self.repeats.min(3)) } else { Duration::ZERO }
    }

    /// The pause after a failure. Two replicas that collide must not collide again.
    fn after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        spread(self.failures)
    }
}

/// Up to 100 ms, doubling to some 10 s.
fn spread(times: u32) -> Duration {
    Duration::from_millis(50 * 2_u64.saturating_pow(times.min(8))).mul_f64(rand::random_range(0.5..1.0))
}

/// A step taken again within this time is a fight.
const AGAIN: Duration = Duration::from_secs(10);

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Object(#[from] objects::Error),
    #[error(transparent)]
    Certificate(#[from] ca::Error),
    #[error("rustls does not take the serving certificate")]
    Tls(#[from] rustls::Error),
}

/// What this replica remembers between two looks. All of it can be lost.
#[derive(Default)]
struct Memory {
    store: Option<Store>,
    serving: Option<Serving>,
    missing: Option<Missing>,
    /// By the clock that does not jump.
    looked: Option<Instant>,
    /// What is wrong with the Secret, said once.
    unreadable: Option<String>,
    /// The caBundle that this replica has seen or written last.
    published: Option<String>,
}

impl Controller {
    /// Runs until the process ends.
    pub async fn run(self) {
        let wake = Notify::new();
        tokio::select! {
            () = self.watch(&wake) => {}
            () = self.steps(&wake) => {}
        }
    }

    async fn watch(&self, wake: &Notify) {
        let mut changes = self.objects.changes();
        while let Some(change) = changes.next().await {
            if let Err(error) = change {
                tracing::warn!(error = %chain(&error), "the watch of the Secret or the webhook configuration was interrupted");
            }
            wake.notify_one();
        }
    }

    async fn steps(&self, wake: &Notify) {
        let mut memory = Memory::default();
        let mut pace = Pace::default();
        loop {
            let wait = match self.step(&mut memory).await {
                Ok((Step::Idle { until }, _)) => {
                    let wait = Duration::try_from(until.duration_since(self.context.clock.now())).unwrap_or_default();
                    wait.clamp(Duration::from_millis(10), TICK)
                }
                Ok((step, now)) => {
                    sleep(pace.after(&step, now)).await;
                    continue;
                }
                Err(error) => {
                    if !matches!(error, Error::Object(objects::Error::Conflict)) {
                        tracing::warn!(error = %chain(&error), "a certificate step failed, will try again");
                        self.ready.set_missing(chain(&error));
                        self.hold_on(&mut memory);
                    }
                    // Not past the moment at which this replica must help itself.
                    let ending = memory.serving.as_ref().map(|serving| ends_soon_at(&serving.leaf));
                    let left =
                        ending.and_then(|at| Duration::try_from(at.duration_since(self.context.clock.now())).ok());
                    sleep(pace.after_failure().min(left.filter(|left| !left.is_zero()).unwrap_or(Duration::MAX))).await;
                    continue;
                }
            };
            pace.failures = 0;
            tokio::select! {
                () = sleep(wait) => {}
                () = wake.notified() => {}
            }
        }
    }

    /// While the API server cannot be asked: a certificate that is about to end is renewed from what is in memory, for a
    /// short time. It may be refused, if its CA was retired meanwhile; the one that ends would be for certain.
    fn hold_on(&self, memory: &mut Memory) {
        let now = self.context.clock.now();
        let (Some(store), Some(serving)) = (&memory.store, &memory.serving) else { return };
        let active = &store.active.certificate;
        let ending = ends_soon_at(&serving.leaf) <= now && serving.leaf.not_after < active.not_after;
        if ending && active.is_valid(now) {
            let life = self.lifetimes.serving.min(EMERGENCY);
            tracing::warn!("renewing the serving certificate without having asked the API server");
            if let Err(error) = self.issue(&store.clone(), life, memory, now) {
                tracing::error!(error = %chain(&error), "cannot renew the serving certificate");
            }
        } else if serving.leaf.not_after <= now {
            self.ready.set_unready("the serving certificate has expired".to_owned());
        }
    }

    fn issue(&self, store: &Store, life: Duration, memory: &mut Memory, now: Timestamp) -> Result<(), Error> {
        let cross = store.served_cross();
        let leaf = store.active.issue(&self.objects.names.dns(), life, now, cross)?;
        let serving =
            Serving { leaf: leaf.certificate.clone(), issuer: store.active.certificate.clone(), cross: cross.cloned() };
        self.resolver.serve(leaf)?;
        tracing::info!(serial = serving.leaf.serial, not_after = %serving.leaf.not_after, "serving a new certificate");
        let note = format!("{} is served, valid until {}", serving.leaf.serial, serving.leaf.not_after);
        self.context.events.publish(
            self.objects.secret_reference(),
            EventType::Normal,
            "ServingCertificateRenewed",
            "Issue",
            &note,
        );
        memory.serving = Some(serving);
        Ok(())
    }

    /// One look and one step; which, and when.
    async fn step(&self, memory: &mut Memory) -> Result<(Step, Timestamp), Error> {
        let asked = self.context.clock.now();
        let live = self.objects.look().await?;
        let now = self.context.clock.now();
        if after(asked, MINT_WITHIN) < now {
            // The process was suspended meanwhile. What it has read may be of a CA that is retired by now.
            return Err(Error::Object(objects::Error::Conflict));
        }
        let stored = live.stored();
        let unreadable = match &stored {
            Stored::Unreadable(why) => Some(why.clone()),
            Stored::Absent | Stored::Store(_) => None,
        };
        if let Some(why) = unreadable.as_ref().filter(|_| memory.unreadable != unreadable) {
            tracing::error!(why, "the Secret cannot be understood; what was served before is served on");
            self.context.metrics.certificate_steps.get_or_create(&Outcome { result: "unreadable" }).inc();
            let note = format!("cannot be understood: {why}");
            self.context.events.publish(
                self.objects.secret_reference(),
                EventType::Warning,
                "SecretUnreadable",
                "Read",
                &note,
            );
        }
        memory.unreadable = unreadable;
        let published_generation = live.published_generation();
        let looked = memory.looked.replace(Instant::now());
        let elapsed = looked.map(|looked| looked.elapsed()).unwrap_or_default();
        memory.missing = Missing::look(memory.missing, &stored, published_generation, now, elapsed);
        let observed = Observed {
            stored,
            memory: memory.store.clone(),
            bundles: live.bundles(),
            serving: memory.serving.clone(),
            missing_since: memory.missing.as_ref().map(Missing::since),
            published_generation,
            owned: live.is_owned(),
            leaving: live.is_leaving(),
            rotate: live.wants_rotation(),
        };
        let step = plan(&observed, &self.lifetimes, now);
        if let Stored::Store(store) = &observed.stored
            && memory.store.as_ref().is_none_or(|known| known.generation < store.generation)
        {
            memory.store = Some((**store).clone());
        }
        if matches!(step, Step::Idle { .. }) {
            let live = observed.bundles.iter().flatten().next();
            memory.published = live.map(|bundle| String::from_utf8_lossy(bundle).into_owned());
        }
        self.report(&observed, &step, now);
        if !matches!(step, Step::Idle { .. }) {
            self.take(&step, &observed, live, memory, now).await?;
            self.context.metrics.certificate_steps.get_or_create(&Outcome { result: step.as_str() }).inc();
            let generation = memory.store.as_ref().map(|store| store.generation);
            tracing::info!(step = step.as_str(), generation, "certificate step taken");
        }
        Ok((step, now))
    }

    async fn take(
        &self,
        step: &Step,
        observed: &Observed,
        live: Live,
        memory: &mut Memory,
        now: Timestamp,
    ) -> Result<(), Error> {
        let known = match &observed.stored {
            Stored::Store(store) => Some(&**store),
            Stored::Absent | Stored::Unreadable(_) => None,
        };
        let names = self.objects.names.dns();
        let newest = known.into_iter().chain(&observed.memory).map(|store| store.generation).max().unwrap_or(0);
        let newest = newest.max(observed.published_generation);
        let next = match step {
            Step::Idle { .. } => return Ok(()),
            Step::Withdraw => return Ok(self.objects.withdraw(&live).await?),
            Step::Publish(pem) => {
                self.objects.publish(pem, newest, &live).await?;
                let changed = observed.bundles.iter().flatten().any(|live| live != pem.as_bytes());
                if changed && memory.published.as_ref() == Some(pem) {
                    self.context.metrics.bundle_repairs.inc();
                    let note = "somebody changed caBundle of the webhook configuration; it is what it was again";
                    tracing::warn!(note, "bundle repaired");
                    self.context.events.publish(
                        self.objects.secret_reference(),
                        EventType::Warning,
                        "BundleRepaired",
                        "Publish",
                        note,
                    );
                }
                memory.published = Some(pem.clone());
                return Ok(());
            }
            Step::Issue => {
                let Some(store) = known else { return Ok(()) };
                return self.issue(store, self.lifetimes.serving, memory, now);
            }
            Step::Create => {
                let (active, _) = Ca::create(newest + 1, &names, self.lifetimes.ca, now, None)?;
                Some(Store::first(active))
            }
            Step::Restore => observed.memory.clone(),
            Step::Stage => known
                .map(|store| {
                    let signer = Some(&store.active);
                    let fresh = Ca::create(newest + 1, &names, self.lifetimes.ca, now, signer)?;
                    Ok::<_, Error>(apply(step, store, &self.lifetimes, now, Some(fresh)))
                })
                .transpose()?
                .flatten(),
            Step::Adopt | Step::BeginHold | Step::BreakHold | Step::Activate | Step::Retire => {
                known.and_then(|store| apply(step, store, &self.lifetimes, now, None))
            }
        };
        let Some(mut store) = next else { return Ok(()) };
        store.generation = generation_after(step, newest);
        self.objects.write(&store, live).await?;
        if let Some((reason, note)) = telling(step, &store) {
            tracing::info!(reason, note, "CA");
            self.context.events.publish(self.objects.secret_reference(), EventType::Normal, reason, "Rotate", &note);
        }
        memory.store = Some(store);
        Ok(())
    }

    fn report(&self, observed: &Observed, step: &Step, now: Timestamp) {
        let has_entries = observed.bundles.as_ref().is_some_and(|bundles| !bundles.is_empty());
        self.context.metrics.bundle_in_sync.set(i64::from(has_entries && !matches!(step, Step::Publish(_))));
        let gauge = |certificate, at: Option<Timestamp>| {
            let seconds = at.map_or(0.0, |at| at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64());
            self.context.metrics.not_after.get_or_create(&Label { certificate }).set(seconds);
        };
        gauge("serving", observed.serving.as_ref().map(|serving| serving.leaf.not_after));
        let Stored::Store(store) = &observed.stored else {
            return self.ready.set_missing("there is no CA yet".to_owned());
        };
        for phase in PHASES {
            self.context.metrics.phase.get_or_create(&Phase { phase }).set(i64::from(phase == store.phase()));
        }
        gauge("active", Some(store.active.certificate.not_after));
        gauge("next", store.next.as_ref().map(|next| next.certificate.not_after));
        match (&observed.bundles, &observed.serving) {
            (None, _) => {
                self.ready.set_missing(format!(
                    "there is no ValidatingWebhookConfiguration {}",
                    self.objects.names.configuration
                ));
            }
            (_, None) => self.ready.set_missing("no serving certificate yet".to_owned()),
            (Some(bundles), Some(serving)) if may_be_ready(bundles, serving, store, now) => {
                if self.ready.set_ready() {
                    tracing::info!(serial = serving.leaf.serial, "caBundle trusts the serving certificate");
                }
            }
            (Some(bundles), _) if bundles.is_empty() => self.ready.set_missing(format!(
                "no entry of the ValidatingWebhookConfiguration {} calls the Service {}/{}",
                self.objects.names.configuration, self.objects.names.namespace, self.objects.names.service
            )),
            _ => self.ready.set_missing("caBundle does not trust the serving certificate yet".to_owned()),
        }
    }
}

/// When there is no time left to wait for the API server.
fn ends_soon_at(leaf: &Certificate) -> Timestamp {
    leaf.part_of_life(9, 10)
}

/// What operators are told of a step.
fn telling(step: &Step, store: &Store) -> Option<(&'static str, String)> {
    let Store { active, generation, .. } = store;
    let until = active.certificate.not_after;
    match step {
        Step::Create => Some(("CACreated", format!("a new CA, valid until {until}"))),
        Step::Restore => {
            Some(("CARestored", format!("the Secret was put back from memory as generation {generation}")))
        }
        Step::Stage => Some(("CAStaged", "the next CA is made; caBundle will trust it before it signs".to_owned())),
        Step::Activate => {
            Some(("CARotated", format!("a new CA signs, valid until {until}; the key of the last is erased")))
        }
        Step::Retire => Some(("CARetired", "the last CA is no longer trusted".to_owned())),
        _ => None,
    }
}
