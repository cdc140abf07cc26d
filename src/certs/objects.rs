//! Reads and writes the objects in the API server that the certificates are about (I/O). What to write is decided in
//! [`super::rotation`] and [`super::mounted`].
//!
//! - The **Secret** contains the CA with its key, as [`super::secret`] encodes them. An operator requests a new CA with
//!   its annotation [`ROTATE`]. Written by [`Objects::write`].
//! - The **`ValidatingWebhookConfiguration`** contains caBundle in each of our entries. It also records the generation
//!   of the store that caBundle was written from, and our namespace as its owner. Written by [`Objects::publish`],
//!   deleted by [`Objects::withdraw`].
//! - The **namespace** is only read, for its UID and for whether it is being deleted.
//!
//! [`Objects::read`] asks the API server, never a cache. Every write is a compare-and-swap on what was read: an update
//! carries the resourceVersion, a deletion the UID, and a create fails if the object exists. A write that comes too
//! late fails with [`Error::Conflict`], and the caller reads again. So all replicas can write, and no leader is needed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
        core::v1::{Namespace, ObjectReference, Pod, Secret},
    },
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio::time::timeout;

use super::{
    replica_status::{REPLICA, ReplicaStatus},
    rotation::Stored,
    secret::{self, Store},
};

/// For one call to the API server. Other webhooks, which may be slow, review the writes of Secrets.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The annotation of the Secret by which an operator requests a new CA now. Its value is the reason, for people.
pub const ROTATE: &str = "pristine/rotate";

/// The annotation of the webhook configuration with the generation of the store that caBundle was written from.
const GENERATION: &str = "pristine/generation";

/// The names of the objects.
#[derive(Clone, Debug)]
pub struct Names {
    /// Our namespace.
    pub namespace: String,
    /// The Secret with the CA.
    pub secret: String,
    /// The Service that the webhook entries name.
    pub service: String,
    /// The `ValidatingWebhookConfiguration`.
    pub configuration: String,
}

impl Names {
    /// The names in the serving certificate: the one that the API server verifies.
    #[must_use]
    pub fn dns(&self) -> Vec<String> {
        vec![format!("{}.{}.svc", self.service, self.namespace)]
    }
}

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another client, most often another replica, wrote first. Read again.
    #[error("another client changed the object first")]
    Conflict,
    /// The API server rejected the call. If a permission is missing, its answer names the verb and the resource.
    #[error("cannot {0}")]
    Api(&'static str, #[source] Box<kube::Error>),
    /// The Secret is `immutable`: the API server rejects every update.
    #[error("the Secret {0} is immutable; delete it, and a replica restores it from memory")]
    Immutable(String),
    /// The API server did not answer.
    #[error("cannot {0}: no answer within {limit:?}", limit = CALL_TIMEOUT)]
    Timeout(&'static str),
}

async fn call<T>(action: &'static str, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Error::Conflict),
        Ok(Err(error)) => Err(Error::Api(action, Box::new(error))),
        Err(_) => Err(Error::Timeout(action)),
    }
}

/// Reads and writes the objects.
pub struct Objects {
    client: Client,
    /// The names of the objects.
    pub names: Names,
    /// UID of the Secret as it was read or written last: `kubectl describe` finds the Events about it by the UID.
    secret_uid: Mutex<Option<String>>,
}

/// The objects as [`Objects::read`] found them, for the compare-and-swap of the step that follows.
pub struct Live {
    secret: Option<Secret>,
    configuration: Option<ValidatingWebhookConfiguration>,
    namespace: Namespace,
    names: Names,
}

impl Live {
    /// The content of the Secret, decoded.
    #[must_use]
    pub fn stored(&self) -> Stored {
        let Some(secret) = &self.secret else { return Stored::Absent };
        match secret::decode(secret.data.as_ref().unwrap_or(&BTreeMap::new())) {
            Ok(store) => Stored::Store(Box::new(store)),
            Err(why) => Stored::Unreadable(why),
        }
    }

    /// caBundle of each of our entries; `None` if the webhook configuration does not exist.
    #[must_use]
    pub fn bundles(&self) -> Option<Vec<Vec<u8>>> {
        let configuration = self.configuration.as_ref()?;
        let bundle = |entry: &ValidatingWebhook| entry.client_config.ca_bundle.clone().unwrap_or_default().0;
        Some(self.entries(configuration).map(bundle).collect())
    }

