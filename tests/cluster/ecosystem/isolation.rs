//! The component isolation, and the NetworkPolicy of docs/detectors.md, against their real schemas. The cluster enforces no
//! network policies.

use std::path::Path;

use serde_json::{Value, json};
use serial_test::parallel;

use super::beside::{apply_all, documents, source};
use crate::kubectl::{Namespace, apply, run};

/// The published definition of the kind.
async fn definition() -> Value {
    let folder = source("/", "sigs.k8s.io/network-policy-api@v0.2.0").await.join("config/crd/standard");
    let text = std::fs::read_to_string(folder.join("policy.networking.k8s.io_clusternetworkpolicies.yaml")).unwrap();
    serde_saphyr::from_str(text.trim_start_matches("---")).unwrap()
}

fn selector(labels: &Value) -> String {
    let pairs = labels.as_object().unwrap().iter();
    pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect::<Vec<_>>().join(",")
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_policy_is_valid_and_selects_the_marked_pods_of_labelled_namespaces() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let definition = definition().await;
    let crd = format!("crd/{}", definition["metadata"]["name"].as_str().unwrap());
    apply_all(vec![definition]).await;
    run(&["wait", "--for=condition=Established", "--timeout=60s", &crd]).await;
    let policy = std::fs::read_to_string(root.join("manifests/components/isolation/policy.yaml")).unwrap();
    let policy = documents(&policy).remove(0);
    apply_all(vec![policy.clone()]).await;
    let isolated = Namespace::new("t-mark-").await;
    run(&["label", "namespace", &isolated.name, "pristine/isolate=true"]).await;
    isolated.workload("StatefulSet", 2).await;
    isolated.run(&["exec", "web-0", "--", "true"]).await;
    let subject = &policy["spec"]["subject"]["pods"];
    let namespaces = selector(&subject["namespaceSelector"]["matchLabels"]);
    let found = run(&["get", "namespaces", "-l", &namespaces, "-o", "name"]).await;
    assert_eq!(found.trim(), format!("namespace/{}", isolated.name));
    let pods = selector(&subject["podSelector"]["matchLabels"]);
    assert_eq!(isolated.run(&["get", "pods", "-l", &pods, "-o", "name"]).await.trim(), "pod/web-0");
    run(&["delete", "clusternetworkpolicy", policy["metadata"]["name"].as_str().unwrap()]).await;
    run(&["delete", &crd]).await;
    // The one of the page, in this namespace.
    let page = std::fs::read_to_string(root.join("docs/detectors.md")).unwrap();
    let block = page.split("```yaml\n").find(|block| block.contains("kind: NetworkPolicy")).unwrap();
    let block = block.split("```").next().unwrap().replace(", namespace: prod", "");
    apply(&isolated.name, &block).await;
    let of_the_page: Value = serde_saphyr::from_str(&block).unwrap();
    assert_eq!(of_the_page["spec"]["podSelector"], json!({"matchLabels": subject["podSelector"]["matchLabels"]}));
}
