//! The only writer of pods: the mark, the condition, the eviction. Also reads pods, and checks a user's permission
//! before anything is written.
//!
//! Every write carries the UID and the resourceVersion that were read, so it fails for another pod and for a pod that
//! changed after the decision.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        core::v1::Pod,
        policy::v1::Eviction,
    },
    apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::kinds::Kinds;
use crate::mark::{
    self, Disposition, Found, Interaction, Mark, Operation, State, Status, User,
    report::{REPORT, REPORTED},
};

mod marked;
mod namespace;
mod page;
mod spare;
pub use marked::{Marked, Recorded};

/// The field manager of every write.
pub const MANAGER: &str = "pristine";

/// An eviction can take 10 s in the API server: if the pod is not running and the UID is wrong, the API server tries to
/// delete it 20 times, half a second apart. With a shorter timeout it would be unknown whether the pod was evicted.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a pod could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pod changed since it was read, or another pod has its name now. Read it again.
    #[error("the pod changed since it was read")]
    Conflict,
    /// The pod is gone.
    #[error("the pod no longer exists")]
    Gone,
    /// The API server did not answer in time. Whether a write happened is unknown.
    #[error("no answer from the API server to {action}")]
    Silent {
        /// What was tried.
        action: &'static str,
    },
    /// The API server accepted a mark, and returned the pod without a part of it.
    #[error("the API server accepted the mark and returned the pod without {what}")]
    Stripped {
        /// The part that is missing.
        what: String,
    },
    /// Any other error of the API server or the network.
    #[error("cannot {action}")]
    Api {
        /// What was tried, for example `patch pods/status`.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Error {
    /// Whether the API server answered. Without its answer it is unknown whether the write happened.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Silent { .. } => false,
            Self::Api { source, .. } => matches!(&**source, kube::Error::Api(_)),
            Self::Conflict | Self::Gone | Self::Stripped { .. } => true,
        }
    }

    /// Whether the same call may succeed a moment later, or from another replica: the API server did not answer, was too
    /// busy, failed itself, or did not know this replica's token.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Silent { .. } => true,
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => matches!(status.code, 401 | 429 | 500..),
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => false,
                _ => true,
            },
            Self::Conflict | Self::Gone | Self::Stripped { .. } => false,
        }
    }

    pub(super) fn of(action: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |error| match &error {
            // An admission webhook may deny with any code. What it says is not about the pod's version.
            kube::Error::Api(status) if status.message.contains("denied the request") => {
                Self::Api { action, source: Box::new(error) }
            }
            kube::Error::Api(status) if status.code == 404 => Self::Gone,
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            // The answer to a patch with another UID, which is immutable: another pod has the name now.
            kube::Error::Api(status) if status.code == 422 && status.message.contains("metadata.uid") => Self::Conflict,
            _ => Self::Api { action, source: Box::new(error) },
        }
    }
}

/// The API server's answer to an eviction.
#[derive(Debug)]
pub enum Outcome {
    /// The eviction was accepted; the pod is terminating.
    Accepted,
    /// A PodDisruptionBudget (or the API server, for a moment) does not allow it now.
    Refused {
        /// The API server's message.
        message: String,
        /// When to try again, if the API server named a time.
        retry_after: Option<Duration>,
    },
}

/// The pods of the cluster.
#[derive(Clone)]
pub struct Pods {
    pub(super) client: Client,
    /// The lists that may be in memory at the same time.
    pub(super) lists: Arc<Semaphore>,
    pub(super) kinds: Arc<Kinds>,
}

/// See [`Pods::lists`].
const LISTS: usize = 8;

