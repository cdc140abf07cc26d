//! Reads the subresource `scale` of a pod's controller, of any kind.

use jiff::Timestamp;
use k8s_openapi::{
    api::{autoscaling::v1::Scale, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::APIResourceList,
};
use kube::api::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::{
    api::{
        kinds::{is_segment, scalable},
        pods::{Error, Pods},
    },
    mark::owner::controller,
};

/// The subresource `scale` of an object.
pub(super) struct Found {
    /// Of the object.
    pub metadata: ObjectMeta,
    /// Replicas.
    pub wanted: i32,
    /// Of their pods, if the object has one.
    pub selector: Option<String>,
}

impl Pods {
    /// Reads the scale of the pod's controller; none if its kind has none, if it is gone, or if another object has its
    /// name now.
    pub(super) async fn scale(&self, pod: &Pod, now: Timestamp) -> Result<Option<Found>, Error> {
        let (Some(owner), Some(namespace)) = (controller(pod), pod.metadata.namespace.as_deref()) else {
            return Ok(None);
        };
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        if !is_segment(version) || !(group.is_empty() || is_segment(group)) {
            return Ok(None);
        }
        let root = if group.is_empty() { "/api" } else { "/apis" };
        let root = format!("{root}/{}", owner.api_version);
        let resource = if let Some(known) = self.kinds.get(&owner.api_version, &owner.kind, now) {
            known
        } else {
            let list: Option<APIResourceList> = self.read(&root, "discover the kind of a pod's controller").await?;
            let resource = list.and_then(|list| scalable(&list, &owner.kind));
            self.kinds.put(&owner.api_version, &owner.kind, resource.clone(), now);
            resource
        };
        let Some(resource) = resource else { return Ok(None) };
        let found = self.scale_at(&format!("{root}/namespaces/{namespace}/{resource}"), &owner.name).await?;
        Ok(found.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid)))
    }

    /// Reads the scale of the object of this name among those at this path.
    pub(super) async fn scale_at(&self, path: &str, name: &str) -> Result<Option<Found>, Error> {
        if !is_segment(name) {
            return Ok(None);
        }
        let found: Option<Scale> = self.read(&format!("{path}/{name}/scale"), "get the scale of a controller").await?;
        Ok(found.map(|scale| Found {
            metadata: scale.metadata,
            // Zero is left out.
            wanted: scale.spec.and_then(|spec| spec.replicas).unwrap_or(0),
            selector: scale.status.and_then(|status| status.selector).filter(|selector| !selector.is_empty()),
        }))
    }

    /// Reads this path; none if there is nothing.
    async fn read<T: DeserializeOwned>(&self, path: &str, action: &'static str) -> Result<Option<T>, Error> {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(kube::Error::HttpError).map_err(Error::of(action))?;
        match self.client.request(request).await {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(Error::of(action)(error)),
        }
    }
}