    /// Generation of the store that caBundle was written from; 0 if none is recorded, or no readable one.
    #[must_use]
    pub fn published_generation(&self) -> u64 {
        self.recorded_generation().and_then(Result::ok).unwrap_or(0)
    }

    fn recorded_generation(&self) -> Option<Result<u64, String>> {
        let text = self.configuration.as_ref()?.metadata.annotations.as_ref()?.get(GENERATION)?;
        Some(text.parse().map_err(|_| format!("{text:?} is not a generation")).and_then(secret::check_generation))
    }

    /// What an operator has to look at: the reason of its Event, and what to do.
    #[must_use]
    pub fn troubles(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if self.secret.as_ref().is_some_and(is_immutable) {
            let Names { namespace, secret, .. } = &self.names;
            let note = format!(
                "the Secret is immutable, so the CA cannot be renewed; run kubectl -n {namespace} delete secret \
                 {secret}, and a running replica restores it from memory at once"
            );
            found.push(("SecretImmutable", note));
        }
        if let Some(Err(why)) = self.recorded_generation() {
            let name = &self.names.configuration;
            let note = format!("annotation {GENERATION} of ValidatingWebhookConfiguration {name} is ignored: {why}");
            found.push(("GenerationUnreadable", note));
        }
        found
    }

    /// Whether an operator has requested a new CA with the annotation [`ROTATE`].
    #[must_use]
    pub fn wants_rotation(&self) -> bool {
        let annotations = self.secret.as_ref().and_then(|secret| secret.metadata.annotations.as_ref());
        annotations.is_some_and(|all| all.contains_key(ROTATE))
    }

    /// Whether our namespace is being deleted.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.namespace.metadata.deletion_timestamp.is_some()
    }

    /// Whether our namespace owns the webhook configuration, so that it is garbage-collected with the namespace.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        let uid = self.namespace.metadata.uid.as_ref();
        let owned = |found: &ValidatingWebhookConfiguration| {
            found.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == uid)
        };
        self.configuration.as_ref().is_none_or(owned)
    }

    /// The entries that call our Service. Others in the same object are not Pristine's.
    fn entries<'a>(&self, all: &'a ValidatingWebhookConfiguration) -> impl Iterator<Item = &'a ValidatingWebhook> {
        let Names { service, namespace, .. } = self.names.clone();
        all.webhooks.iter().flatten().filter(move |entry| {
            let target = entry.client_config.service.as_ref();
            target.is_some_and(|target| target.name == service && target.namespace == namespace)
        })
    }
}

