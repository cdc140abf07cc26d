//! Keeps the path in the webhook configuration fresh, and tells requests that know it from those that do not. The edge
//! of this room.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{Paths, Renewal};
use crate::{clock::Clock, error::chain};

/// The annotation of the webhook configuration with the path that was called before.
const PREVIOUS: &str = "pristine/previous-path";
/// The wall clock is looked at this often.
const TICK: Duration = Duration::from_secs(30);
/// Between two looks: strangers can ask for one, and must not make us ask the API server more often than this.
const PAUSE: Duration = Duration::from_millis(50);
/// For one call to the API server.
const CALL: Duration = Duration::from_secs(10);
/// For a look on behalf of a request. A user waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was seen, and when.
#[derive(Clone, Debug)]
struct Seen {
    paths: Paths,
    at: Option<Instant>,
}

/// Lets requests through that know the path.
#[derive(Clone)]
pub struct PathGuard {
    seen: watch::Receiver<Seen>,
    look: Arc<Notify>,
    clock: Clock,
}

/// Renews the path.
pub struct PathRenewer {
    client: Client,
    configuration: String,
    /// Name and namespace of the Service that our entries name.
    service: (String, String),
    lifetime: Duration,
    clock: Clock,
    seen: watch::Sender<Seen>,
    look: Arc<Notify>,
    /// Somebody may have been shown the path.
    leaked: Arc<Notify>,
}

impl PathGuard {
    /// Whether the request knows the path. An API server may hear of a new one before this replica does, so that a
    /// stranger is looked up once more.
    pub async fn admits(&self, path: &str) -> bool {
        let mut seen = self.seen.clone();
        let accepts = |seen: &Seen| seen.paths.accepts(path, self.clock.now());
        if accepts(&seen.borrow_and_update()) {
            return true;
        }
        let asked = Instant::now();
        self.look.notify_one();
        let fresh = seen.wait_for(|seen| seen.at.is_some_and(|at| at >= asked));
        timeout(PATIENCE, fresh).await.is_ok_and(|seen| seen.is_ok_and(|seen| accepts(&seen)))
    }

    /// A gate that knows these paths and no others, for tests and benchmarks.
    #[must_use]
    pub fn of(paths: Paths, clock: Clock) -> Self {
        let (_, seen) = watch::channel(Seen { paths, at: None });
        Self { seen, look: Arc::default(), clock }
    }
}

impl PathRenewer {
    /// Keeps the path of the entries that name this Service in this webhook configuration.
    #[must_use]
    pub fn new(
        client: Client,
        configuration: String,
        service: (String, String),
        lifetime: Duration,
        clock: Clock,
        leaked: Arc<Notify>,
    ) -> (Self, PathGuard) {
        let (sender, seen) = watch::channel(Seen { paths: Paths::default(), at: None });
        let look = Arc::new(Notify::new());
        let guard = PathGuard { seen, look: look.clone(), clock: clock.clone() };
        (Self { client, configuration, service, lifetime, clock, seen: sender, look, leaked }, guard)
    }

    fn api(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// Runs until the process ends.
    pub async fn run(self) {
        let named = watcher::Config::default().timeout(60).fields(&format!("metadata.name={}", self.configuration));
        let api: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> = Api::all(self.client.clone());
        let mut changes = watcher(api, named).default_backoff().boxed();
        // Requests that this replica was killed over have shown it.
        let mut leaked = true;
        loop {
            let wait = match self.keep(&mut leaked).await {
                Ok(wait) => wait.min(TICK),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "cannot keep the path of the webhook configuration, will try again");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                _ = changes.next() => {}
                () = self.look.notified() => {}
                () = self.leaked.notified() => leaked = true,
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks, and renews if it is due; how long to wait then.
    async fn keep(&self, leaked: &mut bool) -> Result<Duration, kube::Error> {
        let at = Instant::now();
        let live = within(self.api().get_opt(&self.configuration)).await?;
        let now = self.clock.now();
        let Some(live) = live else { return Ok(TICK) };
        let paths = self.paths(&live);
        let due = paths.renewal(*leaked, self.lifetime, rand::random(), now);
        let wait = paths.next(*leaked, self.lifetime, now);
        drop(self.seen.send_replace(Seen { paths, at: Some(at) }));
        let Some(renewal) = due else { return Ok(wait) };
        match within(self.publish(&live, &renewal)).await {
            Ok(live) => {
                *leaked = false;
                drop(self.seen.send_replace(Seen { paths: self.paths(&live), at: Some(at) }));
                tracing::info!("the API server calls a new path");
                Ok(self.lifetime)
            }
            // Another replica was faster, or the certificates were.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Duration::ZERO),
            Err(error) => Err(error),
        }
    }

    fn is_ours(&self, entry: &k8s_openapi::api::admissionregistration::v1::ValidatingWebhook) -> bool {
        let service = entry.client_config.service.as_ref();
        service.is_some_and(|service| (&service.name, &service.namespace) == (&self.service.0, &self.service.1))
    }

    fn paths(&self, live: &ValidatingWebhookConfiguration) -> Paths {
        let ours = live.webhooks.iter().flatten().filter(|entry| self.is_ours(entry));
        let path = ours.filter_map(|entry| entry.client_config.service.as_ref());
        let previous = live.metadata.annotations.as_ref().and_then(|all| all.get(PREVIOUS)).cloned();
        Paths { live: path.map(|service| service.path.clone().unwrap_or_default()).collect(), previous }
    }

    /// As caBundle is written: a strategic PATCH over the live entries, with the resourceVersion they were read with.
    async fn publish(
        &self,
        live: &ValidatingWebhookConfiguration,
        renewal: &Renewal,
    ) -> Result<ValidatingWebhookConfiguration, kube::Error> {
        let (name, namespace) = &self.service;
        let ours = live.webhooks.iter().flatten().filter(|entry| self.is_ours(entry));
        let entries = ours.map(|entry| {
            let service = json!({ "name": name, "namespace": namespace, "path": renewal.path });
            json!({ "name": entry.name, "clientConfig": { "service": service } })
        });
        let patch = Patch::Strategic(json!({
            "metadata": {
                "resourceVersion": live.metadata.resource_version,
                "annotations": { PREVIOUS: renewal.previous },
            },
            "webhooks": entries.collect::<Vec<_>>(),
        }));
        let params = PatchParams { field_manager: Some("pristine".to_owned()), ..PatchParams::default() };
        self.api().patch(&self.configuration, &params, &patch).await
    }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    timeout(CALL, call).await.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
}
