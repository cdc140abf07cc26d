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

impl Pods {
    /// Reads metadata, wanted pods and selector of the pod's controller; none if its kind has no `scale` or no selector
    /// in it, if it is gone, or if another object has its name now.
    pub(super) async fn scale(&self, pod: &Pod, now: Timestamp) -> Result<Option<(ObjectMeta, i32, String)>, Error> {
        let (Some(owner), Some(namespace)) = (controller(pod), pod.metadata.namespace.as_deref()) else {
            return Ok(None);
        };
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        if !is_segment(version) || !is_segment(&owner.name) || !(group.is_empty() || is_segment(group)) {
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
        let path = format!("{root}/namespaces/{namespace}/{resource}/{}/scale", owner.name);
        let Some(scale) = self.read::<Scale>(&path, "get the scale of a pod's controller").await? else {
            return Ok(None);
        };
        let selector = scale.status.and_then(|status| status.selector).filter(|selector| !selector.is_empty());
        let is_same = scale.metadata.uid.as_ref() == Some(&owner.uid);
        // Zero is left out.
        let wanted = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        Ok(selector.filter(|_| is_same).map(|selector| (scale.metadata, wanted, selector)))
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
