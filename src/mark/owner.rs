//! Pod ownership: the controller that manages a pod. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};

/// The replicas of a workload: wanted and Ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    /// Wanted.
    pub wanted: i32,
    /// Ready. Except for a DaemonSet, without those that are terminating and still answer.
    pub ready: i32,
    /// Whether one replica can replace another. The pods of a DaemonSet cannot: each serves its own node.
    pub is_shared: bool,
}

impl Counts {
    /// Whether no replica is missing.
    #[must_use]
    pub const fn is_fully_ready(self) -> bool {
        self.ready >= self.wanted
    }

    /// Whether only one of several wanted replicas is Ready: without it, the workload is down.
    #[must_use]
    pub const fn is_last_ready(self) -> bool {
        self.is_shared && self.wanted > 1 && self.ready <= 1
    }
}

/// What to read of an owner before one of its pods is evicted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// Its status. It can be late, and the version shows whether it is.
    Status,
    /// Its status, and its pods if the status lacks Ready ones: they show whether a replacement is on its way.
    PodsIfShort,
    /// Its pods, because nothing is known that would show whether the status is late.
    Pods,
}

/// What the pods of a workload show, which its status does not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// The latest end of a grace period, if pods are terminating that their controller recreates only when they are
    /// gone.
    pub leaving_until: Option<Timestamp>,
    /// Since when the youngest pod that is not Ready is not Ready. If a pod is missing, the time of the read.
    pub starting_since: Option<Timestamp>,
}

/// The labels with which Deployments, and Rollouts of Argo, tell their ReplicaSets apart. The name of the ReplicaSet ends
/// with the same value.
pub const HASHES: [&str; 2] = ["pod-template-hash", "rollouts-pod-template-hash"];

/// The label with the name of a pod's LeaderWorkerSet.
pub const LEADER_WORKER_SET: &str = "leaderworkerset.sigs.k8s.io/name";

/// What the pods have in common that are evicted one at a time: the UID of their controller, or the name of their
/// LeaderWorkerSet, whose groups have a `StatefulSet` each. None for a bare pod.
#[must_use]
pub fn workload(pod: &Pod) -> Option<String> {
    let owner = controller(pod)?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let set = leader_worker_set(pod).map(|name| format!("leaderworkerset/{namespace}/{name}"));
    Some(set.unwrap_or_else(|| owner.uid.clone()))
}

/// The name of the pod's LeaderWorkerSet. Only a `StatefulSet` makes pods for one.
#[must_use]
pub fn leader_worker_set(pod: &Pod) -> Option<&str> {
    let name = pod.metadata.labels.as_ref()?.get(LEADER_WORKER_SET)?;
    controller(pod).filter(|owner| owner.kind == "StatefulSet").map(|_| name.as_str())
}

/// What the ReplicaSets of one Deployment have in common, from the labels and the controller of one of their pods; none
/// for other pods.
#[must_use]
pub fn group(labels: Option<&BTreeMap<String, String>>, owner: &OwnerReference) -> Option<String> {
    if owner.kind != "ReplicaSet" {
        return None;
    }
    let hashes = HASHES.into_iter().filter_map(|key| labels?.get(key));
    hashes.filter_map(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')).map(str::to_owned).next()
}

/// The controller of the pod, which recreates it. A bare pod has none.
#[must_use]
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| is_controller(owner))
}

/// The same for the pod, with its namespace.
#[must_use]
pub fn group_of(pod: &Pod) -> Option<String> {
    let group = group(pod.metadata.labels.as_ref(), controller(pod)?)?;
    Some(format!("{}/{group}", pod.metadata.namespace.as_deref().unwrap_or_default()))
}

/// Whether this owner is the controller of the object.
#[must_use]
pub fn is_controller(owner: &OwnerReference) -> bool {
    owner.controller == Some(true)
}

/// Why a static pod is never evicted. Seen on a real cluster: a new mirror pod without the mark appears within a minute,
/// and the container keeps running.
pub const STATIC: &str = "the kubelet runs this static pod: an eviction would remove the mark and not the container; \
                          recreate it on its node";

/// Whether this is the mirror of a static pod, which only the node can restart. The kubelet also names the Node as its
/// owner, but a user may change owners at any time, and the annotation never (`ValidatePodSpecificAnnotationUpdates` in Kubernetes).
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_pods_of_a_leader_worker_set_are_one_workload() {
        let of = |kind: &str, uid: &str, label: &str| -> Option<String> {
            let owner = json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": uid, "controller": true}]);
            let metadata = json!({"namespace": "ml", "labels": {label: "llm"}, "ownerReferences": owner});
            workload(&serde_json::from_value(json!({ "metadata": metadata })).unwrap())
        };
        let all = [of("StatefulSet", "leaders", LEADER_WORKER_SET), of("StatefulSet", "workers-0", LEADER_WORKER_SET)];
        assert_eq!(all, ["leaderworkerset/ml/llm"; 2].map(|name| Some(name.to_owned())));
        assert_eq!(of("ReplicaSet", "set", LEADER_WORKER_SET).as_deref(), Some("set"));
        assert_eq!(of("StatefulSet", "set", "app").as_deref(), Some("set"));
        assert_eq!(workload(&Pod::default()), None);
    }

    #[test]
    fn the_replica_sets_of_one_deployment_or_rollout_are_a_group() {
        let of = |kind: &str, name: &str, label: &str| -> Option<String> {
            let owner = json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "o", "controller": true}]);
            let metadata = json!({"namespace": "shop", "labels": {label: "a1b2"}, "ownerReferences": owner});
            group_of(&serde_json::from_value(json!({ "metadata": metadata })).unwrap())
        };
        for label in HASHES {
            assert_eq!(of("ReplicaSet", "web-a1b2", label).as_deref(), Some("shop/web"));
        }
        assert_eq!(of("ReplicaSet", "web-c3d4", HASHES[0]), None, "the hash is of another ReplicaSet");
        assert_eq!(of("ReplicaSet", "web-a1b2", "app"), None);
        assert_eq!(of("StatefulSet", "web-a1b2", HASHES[0]), None);
        assert_eq!(group_of(&Pod::default()), None);
    }
}
