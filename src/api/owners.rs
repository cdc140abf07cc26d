//! Reads the controllers of pods.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, ReplicaSet, StatefulSet},
        core::v1::{Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference},
};
use kube::{
    Api, Resource,
    api::{ListParams, ObjectMeta},
    core::Selector,
};
use serde::de::DeserializeOwned;

use self::{
    groups::Groups,
    members::{Member, Tally},
};
use super::pods::{Error, Pods};
use crate::mark::owner::{
    Counts, HASHES, LEADER_WORKER_SET, Look, Seen, controller, group, is_controller, leader_worker_set,
};

mod groups;
mod members;
mod scale;

/// Pods on a page of a list. Some 64 workloads are read at the same time, and a pod can have a hundred kilobytes.
const PAGE: u32 = 100;

/// A pod's controller, as read from the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owner {
    /// Its own controller: for a ReplicaSet, the Deployment.
    pub parent: Option<OwnerReference>,
    /// None if the replicas cannot be counted.
    pub counts: Option<Counts>,
    /// Its resourceVersion, which changes with every change of its status.
    pub version: String,
    /// What its pods show, if they were read. Then the counts are from the pods too.
    pub seen: Option<Seen>,
    /// Whether its update strategy is `OnDelete` and the pod is not of its latest revision: an eviction would roll out
    /// what an operator holds back.
    pub holds_update: bool,
}

impl Owner {
    fn of(metadata: &ObjectMeta, counts: Counts) -> Self {
        Self {
            parent: metadata.owner_references.iter().flatten().find(|owner| is_controller(owner)).cloned(),
            counts: Some(counts),
            version: metadata.resource_version.clone().unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Whether the pods must be read too.
    fn needs_pods(&self, look: Look) -> bool {
        match look {
            Look::Status => false,
            // The pods of a DaemonSet do not replace each other, so none of them waits for another one's node.
            Look::PodsIfShort => self.counts.is_some_and(|counts| counts.is_shared && !counts.is_fully_ready()),
            Look::Pods => true,
        }
    }
}

impl Pods {
    /// Reads the pod's controller as of `now`, and its pods as `look` says or where its status cannot be believed.
    /// Returns the default for a controller that is gone, that Pristine is not allowed to read, or that is of a kind
    /// without the subresource `scale`.
    ///
    /// # Errors
    /// Any other error of the API server.
    pub async fn owner(&self, pod: &Pod, look: Look, now: Timestamp) -> Result<Owner, Error> {
        let kind = controller(pod).map(|owner| (owner.api_version.as_str(), owner.kind.as_str()));
        let groups = match leader_worker_set(pod) {
            Some(name) => self.groups(pod, name, now).await,
            None => Ok(None),
        };
        let found = match kind {
            _ if !matches!(groups, Ok(None)) => groups,
            Some(("apps/v1", "ReplicaSet")) => self.replica_set(pod, look, now).await,
            Some(("apps/v1", "StatefulSet")) => self.stateful_set(pod, now).await,
            Some(("apps/v1", "DaemonSet")) => self.daemon_set(pod, look, now).await,
            Some(_) => self.scaled(pod, now).await,
            None => Ok(None),
        };
        match found {
            Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 403) => {
                Ok(Owner::default())
            }
            found => Ok(found?.unwrap_or_default()),
        }
    }

    async fn replica_set(&self, pod: &Pod, look: Look, now: Timestamp) -> Result<Option<Owner>, Error> {
        let Some(ReplicaSet { metadata, spec: Some(spec), status }) = self.controller(pod).await? else {
            return Ok(None);
        };
        let status = status.unwrap_or_default();
        let ready = if spec.min_ready_seconds > Some(0) { status.available_replicas } else { status.ready_replicas };
        let counts = Counts { wanted: spec.replicas.unwrap_or(1), ready: ready.unwrap_or(0), is_shared: true };
        let found = Owner::of(&metadata, counts);
        if !found.needs_pods(look) {
            return Ok(Some(found));
        }
        let selector = of_group(spec.selector);
        self.count(pod, found, &selector, spec.min_ready_seconds, now).await.map(Some)
    }

    /// Always by its pods, because `readyReplicas` of a StatefulSet includes terminating pods that are still Ready
    /// (`computeReplicaStatus` of `stateful_set_control.go`): a pod that a node drain evicts would not count as missing.
    async fn stateful_set(&self, pod: &Pod, now: Timestamp) -> Result<Option<Owner>, Error> {
        let Some(StatefulSet { metadata, spec: Some(spec), status }) = self.controller(pod).await? else {
            return Ok(None);
        };
        let counts = Counts { wanted: spec.replicas.unwrap_or(1), ready: 0, is_shared: true };
        let strategy = spec.update_strategy.and_then(|strategy| strategy.type_);
        let latest = status.and_then(|status| status.update_revision);
        let holds_update = holds_update(strategy.as_deref(), pod, "controller-revision-hash", latest.as_deref());
        let found = Owner { holds_update, ..Owner::of(&metadata, counts) };
        self.count(pod, found, &text(spec.selector), spec.min_ready_seconds, now).await.map(Some)
    }

    async fn daemon_set(&self, pod: &Pod, look: Look, now: Timestamp) -> Result<Option<Owner>, Error> {
        let Some(DaemonSet { metadata, spec: Some(spec), status: Some(status) }) = self.controller(pod).await? else {
            return Ok(None);
        };
        let available = status.number_available.unwrap_or(0);
        let ready = if spec.min_ready_seconds > Some(0) { available } else { status.number_ready };
        let counts = Counts { wanted: status.desired_number_scheduled, ready, is_shared: false };
        let strategy = spec.update_strategy.and_then(|strategy| strategy.type_);
        // As its controller decides it (`IsPodUpdated` of pkg/controller/daemon/update.go); the hash of the latest
        // revision is not in its status.
        let latest = metadata.annotations.as_ref().and_then(|all| all.get("deprecated.daemonset.template.generation"));
        let holds_update =
            holds_update(strategy.as_deref(), pod, "pod-template-generation", latest.map(String::as_str));
        let found = Owner { holds_update, ..Owner::of(&metadata, counts) };
        if !found.needs_pods(look) {
            return Ok(Some(found));
        }
        self.count(pod, found, &text(spec.selector), spec.min_ready_seconds, now).await.map(Some)
    }

    /// The controller of any other kind, as the disruption controller of Kubernetes reads it: wanted pods and selector
    /// are in the subresource `scale`.
    async fn scaled(&self, pod: &Pod, now: Timestamp) -> Result<Option<Owner>, Error> {
        let Some(scale) = self.scale(pod, now).await? else { return Ok(None) };
        let Some(selector) = scale.selector else { return Ok(None) };
        let counts = Counts { wanted: scale.wanted, ready: 0, is_shared: true };
        self.count(pod, Owner::of(&scale.metadata, counts), &selector, None, now).await.map(Some)
    }

    /// The groups of a LeaderWorkerSet: each is one replica, because the loss of one pod recreates its group.
    async fn groups(&self, pod: &Pod, name: &str, now: Timestamp) -> Result<Option<Owner>, Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let path = format!("/apis/leaderworkerset.x-k8s.io/v1/namespaces/{namespace}/leaderworkersets");
        let Some(scale) = self.scale_at(&path, name).await? else { return Ok(None) };
        let mut groups = Groups::new(now);
        self.each_member(pod, &format!("{LEADER_WORKER_SET}={name}"), |member| groups.add(member)).await?;
        let (ready, seen) = groups.count(scale.wanted);
        let counts = Counts { wanted: scale.wanted, ready, is_shared: true };
        Ok(Some(Owner { seen: Some(seen), ..Owner::of(&scale.metadata, counts) }))
    }

