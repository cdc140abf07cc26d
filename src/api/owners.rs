//! Reads the controllers of pods.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, ReplicaSet, StatefulSet},
        core::v1::{Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Resource,
    api::{ListParams, ObjectMeta},
    core::Selector,
};
use serde::de::DeserializeOwned;

use super::pods::{Error, Pods};
use crate::mark::{
    is_ready,
    owner::{Counts, controller, is_controller},
};

/// A pod's controller, as read from the API server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Owner {
    /// UID of its own controller: for a ReplicaSet, the Deployment.
    pub group: Option<String>,
    /// None if the replicas cannot be counted.
    pub counts: Option<Counts>,
    /// Its resourceVersion, which changes with every change of its status.
    pub version: String,
}

impl Pods {
    /// Reads the pod's controller. Returns the default for a controller that is gone, that Pristine is not allowed to
    /// read, or that is of an unknown kind.
    ///
    /// # Errors
    /// Any other error of the API server.
    pub async fn owner(&self, pod: &Pod) -> Result<Owner, Error> {
        let kind = controller(pod).map(|owner| (owner.api_version.as_str(), owner.kind.as_str()));
        let found = match kind {
            Some(("apps/v1", "ReplicaSet")) => self.controller::<ReplicaSet>(pod).await.map(|set| {
                let set = set?;
                let wanted = set.spec.as_ref()?.replicas.unwrap_or(1);
                let ready = set.status.as_ref()?.ready_replicas.unwrap_or(0);
                Some((set.metadata, Counts { wanted, ready, is_shared: true }))
            }),
            Some(("apps/v1", "StatefulSet")) => self.stateful_set(pod).await,
            Some(("apps/v1", "DaemonSet")) => self.controller::<DaemonSet>(pod).await.map(|set| {
                let set = set?;
                let status = set.status.as_ref()?;
                let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
                Some((set.metadata, Counts { wanted, ready, is_shared: false }))
            }),
            _ => return Ok(Owner::default()),
        };
        match found {
            Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 403) => {
                Ok(Owner::default())
            }
            found => Ok(found?.map_or_else(Owner::default, |(metadata, counts)| Owner {
                counts: Some(counts),
                group: metadata.owner_references.into_iter().flatten().find(is_controller).map(|owner| owner.uid),
                version: metadata.resource_version.unwrap_or_default(),
            })),
        }
    }

    /// Counts the Ready pods itself, because `readyReplicas` of a StatefulSet includes terminating pods that are still
    /// Ready (`computeReplicaStatus` of stateful_set_control.go): a pod that a node drain evicts would not count as
    /// missing.
    async fn stateful_set(&self, pod: &Pod) -> Result<Option<(ObjectMeta, Counts)>, Error> {
        let Some(set) = self.controller::<StatefulSet>(pod).await? else { return Ok(None) };
        let Some(spec) = set.spec else { return Ok(None) };
        let Ok(selector) = Selector::try_from(spec.selector) else { return Ok(None) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let pods = self.api(namespace).list(&ListParams::default().labels_from(&selector)).await;
        let is_counted = |pod: &Pod| {
            pod.metadata.deletion_timestamp.is_none()
                && is_ready(pod)
                && controller(pod).map(|owner| &owner.uid) == set.metadata.uid.as_ref()
        };
        let ready = pods.map_err(Error::of("list pods"))?.iter().filter(|pod| is_counted(pod)).count();
        let (wanted, ready) = (spec.replicas.unwrap_or(1), i32::try_from(ready).unwrap_or(i32::MAX));
        Ok(Some((set.metadata, Counts { wanted, ready, is_shared: true })))
    }

    /// Reads the selector of the pod's ReplicaSet, and the Services of its namespace; none if the ReplicaSet is gone.
    ///
    /// # Errors
    /// The error of the API server.
    pub async fn selectors(&self, pod: &Pod) -> Result<Option<(LabelSelector, Vec<Service>)>, Error> {
        let Some(set) = self.controller::<ReplicaSet>(pod).await? else { return Ok(None) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let services = services.list(&ListParams::default()).await.map_err(Error::of("list services"))?;
        Ok(Some((set.spec.map(|spec| spec.selector).unwrap_or_default(), services.items)))
    }

    /// Reads the controller; none if it is gone, or if another object has its name now.
    async fn controller<K>(&self, pod: &Pod) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(owner) = controller(pod) else { return Ok(None) };
        let found = Api::<K>::namespaced(self.client.clone(), namespace).get_opt(&owner.name).await;
        let found = found.map_err(Error::of("get the controller of a pod"))?;
        Ok(found.filter(|it| it.meta().uid.as_ref() == Some(&owner.uid)))
    }
}
