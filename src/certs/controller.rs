//! Observes the Secret and the webhook configuration, takes one planned step, looks again. The edge of this room.
//!
//! No leader: any replica may take any step, and every write is a compare-and-swap. Who loses looks again and finds
//! the step taken.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
        core::v1::{ObjectReference, Secret},
    },
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, events::EventType, watcher},
};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    Lifetimes,
    authority::{self, Authority},
    resolver::Resolver,
    rotation::{Observed, Serving, Step, Stored, apply, plan, trusted},
    secret::{self, Store},
};
use crate::{
    clock::Clock,
    error::chain,
    events::Events,
    telemetry::{Certificate as Label, Metrics, Reason},
};

/// The wall clock is looked at this often: timers stand still while a machine is suspended.
const TICK: Duration = Duration::from_secs(30);
/// For one call to the API server. Writes of Secrets pass other people's webhooks, which may be slow.
const CALL: Duration = Duration::from_secs(15);

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Names {
    /// Our namespace.
    pub namespace: String,
    /// The Secret with the authority.
    pub secret: String,
    /// The Service that the webhook entries name.
    pub service: String,
    /// The `ValidatingWebhookConfiguration`.
    pub configuration: String,
}

impl Names {
    /// What the serving certificate is for: the name that the API server verifies.
    #[must_use]
    pub fn dns(&self) -> Vec<String> {
        vec![format!("{}.{}.svc", self.service, self.namespace)]
    }
}