impl Objects {
    /// Reads and writes through this client.
    #[must_use]
    pub const fn new(client: Client, names: Names) -> Self {
        Self { client, names, secret_uid: Mutex::new(None) }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    fn configurations(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// One item for each change of the Secret, the webhook configuration or our namespace. It has no content: the
    /// caller reads the objects.
    pub fn changes(&self) -> impl Stream<Item = Result<(), watcher::Error>> + Send + Unpin {
        let named = |name: &str| watcher::Config::default().timeout(60).fields(&format!("metadata.name={name}"));
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let configurations: Api<PartialObjectMeta<ValidatingWebhookConfiguration>> = Api::all(self.client.clone());
        let secrets = watcher(secrets, named(&self.names.secret)).default_backoff();
        let configurations = watcher(configurations, named(&self.names.configuration)).default_backoff();
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let namespaces = watcher(namespaces, named(&self.names.namespace)).default_backoff();
        stream::select_all([
            secrets.map(|event| event.map(drop)).boxed(),
            configurations.map(|event| event.map(drop)).boxed(),
            namespaces.map(|event| event.map(drop)).boxed(),
        ])
    }

    /// Reads the objects from the API server, not from a cache: certificates are issued from what it returns.
    ///
    /// The webhook configuration is read first. If another replica publishes a newer Secret than the one read here, it
    /// changes the resourceVersion that our own write carries.
    ///
    /// # Errors
    /// The API server's answer, or that it did not answer.
    pub async fn read(&self) -> Result<Live, Error> {
        let Names { secret, configuration, namespace, .. } = &self.names;
        let configuration = call("get the webhook configuration", self.configurations().get_opt(configuration)).await?;
        let secret = call("get the Secret", self.secrets().get_opt(secret)).await?;
        self.remember(secret.as_ref());
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = call("get our namespace", namespaces.get(namespace)).await?;
        Ok(Live { secret, configuration, namespace, names: self.names.clone() })
    }

    /// The chain that each replica says it serves. One that has not said it yet is left out.
    ///
    /// # Errors
    /// The API server's answer, or that it did not answer.
    pub async fn served_chains(&self) -> Result<Vec<Vec<CertificateDer<'static>>>, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let ours = ListParams::default().labels("app.kubernetes.io/name=pristine,app.kubernetes.io/component=webhook");
        let pods = call("list our pods", pods.list(&ours)).await?;
        let status = |pod: Pod| ReplicaStatus::parse(pod.metadata.annotations?.get(REPLICA)?);
        Ok(pods.into_iter().filter_map(status).map(|status| status.chain()).collect())
    }

    /// Deletes the webhook configuration that `live` contains.
    ///
    /// # Errors
    /// The API server's answer, unless the configuration is gone already.
    pub async fn withdraw(&self, live: &Live) -> Result<(), Error> {
        let Some(configuration) = &live.configuration else { return Ok(()) };
        let preconditions = Preconditions { uid: configuration.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        let api = self.configurations();
        match call("delete the webhook configuration", api.delete(&self.names.configuration, &params)).await {
            Err(Error::Api(_, error)) if matches!(&*error, kube::Error::Api(status) if status.code == 404) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    /// Writes the store, if the Secret is still as it was read.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not.
    pub async fn write(&self, store: &Store, live: Live) -> Result<(), Error> {
        let data = Some(secret::encode(store));
        let (name, params) = (&self.names.secret, PostParams::default());
        if let Some(mut secret) = live.secret {
            if is_immutable(&secret) {
                return Err(Error::Immutable(name.clone()));
            }
            // The object keeps the resourceVersion that was read, and labels and annotations of other clients.
            secret.data = data;
            // The staged CA that is written here, or an earlier one, fulfils the request that was read with the Secret.
            if store.next.is_some() {
                secret.metadata.annotations.get_or_insert_default().remove(ROTATE);
            }
            call("update the Secret", self.secrets().replace(name, &params, &secret)).await?;
        } else {
            let labels = Some([("app.kubernetes.io/name".to_owned(), "pristine".to_owned())].into());
            let metadata = ObjectMeta { name: Some(name.clone()), labels, ..ObjectMeta::default() };
            let secret = Secret { metadata, data, ..Secret::default() };
            self.remember(Some(&call("create the Secret", self.secrets().create(&params, &secret)).await?));
        }
        Ok(())
    }

    /// Patches caBundle of each of our entries, the generation, and our namespace as the owner, if the webhook
    /// configuration is still as it was read. A strategic merge patch: server-side apply would own the entries, and an
    /// upgrade that removes one would then fail with 422.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the webhook configuration has changed.
    pub async fn publish(&self, pem: &str, generation: u64, live: &Live) -> Result<(), Error> {
        let Some(configuration) = &live.configuration else { return Ok(()) };
        let bundle = ByteString(pem.as_bytes().to_vec());
        let entry = |entry: &ValidatingWebhook| json!({ "name": entry.name, "clientConfig": { "caBundle": bundle } });
        let patch = Patch::Strategic(json!({
            "metadata": {
                "resourceVersion": configuration.metadata.resource_version,
                "annotations": { GENERATION: generation.to_string() },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Namespace",
                    "name": live.namespace.metadata.name, "uid": live.namespace.metadata.uid,
                }],
            },
            "webhooks": live.entries(configuration).map(entry).collect::<Vec<_>>(),
        }));
        let params = PatchParams { field_manager: Some("pristine".to_owned()), ..PatchParams::default() };
        let api = self.configurations();
        call("patch the webhook configuration", api.patch(&self.names.configuration, &params, &patch)).await.map(drop)
    }

    /// The reference to the Secret, for Events about it.
    #[must_use]
    pub fn secret_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.names.namespace.clone()),
            name: Some(self.names.secret.clone()),
            uid: self.secret_uid.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..ObjectReference::default()
        }
    }

    fn remember(&self, secret: Option<&Secret>) {
        let uid = secret.and_then(|secret| secret.metadata.uid.clone());
        *self.secret_uid.lock().unwrap_or_else(PoisonError::into_inner) = uid;
    }
}

fn is_immutable(secret: &Secret) -> bool {
    secret.immutable == Some(true)
}

#[cfg(test)]
mod tests;
