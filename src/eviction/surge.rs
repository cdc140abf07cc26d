//! Surge eviction: the replacement of a due pod is created first, and the pod is evicted once the replacement is Ready.
//! Without it, a Deployment of one replica is down while its pod starts, or a budget never allows the eviction. Pure.
//!
//! The pod loses the label `pod-template-hash`, so its ReplicaSet no longer counts it and creates another pod; Services
//! select by other labels and keep it. The policy of manifests/components/surge keeps its ownerReference. [`conditions`]
//! decides which pods may surge, and [`step`](mod@step) what happens next to one that does. Every end but the eviction
//! puts the label back, and then the pod is evicted as without a surge.

pub mod budgets;
pub mod conditions;
pub mod step;

#[cfg(test)]
mod tests;