    /// Counts the Ready pods of the owner among those with these labels.
    async fn count(
        &self,
        pod: &Pod,
        found: Owner,
        selector: &str,
        min_ready_seconds: Option<i32>,
        now: Timestamp,
    ) -> Result<Owner, Error> {
        let Some((owner, counts)) = controller(pod).zip(found.counts) else { return Ok(found) };
        let group = group(pod.metadata.labels.as_ref(), owner);
        let mut tally = Tally::new(&owner.uid, group, min_ready_seconds, now);
        self.each_member(pod, selector, |member| tally.add(member)).await?;
        tally.expect(counts.wanted);
        Ok(Owner { counts: Some(Counts { ready: tally.ready, ..counts }), seen: Some(tally.seen), ..found })
    }

    /// Lists the pods with these labels in the namespace of this one.
    async fn each_member(&self, pod: &Pod, selector: &str, mut add: impl FnMut(&Member)) -> Result<(), Error> {
        // Many workloads are read at the same time, and only so many pages may be in memory.
        let _page = self.lists.acquire().await;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut params = ListParams::default().labels(selector).limit(PAGE);
        loop {
            let (members, next) = self.page_of(namespace, &params).await?;
            members.iter().for_each(&mut add);
            params.continue_token = next;
            if params.continue_token.is_none() {
                return Ok(());
            }
        }
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

/// Whether an eviction of the pod would roll out an update, where `latest` is what the pod's label would have after that.
fn holds_update(strategy: Option<&str>, pod: &Pod, label: &str, latest: Option<&str>) -> bool {
    let own = pod.metadata.labels.as_ref().and_then(|labels| labels.get(label)).map(String::as_str);
    strategy == Some("OnDelete") && own.zip(latest).is_some_and(|(own, latest)| own != latest)
}

/// The selector of a ReplicaSet, without what tells it apart from the others of its Deployment.
fn of_group(mut selector: LabelSelector) -> String {
    if let Some(labels) = &mut selector.match_labels {
        labels.retain(|key, _| !HASHES.contains(&key.as_str()));
    }
    text(selector)
}

/// The selector as a query has it. One that this version does not understand selects all pods; only those of the owner
/// are counted in any case.
fn text(selector: LabelSelector) -> String {
    Selector::try_from(selector).map(|selector| selector.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pod_of_an_earlier_revision_is_held_back_by_on_delete() {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("revision".to_owned(), "1".to_owned())].into());
        let holds = |strategy, label, latest| holds_update(strategy, &pod, label, latest);
        assert!(holds(Some("OnDelete"), "revision", Some("2")));
        assert!(!holds(Some("OnDelete"), "revision", Some("1")), "nothing is held back");
        assert!(!holds(Some("RollingUpdate"), "revision", Some("2")) && !holds(None, "revision", Some("2")));
        assert!(!holds(Some("OnDelete"), "other", Some("2")) && !holds(Some("OnDelete"), "revision", None));
    }

    #[test]
    fn the_pods_of_the_other_replica_set_of_a_rollout_are_listed_too() {
        let labels =
            [("app", "web"), ("pod-template-hash", "a1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let selector = LabelSelector { match_labels: Some(labels.into()), ..LabelSelector::default() };
        assert_eq!(of_group(selector.clone()), "app=web");
        assert_eq!(text(selector), "app=web,pod-template-hash=a1");
    }
}
