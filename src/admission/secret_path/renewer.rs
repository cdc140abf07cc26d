//! Renews the secret path in the webhook configuration, and checks the path of each request. I/O.

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

/// The annotation of the webhook configuration with the previous path.
const PREVIOUS: &str = "pristine/previous-path";
/// The longest pause between two checks of the wall clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);
/// The shortest pause between two reads of the webhook configuration: any client can cause a read,
/// but no more than one per interval.
const READ_INTERVAL: Duration = Duration::from_millis(50);
/// For one request to the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For a read on behalf of a review: then another replica gets it, and this one knows the path at the next attempt.
const READ_TIMEOUT: Duration = Duration::from_millis(300);

/// The paths that were read, when, and since when this replica has known the newest one.
#[derive(Clone, Debug)]
struct Observed {
    paths: Paths,
    at: Option<Instant>,
    since: Instant,
}

impl Observed {
    /// The first path is new to a replica that starts, however old it is.
    fn new(paths: Paths, at: Option<Instant>, before: Option<&Self>) -> Self {
        let known = before.filter(|before| before.paths.newest_path() == paths.newest_path());
        Self { since: known.map_or_else(Instant::now, |known| known.since), paths, at }
    }
}

/// Checks whether a request knows the secret path.
#[derive(Clone)]
pub struct PathGuard {
    seen: watch::Receiver<Observed>,
    wake: Arc<Notify>,
}

/// Renews the secret path.
pub struct PathRenewer {
    client: Client,
    configuration: String,
    /// Name and namespace of the Service that the entries call.
    service: (String, String),
    lifetime: Duration,
    clock: Clock,
    seen: watch::Sender<Observed>,
    wake: Arc<Notify>,
    /// An error may have shown the path to a user.
    leaked: Arc<Notify>,
}

impl PathGuard {
    /// Whether the path is the secret one. An API server may learn a new path before this replica does, so an unknown
    /// path causes one more read.
    pub async fn admits(&self, path: &str) -> bool {
        let mut seen = self.seen.clone();
        let accepts = |seen: &Observed| seen.paths.accepts(path, seen.since.elapsed());
        if accepts(&seen.borrow_and_update()) {
            return true;
        }
        let asked = Instant::now();
        self.wake.notify_one();
        let fresh = seen.wait_for(|seen| seen.at.is_some_and(|at| at >= asked));
        timeout(READ_TIMEOUT, fresh).await.is_ok_and(|seen| seen.is_ok_and(|seen| accepts(&seen)))
    }

    /// A guard that accepts only these paths, for tests and benchmarks.
    #[must_use]
    pub fn of(paths: Paths) -> Self {
        let (_, seen) = watch::channel(Observed::new(paths, None, None));
        Self { seen, wake: Arc::default() }
    }
}

impl PathRenewer {
    /// Renews the path of the entries that call this Service in this webhook configuration.
    #[must_use]
    pub fn new(
        client: Client,
        configuration: String,
        service: (String, String),
        lifetime: Duration,
        clock: Clock,
        leaked: Arc<Notify>,
    ) -> (Self, PathGuard) {
        let (sender, seen) = watch::channel(Observed::new(Paths::default(), None, None));
        let wake = Arc::new(Notify::new());
        let guard = PathGuard { seen, wake: wake.clone() };
        (Self { client, configuration, service, lifetime, clock, seen: sender, wake, leaked }, guard)
    }

    fn api(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// Runs until the process ends.
    pub async fn run(self) {
        let named = watcher::Config::default().timeout(60).fields(&format!("metadata.name={}", self.configuration));
        let api: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> = Api::all(self.client.clone());
        let mut changes = watcher(api, named).default_backoff().boxed();
        // If the previous process was killed during a request, the error of the client contained the path: treat it as
        // leaked.
        let mut leaked = true;
        loop {
            let wait = match self.reconcile(&mut leaked).await {
                Ok(wait) => wait.min(CLOCK_INTERVAL),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "cannot renew the secret URL path in the webhook configuration, retrying");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                _ = changes.next() => {}
                () = self.wake.notified() => {}
                () = self.leaked.notified() => leaked = true,
            }
            sleep(READ_INTERVAL).await;
        }
    }

    /// Reads the paths, and renews them if that is due. Returns how long to wait then.
    async fn reconcile(&self, leaked: &mut bool) -> Result<Duration, kube::Error> {
        let at = Instant::now();
        let live = within(self.api().get_opt(&self.configuration)).await?;
        let now = self.clock.now();
        let Some(live) = live else { return Ok(CLOCK_INTERVAL) };
        let paths = self.paths(&live);
        let observed = Observed::new(paths, Some(at), Some(&self.seen.borrow()));
        let known_for = observed.since.elapsed();
        let due = observed.paths.renewal(*leaked, self.lifetime, known_for, rand::random(), now);
        let wait = observed.paths.next(*leaked, self.lifetime, known_for, now);
        drop(self.seen.send_replace(observed));
        let Some(renewal) = due else { return Ok(wait) };
        match within(self.publish(&live, &renewal)).await {
            Ok(live) => {
                *leaked = false;
                let renewed = Observed::new(self.paths(&live), Some(at), Some(&self.seen.borrow()));
                drop(self.seen.send_replace(renewed));
                tracing::info!("the secret URL path of the webhook was renewed");
                Ok(self.lifetime)
            }
            // Another replica or the certificate controller wrote first.
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

    /// Like caBundle: a strategic PATCH of the live entries, with the resourceVersion that was read.
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
    timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
}
