//! Reads and writes what a surge needs: the workload of a pod, what selects pods in its namespace, and the label that is
//! taken off and put back. The reads need the component `surge`, except those of pods and ReplicaSets.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Pod, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use super::pods::{Error, Pods, identity};
use crate::mark::{
    Mark,
    owner::{controller, is_controller},
    surge::{self, End, HASH, SURGE, SURGE_HASH, Surge, annotation, label},
};

/// The workload of a pod as the API server returned it, each object by its name.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// The ReplicaSet; none if there is none.
    pub set: Option<ReplicaSet>,
    /// The Deployment; none if there is none.
    pub deployment: Option<Deployment>,
    /// The pods of the namespace that have the same `pod-template-hash`, or are in a surge.
    pub pods: Vec<Pod>,
}

/// The Services, NetworkPolicies and PodDisruptionBudgets of a namespace.
pub type Selecting = (Vec<Service>, Vec<NetworkPolicy>, Vec<PodDisruptionBudget>);

impl Pods {
    /// Reads the workload of a pod: by the record of its surge, or by its owners.
    ///
    /// # Errors
    /// The error of the API server.
    pub async fn workload(&self, pod: &Pod) -> Result<Workload, Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let recorded = Surge::on(pod).filter(|_| surge::is_in_surge(pod));
        let name = recorded.as_ref().map(|surge| surge.replica_set.name.clone());
        let Some(name) = name.or_else(|| controller(pod).map(|owner| owner.name.clone())) else {
            return Ok(Workload::default());
        };
        let set: Option<ReplicaSet> = self.by_name(namespace, &name, "get replicasets").await?;
        let owner = set.iter().flat_map(|set| set.metadata.owner_references.iter().flatten());
        let owner = owner.into_iter().find(|owner| is_controller(owner)).map(|owner| owner.name.clone());
        let deployment = match recorded.map(|surge| surge.deployment.name).or(owner) {
            Some(name) => self.by_name(namespace, &name, "get deployments").await?,
            None => None,
        };
        let hash = label(pod, HASH).or_else(|| annotation(pod, SURGE_HASH)).unwrap_or_default();
        // Without a resourceVersion, the API server answers from etcd and not from its cache.
        let list = async |labels: &str| {
            let found = self.api(namespace).list(&ListParams::default().labels(labels)).await;
            found.map(|found| found.items).map_err(Error::of("list pods"))
        };
        let mut pods = list(&format!("{HASH}={hash}")).await?;
        pods.extend(list(&format!("{SURGE},!{HASH}")).await?);
        Ok(Workload { set, deployment, pods })
    }

    /// Reads what selects pods in a namespace.
    ///
    /// # Errors
    /// The error of the API server.
    pub async fn selecting(&self, namespace: &str) -> Result<Selecting, Error> {
        Ok((
            self.all(namespace, "list services").await?,
            self.all(namespace, "list networkpolicies").await?,
            self.all(namespace, "list poddisruptionbudgets").await?,
        ))
    }

    /// Takes the label off this pod, as it was read.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the pod must be read again.
    pub async fn begin_surge(&self, pod: &Pod, mark: &Mark, surge: &Surge) -> Result<(), Error> {
        let (namespace, name, _, version) = identity(pod)?;
        let hash = label(pod, HASH).unwrap_or_default();
        self.patch_status(namespace, name, &surge.begin(mark, version, hash)).await.map(drop)
    }

    /// Puts the label back on this pod, as it was read.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the pod must be read again.
    pub async fn end_surge(&self, pod: &Pod, why: End, now: Timestamp) -> Result<(), Error> {
        let (namespace, name, ..) = identity(pod)?;
        let patch = surge::end(pod, why, now).ok_or(Error::Gone)?;
        self.patch_status(namespace, name, &patch).await.map(drop)
    }

    /// The pods of the cluster that are in a surge.
    ///
    /// # Errors
    /// The error of the API server.
    pub async fn in_surge(&self) -> Result<Vec<Pod>, Error> {
        let api: Api<Pod> = Api::all(self.client.clone());
        let found = api.list(&ListParams::default().labels(SURGE)).await.map_err(Error::of("list pods"))?;
        Ok(found.items.into_iter().filter(surge::is_in_surge).collect())
    }

    async fn by_name<K>(&self, namespace: &str, name: &str, action: &'static str) -> Result<Option<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        Api::<K>::namespaced(self.client.clone(), namespace).get_opt(name).await.map_err(Error::of(action))
    }

    async fn all<K>(&self, namespace: &str, action: &'static str) -> Result<Vec<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let found = Api::<K>::namespaced(self.client.clone(), namespace).list(&ListParams::default()).await;
        found.map(|found| found.items).map_err(Error::of(action))
    }
}
