//! What other controllers, users and the control plane do to a workload during a surge.

use std::{panic::AssertUnwindSafe, path::PathBuf};

use futures_util::FutureExt as _;
use k8s_openapi::api::apps::v1::ReplicaSet;
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::{common::setting, stage::Stage};

/// A Deployment of one replica that a budget protects, with its pod in a surge whose replacement starts in so many seconds.
async fn begun(start: u32) -> (Namespace, Pod) {
    let ns = Namespace::new("t-fast-").await;
    let pod = single(&ns, start, "").await;
    budget(&ns).await;
    ns.run(&["exec", name_of(&pod), "--", "true"]).await;
    let pod = in_surge(&ns, &pod).await;
    (ns, pod)
}

/// Waits until as many pods as wanted serve, and no other one is there.
async fn complete(ns: &Namespace, wanted: usize) -> Vec<Pod> {
    eventually("a complete workload", 120, async || {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        (pods.len() == wanted && pods.iter().all(serves)).then_some(pods)
    })
    .await
}

async fn events(ns: &Namespace) -> String {
    ns.run(&["get", "events", "-o", "custom-columns=:.reason,:.involvedObject.name,:.message"]).await
}

async fn rolled_out() {
    let (ns, pod) = begun(12).await;
    ns.run(&["set", "env", "deployment", "web", "A=b"]).await;
    ns.run(&["rollout", "status", "deployment/web", "--timeout=90s"]).await;
    let left = complete(&ns, 1).await;
    assert_ne!(uid_of(&left[0]), uid_of(&pod), "the old version does not outlive its rollout");
}