/// Keeps the certificates.
pub struct Controller {
    /// For Secret and webhook configuration.
    pub client: Client,
    /// Which ones.
    pub names: Names,
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
    /// Another replica was faster.
    #[error("somebody else wrote first")]
    Conflict,
    #[error("cannot {0}")]
    Api(&'static str, #[source] Box<kube::Error>),
    #[error("cannot {0} in time")]
    Timeout(&'static str),
    #[error(transparent)]
    Certificate(#[from] authority::Error),
    #[error("rustls does not take the serving certificate")]
    Tls(#[from] rustls::Error),
}

async fn call<T>(action: &'static str, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match timeout(CALL, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Error::Conflict),
        Ok(Err(error)) => Err(Error::Api(action, Box::new(error))),
        Err(_) => Err(Error::Timeout(action)),
    }
}

/// What this replica remembers between two looks. All of it can be lost.
#[derive(Default)]
struct Memory {
    store: Option<Store>,
    serving: Option<Serving>,
    missing_since: Option<Timestamp>,
}

/// The live objects that a look found, for the compare-and-swap of the step that follows.
struct Live {
    secret: Option<Secret>,
    configuration: Option<ValidatingWebhookConfiguration>,
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

    /// Wakes on every change of either object; what changed is looked up, not believed.
    async fn watch(&self, wake: &Notify) {
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let configurations: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> = Api::all(self.client.clone());
        let secrets = watcher(secrets, named(&self.names.secret)).default_backoff().map(|event| event.map(drop));
        let configurations = watcher(configurations, named(&self.names.configuration));
        let configurations = configurations.default_backoff().map(|event| event.map(drop));
        let mut changes = stream::select(secrets.boxed(), configurations.boxed());
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
                    if !matches!(error, Error::Conflict) {
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
        let live = self.look().await?;
        let now = self.clock.now();
        let stored =
            match live.secret.as_ref().map(|secret| secret::decode(secret.data.as_ref().unwrap_or(&BTreeMap::new()))) {
                None => Stored::Absent,
                Some(Ok(store)) => Stored::Store(Box::new(store)),
                Some(Err(why)) => Stored::Unreadable(why),
            };
        if let Stored::Unreadable(why) = &stored {
            tracing::warn!(secret = self.names.secret, why, "the Secret cannot be understood");
        }
        memory.missing_since = match &stored {
            Stored::Store(_) => None,
            Stored::Absent | Stored::Unreadable(_) => memory.missing_since.or(Some(now)),
        };
        let bundles = live.configuration.as_ref().map(|configuration| {
            self.entries(configuration)
                .map(|entry| entry.client_config.ca_bundle.clone().unwrap_or_default().0)
                .collect::<Vec<_>>()
        });
        let observed = Observed {
            stored,
            memory: memory.store.clone(),
            bundles,
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
        let names = self.names.dns();
        let newest = known.into_iter().chain(&observed.memory).map(|store| store.generation).max().unwrap_or(0);
        let next = match step {
            Step::Idle { .. } => return Ok(()),
            Step::Publish(pem) => return self.publish(pem, live.configuration.as_ref()).await,
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
        self.write(&store, live.secret).await?;
        if let Some((reason, note)) = telling(step, &store) {
            tracing::info!(reason, note, "authority");
            self.events.tell(self.about(), EventType::Normal, reason, "Rotate", &note);
        }
        memory.store = Some(store);
        Ok(())
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    fn configurations(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// Reads both objects as they are now, not from a cache: what is minted rests on it.
    async fn look(&self) -> Result<Live, Error> {
        let secret = call("get the Secret", self.secrets().get_opt(&self.names.secret)).await?;
        let configuration =
            call("get the webhook configuration", self.configurations().get_opt(&self.names.configuration)).await?;
        Ok(Live { secret, configuration })
    }

    /// The entries that call our Service; others in the same object are somebody else's.
    fn entries<'a>(
        &self,
        configuration: &'a ValidatingWebhookConfiguration,
    ) -> impl Iterator<Item = &'a ValidatingWebhook> {
        let Names { service, namespace, .. } = self.names.clone();
        configuration.webhooks.iter().flatten().filter(move |entry| {
            let target = entry.client_config.service.as_ref();
            target.is_some_and(|target| target.name == service && target.namespace == namespace)
        })
    }

    async fn write(&self, store: &Store, live: Option<Secret>) -> Result<(), Error> {
        let data = Some(secret::encode(store));
        match live {
            None => {
                let labels = [("app.kubernetes.io/name".to_owned(), "pristine".to_owned())].into();
                let metadata =
                    ObjectMeta { name: Some(self.names.secret.clone()), labels: Some(labels), ..ObjectMeta::default() };
                let secret = Secret { metadata, data, ..Secret::default() };
                call("create the Secret", self.secrets().create(&PostParams::default(), &secret)).await?;
            }
            // With the resourceVersion it was read with; foreign labels and annotations stay.
            Some(mut secret) => {
                secret.data = data;
                call("update the Secret", self.secrets().replace(&self.names.secret, &PostParams::default(), &secret))
                    .await?;
            }
        }
        Ok(())
    }

    /// A strategic PATCH of caBundle over the entries that are there, with the resourceVersion they were read with.
    /// Server-side apply would own the entries, and an upgrade that drops one would then fail with 422.
    async fn publish(&self, pem: &str, live: Option<&ValidatingWebhookConfiguration>) -> Result<(), Error> {
        let Some(configuration) = live else { return Ok(()) };
        let bundle = ByteString(pem.as_bytes().to_vec());
        let entries: Vec<_> = self
            .entries(configuration)
            .map(|entry| json!({ "name": entry.name, "clientConfig": { "caBundle": bundle } }))
            .collect();
        let patch = json!({
            "metadata": { "resourceVersion": configuration.metadata.resource_version },
            "webhooks": entries,
        });
        let params = PatchParams { field_manager: Some("pristine".to_owned()), ..PatchParams::default() };
        let (api, patch) = (self.configurations(), Patch::Strategic(patch));
        call("patch the webhook configuration", api.patch(&self.names.configuration, &params, &patch)).await.map(drop)
    }

    fn about(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.names.namespace.clone()),
            name: Some(self.names.secret.clone()),
            ..ObjectReference::default()
        }
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
                self.missing(format!("there is no ValidatingWebhookConfiguration {}", self.names.configuration));
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
                self.names.configuration, self.names.namespace, self.names.service
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