impl Pods {
    /// Uses this client, which must not retry by itself, because a 429 is an answer here.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, lists: Arc::new(Semaphore::new(LISTS)), kinds: Arc::default() }
    }

    pub(super) fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads a pod as it is now.
    ///
    /// # Errors
    /// [`Error::Gone`], or another error of the API server.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Pod, Error> {
        self.api(namespace).get(name).await.map_err(Error::of("get pods"))
    }

    /// Whether the user may do this to the pod, from a SubjectAccessReview. The request of a user who may only `get
    /// pods/exec` reaches admission, and must not cause the eviction of a pod that the user cannot exec into.
    ///
    /// # Errors
    /// The error of the API server.
    pub async fn can_i(
        &self,
        user: &User,
        verb: &str,
        subresource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<bool, Error> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    resource: Some("pods".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    version: Some("v1".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|source| Error::Api { action: "create subjectaccessreviews", source: Box::new(source) })?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Adds interactions to the mark of this pod, as it was read; each with its disposition. Writes nothing if the pod
    /// has all of them already. May record fewer than all, in their order, if more would not fit into one mark.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the pod must be read again, [`Error::Stripped`] if the mark is not on the pod afterwards.
    pub async fn mark(&self, pod: &Pod, interactions: Vec<(Interaction, Disposition)>) -> Result<Marked, Error> {
        let (namespace, name, uid, version) = identity(pod)?;
        let (found, replaced) = match Found::on(pod) {
            Found::None => (None, None),
            Found::NotAMark(why) => (None, Some(why)),
            Found::Mark(mark) => (Some(mark), None),
        };
        let is_first = found.is_none();
        let (mark, recorded) = marked::record(found, uid, interactions).ok_or(Error::Gone)?;
        // Without the label, no replica would find the mark.
        let is_labelled = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(mark::INTERACTED));
        let returned = if is_labelled && recorded.iter().all(|one| one.folded) {
            pod.clone()
        } else {
            let mut patch = mark.patch(version, is_first);
            if recorded.iter().any(|one| one.interaction.operation == Operation::Report) {
                patch["metadata"]["labels"][REPORTED] = Value::Null;
                patch["metadata"]["annotations"][REPORT] = Value::Null;
            }
            self.patch_status(namespace, name, &patch).await?
        };
        Ok(Marked { replaced, ..Marked::proven(returned, mark, recorded)? })
    }

    /// Writes the status of this pod, as it was read: the condition with this message, and the annotation. Writes
    /// nothing and returns false if the pod has both already.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the pod must be read again.
    pub async fn set_condition(
        &self,
        pod: &Pod,
        since: Timestamp,
        status: &Status,
        message: &str,
    ) -> Result<bool, Error> {
        let (namespace, name, uid, version) = identity(pod)?;
        if status.is_on(pod, message) {
            return Ok(false);
        }
        self.patch_status(namespace, name, &status.patch(uid, version, since, message)).await.map(|_| true)
    }

    /// Removes these labels from the pod, as it was read, and records them in an annotation.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the pod must be read again.
    pub async fn quarantine(
        &self,
        pod: &Pod,
        mark: &Mark,
        labels: &BTreeMap<String, String>,
        message: &str,
    ) -> Result<(), Error> {
        let (namespace, name, uid, version) = identity(pod)?;
        let names = labels.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let cause = format!("out of service, without the labels {names}");
        let status = Status::due(State::Quarantined, mark.evict_at, cause);
        let mut patch = status.patch(uid, version, mark.first.at, message);
        let removed: BTreeMap<&String, Value> = labels.keys().map(|key| (key, Value::Null)).collect();
        patch["metadata"]["labels"] = json!(removed);
        // The deadline too: the pod has no controller from now on, and a pod that was bare at the exec would lose its
        // deadline.
        let annotations = &mut patch["metadata"]["annotations"];
        annotations[mark::QUARANTINED] = json!(json!(labels).to_string());
        annotations[mark::EVICT_AT] = json!(mark.evict_at.map(|at| at.to_string()));
        self.patch_status(namespace, name, &patch).await.map(drop)
    }

    /// Writes an annotation on a pod of Pristine itself.
    ///
    /// # Errors
    /// The error of the API server.
    pub async fn annotate(&self, namespace: &str, name: &str, key: &str, value: &str) -> Result<(), Error> {
        self.patch_status(namespace, name, &json!({ "metadata": { "annotations": { key: value } } })).await.map(drop)
    }

    pub(super) async fn patch_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod, Error> {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patched = self.api(namespace).patch_status(name, &params, &Patch::Strategic(patch)).await;
        patched.map_err(Error::of("patch pods/status"))
    }

    /// Evicts the pod of this name if it still has this UID. A dry run only finds out whether the eviction would be
    /// accepted.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another pod has the name now, [`Error::Gone`] if none has.
    pub async fn evict(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        grace: Option<i64>,
        is_dry: bool,
    ) -> Result<Outcome, Error> {
        let request = eviction_request(namespace, name, uid, grace, is_dry)?;
        let action = "create pods/eviction";
        let sent = tokio::time::timeout(EVICTION_TIMEOUT, self.client.request::<Value>(request)).await;
        match sent {
            Ok(Ok(_)) => Ok(Outcome::Accepted),
            Ok(Err(kube::Error::Api(status))) if status.code == 429 => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
                let message = refusal(&status);
                Ok(Outcome::Refused { message, retry_after })
            }
            Ok(Err(error)) => Err(Error::of(action)(error)),
            Err(elapsed) => Err(Error::Api { action, source: Box::new(kube::Error::Service(elapsed.into())) }),
        }
    }
}

