//! The workload of a pod: from the pod itself if it is known, or a guess from its name. Pure.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;

use crate::mark::owner::controller;

/// A workload, or a pod without one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// Its kind, if it is known.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
}

/// The characters of the random parts of names (`rand.SafeEncodeString` of apimachinery).
const RANDOM: &str = "bcdfghjklmnpqrstvwxz2456789";

/// The name of the workload without what controllers append to it: the hash of a ReplicaSet, the number of a StatefulSet,
/// the time of a CronJob.
#[must_use]
pub fn guess(pod: &str) -> Workload {
    let is_random = |part: &str| part.chars().all(|c| RANDOM.contains(c));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let named = |name: &str| Workload { kind: None, name: name.to_owned() };
    let Some((rest, last)) = pod.rsplit_once('-').filter(|(rest, _)| !rest.is_empty()) else { return named(pod) };
    if last.len() <= 4 && is_number(last) {
        return named(rest);
    }
    if last.len() != 5 || !is_random(last) {
        return named(pod);
    }
    let before = rest.rsplit_once('-').filter(|(name, _)| !name.is_empty());
    let before = before
        .filter(|(_, part)| (part.len() == 8 && is_number(part)) || (matches!(part.len(), 8..=10) && is_random(part)));
    named(before.map_or(rest, |(name, _)| name))
}

/// The workload that a known pod belongs to.
#[must_use]
pub fn of(pod: &Pod) -> Workload {
    let of_kind = |kind: &str, name: &str| Workload { kind: Some(kind.to_owned()), name: name.to_owned() };
    // The controller of a static pod is its node.
    let Some(owner) = controller(pod).filter(|owner| owner.kind != "Node") else {
        return of_kind("Pod", pod.metadata.name.as_deref().unwrap_or_default());
    };
    let label = |key| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let hash = label("pod-template-hash").and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match (owner.kind.as_str(), hash) {
        ("ReplicaSet", Some(deployment)) => of_kind("Deployment", deployment),
        ("Job", _) => match owner.name.rsplit_once('-') {
            Some((job, at)) if at.len() == 8 && at.bytes().all(|byte| byte.is_ascii_digit()) => of_kind("CronJob", job),
            _ => of_kind("Job", &owner.name),
        },
        (kind, _) => of_kind(kind, &owner.name),
    }
}

/// The pods of `kubectl get pods -A -o json`, without what no decision needs.
#[derive(Debug, Default)]
pub struct Pods(HashMap<(String, String), Pod>);

impl Pods {
    /// Reads the list.
    ///
    /// # Errors
    /// When the text is not a list of pods.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(serde::Deserialize)]
        struct List {
            items: Vec<Pod>,
        }
        let list: List = serde_json::from_slice(text)?;
        Ok(list.items.into_iter().collect())
    }

    /// The pod of this name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.0.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Number of pods.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Pod> for Pods {
    fn from_iter<T: IntoIterator<Item = Pod>>(pods: T) -> Self {
        let pods = pods.into_iter().map(|mut pod| {
            pod.status = None;
            pod.metadata.managed_fields = None;
            let key = |field: &Option<String>| field.clone().unwrap_or_default();
            ((key(&pod.metadata.namespace), key(&pod.metadata.name)), pod)
        });
        Self(pods.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_workload_is_guessed_from_the_name_of_its_pod() {
        for (pod, expected) in [
            ("web-79db7494b-f6q44", "web"),
            ("my-web-5d4f8c7b96-x2x9z", "my-web"),
            ("db-0", "db"),
            ("db-12", "db"),
            ("node-exporter-qx7zt", "node-exporter"),
            ("report-29012340-b8hx2", "report"),
            ("bare", "bare"),
            ("bare-shell", "bare-shell"),
            ("kube-apiserver-node1", "kube-apiserver-node1"),
            ("x-backup-f6q44", "x-backup"),
            ("-f6q44", "-f6q44"),
            ("", ""),
        ] {
            assert_eq!(guess(pod), Workload { kind: None, name: expected.to_owned() }, "{pod}");
        }
    }

    #[test]
    fn the_workload_of_a_known_pod_is_its_controller_or_the_owner_of_that() {
        for (kind, owner, expected) in [
            ("ReplicaSet", "web-79db7494b", ("Deployment", "web")),
            ("ReplicaSet", "own", ("ReplicaSet", "own")),
            ("StatefulSet", "db", ("StatefulSet", "db")),
            ("Job", "report-29012340", ("CronJob", "report")),
            ("Job", "migrate", ("Job", "migrate")),
            ("Node", "node1", ("Pod", "p")),
            ("", "", ("Pod", "p")),
        ] {
            let owners =
                json!([{"apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": !kind.is_empty()}]);
            let labels = json!({"pod-template-hash": "79db7494b"});
            let pod = json!({"metadata": {"name": "p", "labels": labels, "ownerReferences": owners}});
            let found = of(&serde_json::from_value(pod).unwrap());
            assert_eq!((found.kind.as_deref().unwrap(), found.name.as_str()), expected, "{kind} {owner}");
        }
    }

    #[test]
    fn pods_are_read_as_kubectl_and_as_the_api_server_write_them() {
        for list in [
            json!({"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": "p"}}]}),
            json!({"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"namespace": "n", "name": "p"}}]}),
        ] {
            let pods = Pods::parse(list.to_string().as_bytes()).unwrap();
            assert!(pods.find("n", "p").is_some() && pods.find("n", "q").is_none() && pods.len() == 1, "{list}");
        }
        assert!(Pods::parse(b"{}").is_err() && Pods::parse(b"[]").is_err());
    }
}
