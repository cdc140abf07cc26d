//! Reads the labels of a pod's namespace. An admission review does not contain them.
//!
//! One GET for each review that needs them, and no watch: a label decides who may be exempt, so it must be as new as the
//! pod, and a watch that is behind would apply the labels of before.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;

use super::{Error, Pods};

impl Pods {
    /// Reads the labels of a namespace as they are now.
    ///
    /// # Errors
    /// [`Error::Gone`], or another error of the API server.
    pub async fn namespace_labels(&self, name: &str) -> Result<BTreeMap<String, String>, Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = api.get_metadata(name).await.map_err(Error::of("get namespaces"))?;
        Ok(namespace.metadata.labels.unwrap_or_default())
    }
}