/// Why an eviction was refused, in the API server's words: the causes name the PodDisruptionBudget.
#[must_use]
pub fn refusal(status: &kube::core::Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes).map(|cause| cause.message.as_str());
    causes.fold(status.message.clone(), |all, cause| format!("{all} {cause}"))
}

/// Namespace, name, UID and resourceVersion of a pod as it was read.
pub(super) fn identity(pod: &Pod) -> Result<(&str, &str, &str, &str), Error> {
    let it = &pod.metadata;
    match (&it.namespace, &it.name, &it.uid) {
        (Some(namespace), Some(name), Some(uid)) => {
            Ok((namespace, name, uid, it.resource_version.as_deref().unwrap_or_default()))
        }
        _ => Err(Error::Gone),
    }
}

/// The request to evict the pod of this name if it still has this UID, or for a dry run of that.
///
/// Not kube's `Api::evict`, because it writes `delete_options` instead of `deleteOptions`: the API server ignores
/// unknown fields and evicts any pod that has the name. With `fieldValidation=Strict`, such a mistake is answered with
/// 400.
///
/// # Errors
/// If a name is not valid in a URL path.
pub fn eviction_request(
    namespace: &str,
    name: &str,
    uid: &str,
    grace: Option<i64>,
    is_dry: bool,
) -> Result<http::Request<Vec<u8>>, Error> {
    let eviction = Eviction {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            grace_period_seconds: grace,
            dry_run: is_dry.then(|| vec!["All".to_owned()]),
            ..DeleteOptions::default()
        }),
    };
    let body = serde_json::to_vec(&eviction).expect("an Eviction serialises");
    // In the query as well, because webhooks learn from there whether it is a dry run.
    let dry = if is_dry { "&dryRun=All" } else { "" };
    http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction?fieldValidation=Strict{dry}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| Error::Api { action: "create pods/eviction", source: Box::new(kube::Error::HttpError(error)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_request_carries_the_uid_in_the_field_that_the_api_server_reads() {
        let request = eviction_request("ns", "web-0", "the-uid", None, false).unwrap();
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri(), "/api/v1/namespaces/ns/pods/web-0/eviction?fieldValidation=Strict");
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        assert_eq!(
            body,
            json!({
                "apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": "web-0", "namespace": "ns"},
                "deleteOptions": {"preconditions": {"uid": "the-uid"}},
            })
        );
    }
}
