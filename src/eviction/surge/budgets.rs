//! The objects of a namespace that select pods: whether a budget would allow an eviction with one more pod, and whether
//! anything selects by the label that a surge takes off. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Pod, Service},
        networking::v1::{NetworkPolicy, NetworkPolicyPeer},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::{Selector, SelectorExt as _};

use crate::mark::{is_ready, surge::HASH};

/// What selects pods in the namespace of a pod.
#[derive(Clone, Debug, Default)]
pub struct Selecting {
    /// Its Services.
    pub services: Vec<Service>,
    /// Its NetworkPolicies.
    pub policies: Vec<NetworkPolicy>,
    /// Its PodDisruptionBudgets.
    pub budgets: Vec<PodDisruptionBudget>,
}

impl Selecting {
    /// Whether anything selects by the label [`HASH`], whatever its value, so that it would no longer apply to the pod.
    #[must_use]
    pub fn is_by_hash(&self) -> bool {
        let of_services = self.services.iter().filter_map(|service| service.spec.as_ref()?.selector.as_ref());
        let of_budgets = self.budgets.iter().filter_map(|budget| budget.spec.as_ref()?.selector.as_ref());
        let peers = |peers: &[NetworkPolicyPeer]| {
            peers.iter().any(|peer| peer.pod_selector.as_ref().is_some_and(selects_by_hash))
        };
        let is_by_hash = |policy: &NetworkPolicy| {
            let Some(spec) = &policy.spec else { return false };
            let mut from = spec.ingress.iter().flatten().filter_map(|rule| rule.from.as_deref());
            let mut to = spec.egress.iter().flatten().filter_map(|rule| rule.to.as_deref());
            spec.pod_selector.as_ref().is_some_and(selects_by_hash) || from.any(peers) || to.any(peers)
        };
        of_services.into_iter().any(|selector| selector.contains_key(HASH))
            || of_budgets.into_iter().any(selects_by_hash)
            || self.policies.iter().any(is_by_hash)
    }

    /// Names, UIDs and generations of the budgets that select the pod: they differ after any change of a budget.
    ///
    /// # Errors
    /// Why no surge would lead to an eviction, or why it must not.
    pub fn budgets_of(&self, pod: &Pod) -> Result<String, &'static str> {
        let mut found = self.budgets.iter().filter(|budget| selects(budget, pod));
        let Some(budget) = found.next() else { return Ok(String::new()) };
        if found.next().is_some() {
            return Err("several PodDisruptionBudgets select it, so the API server refuses every eviction");
        }
        let spec = budget.spec.as_ref().ok_or("its PodDisruptionBudget has no spec")?;
        if spec.max_unavailable.as_ref().is_some_and(is_zero) {
            return Err("its PodDisruptionBudget has maxUnavailable 0, which means no eviction");
        }
        let status = budget.status.as_ref().ok_or("its PodDisruptionBudget has no status yet")?;
        if status.observed_generation != budget.metadata.generation {
            return Err("the status of its PodDisruptionBudget is out of date");
        }
        // With one more pod that is Ready, and without this one.
        let healthy = status.current_healthy + 1 - i32::from(is_ready(pod));
        if healthy < status.desired_healthy {
            return Err("its PodDisruptionBudget would not allow an eviction with one more pod either");
        }
        let metadata = &budget.metadata;
        let (name, uid) = (metadata.name.as_deref().unwrap_or_default(), metadata.uid.as_deref().unwrap_or_default());
        Ok(format!("{name}/{uid}/{}", metadata.generation.unwrap_or_default()))
    }
}

fn is_zero(value: &IntOrString) -> bool {
    match value {
        IntOrString::Int(number) => *number == 0,
        IntOrString::String(text) => text.trim_end_matches('%').parse() == Ok(0),
    }
}

fn selects_by_hash(selector: &LabelSelector) -> bool {
    selector.match_labels.iter().flatten().any(|(key, _)| key == HASH)
        || selector.match_expressions.iter().flatten().any(|expression| expression.key == HASH)
}

/// Whether the budget selects the pod. One whose selector cannot be read counts as one that does.
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let Some(selector) = budget.spec.as_ref().and_then(|spec| spec.selector.clone()) else { return false };
    let empty = BTreeMap::default();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    Selector::try_from(selector).map_or(true, |selector| selector.matches(labels))
}
