//! The component `surge`, on a real cluster: the replacement serves before the pod is evicted, and no end of a surge leaves
//! anything behind.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serial_test::serial;
use tokio::time::sleep;

use crate::{
    common::{SYSTEM, eventually, name_of},
    components::{apply_all, configure, render},
    kubectl::{IMAGE, Namespace, annotation, apply, client, reason, run, serves, uid_of},
    poller::{Polled, Poller},
};

mod conditions;
mod others;

/// The component and its switch; gives the configuration of before.
pub async fn switch_on() -> String {
    apply_all(&render(Some("surge")).await, &[]).await;
    // A test that failed may have left it on.
    let off = |text: &str| text.replace("surge: true, ", "");
    off(&configure(|text| off(text).replace("eviction: {", "eviction: {surge: true, ")).await)
}

async fn switch_off(before: String) {
    configure(|_| before).await;
    let pods: Api<Pod> = Api::all(client().await);
    let left = pods.list(&ListParams::default().labels("pristine/surge")).await.unwrap().items;
    assert!(left.iter().all(|pod| pod.metadata.deletion_timestamp.is_some()), "{left:?}");
    apply_all(&render(None).await, &[]).await;
    run(&["delete", "clusterrolebinding,clusterrole", "pristine:surge"]).await;
    run(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "surge.pods.pristine"]).await;
}

/// A Deployment of one replica that needs so many seconds to become Ready and three to end, with a Service.
pub async fn single(ns: &Namespace, start: u32, more: &str) -> Pod {
    several(ns, 1, start, more).await.remove(0)
}

/// The same with so many replicas.
async fn several(ns: &Namespace, replicas: usize, start: u32, more: &str) -> Vec<Pod> {
    let yaml = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 5
      {more}
      containers:
      - name: app
        image: {IMAGE}
        command: [sh, -c, 'trap \"sleep 3; exit\" TERM; mkdir -p /tmp/www; echo ok >/tmp/www/index.html; httpd -p 8080 -h /tmp/www; while :; do sleep 0.2; done']
        readinessProbe: {{tcpSocket: {{port: 8080}}, initialDelaySeconds: {start}, periodSeconds: 1}}
"
    );
    apply(&ns.name, &yaml).await;
    ns.ready(replicas).await
}

/// A budget for all pods, once its status is up to date.
pub async fn budget(ns: &Namespace) {
    budget_of(ns, "minAvailable: 1").await;
}

async fn budget_of(ns: &Namespace, spec: &str) {
    let name = format!("b{:08x}", rand::random::<u32>());
    apply(
        &ns.name,
        &format!("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: {name}}}\nspec: {{{spec}, selector: {{matchLabels: {{app: web}}}}}}\n"),
    )
    .await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually("the budget", 20, async || {
        let found = budgets.get(&name).await.unwrap();
        (found.status?.observed_generation == found.metadata.generation).then_some(())
    })
    .await;
}

pub async fn in_surge(ns: &Namespace, pod: &Pod) -> Pod {
    eventually("the surge", 40, async || {
        let pod = ns.pod(name_of(pod)).await;
        pod.metadata.labels.as_ref().unwrap().contains_key("pristine/surge").then_some(pod)
    })
    .await
}

/// Waits until the pod is counted by its ReplicaSet again, and gives it.
async fn label_back(ns: &Namespace, pod: &Pod, seconds: u64) -> Pod {
    eventually("the label", seconds, async || {
        let pod = ns.pod(name_of(pod)).await;
        let labels = pod.metadata.labels.as_ref().unwrap();
        (labels.contains_key("pod-template-hash") && !labels.contains_key("pristine/surge")).then_some(pod)
    })
    .await
}

/// Waits until this pod is gone.
async fn gone(ns: &Namespace, pod: &Pod, seconds: u64) {
    eventually("the end of the pod", seconds, async || {
        let found = ns.pods().get_opt(name_of(pod)).await.unwrap();
        found.is_none_or(|found| uid_of(&found) != uid_of(pod)).then_some(())
    })
    .await;
}

