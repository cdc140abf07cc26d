//! The check of pods in a surge: none lasts for long, and none is without its owner.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};

use super::{Connection, Finding, unknown};
use crate::mark::{
    owner::controller,
    surge::{SURGE, Surge},
};

/// A surge ends after 5 minutes. One that lasts this long has no leader, or was left behind by an uninstallation.
const STUCK: SignedDuration = SignedDuration::from_mins(6);

/// The finding; none if no pod is in a surge.
pub(super) async fn surges(connection: &Connection, now: Timestamp) -> Option<Finding> {
    let pods: Api<Pod> = Api::all(connection.client.clone());
    let selector = ListParams::default().labels(SURGE);
    match connection.call("list pods", pods.list(&selector)).await {
        Ok(found) => judge(&found.items, now),
        Err(failure) => Some(unknown(&failure)),
    }
}

fn judge(pods: &[Pod], now: Timestamp) -> Option<Finding> {
    let living = || pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let count = living().count();
    if count == 0 {
        return None;
    }
    let names = |wrong: &dyn Fn(&Pod) -> bool| {
        let names = living().filter(|pod| wrong(pod)).filter_map(|pod| {
            Some(format!("{}/{}", pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?))
        });
        names.collect::<Vec<_>>().join(", ")
    };
    let orphans = names(&|pod| controller(pod).is_none());
    if !orphans.is_empty() {
        let fix = "apply the component surge again, or remove eviction.surge from the configuration";
        let text =
            format!("the ReplicaSet released a pod in a surge, so nothing deletes it with its Deployment: {orphans}");
        return Some(Finding::Broken(text, fix.to_owned()));
    }
    let stuck = names(&|pod| Surge::on(pod).is_none_or(|surge| now.duration_since(surge.since) >= STUCK));
    if !stuck.is_empty() {
        let fix = "see docs/uninstall.md, with surge: put the label pod-template-hash back";
        return Some(Finding::Warning(format!("a surge has not ended after 6 minutes: {stuck}"), fix.to_owned()));
    }
    Some(Finding::Fine(format!("pods whose replacement starts first: {count}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(has_owner: bool, since: &str) -> Pod {
        let record = json!({
            "replicaSet": {"name": "r", "uid": "r"}, "deployment": {"name": "d", "uid": "d"}, "generation": 1,
            "budgets": "", "since": since, "until": since, "attempt": 1,
        });
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true});
        let owners = if has_owner { json!([owner]) } else { json!([]) };
        let annotations = json!({SURGE: record.to_string()});
        let metadata = json!({"namespace": "n", "name": "p", "annotations": annotations, "ownerReferences": owners});
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    #[test]
    fn a_pod_in_a_surge_without_its_owner_or_for_too_long_is_reported() {
        let now = "2026-01-01T00:06:00Z".parse().unwrap();
        assert!(judge(&[], now).is_none());
        let of = |pod: Pod| judge(&[pod], now).unwrap();
        assert!(matches!(of(pod(true, "2026-01-01T00:05:00Z")), Finding::Fine(_)));
        assert!(matches!(of(pod(true, "2026-01-01T00:00:00Z")), Finding::Warning(text, _) if text.contains("n/p")));
        assert!(matches!(of(pod(false, "2026-01-01T00:05:00Z")), Finding::Broken(text, _) if text.contains("n/p")));
        let mut gone = pod(false, "2026-01-01T00:05:00Z");
        gone.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:05:00Z")).unwrap();
        assert!(judge(&[gone], now).is_none());
    }
}
