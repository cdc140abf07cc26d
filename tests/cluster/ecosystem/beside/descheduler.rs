//! The descheduler, with a strategy that evicts every pod that is older than a second.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use serial_test::serial;
use tokio::{process::Command, time::sleep};

use super::{apply_all, documents, kubeconfig_of, source};
use crate::{
    common::{audit, name_of, setting},
    kubectl::{Namespace, is_marked, reason, run, uid_of},
};

/// A second node, without a kubelet.
const SECOND: &str = "descheduler-second";

/// One round over this namespace, with these settings of its evictor.
async fn deschedule(ns: &Namespace, evictor: Value) {
    let module = source("hack/tools/descheduler", "sigs.k8s.io/descheduler").await;
    let rbac = std::fs::read_to_string(module.join("kubernetes/base/rbac.yaml")).unwrap();
    let mut objects = documents(&rbac);
    for object in &mut objects {
        if object["kind"].as_str().unwrap().starts_with("Role") {
            // Its kustomization sets this.
            object["metadata"]["namespace"] = json!("kube-system");
        }
    }
    apply_all(objects.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let policy = json!({
        "apiVersion": "descheduler/v1alpha2", "kind": "DeschedulerPolicy",
        "profiles": [{
            "name": "old",
            "pluginConfig": [
                {"name": "DefaultEvictor", "args": evictor},
                {"name": "PodLifeTime", "args": {"maxPodLifeTimeSeconds": 1, "namespaces": {"include": [ns.name]}}},
            ],
            "plugins": {"deschedule": {"enabled": ["PodLifeTime"]}},
        }],
    });
    let file = folder.path().join("policy.yaml");
    std::fs::write(&file, policy.to_string()).unwrap();
    // With one node it does nothing, because evicted pods would have nowhere else to go.
    apply_all(vec![json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": SECOND}, "spec": {"unschedulable": true},
    })])
    .await;
    let output = round(&kubeconfig_of("kube-system", "descheduler-sa", folder.path()).await, &file).await;
    run(&["delete", "node", SECOND]).await;
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        run(&["-n", "kube-system", "delete", kind, object["metadata"]["name"].as_str().unwrap()]).await;
    }
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("Evicted pod"), "{log}");
}

async fn round(kubeconfig: &Path, policy: &Path) -> std::process::Output {
    Command::new(setting("PRISTINE_DESCHEDULER").expect("built by hack/test ecosystem"))
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--policy-config-file={}", policy.display()))
        // Once, and on a port of its own.
        .args(["--descheduling-interval=0", "--secure-port=19097", "--v=3"])
        .output()
        .await
        .unwrap()
}

/// Who evicted this pod, from the API server's audit log.
fn evicted_by(ns: &Namespace, pod: &str) -> Vec<String> {
    let lines = audit::requests(&setting("KUBECONFIG").unwrap(), &ns.name);
    let of_pod = lines.iter().filter(|line| {
        let object = &line["objectRef"];
        object["subresource"] == "eviction" && object["name"] == pod && line["stage"] == "ResponseComplete"
    });
    of_pod.map(|line| line["user"]["username"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn the_descheduler_evicts_a_held_pod_and_pristine_evicts_neither_it_again_nor_its_replacement() {
    let ns = Namespace::new("t-held-").await;
    let pods = ns.workload("Deployment", 2).await;
    let held = name_of(&pods[0]);
    ns.run(&["exec", held, "--", "true"]).await;
    let user = run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    ns.run(&["annotate", "pod", held, "pristine/hold=true", &format!("pristine/extended-by={user}")]).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(reason(&ns.pod(held).await), "Extended");
    deschedule(&ns, json!({})).await;
    let by = evicted_by(&ns, held);
    assert_eq!(by, ["system:serviceaccount:kube-system:descheduler-sa"]);
    // Past the deadline of the pod that is gone, which was held until 20 s after its first deadline.
    sleep(Duration::from_secs(45)).await;
    assert_eq!(evicted_by(&ns, held), by, "evicted by Pristine after the descheduler");
    let left = ns.ready(2).await;
    assert!(left.iter().all(|pod| !is_marked(pod) && evicted_by(&ns, name_of(pod)).is_empty()));
    // The record stays in the Events, although the pod is gone.
    let events = ns.run(&["events", "--for", &format!("pod/{held}")]).await;
    assert!(events.contains("PodInteraction") && events.contains("by sigs.k8s.io/descheduler"), "{events}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn the_descheduler_leaves_a_marked_pod_to_pristine_if_its_evictor_does_not_select_it() {
    let unmarked =
        json!({"labelSelector": {"matchExpressions": [{"key": "pristine/interacted", "operator": "DoesNotExist"}]}});
    let annotated = json!({"noEvictionPolicy": "Mandatory"});
    for (how, evictor) in [("by the label of marked pods", unmarked), ("by an annotation of its own", annotated)] {
        let ns = Namespace::new("t-late-").await;
        let pods = ns.workload("Deployment", 2).await;
        let [marked, other] = [name_of(&pods[0]), name_of(&pods[1])];
        ns.run(&["exec", marked, "--", "true"]).await;
        if how.contains("annotation") {
            ns.run(&["annotate", "pod", marked, "descheduler.alpha.kubernetes.io/prefer-no-eviction="]).await;
        }
        let pod = ns.pod(marked).await;
        deschedule(&ns, evictor).await;
        assert_eq!(evicted_by(&ns, marked), [""; 0], "{how}");
        assert_eq!(evicted_by(&ns, other), ["system:serviceaccount:kube-system:descheduler-sa"], "{how}");
        let late = ns.evicted(marked, uid_of(&pod), crate::kubectl::deadline(&pod)).await;
        assert!((0.0..10.0).contains(&late), "{how}: {late} s");
        assert_eq!(evicted_by(&ns, marked), ["system:serviceaccount:pristine-system:pristine"], "{how}");
    }
}