async fn recreate() {
    let (ns, pod) = begun(12).await;
    ns.run(&["patch", "deployment", "web", "-p", r#"{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}"#])
        .await;
    label_back(&ns, &pod, 10).await;
    assert_eq!(uid_of(&complete(&ns, 1).await[0]), uid_of(&pod), "the newer pod is deleted");
}

/// The pod keeps its owner, so drain names no pod without a controller, no budget has the Event UnmanagedPods, and no
/// other workload with the same selector adopts it.
async fn selected_by_others() {
    let (ns, pod) = begun(15).await;
    let template = format!(
        "{{metadata: {{labels: {{app: web}}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {}, command: [sleep, '1000']}}]}}}}",
        crate::kubectl::IMAGE
    );
    apply(
        &ns.name,
        &format!(
            "apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: other}}
spec: {{replicas: 0, selector: {{matchLabels: {{app: web}}}}, template: {template}}}
---
apiVersion: v1
kind: ReplicationController
metadata: {{name: other}}
spec: {{replicas: 0, selector: {{app: web}}, template: {template}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: other}}
spec: {{selector: {{matchLabels: {{app: web}}}}, template: {template}}}
"
        ),
    )
    .await;
    let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    let drain = ns
        .attempt(&["drain", &node, "--dry-run=server", "--ignore-daemonsets", "--pod-selector=app=web", "--timeout=2s"])
        .await;
    let said = String::from_utf8_lossy(&drain.stderr).into_owned();
    assert!(!said.contains("declare no controller"), "{said}");
    sleep(Duration::from_secs(3)).await;
    let seen = ns.pod(name_of(&pod)).await;
    assert_eq!(seen.metadata.owner_references, pod.metadata.owner_references);
    assert!(serves(&seen), "no other workload kills it");
    gone(&ns, &pod, 60).await;
    let events = events(&ns).await;
    assert!(events.contains("PodEvicted") && !events.contains("UnmanagedPods"), "{events}");
}

async fn scaled_while_a_sibling_is_deleted() {
    let ns = Namespace::new("t-fast-").await;
    let pods = several(&ns, 3, 8, "").await;
    budget_of(&ns, "minAvailable: 3").await;
    ns.run(&["exec", name_of(&pods[0]), "--", "true"]).await;
    in_surge(&ns, &pods[0]).await;
    ns.run(&["delete", "pod", name_of(&pods[1]), "--wait=false"]).await;
    ns.run(&["scale", "deployment", "web", "--replicas=4"]).await;
    gone(&ns, &pods[0], 120).await;
    complete(&ns, 4).await;
}

async fn orphaned_on_purpose() {
    let (ns, pod) = begun(15).await;
    let set = &pod.metadata.owner_references.as_ref().unwrap()[0].name;
    ns.run(&["delete", "replicaset", set, "--cascade=orphan"]).await;
    label_back(&ns, &pod, 15).await;
    let events = events(&ns).await;
    assert!(!events.contains("policy is not in force"), "{events}");
}

async fn no_quota_for_the_replacement() {
    let ns = Namespace::new("t-fast-").await;
    let pod = single(&ns, 1, "").await;
    budget(&ns).await;
    ns.run(&["create", "quota", "one", "--hard=pods=1"]).await;
    let quotas: Api<k8s_openapi::api::core::v1::ResourceQuota> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually("the quota", 20, async || {
        quotas.get("one").await.unwrap().status?.used?.contains_key("pods").then_some(())
    })
    .await;
    ns.run(&["exec", name_of(&pod), "--", "true"]).await;
    let back = eventually("the end of the surge", 60, async || {
        let pod = ns.pod(name_of(&pod)).await;
        annotation(&pod, "pristine/surge").is_some_and(|surge| surge.contains("CreateFailed")).then_some(pod)
    })
    .await;
    assert!(back.metadata.labels.unwrap().contains_key("pod-template-hash"));
    let sets: Api<ReplicaSet> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually("a ReplicaSet without a failure", 20, async || {
        let sets = sets.list(&ListParams::default()).await.unwrap().items;
        let status = sets[0].status.as_ref()?;
        (status.replicas == 1 && status.conditions.as_ref().is_none_or(Vec::is_empty)).then_some(())
    })
    .await;
}

async fn entered_again() {
    let (ns, pod) = begun(10).await;
    ns.run(&["exec", name_of(&pod), "--", "true"]).await;
    gone(&ns, &pod, 60).await;
    assert!(events(&ns).await.contains("PodEvicted"));
    complete(&ns, 1).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn what_others_do_during_a_surge_leaves_no_orphan_and_loses_no_pod() {
    let before = switch_on().await;
    tokio::join!(
        rolled_out(),
        recreate(),
        selected_by_others(),
        scaled_while_a_sibling_is_deleted(),
        orphaned_on_purpose(),
        no_quota_for_the_replacement(),
        entered_again(),
    );
    switch_off(before).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn suspended_evictions_end_a_surge_within_five_seconds() {
    let before = switch_on().await;
    let stage = Stage::new("t-fast-").await;
    let pod = single(&stage.ns, 25, "").await;
    budget(&stage.ns).await;
    stage.ns.run(&["exec", name_of(&pod), "--", "true"]).await;
    in_surge(&stage.ns, &pod).await;
    let suspended = stage.pristine("suspend --reason INC-9 --until 1h").await;
    let back = AssertUnwindSafe(label_back(&stage.ns, &pod, 5)).catch_unwind().await;
    // The other tests need evictions.
    stage.pristine("resume").await;
    assert!(suspended.status.success());
    assert_eq!(uid_of(&back.unwrap()), uid_of(&pod));
    switch_off(before).await;
}

/// The controller manager, which stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new() -> Self {
        let state = PathBuf::from(setting("KUBECONFIG").unwrap());
        let text = std::fs::read_to_string(state.with_file_name("run/kube-controller-manager.pid")).unwrap();
        let pid = Pid::from_raw(text.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

/// Until its controller sees the change, the ReplicaSet's status still counts the pod itself as a Ready one.
#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_status_that_is_out_of_date_evicts_no_pod() {
    let before = switch_on().await;
    let ns = Namespace::new("t-fast-").await;
    let pod = single(&ns, 3, "").await;
    let poller = Poller::start(&ns, "ok\n").await;
    ns.run(&["exec", name_of(&pod), "--", "true"]).await;
    let stopped = Stopped::new();
    in_surge(&ns, &pod).await;
    sleep(Duration::from_secs(8)).await;
    let sets: Api<ReplicaSet> = Api::namespaced(ns.client.clone(), &ns.name);
    let status = sets.list(&ListParams::default()).await.unwrap().items.remove(0).status.unwrap();
    assert_eq!((status.ready_replicas, status.replicas), (Some(1), 1), "the status is the one of before");
    assert!(serves(&ns.pod(name_of(&pod)).await));
    drop(stopped);
    replaced(&ns, &pod).await;
    let Polled { polls: asked, failed, .. } = poller.stop().await;
    assert!(failed.is_empty(), "{} of {asked}: {failed:?}", failed.len());
    switch_off(before).await;
}
