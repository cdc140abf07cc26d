//! Creates the webhook configuration again after another client has deleted it (I/O). Only with the component
//! self-healing: without it, our account may not create one. What is decided is in [`super::heal`].
//!
//! Uninstalling must not leave a configuration behind. So everything is read again after the create, and for [`GUARD`]
//! afterwards, and the configuration is deleted again if the rest of Pristine is being deleted. That continues while this
//! replica drains after SIGTERM.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
    },
    apps::v1::Deployment,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{Namespace, Pod, Service},
};
use kube::{Api, Client, Resource as _, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Names,
    heal::{self, Facts},
    watch::Seen,
    writer::deletion,
};
use crate::{
    api::{Context, events::EventType},
    error::chain,
};

/// The policy that confines our account, and its binding.
const POLICY: &str = "self.webhooks.pristine";
/// The Deployment of the replicas.
const DEPLOYMENT: &str = "pristine";
/// For one request to the API server.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after the first attempt that created nothing, doubling to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(2);
/// See [`RETRY`].
const MAX_RETRY: Duration = Duration::from_secs(60);
/// How long an uninstallation takes at most from deleting the configuration to deleting the Deployment. Longer only by hand.
const GUARD: Duration = Duration::from_secs(600);
/// The pause between two reads meanwhile. A replica drains for longer after SIGTERM.
const GUARD_INTERVAL: Duration = Duration::from_secs(1);
/// So many reads in a row are forbidden only if the permissions are gone. An API server that starts also forbids some.
const FORBIDDEN: u32 = 5;

type Live = Arc<ValidatingWebhookConfiguration>;

/// The task that creates the configuration again.
pub struct Healer {
    /// To read and create with.
    pub client: Client,
    /// The configuration.
    pub seen: watch::Receiver<Seen>,
    /// Its name, and the Service that its entries call.
    pub names: Names,
    /// The name of this replica's pod.
    pub pod: String,
    /// Where a healing is reported.
    pub context: Context,
    /// True after SIGTERM.
    pub stopping: watch::Receiver<bool>,
}

/// What came of one attempt.
enum Attempt {
    Created(Box<ValidatingWebhookConfiguration>),
    /// Another replica was first.
    Exists,
    /// Our account may not create one.
    NotInstalled,
    /// Something is missing, is being deleted, or is not as shipped.
    Refused(&'static str),
    /// The answer to the create was lost: this says nothing about whether it was created.
    Unanswered(kube::Error),
}

impl Healer {
    /// Runs until the process ends. A replica that has not seen a configuration does not know that there should be one.
    pub async fn run(self) {
        let mut seen = self.seen.clone();
        let mut last = None;
        loop {
            let live = seen.borrow_and_update().live.clone();
            last = match (live, last) {
                (None, Some(last)) => Some(Box::pin(self.absent(last)).await),
                (live, _) => live,
            };
            if seen.changed().await.is_err() {
                return;
            }
        }
    }

    /// Follows one absence to its end. Takes and returns the configuration that was seen last.
    async fn absent(&self, last: Live) -> Live {
        let (since, spread) = (Instant::now(), heal::SPREAD.mul_f64(rand::random()));
        let (mut reported, mut retry, mut is_unanswered) = (String::new(), RETRY, false);
        while let Some(wait) = heal::wait(since.elapsed(), spread, self.is_stopping()) {
            if !wait.is_zero() {
                if self.is_back_within(wait).await {
                    return last;
                }
                continue;
            }
            let why = match self.attempt(&last).await {
                Ok(Attempt::Created(created)) => return self.guard(&created, last).await,
                Ok(Attempt::Exists) if !is_unanswered => return last,
                Ok(Attempt::Exists) => "it exists, and the watch has not shown it yet".to_owned(),
                Ok(Attempt::NotInstalled) => {
                    tracing::info!("the webhook configuration is not created again: self-healing is not installed");
                    return last;
                }
                Ok(Attempt::Refused(why)) => why.to_owned(),
                Ok(Attempt::Unanswered(error)) => {
                    is_unanswered = true;
                    chain(&error)
                }
                Err(error) => chain(&error),
            };
            if why != reported {
                tracing::warn!(why, "the webhook configuration was deleted, and is not created again now");
                reported = why;
            }
            if self.is_back_within(retry).await {
                let live = self.seen.borrow().live.clone();
                // Probably created by this replica: it is responsible for it.
                let Some(live) = live.filter(|_| is_unanswered) else { return last };
                self.report(&live);
                return self.guard(&live, last).await;
            }
            retry = (retry * 2).min(MAX_RETRY);
        }
        last
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits for so long, or until the configuration exists.
    async fn is_back_within(&self, wait: Duration) -> bool {
        let mut seen = self.seen.clone();
        timeout(wait, seen.wait_for(|seen| seen.live.is_some())).await.is_ok()
    }

    /// Creates the configuration, if nothing is against it before and after.
    async fn attempt(&self, last: &ValidatingWebhookConfiguration) -> Result<Attempt, kube::Error> {
        if !self.may_create().await? {
            return Ok(Attempt::NotInstalled);
        }
        let facts = self.read().await?;
        if let Some(why) = heal::obstacle(&facts) {
            return Ok(Attempt::Refused(why));
        }
        let namespace = facts.namespace.and_then(|namespace| namespace.metadata.uid).unwrap_or_default();
        let new = heal::restored(last, &self.names, &namespace);
        if self.is_stopping() {
            return Ok(Attempt::Refused("this replica is stopping"));
        }
        let params = PostParams { field_manager: Some("pristine".to_owned()), ..PostParams::default() };
        let created = match within(self.api().create(&params, &new)).await {
            Ok(created) => created,
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Attempt::Exists),
            Err(kube::Error::Api(status)) if status.code < 500 => return Err(kube::Error::Api(status)),
            Err(error) => return Ok(Attempt::Unanswered(error)),
        };
        // What fails here, `guard` tries again.
        if let Some(why) = self.read().await.ok().and_then(|facts| heal::obstacle(&facts))
            && self.withdraw(&created, why).await
        {
            return Ok(Attempt::Refused(why));
        }
        self.report(&created);
        Ok(Attempt::Created(Box::new(created)))
    }

