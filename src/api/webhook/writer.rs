//! Reads and writes the webhook configuration (I/O): one PATCH writes caBundle, the secret path and the owner together,
//! and nothing else updates the object. Every write is a compare-and-swap on what was read. Only [`super::healer`] creates
//! the object.

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Namespace},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};

use super::{GENERATION, Names, PATH_RENEWED_AT, path};
use crate::api::call::{Error, call};

/// What to write into each of our entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publication<'a> {
    /// caBundle in PEM, and the generation of the store that it is from.
    pub bundle: Option<(&'a str, u64)>,
    /// The secret path.
    pub path: Option<&'a path::Write>,
}

/// Reads and writes the webhook configuration.
pub struct Writer {
    client: Client,
    /// The names of the object and of our entries.
    pub names: Names,
}

impl Writer {
    /// Reads and writes through this client.
    #[must_use]
    pub const fn new(client: Client, names: Names) -> Self {
        Self { client, names }
    }

    fn api(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// Reads the object from the API server, not from a cache.
    ///
    /// # Errors
    /// The API server's answer, or that it did not answer.
    pub async fn read(&self) -> Result<Option<ValidatingWebhookConfiguration>, Error> {
        call("get the webhook configuration", self.api().get_opt(&self.names.configuration)).await
    }

    /// Patches each of our entries, and our namespace as the owner, if the object is still as it was read. A strategic
    /// merge patch: server-side apply would own the entries, and an upgrade that removes one would then fail with 422.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the object has changed.
    pub async fn publish(
        &self,
        what: &Publication<'_>,
        live: &ValidatingWebhookConfiguration,
        owner: &Namespace,
    ) -> Result<(), Error> {
        let patch = Patch::Strategic(self.patch(what, live, owner));
        let params = PatchParams { field_manager: Some("pristine".to_owned()), ..PatchParams::default() };
        let api = self.api();
        call("patch the webhook configuration", api.patch(&self.names.configuration, &params, &patch)).await.map(drop)
    }

    fn patch(&self, what: &Publication<'_>, live: &ValidatingWebhookConfiguration, owner: &Namespace) -> Value {
        let Names { service, namespace, .. } = &self.names;
        let mut annotations = json!({});
        let mut client = json!({});
        if let Some((pem, generation)) = what.bundle {
            annotations[GENERATION] = json!(generation.to_string());
            client["caBundle"] = json!(ByteString(pem.as_bytes().to_vec()));
        }
        if let Some(path::Write { path, renewed_at }) = what.path {
            client["service"] = json!({ "name": service, "namespace": namespace, "path": path });
            if let Some(at) = renewed_at {
                annotations[PATH_RENEWED_AT] = json!(at.to_string());
            }
        }
        let entries = self.names.entries(live).map(|entry| json!({ "name": entry.name, "clientConfig": client }));
        json!({
            "metadata": {
                "resourceVersion": live.metadata.resource_version,
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Namespace",
                    "name": owner.metadata.name, "uid": owner.metadata.uid,
                }],
            },
            "webhooks": entries.collect::<Vec<_>>(),
        })
    }

    /// Deletes this very object.
    ///
    /// # Errors
    /// The API server's answer, unless the object does not exist any more.
    pub async fn delete(&self, live: &ValidatingWebhookConfiguration) -> Result<(), Error> {
        let (api, params) = (self.api(), deletion(live));
        match call("delete the webhook configuration", api.delete(&self.names.configuration, &params)).await {
            Err(Error::Api(_, error)) if matches!(&*error, kube::Error::Api(status) if status.code == 404) => Ok(()),
            deleted => deleted.map(drop),
        }
    }
}

/// Deletes this very object, and none that another client has put in its place.
pub(super) fn deletion(live: &ValidatingWebhookConfiguration) -> DeleteParams {
    let preconditions = Preconditions { uid: live.metadata.uid.clone(), resource_version: None };
    DeleteParams::default().preconditions(preconditions)
}

/// Whether this namespace owns the object, so that it is garbage-collected with the namespace.
#[must_use]
pub fn is_owned(live: &ValidatingWebhookConfiguration, owner: &Namespace) -> bool {
    let uid = owner.metadata.uid.as_ref();
    live.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == uid)
}
