//! The optional parts of manifests/components, on a real cluster.

use std::{fs, path::Path, process::Stdio, time::Duration};

use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{Api, api::ListParams};
use serial_test::{parallel, serial};
use tokio::{io::AsyncWriteExt as _, time::sleep};

use crate::{
    common::{SYSTEM, eventually, name_of, now},
    kubectl::{IMAGE, Namespace, annotation, apply, deadline, is_marked, is_ready, kubectl, reason, run, uid_of},
};

/// manifests/base with this component.
pub async fn render(component: Option<&str>) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir_in(root.join("target")).unwrap();
    let component = component.map(|name| format!("components: [../../manifests/components/{name}]\n"));
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nsortOptions: {{order: fifo}}\nresources: [../../manifests/base]\n{}",
        component.unwrap_or_default()
    );
    fs::write(folder.path().join("kustomization.yaml"), kustomization).unwrap();
    run(&["kustomize", folder.path().to_str().unwrap()]).await
}

pub async fn apply_all(yaml: &str, more: &[&str]) {
    let arguments = [&["apply", "-f", "-"], more].concat();
    let mut child = kubectl(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(yaml.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sets the configuration, restarts the replicas, and gives what it was.
pub async fn configure(change: impl FnOnce(&str) -> String) -> String {
    let before = run(&["-n", SYSTEM, "get", "configmap", "pristine", "-o", "jsonpath={.data.pristine\\.yaml}"]).await;
    let patch = serde_json::json!({"data": {"pristine.yaml": change(&before)}}).to_string();
    run(&["-n", SYSTEM, "patch", "configmap", "pristine", "--type=merge", "-p", &patch]).await;
    run(&["-n", SYSTEM, "rollout", "restart", "deployment/pristine"]).await;
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=120s"]).await;
    before
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_api_server_accepts_every_component() {
    let mut tried = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/components")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let rendered = render(Some(&name)).await;
        assert_ne!(rendered, render(None).await, "{name} changes nothing");
        // Its kinds are not Kubernetes' own.
        if !["isolation", "monitoring"].contains(&name.as_str()) {
            apply_all(&rendered, &["--dry-run=server"]).await;
        }
        tried += 1;
    }
    assert!(tried >= 8, "{tried}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_quarantined_pod_is_out_of_service_at_once_and_evicted_at_its_deadline() {
    apply_all(&render(Some("quarantine")).await, &[]).await;
    let before = configure(|text| text.replace("eviction: {", "eviction: {quarantine: true, ")).await;

    let ns = Namespace::new("t-late-").await;
    apply(
        &ns.name,
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n",
    )
    .await;
    let pods = ns.workload("Deployment", 2).await;
    ns.run(&["label", "pod", name_of(&pods[0]), "team=a"]).await;
    for pod in &pods {
        ns.run(&["exec", name_of(pod), "--", "true"]).await;
    }
    let slices: Api<EndpointSlice> = Api::namespaced(ns.client.clone(), &ns.name);
    let served = async || {
        let all = slices.list(&ListParams::default()).await.unwrap().items;
        let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
        };
        all.iter().flat_map(|slice| slice.endpoints.iter()).filter(|endpoint| ready(endpoint)).count()
    };
    // Both at once would be an outage: the second one waits until the first one's replacement is Ready.
    let least = std::cell::Cell::new(usize::MAX);
    let out = eventually("both out of service", 40, async || {
        least.set(least.get().min(served().await));
        let marked: Vec<Pod> =
            ns.pods().list(&ListParams::default()).await.unwrap().items.into_iter().filter(is_marked).collect();
        let out = marked.len() == 2 && marked.iter().all(|pod| annotation(pod, "pristine/quarantined").is_some());
        out.then_some(marked)
    })
    .await;
    assert!(least.get() >= 1, "the Service had no endpoint at a time");
    for pod in &out {
        assert!(now() < deadline(pod), "long before the deadline");
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert!(!labels.contains_key("app") && !labels.contains_key("pod-template-hash"), "{labels:?}");
        assert!(annotation(pod, "pristine/quarantined").unwrap().contains(r#""app":"web""#));
    }
    let first = out.iter().find(|pod| name_of(pod) == name_of(&pods[0])).unwrap();
    assert_eq!(first.metadata.labels.as_ref().unwrap()["team"], "a", "a label that selects nothing is kept");
    eventually("two fresh pods in service", 40, async || {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        let fresh = pods.iter().filter(|pod| !is_marked(pod) && is_ready(pod)).count();
        (fresh == 2 && served().await == 2).then_some(())
    })
    .await;
    for pod in &out {
        assert_eq!(reason(&ns.pod(name_of(pod)).await), "Quarantined", "it says so until it is evicted");
    }
    // The pod can still be inspected.
    ns.run(&["exec", name_of(first), "--", "true"]).await;
    for pod in &out {
        ns.evicted(name_of(pod), uid_of(pod), deadline(pod)).await;
        assert!(now() >= deadline(pod));
    }

    configure(|_| before).await;
    apply_all(&render(None).await, &[]).await;
    run(&["delete", "clusterrolebinding,clusterrole", "pristine:quarantine"]).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn with_the_fail_open_component_exec_works_without_replicas() {
    let ns = Namespace::new("t-open-").await;
    ns.run(&["run", "bare", &format!("--image={IMAGE}"), "--", "sleep", "1000"]).await;
    ns.ready(1).await;
    run(&["-n", SYSTEM, "scale", "deployment/pristine", "--replicas=0"]).await;
    run(&["-n", SYSTEM, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=webhook", "--timeout=90s"])
        .await;
    // The control: as shipped, nobody gets in.
    assert!(!ns.attempt(&["exec", "bare", "--", "true"]).await.status.success());
    apply_all(&render(Some("fail-open")).await.replace("replicas: 2", "replicas: 0"), &[]).await;
    eventually("an exec that nobody marks", 10, async || {
        ns.attempt(&["exec", "bare", "--", "true"]).await.status.success().then_some(())
    })
    .await;
    assert!(!is_marked(&ns.pod("bare").await));
    apply_all(&render(None).await, &[]).await;
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=120s"]).await;
    sleep(Duration::from_secs(1)).await;
    ns.run(&["exec", "bare", "--", "true"]).await;
    assert!(is_marked(&ns.pod("bare").await));
}
