//! Observes the Secret and the webhook configuration, takes one planned step, looks again. The edge of this room.
//!
//! No leader: any replica may take any step, and every write is a compare-and-swap. Who loses looks again and finds
//! the step taken.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use kube::runtime::events::EventType;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{
    Lifetimes,
    authority::{self, Authority},
    objects::{self, Live, Objects},
    resolver::Resolver,
    rotation::{Observed, Serving, Step, Stored, apply, plan, trusted},
    secret::Store,
};
use crate::{
    clock::Clock,
    error::chain,
    events::Events,
    telemetry::{Certificate as Label, Metrics, Reason},
};

/// The wall clock is looked at this often: timers stand still while a machine is suspended.
const TICK: Duration = Duration::from_secs(30);
/// Keeps the certificates.
pub struct Controller {
    /// The Secret and the webhook configuration.
    pub objects: Objects,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// The wall clock.
    pub clock: Clock,
    /// Where Events go.
    pub events: Events,
    /// Gauges.
    pub metrics: Arc<Metrics>,
    /// Gets the serving certificates.
    pub resolver: Resolver,
    /// What is missing before the API server can call us; latches.
    pub ready: watch::Sender<Result<(), String>>,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Object(#[from] objects::Error),
    #[error(transparent)]
    Certificate(#[from] authority::Error),
    #[error("rustls does not take the serving certificate")]
    Tls(#[from] rustls::Error),
}

/// What this replica remembers between two looks. All of it can be lost.
#[derive(Default)]
struct Memory {
    store: Option<Store>,
    serving: Option<Serving>,
    missing_since: Option<Timestamp>,
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
        let mut failures = 0_u32;
        loop {
            let wait = match self.step(&mut memory).await {
                Ok(Some(until)) => {
                    failures = 0;
                    Duration::try_from(until.duration_since(self.clock.now()))
                        .unwrap_or_default()
                        .clamp(Duration::from_millis(10), TICK)
                }
                Ok(None) => {
                    failures = 0;
                    continue;
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if !matches!(error, Error::Object(objects::Error::Conflict)) {
                        tracing::warn!(error = %chain(&error), failures, "a certificate step failed, will try again");
                        self.missing(chain(&error));
                    }
                    // Two replicas that collide must not collide again.
                    let ceiling = 100 * 2_u64.saturating_pow(failures.min(7));
                    sleep(Duration::from_millis(ceiling).mul_f64(rand::random_range(0.5..1.0))).await;
                    continue;
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = wake.notified() => {}
            }
        }
    }

    /// One look and one step; when to look again if there was nothing to do.
    async fn step(&self, memory: &mut Memory) -> Result<Option<Timestamp>, Error> {
        let live = self.objects.look().await?;
        let now = self.clock.now();
        let stored = live.stored();
        if let Stored::Unreadable(why) = &stored {
            tracing::warn!(why, "the Secret cannot be understood");
        }
        memory.missing_since = match &stored {
            Stored::Store(_) => None,
            Stored::Absent | Stored::Unreadable(_) => memory.missing_since.or(Some(now)),
        };
        let observed = Observed {
            stored,
            memory: memory.store.clone(),
            bundles: live.bundles(),
            serving: memory.serving.clone(),
            missing_since: memory.missing_since,
        };
        let step = plan(&observed, &self.lifetimes, now);
        if let Stored::Store(store) = &observed.stored
            && memory.store.as_ref().is_none_or(|known| known.generation < store.generation)
        {
            memory.store = Some((**store).clone());
        }
        self.report(&observed, &step, now);
        if let Step::Idle { until } = step {
            return Ok(Some(until));
        }
        self.take(&step, &observed, live, memory, now).await?;
        self.metrics.certificate_steps.get_or_create(&Reason { reason: step.as_str() }).inc();
        tracing::info!(
            step = step.as_str(),
            generation = memory.store.as_ref().map(|store| store.generation),
            "certificate step taken"
        );
        Ok(None)
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
        let next = match step {
            Step::Idle { .. } => return Ok(()),
            Step::Publish(pem) => return Ok(self.objects.publish(pem, &live).await?),
            Step::Issue => {
                let Some(store) = known else { return Ok(()) };
                let cross = store.served_cross();
                let leaf = store.active.issue(&names, self.lifetimes.serving, now, cross)?;
                let (issuer, cross) = (store.active.certificate.clone(), cross.cloned());
                memory.serving = Some(Serving { leaf: leaf.certificate.clone(), issuer, cross });
                tracing::info!(serial = leaf.certificate.serial, not_after = %leaf.certificate.not_after, "serving a new certificate");
                self.resolver.serve(leaf)?;
                return Ok(());
            }
            Step::Create => {
                let (active, _) = Authority::create(newest + 1, &names, self.lifetimes.authority, now, None)?;
                Some(Store {
                    generation: newest + 1,
                    active,
                    next: None,
                    previous: vec![],
                    cross: None,
                    published_at: None,
                    retire_at: None,
                })
            }
            Step::Restore => observed.memory.clone().map(|store| Store { generation: newest + 1, ..store }),
            Step::Stage => known
                .map(|store| {
                    let signer = Some(&store.active);
                    let fresh = Authority::create(newest + 1, &names, self.lifetimes.authority, now, signer)?;
                    Ok::<_, Error>(apply(step, store, &self.lifetimes, now, Some(fresh)))
                })
                .transpose()?
                .flatten(),
            Step::BeginHold | Step::BreakHold | Step::Activate | Step::Retire => {
                known.and_then(|store| apply(step, store, &self.lifetimes, now, None))
            }
        };
        let Some(store) = next else { return Ok(()) };
        self.objects.write(&store, live).await?;
        if let Some((reason, note)) = telling(step, &store) {
            tracing::info!(reason, note, "authority");
            self.events.tell(self.objects.secret_reference(), EventType::Normal, reason, "Rotate", &note);
        }
        memory.store = Some(store);
        Ok(())
    }

    fn missing(&self, what: String) {
        // Latched: once ready, a broken bundle is repaired, and taking the endpoint away would only delay that.
        self.ready.send_if_modified(|ready| match ready {
            Ok(()) => false,
            Err(known) => {
                *known = what;
                true
            }
        });
    }

    fn report(&self, observed: &Observed, step: &Step, now: Timestamp) {
        self.metrics.bundle_in_sync.set(i64::from(observed.bundles.is_some() && !matches!(step, Step::Publish(_))));
        let gauge = |certificate, at: Option<Timestamp>| {
            let seconds = at.map_or(0.0, |at| at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64());
            self.metrics.not_after.get_or_create(&Label { certificate }).set(seconds);
        };
        gauge("serving", observed.serving.as_ref().map(|serving| serving.leaf.not_after));
        let Stored::Store(store) = &observed.stored else {
            return self.missing("there is no authority yet".to_owned());
        };
        gauge("active", Some(store.active.certificate.not_after));
        gauge("next", store.next.as_ref().map(|next| next.certificate.not_after));
        match (&observed.bundles, &observed.serving) {
            (None, _) => {
                self.missing(format!(
                    "there is no ValidatingWebhookConfiguration {}",
                    self.objects.names.configuration
                ));
            }
            (_, None) => self.missing("no serving certificate yet".to_owned()),
            (Some(bundles), Some(serving)) if trusted(bundles, serving, store, now) => {
                if self.ready.send_replace(Ok(())).is_err() {
                    tracing::info!(
                        serial = serving.leaf.serial,
                        "the API server is told to trust the serving certificate"
                    );
                }
            }
            (Some(bundles), _) if bundles.is_empty() => self.missing(format!(
                "no entry of the ValidatingWebhookConfiguration {} calls the Service {}/{}",
                self.objects.names.configuration, self.objects.names.namespace, self.objects.names.service
            )),
            _ => self.missing("caBundle does not trust the serving certificate yet".to_owned()),
        }
    }
}

/// What operators are told of a step.
fn telling(step: &Step, store: &Store) -> Option<(&'static str, String)> {
    let Store { active, generation, .. } = store;
    let until = active.certificate.not_after;
    match step {
        Step::Create => Some(("AuthorityCreated", format!("a new authority, valid until {until}"))),
        Step::Restore => {
            Some(("AuthorityRestored", format!("the Secret was put back from memory as generation {generation}")))
        }
        Step::Stage => {
            Some(("AuthorityStaged", "the next authority is made; caBundle will trust it before it signs".to_owned()))
        }
        Step::Activate => Some((
            "AuthorityActivated",
            format!("a new authority signs, valid until {until}; the key of the last is erased"),
        )),
        Step::Retire => Some(("AuthorityRetired", "the last authority is no longer trusted".to_owned())),
        _ => None,
    }
}
