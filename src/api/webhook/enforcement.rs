//! Reports when another client has weakened or deleted the webhook configuration (I/O). What is weak is decided in
//! [`super::check`].
//!
//! The metric has no value until the API server has answered once, and keeps its value while the watch fails
//! ([`Seen::is_known`]).

use std::time::Duration;

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    core::v1::{Namespace, ObjectReference},
};
use kube::{Api, Client, Resource as _};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    check::{ACCEPTED, Weakness, check, list},
    watch::Seen,
};
use crate::api::{Context, events::EventType};

/// How often the log repeats a weakness that lasts.
const REPEAT: Duration = Duration::from_secs(600);
/// For the one request about our namespace.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// The task that reports.
pub struct Enforcement {
    /// To read our namespace with.
    pub client: Client,
    /// The configuration.
    pub seen: watch::Receiver<Seen>,
    /// The Service that its entries must call.
    pub service: String,
    /// The namespace of the Service, which is ours.
    pub namespace: String,
    /// This replica's pod: Events are about it while the configuration does not exist.
    pub about: ObjectReference,
    /// Where the findings are reported.
    pub context: Context,
    /// True after SIGTERM.
    pub stopping: watch::Receiver<bool>,
}

/// What was reported last.
#[derive(Default)]
struct Reported {
    open: Vec<Weakness>,
    accepted: Vec<Weakness>,
    /// When the log repeats what is open.
    repeat: Option<Instant>,
}

impl Enforcement {
    /// Runs until SIGTERM: an uninstallation also deletes the configuration.
    pub async fn run(self) {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            () = self.follow() => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    async fn follow(&self) {
        let mut reported = Reported::default();
        let mut seen = self.seen.clone();
        seen.mark_changed();
        loop {
            let repeat = reported.repeat;
            tokio::select! {
                changed = seen.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let Seen { is_known, live, .. } = seen.borrow_and_update().clone();
                    if is_known {
                        self.judge(live.as_deref(), &mut reported).await;
                    }
                }
                () = async { sleep_until(repeat.unwrap_or_else(Instant::now)).await }, if repeat.is_some() => {
                    tracing::warn!(weaknesses = list(&reported.open), "the webhook configuration is still weakened");
                    reported.repeat = Some(Instant::now() + REPEAT);
                }
            }
        }
    }

    /// Sets the metric, and reports what has changed.
    async fn judge(&self, live: Option<&ValidatingWebhookConfiguration>, reported: &mut Reported) {
        let (accepted, open): (Vec<_>, Vec<_>) =
            check(live, &self.service, &self.namespace).into_iter().partition(|weakness| weakness.is_accepted);
        self.context.metrics.enforcement_intact.get_or_create(&[]).set(i64::from(open.is_empty()));
        if accepted != reported.accepted {
            let weaknesses = list(&accepted);
            tracing::info!(weaknesses, "deviations of the webhook configuration that {ACCEPTED} accepts");
            reported.accepted = accepted;
        }
        // Pristine itself deletes the configuration then: see `certs`.
        if open == reported.open || (live.is_none() && self.is_terminating().await) {
            return;
        }
        let about = live.map_or_else(|| self.about.clone(), |live| live.object_ref(&()));
        let events = &self.context.events;
        if open.is_empty() {
            tracing::info!("the webhook configuration is as strict as the shipped one again");
            let note = "the webhook configuration is as strict as the shipped one again";
            events.publish(about, EventType::Normal, "EnforcementRestored", "Check", note);
        } else {
            let weaknesses = list(&open);
            tracing::warn!(weaknesses, "another client has weakened the webhook configuration");
            let note = format!("{weaknesses}; kubectl apply -f install.yaml restores the shipped configuration");
            events.publish(about, EventType::Warning, "EnforcementWeakened", "Check", &note);
        }
        reported.repeat = (!open.is_empty()).then(|| Instant::now() + REPEAT);
        reported.open = open;
    }

    /// Whether our namespace is being deleted, which means uninstalling.
    async fn is_terminating(&self) -> bool {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = timeout(CALL_TIMEOUT, api.get_opt(&self.namespace)).await;
        matches!(found, Ok(Ok(Some(found))) if found.metadata.deletion_timestamp.is_some())
    }
}

#[cfg(test)]
mod tests;
