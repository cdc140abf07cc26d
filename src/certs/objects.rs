//! Reads and writes the objects in the API server that the certificates are about (I/O). What to write is decided in
//! [`super::rotation`] and [`super::mounted`].
//!
//! - The **Secret** contains the CA with its key, as [`super::secret`] encodes them. An operator requests a new CA with
//!   its annotation [`ROTATE`]. Written by [`Objects::write`].
//! - The **`ValidatingWebhookConfiguration`** contains caBundle and the secret path in each of our entries. It also
//!   records the generation of the store that caBundle was written from, and our namespace as its owner. Written by
//!   [`Objects::publish`], deleted by [`Objects::withdraw`], both through [`crate::api::webhook::writer`].
//! - The **namespace** is only read, for its UID and for whether it is being deleted.
//!
//! [`Objects::read`] asks the API server, never a cache. Every write is a compare-and-swap on what was read: an update
//! carries the resourceVersion, a deletion the UID, and a create fails if the object exists. A write that comes too
//! late fails with [`call::Error::Conflict`], and the caller reads again. So all replicas can write, and no leader is
//! needed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use futures_util::{Stream, StreamExt as _, stream};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    core::v1::{Namespace, ObjectReference, Pod, Secret},
};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PostParams},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{
    replica_status::{REPLICA, ReplicaStatus},
    rotation::Stored,
    secret::{self, Store},
};
use crate::api::{
    REPLICAS,
    call::{self, call},
    webhook::{
        GENERATION, Names,
        path::Paths,
        watch::Seen,
        writer::{Publication, Writer, is_owned},
    },
};

/// The annotation of the Secret by which an operator requests a new CA now. Its value is the reason, for people.
pub const ROTATE: &str = "pristine/rotate";

/// Why an object could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call failed.
    #[error(transparent)]
    Call(#[from] call::Error),
    /// The Secret is `immutable`: the API server rejects every update.
    #[error("the Secret {0} is immutable; delete it, and a replica restores it from memory")]
    Immutable(String),
}

impl Error {
    /// Whether another client wrote first.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Call(call::Error::Conflict))
    }
}

/// Reads and writes the objects.
pub struct Objects {
    client: Client,
    /// The name of the Secret with the CA.
    pub secret: String,
    /// The webhook configuration.
    webhook: Writer,
    /// What the watch of the webhook configuration has seen.
    seen: watch::Receiver<Seen>,
    /// UID of the Secret as it was read or written last: `kubectl describe` finds the Events about it by the UID.
    secret_uid: Mutex<Option<String>>,
}

/// The objects as [`Objects::read`] found them, for the compare-and-swap of the step that follows.
pub struct Live {
    secret: Option<Secret>,
    configuration: Option<ValidatingWebhookConfiguration>,
    namespace: Namespace,
    secret_name: String,
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
        self.configuration.as_ref().map(|live| self.names.bundles(live))
    }

    /// The secret path in our entries.
    #[must_use]
    pub fn paths(&self) -> Paths {
        self.configuration.as_ref().map(|live| self.names.paths(live)).unwrap_or_default()
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
            let (namespace, secret) = (&self.names.namespace, &self.secret_name);
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
        self.configuration.as_ref().is_none_or(|live| is_owned(live, &self.namespace))
    }
}

impl Objects {
    /// Reads and writes through this client the Secret with this name, and the webhook configuration, of which `seen` is
    /// the watch.
    #[must_use]
    pub const fn new(client: Client, secret: String, webhook: Writer, seen: watch::Receiver<Seen>) -> Self {
        Self { client, secret, webhook, seen, secret_uid: Mutex::new(None) }
    }

    /// The names of the webhook configuration and of our entries in it.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.webhook.names
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.names().namespace)
    }

    /// One item for each change of the Secret, the webhook configuration or our namespace. It has no content: the
    /// caller reads the objects.
    pub fn changes(&self) -> impl Stream<Item = Result<(), watcher::Error>> + Send + Unpin + use<> {
        let named = |name: &str| watcher::Config::default().timeout(60).fields(&format!("metadata.name={name}"));
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), &self.names().namespace);
        let secrets = watcher(secrets, named(&self.secret)).default_backoff();
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let namespaces = watcher(namespaces, named(&self.names().namespace)).default_backoff();
        let configuration = stream::unfold(self.seen.clone(), async |mut seen| {
            seen.changed().await.ok()?;
            Some((Ok(()), seen))
        });
        stream::select_all([
            secrets.map(|event| event.map(drop)).boxed(),
            configuration.boxed(),
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
        let configuration = self.webhook.read().await?;
        let secret = call("get the Secret", self.secrets().get_opt(&self.secret)).await?;
        self.remember(secret.as_ref());
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = call("get our namespace", namespaces.get(&self.names().namespace)).await?;
        Ok(Live { secret, configuration, namespace, secret_name: self.secret.clone(), names: self.names().clone() })
    }

    /// The chain that each replica says it serves. One that has not said it yet is left out.
    ///
    /// # Errors
    /// The API server's answer, or that it did not answer.
    pub async fn served_chains(&self) -> Result<Vec<Vec<CertificateDer<'static>>>, Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.names().namespace);
        let pods = call("list our pods", pods.list(&ListParams::default().labels(REPLICAS))).await?;
        let status = |pod: Pod| ReplicaStatus::parse(pod.metadata.annotations?.get(REPLICA)?);
        Ok(pods.into_iter().filter_map(status).map(|status| status.chain()).collect())
    }

    /// Deletes the webhook configuration that `live` contains.
    ///
    /// # Errors
    /// The API server's answer, unless the configuration is gone already.
    pub async fn withdraw(&self, live: &Live) -> Result<(), Error> {
        let Some(configuration) = &live.configuration else { return Ok(()) };
        Ok(self.webhook.delete(configuration).await?)
    }

    /// Writes the store, if the Secret is still as it was read.
    ///
    /// # Errors
    /// [`call::Error::Conflict`] if it is not.
    pub async fn write(&self, store: &Store, live: Live) -> Result<(), Error> {
        let data = Some(secret::encode(store));
        let (name, params) = (&self.secret, PostParams::default());
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

    /// Writes into each of our entries, and our namespace as the owner, if the webhook configuration is still as it was
    /// read.
    ///
    /// # Errors
    /// [`call::Error::Conflict`] if it is not.
    pub async fn publish(&self, what: &Publication<'_>, live: &Live) -> Result<(), Error> {
        let Some(configuration) = &live.configuration else { return Ok(()) };
        Ok(self.webhook.publish(what, configuration, &live.namespace).await?)
    }

    /// The reference to the Secret, for Events about it.
    #[must_use]
    pub fn secret_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            namespace: Some(self.names().namespace.clone()),
            name: Some(self.secret.clone()),
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
