//! The reconcile loop of the certificates (I/O): reads the Secret and the webhook configuration, executes the one step
//! that [`plan`] returns, and reads again, until the plan is [`Step::Idle`].
//!
//! There is no leader: every replica runs this loop and can execute any step. Every write is a compare-and-swap
//! ([`super::objects`]). If two replicas execute the same step, one write fails with a conflict, and that replica reads
//! again and finds the step done.
//!
//! The loop wakes up when one of the objects changes, at the time that the plan names, and at least every 30 s. Between
//! two steps a replica remembers only what is in `Memory`, and it can lose all of that.
//!
//! While steps fail, for example because the API server cannot be reached, the served certificate stays in use. If it
//! is about to expire, the replica issues itself one that is valid for at most an hour, from the CA in memory.

use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use self::pace::Pace;
use super::{
    Lifetimes, MAX_SECRET_AGE, after,
    ca::{self, Ca},
    objects::{self, Live, Objects},
    resolver::Resolver,
    rotation::{Missing, Observed, Serving, Step, Stored, apply, generation_after, is_missing, may_be_ready, plan},
    secret::{PHASES, Store},
    secret_path::SecretPath,
};
use crate::{
    api::{
        Context, call,
        events::EventType,
        webhook::{path, writer::Publication},
    },
    clock::Now,
    error::chain,
    server::readiness::Readiness,
    telemetry::{Certificate as Label, Outcome, Phase},
};

mod pace;
mod troubles;

/// The longest validity of a certificate that is issued from memory while steps fail.
const OFFLINE_LIFETIME: Duration = Duration::from_secs(3600);
/// The objects and the wall clock are read at least this often: timers stop while a machine is suspended.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);

