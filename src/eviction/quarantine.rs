//! Quarantine: takes a marked pod out of service at once, if the configuration says so. The pod loses the labels by
//! which its ReplicaSet and its Services select it, the ReplicaSet replaces it, and it stays until its deadline for the
//! user who investigates it. Pure.
//!
//! Only pods of a ReplicaSet are quarantined, because a StatefulSet would wait for the name and a DaemonSet for the
//! node. Policies and budgets that select by the same labels no longer apply to the pod either; docs/eviction.md and
//! the component's rbac.yaml say so.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::mark::{QUARANTINED, owner::controller};

/// Whether this marked pod, whose deadline is in the future, can still be quarantined.
#[must_use]
pub fn is_wanted(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let is_done = annotations.is_some_and(|all| all.contains_key(QUARANTINED));
    !is_done
        && controller(pod)
            .is_some_and(|owner| (owner.api_version.as_str(), owner.kind.as_str()) == ("apps/v1", "ReplicaSet"))
}

/// The pod's labels that the selector of its ReplicaSet uses, or that of a Service that selects the pod.
#[must_use]
pub fn labels(pod: &Pod, selector: &LabelSelector, services: &[Service]) -> BTreeMap<String, String> {
    let empty = BTreeMap::new();
    let own = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let selects = |wanted: &&BTreeMap<String, String>| {
        !wanted.is_empty() && wanted.iter().all(|(key, value)| own.get(key) == Some(value))
    };
    let services = services.iter().filter_map(|service| service.spec.as_ref()?.selector.as_ref());
    let keys = services.filter(selects).flat_map(BTreeMap::keys);
    let keys = keys.chain(selector.match_labels.iter().flat_map(BTreeMap::keys));
    let keys = keys.chain(selector.match_expressions.iter().flatten().map(|expression| &expression.key));
    keys.filter_map(|key| Some((key.clone(), own.get(key)?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(kind: &str) -> Pod {
        let owner = json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true}]);
        let labels = json!({"app": "web", "tier": "front", "team": "a", "pod-template-hash": "1"});
        serde_json::from_value(json!({"metadata": {"labels": labels, "ownerReferences": owner}})).unwrap()
    }

    #[test]
    fn only_the_labels_that_select_the_pod_are_removed() {
        let selector: LabelSelector =
            serde_json::from_value(json!({"matchLabels": {"app": "web", "pod-template-hash": "1"}})).unwrap();
        let service = |selector: serde_json::Value| -> Service {
            serde_json::from_value(json!({"spec": {"selector": selector}})).unwrap()
        };
        let services = [service(json!({"tier": "front"})), service(json!({"team": "b"})), service(json!({}))];
        let found = labels(&pod("ReplicaSet"), &selector, &services);
        let keys: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(keys, ["app", "pod-template-hash", "tier"]);
        assert_eq!(found["tier"], "front");
    }

    #[test]
    fn only_pods_of_a_replica_set_are_quarantined_and_only_once() {
        let mut marked = pod("ReplicaSet");
        assert!(is_wanted(&marked) && !is_wanted(&pod("StatefulSet")) && !is_wanted(&Pod::default()));
        marked.metadata.annotations = Some([(QUARANTINED.to_owned(), "{}".to_owned())].into());
        assert!(!is_wanted(&marked));
    }
}