    fn report(&self, created: &ValidatingWebhookConfiguration) {
        self.context.metrics.configuration_restores.inc();
        tracing::warn!("another client had deleted the webhook configuration; created it again as shipped");
        let note = "another client had deleted the webhook configuration: this replica created it again as shipped. The \
                    audit log of the API server names the client";
        let about = created.object_ref(&());
        self.context.events.publish(about, EventType::Warning, "WebhookConfigurationRestored", "Heal", note);
    }

    /// Deletes the created configuration again, if Pristine is being uninstalled within [`GUARD`]. Takes and returns the
    /// configuration that was seen last.
    async fn guard(&self, created: &ValidatingWebhookConfiguration, mut last: Live) -> Live {
        let (since, mut forbidden) = (Instant::now(), 0);
        while since.elapsed() < GUARD {
            sleep(GUARD_INTERVAL).await;
            let live = self.seen.borrow().live.clone();
            match live {
                Some(live) if live.metadata.uid == created.metadata.uid => last = live,
                // Replaced by another client.
                Some(_) => break,
                // Deleted again, or the watch has not shown it yet.
                None => {
                    if let Ok(None) = within(self.api().get_opt(&self.names.configuration)).await {
                        break;
                    }
                }
            }
            let why = match self.read().await {
                Ok(facts) if heal::is_off(&facts) => break,
                Ok(facts) => {
                    forbidden = 0;
                    heal::uninstalling(&facts)
                }
                // The component's permissions are deleted with the rest.
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    forbidden += 1;
                    (forbidden >= FORBIDDEN).then_some("our permissions are being deleted")
                }
                Err(_) => None,
            };
            if let Some(why) = why
                && self.withdraw(created, why).await
            {
                break;
            }
        }
        last
    }

    /// Deletes the configuration that this replica created, and no other; whether it is gone.
    async fn withdraw(&self, created: &ValidatingWebhookConfiguration, why: &'static str) -> bool {
        match within(self.api().delete(&self.names.configuration, &deletion(created))).await {
            Ok(_) => tracing::warn!(why, "deleted the webhook configuration that this replica had created again"),
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    why,
                    error,
                    "cannot delete the webhook configuration that this replica created, retrying"
                );
                return false;
            }
        }
        true
    }

    /// Whether the component is installed.
    async fn may_create(&self) -> Result<bool, kube::Error> {
        let attributes = ResourceAttributes {
            group: Some("admissionregistration.k8s.io".to_owned()),
            resource: Some("validatingwebhookconfigurations".to_owned()),
            verb: Some("create".to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = within(api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn read(&self) -> Result<Facts, kube::Error> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.client.clone());
        let (namespace, deployment, service, pod, policy, binding) = Box::pin(async {
            tokio::try_join!(
                within(namespaces.get_opt(&self.names.namespace)),
                within(deployments.get_opt(DEPLOYMENT)),
                within(services.get_opt(&self.names.service)),
                within(pods.get_opt(&self.pod)),
                within(policies.get_opt(POLICY)),
                within(bindings.get_opt(POLICY)),
            )
        })
        .await?;
        Ok(Facts { namespace, deployment, service, pod, policy, binding })
    }

    fn api(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }
}

async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|elapsed| Err(kube::Error::Service(elapsed.into())))
}

#[cfg(test)]
mod tests;