/// Rotates the CA and renews the serving certificate.
pub struct Controller {
    /// The Secret and the webhook configuration.
    pub objects: Objects,
    /// How long certificates are valid.
    pub lifetimes: Lifetimes,
    /// The clock, metrics and Events.
    pub context: Context,
    /// Receives the serving certificates.
    pub resolver: Resolver,
    /// Whether the API server can verify what this replica serves.
    pub ready: Readiness,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Object(#[from] objects::Error),
    #[error(transparent)]
    Certificate(#[from] ca::Error),
    #[error("rustls rejects the serving certificate")]
    Tls(#[from] rustls::Error),
}

/// What this replica remembers between two steps. It can lose all of it.
struct Memory {
    path: SecretPath,
    store: Option<Store>,
    serving: Option<Serving>,
    missing: Option<Missing>,
    /// The last observation, by a clock that does not jump.
    observed_at: Option<Instant>,
    /// What was wrong with the objects, so that it is reported once.
    troubles: Vec<troubles::Trouble>,
    /// The last caBundle that this replica has seen or written.
    published: Option<String>,
}

impl Memory {
    const fn new(path: SecretPath) -> Self {
        let (store, serving, missing, observed_at) = (None, None, None, None);
        Self { path, store, serving, missing, observed_at, troubles: vec![], published: None }
    }
}

impl Controller {
    /// Runs until the process ends.
    pub async fn run(self, path: SecretPath) {
        let wake = Notify::new();
        tokio::select! {
            () = self.watch(&wake) => {}
            () = self.reconcile_loop(&wake, path) => {}
        }
    }

    async fn watch(&self, wake: &Notify) {
        let mut changes = self.objects.changes();
        while let Some(change) = changes.next().await {
            if let Err(error) = change {
                let error = chain(&error);
                tracing::warn!(error, "the watch of the Secret or the webhook configuration was interrupted, retrying");
            }
            wake.notify_one();
        }
    }

    async fn reconcile_loop(&self, wake: &Notify, path: SecretPath) {
        let mut memory = Memory::new(path);
        let mut pace = Pace::default();
        loop {
            let wait = match self.reconcile(&mut memory).await {
                Ok((Step::Idle { until }, _)) => {
                    let wait =
                        Duration::try_from(until.duration_since(self.context.clock.corrected())).unwrap_or_default();
                    wait.min(memory.path.next()).clamp(Duration::from_millis(10), RESYNC_INTERVAL)
                }
                Ok((step, now)) => {
                    sleep(pace.after(&step, now.corrected)).await;
                    continue;
                }
                Err(error) => {
                    if !matches!(&error, Error::Object(error) if error.is_conflict()) {
                        tracing::warn!(error = %chain(&error), "a certificate step failed, retrying");
                        self.ready.set_missing(chain(&error));
                        self.renew_offline(&mut memory);
                    }
                    // The pause ends before the moment at which the replica must renew from memory.
                    let ending = memory.serving.as_ref().map(ends_soon_at);
                    let now = self.context.clock.interval().latest;
                    let left = ending.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
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

    /// While steps fail: renews a certificate that is about to expire from the CA in memory, for a short time. API
    /// servers may reject the new one, if its CA was retired meanwhile. They reject an expired one in any case.
    fn renew_offline(&self, memory: &mut Memory) {
        let now = self.context.clock.interval();
        let (Some(store), Some(serving)) = (&memory.store, &memory.serving) else { return };
        let active = &store.active.certificate;
        let ending = ends_soon_at(serving) <= now.latest && serving.leaf.not_after < active.not_after;
        if ending && active.is_valid(now.corrected) {
            let life = self.lifetimes.serving.min(OFFLINE_LIFETIME);
            tracing::warn!("certificate steps fail, renewing the serving certificate from the CA in memory");
            if let Err(error) = self.issue(&store.clone(), life, memory, now.corrected) {
                tracing::error!(error = %chain(&error), "cannot renew the serving certificate");
            }
        } else if serving.leaf.not_after <= now.earliest {
            self.ready.set_unready("the serving certificate has expired".to_owned());
        }
    }

    fn issue(&self, store: &Store, life: Duration, memory: &mut Memory, now: Timestamp) -> Result<(), Error> {
        let cross = store.served_cross();
        let leaf = store.active.issue(&[self.objects.names().dns()], life, now, cross)?;
        let (issuer, cross) = (store.active.certificate.clone(), cross.cloned());
        let serving = Serving { leaf: leaf.certificate.clone(), issuer, cross, issued_at: now };
        self.resolver.serve(leaf)?;
        tracing::info!(serial = serving.leaf.serial, not_after = %serving.leaf.not_after, "serving a new certificate");
        let note = format!("serving certificate {}, valid until {}", serving.leaf.serial, serving.leaf.not_after);
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

    /// Reads the objects and executes the planned step. Returns the step, and the time that it was planned for.
    async fn reconcile(&self, memory: &mut Memory) -> Result<(Step, Now), Error> {
        let asked = self.context.clock.now();
        let live = self.objects.read().await?;
        let (own, now) = (self.context.clock.now(), self.context.clock.interval());
        if after(asked, MAX_SECRET_AGE) < own {
            // The process was suspended meanwhile, and the CA that it has read may be retired by now.
            return Err(objects::Error::from(call::Error::Conflict).into());
        }
        let stored = live.stored();
        self.report_troubles(&stored, &live, memory);
        let published_generation = live.published_generation();
        let last = memory.observed_at.replace(Instant::now());
        let elapsed = last.map(|last| last.elapsed()).unwrap_or_default();
        let missing = is_missing(&stored, published_generation, &self.lifetimes, &now);
        memory.missing = Missing::observe(memory.missing, missing, own, elapsed);
        let in_secret = if let Stored::Store(store) = &stored { store.path_key } else { None };
        memory.path.plan(&live.paths(), in_secret.or_else(|| memory.store.as_ref()?.path_key), &now);
        let observed = Observed {
            stored,
            memory: memory.store.clone(),
            bundles: live.bundles(),
            serving: memory.serving.clone(),
            missing_for: memory.missing.as_ref().map(Missing::waited),
            published_generation,
            path_due: memory.path.due().is_some(),
            owned: live.is_owned(),
            namespace_terminating: live.is_terminating(),
            rotate: live.wants_rotation(),
        };
        let step = plan(&observed, &self.lifetimes, &now);
        if let Stored::Store(store) = &observed.stored
            && memory.store.as_ref().is_none_or(|known| known.generation < store.generation)
        {
            memory.store = Some((**store).clone());
        }
        if matches!(step, Step::Idle { .. }) {
            let live = observed.bundles.iter().flatten().next();
            memory.published = live.map(|bundle| String::from_utf8_lossy(bundle).into_owned());
        }
        self.report(&observed, &step, &now);
        if !matches!(step, Step::Idle { .. }) {
            self.execute(&step, &observed, live, memory, &now).await?;
            self.context.metrics.certificate_steps.get_or_create(&Outcome { result: step.as_str() }).inc();
            let generation = memory.store.as_ref().map(|store| store.generation);
            tracing::info!(step = step.as_str(), generation, "the certificate step succeeded");
        }
        Ok((step, now))
    }

    async fn execute(
        &self,
        step: &Step,
        observed: &Observed,
        live: Live,
        memory: &mut Memory,
        now: &Now,
    ) -> Result<(), Error> {
        let known = match &observed.stored {
            Stored::Store(store) => Some(&**store),
            Stored::Absent | Stored::Unreadable(_) => None,
        };
        let names = [self.objects.names().dns()];
        let newest = known.into_iter().chain(&observed.memory).map(|store| store.generation).max().unwrap_or(0);
        let newest = newest.max(observed.published_generation);
        let next = match step {
            Step::Idle { .. } => return Ok(()),
            Step::Withdraw => return Ok(self.objects.withdraw(&live).await?),
            Step::Publish(pem) => {
                let path = memory.path.due();
                self.objects.publish(&Publication { bundle: Some((pem, newest)), path }, &live).await?;
                memory.path.written(&self.context.metrics);
                let changed = observed.bundles.iter().flatten().any(|live| live != pem.as_bytes());
                if changed && memory.published.as_ref() == Some(pem) {
                    self.context.metrics.bundle_repairs.inc();
                    let note = "another client changed caBundle of the webhook configuration; Pristine restored it";
                    tracing::warn!("another client changed caBundle of the webhook configuration, restored");
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
                return self.issue(store, self.lifetimes.serving, memory, now.corrected);
            }
            Step::Create => {
                let (active, _) = Ca::create(newest.saturating_add(1), &names, self.lifetimes.ca, now.earliest, None)?;
                Some(Store::first(active, path::Key::new(rand::random())))
            }
            Step::Restore => observed.memory.clone(),
            Step::Stage => known
                .map(|store| {
                    let signer = Some(&store.active);
                    let fresh = Ca::create(newest.saturating_add(1), &names, self.lifetimes.ca, now.earliest, signer)?;
                    Ok::<_, Error>(apply(step, store, &self.lifetimes, now, Some(fresh)))
                })
                .transpose()?
                .flatten(),
            Step::Adopt | Step::AddPathKey | Step::BeginHold | Step::BreakHold | Step::Activate | Step::Retire => {
                known.and_then(|store| apply(step, store, &self.lifetimes, now, None))
            }
        };
        let Some(mut store) = next else { return Ok(()) };
        store.generation = generation_after(step, newest);
        // The one that the replicas know, whatever happened to the Secret: what API servers call stays checkable.
        let remembered = observed.memory.as_ref().and_then(|memory| memory.path_key);
        store.path_key = remembered.or(store.path_key).or_else(|| Some(path::Key::new(rand::random())));
        self.objects.write(&store, live).await?;
        if let Some((reason, note)) = event(step, &store) {
            tracing::info!(reason, note, "the CA in the Secret changed");
            self.context.events.publish(self.objects.secret_reference(), EventType::Normal, reason, "Rotate", &note);
        }
        memory.store = Some(store);
        Ok(())
    }

    /// Sets the metrics and the readiness.
    fn report(&self, observed: &Observed, step: &Step, now: &Now) {
        let has_entries = observed.bundles.as_ref().is_some_and(|bundles| !bundles.is_empty());
        let differs = |pem: &String| observed.bundles.iter().flatten().any(|live| live != pem.as_bytes());
        let is_in_sync = has_entries && !matches!(step, Step::Publish(pem) if differs(pem));
        self.context.metrics.bundle_in_sync.set(i64::from(is_in_sync));
        let gauge = |certificate, at: Option<Timestamp>| {
            let seconds = at.map_or(0.0, |at| at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64());
            self.context.metrics.not_after.get_or_create(&Label { certificate }).set(seconds);
        };
        gauge("serving", observed.serving.as_ref().map(|serving| serving.leaf.not_after));
        let Stored::Store(store) = &observed.stored else {
            return self.ready.set_missing(format!("Secret {} is absent or unreadable", self.objects.secret));
        };
        for phase in PHASES {
            self.context.metrics.phase.get_or_create(&Phase { phase }).set(i64::from(phase == store.phase()));
        }
        gauge("active", Some(store.active.certificate.not_after));
        gauge("next", store.next.as_ref().map(|next| next.certificate.not_after));
        match (&observed.bundles, &observed.serving) {
            (None, _) => {
                let name = &self.objects.names().configuration;
                self.ready.set_missing(format!(
                    "there is no ValidatingWebhookConfiguration {name}: apply the manifest, Pristine never creates it"
                ));
            }
            (_, None) => self.ready.set_missing("no serving certificate is issued yet".to_owned()),
            (Some(bundles), Some(serving)) if may_be_ready(bundles, serving, store, now) => {
                if self.ready.get().is_err() {
                    tracing::info!(serial = serving.leaf.serial, "caBundle trusts the serving certificate");
                }
                self.ready.set_ready();
            }
            (Some(bundles), _) if bundles.is_empty() => self.ready.set_missing(format!(
                "no entry of the ValidatingWebhookConfiguration {} calls the Service {}/{}",
                self.objects.names().configuration,
                self.objects.names().namespace,
                self.objects.names().service
            )),
            _ => self.ready.set_missing("caBundle does not trust the serving certificate yet".to_owned()),
        }
    }
}

/// When a renewal no longer waits for the API server: at nine tenths of the certificate's life.
fn ends_soon_at(serving: &Serving) -> Timestamp {
    serving.part_of_life(9, 10)
}

/// The Event about a step: its reason and its note.
fn event(step: &Step, store: &Store) -> Option<(&'static str, String)> {
    let Store { active, generation, .. } = store;
    let until = active.certificate.not_after;
    match step {
        Step::Create => Some(("CACreated", format!("created a CA, valid until {until}"))),
        Step::Restore => Some(("CARestored", format!("restored the Secret from memory, as generation {generation}"))),
        Step::Stage => {
            Some(("CAStaged", "created the next CA; it signs after caBundle has contained it for --hold".to_owned()))
        }
        Step::Activate => {
            Some(("CARotated", format!("the new CA signs now, valid until {until}; the key of the old CA is erased")))
        }
        Step::Retire => Some(("CARetired", "removed the old CA, because its last certificate has expired".to_owned())),
        _ => None,
    }
}
