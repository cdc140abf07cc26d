//! Whose a pod is. Pure.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};

/// How many pods a controller wants, and how many of them are Ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    /// Wanted.
    pub wanted: i32,
    /// Ready; but for a DaemonSet, not counting those that terminate and still answer.
    pub ready: i32,
    /// Whether they stand in for each other, and not each for its own node.
    pub is_shared: bool,
}

impl Counts {
    /// Whether nothing is missing.
    #[must_use]
    pub const fn is_fully_ready(self) -> bool {
        self.ready >= self.wanted
    }

    /// Whether a Ready pod is the last one of several that are wanted: without it, nothing serves.
    #[must_use]
    pub const fn is_last_ready(self) -> bool {
        self.is_shared && self.wanted > 1 && self.ready <= 1
    }
}

/// The pod's controller, which makes it anew; a bare pod has none.
#[must_use]
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| is_controller(owner))
}

/// Whether this is the one owner of an object that makes it anew.
#[must_use]
pub fn is_controller(owner: &OwnerReference) -> bool {
    owner.controller == Some(true)
}
