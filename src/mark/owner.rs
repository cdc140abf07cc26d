//! Pod ownership: the controller that manages a pod. Pure.

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

/// The controller of the pod, which recreates it. A bare pod has none.
#[must_use]
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| is_controller(owner))
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