async fn replaced(ns: &Namespace, pod: &Pod) {
    gone(ns, pod, 90).await;
    let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
    assert!(pods.len() == 1 && pods.iter().all(serves), "one pod, which serves: {pods:?}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_single_pod_that_takes_30_s_to_start_is_evicted_without_a_failed_request() {
    let before = switch_on().await;
    let run = async |has_budget: bool| {
        let ns = Namespace::new("t-fast-").await;
        let pod = single(&ns, 30, "").await;
        if has_budget {
            budget(&ns).await;
        }
        let poller = Poller::start(&ns, "ok\n").await;
        ns.run(&["exec", name_of(&pod), "--", "true"]).await;
        let surging = in_surge(&ns, &pod).await;
        assert!(surging.metadata.owner_references.is_some(), "its ReplicaSet keeps it");
        replaced(&ns, &pod).await;
        sleep(Duration::from_secs(2)).await;
        let Polled { polls: asked, failed, .. } = poller.stop().await;
        assert!(asked > 400 && failed.is_empty(), "budget {has_budget}: {} of {asked}: {failed:?}", failed.len());
        println!("budget {has_budget}: 0 of {asked} requests failed");
    };
    tokio::join!(run(true), run(false));
    switch_off(before).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_surge_that_cannot_succeed_leaves_the_workload_as_it_was() {
    let before = switch_on().await;
    let start = async |more: &str, seconds: u32| {
        let ns = Namespace::new("t-fast-").await;
        let pod = single(&ns, seconds, more).await;
        budget(&ns).await;
        ns.run(&["exec", name_of(&pod), "--", "true"]).await;
        let pod = in_surge(&ns, &pod).await;
        (ns, pod)
    };
    let deleted = async {
        let (ns, pod) = start("", 20).await;
        ns.run(&["delete", "deployment", "web", "--wait=false"]).await;
        gone(&ns, &pod, 30).await;
    };
    let scaled = async {
        let (ns, pod) = start("", 20).await;
        ns.run(&["scale", "deployment", "web", "--replicas=0"]).await;
        gone(&ns, &pod, 30).await;
        assert_eq!(ns.pods().list(&ListParams::default()).await.unwrap().items.len(), 0);
    };
    let held = async {
        let (ns, pod) = start("", 25).await;
        ns.run(&["annotate", "pod", name_of(&pod), "pristine/hold=INC-7", "pristine/extended-by=kubernetes-admin"])
            .await;
        label_back(&ns, &pod, 10).await;
        eventually("one pod", 20, async || {
            let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
            (pods.len() == 1 && uid_of(&pods[0]) == uid_of(&pod)).then_some(())
        })
        .await;
    };
    let unschedulable = async {
        let affinity = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}]}}";
        let (ns, pod) = start(affinity, 1).await;
        label_back(&ns, &pod, 60).await;
        let deployments: Api<Deployment> = Api::namespaced(ns.client.clone(), &ns.name);
        eventually("one of one", 20, async || {
            let status = deployments.get("web").await.unwrap().status?;
            let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
            (status.available_replicas == Some(1) && status.replicas == Some(1) && pods.len() == 1).then_some(())
        })
        .await;
        // The budget refuses it as before, and no other surge begins.
        eventually("the refusal", 30, async || {
            let pod = ns.pod(name_of(&pod)).await;
            (reason(&pod) == "EvictionBlocked").then_some(())
        })
        .await;
        sleep(Duration::from_secs(10)).await;
        let left = ns.pod(name_of(&pod)).await;
        assert!(annotation(&left, "pristine/surge").unwrap().contains(r#""why":"Unschedulable""#));
        assert!(left.metadata.labels.unwrap().contains_key("pod-template-hash"));
    };
    tokio::join!(deleted, scaled, held, unschedulable);
    switch_off(before).await;
}

/// Kills the replica that evicts.
async fn kill_leader() {
    let leases: Api<Lease> = Api::namespaced(client().await, SYSTEM);
    let leader = leases.get("pristine").await.unwrap().spec.unwrap().holder_identity.unwrap();
    let pods: Api<Pod> = Api::namespaced(client().await, SYSTEM);
    let _ = pods.delete(&leader, &DeleteParams::default().grace_period(0)).await;
}

/// Kills the leader so many times at each step of a surge: before it, right after its start, and when the replacement is
/// about to serve.
async fn kill_leaders(rounds: usize) {
    let before = switch_on().await;
    let steps = [0, 5_000, 6_500, 14_000].map(Duration::from_millis);
    for wait in steps.into_iter().cycle().take(steps.len() * rounds) {
        let ns = Namespace::new("t-fast-").await;
        let pod = single(&ns, 8, "").await;
        budget(&ns).await;
        let poller = Poller::start(&ns, "ok\n").await;
        ns.run(&["exec", name_of(&pod), "--", "true"]).await;
        sleep(wait).await;
        kill_leader().await;
        replaced(&ns, &pod).await;
        let Polled { polls: asked, failed, .. } = poller.stop().await;
        assert!(failed.is_empty(), "killed after {wait:?}: {} of {asked}: {failed:?}", failed.len());
        println!("killed after {wait:?}: 0 of {asked} requests failed");
    }
    switch_off(before).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_leader_that_is_killed_in_a_surge_loses_nothing() {
    kill_leaders(1).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn twenty_leaders_that_are_killed_in_surges_lose_nothing() {
    kill_leaders(5).await;
}
