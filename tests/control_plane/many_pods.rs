//! Many pods on simulated nodes: a real API server, and two Pristine processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{join_all, ready},
    stream,
};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    common::{SYSTEM, audit, eventually, name_of, now},
    leadership::{evictions, in_seconds, mark, namespace, remove},
    replicas::{Replicas, client, kubeconfig},
    simulated_nodes::SimulatedNodes,
};

/// A node that does not exist, so that no kubelet ends its pods.
const NOWHERE: &str = "nowhere";
/// MiB that a replica may need in addition after a thousand pods were marked and deleted: for their watch events, one page of
/// a list, and what is known of them. It was 7 or 8; with whole pods in the lists, 22.
const MEMORY: u64 = 16;
/// The same after the second thousand, whose successors keep their marks: it was 13 to 19.
const MEMORY_WITH_SUCCESSORS: u64 = 26;
/// Pristine's own account.
const ACCOUNT: &str = "system:serviceaccount:pristine-system:pristine";

/// Creates a DaemonSet for the nodes with these labels.
async fn daemon_set(client: &Client, namespace: &str, name: &str, nodes: Value) {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let set = json!({
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"a": name}}, "template": {
            "metadata": {"labels": {"a": name}},
            "spec": {
                "nodeSelector": nodes, "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "app", "image": "none"}],
            },
        }},
    });
    sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
}

/// Waits until the DaemonSet wants so many pods, and so many are Ready.
async fn counts(client: &Client, namespace: &str, name: &str, wanted: i32, ready: i32) {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    eventually("the pods of the DaemonSet", 60, async || {
        let status = sets.get(name).await.unwrap().status?;
        (status.desired_number_scheduled == wanted && status.number_ready == ready).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_node_that_is_not_ready_delays_fifty_evictions_of_a_daemon_set_by_a_fifth_at_most() {
    const NODES: u32 = 50;
    let client = client(1).await;
    let namespace = namespace(&client).await;
    let mut nodes = SimulatedNodes::start(NODES).await;
    let absent = nodes.add_one_that_is_not_ready().await;
    nodes.run_daemon_sets();
    daemon_set(&client, &namespace, "whole", json!({"fleet": nodes.fleet, "kubelet": "kwok"})).await;
    daemon_set(&client, &namespace, "short", json!({"fleet": nodes.fleet})).await;
    counts(&client, &namespace, "whole", 50, 50).await;
    counts(&client, &namespace, "short", 51, 50).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let mut all = pods.list(&ListParams::default()).await.unwrap().items;
    let on_absent = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&absent);
    let absent_pod = all.swap_remove(all.iter().position(on_absent).unwrap());
    // As the node lifecycle controller leaves it.
    let status = json!({"status": {"phase": "Running", "conditions": [{
        "type": "Ready", "status": "False", "reason": "NodeNotReady", "lastTransitionTime": in_seconds(-3600).to_string(),
    }]}});
    pods.patch_status(name_of(&absent_pod), &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let _replicas = Replicas::start_with(2, "eviction: {perMinute: 60000}").await;
    // Both at the same time, so that they share what else this machine has to do.
    let due = in_seconds(10);
    let marks = all.iter().map(async |pod| {
        let patch = Patch::Merge(json!({"metadata": mark(pod, in_seconds(-60), due)}));
        pods.patch_status(name_of(pod), &PatchParams::default(), &patch).await.unwrap();
    });
    join_all(marks).await;
    assert!(now() < due, "marking took until after the deadline");
    let old: BTreeSet<_> = all.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
    eventually("every eviction", 400, async || {
        sleep(Duration::from_secs(1)).await;
        let left = pods.list(&ListParams::default()).await.unwrap().items;
        (!left.iter().any(|pod| old.contains(pod.metadata.uid.as_ref().unwrap()))).then_some(())
    })
    .await;
    let mut last = BTreeMap::new();
    for (pod, asked) in evictions(&namespace, all.len()).await {
        let at = asked.iter().find(|(_, code)| *code == 201).unwrap().0.duration_since(due).as_secs_f64();
        let latest: &mut f64 = last.entry(pod.rsplit_once('-').unwrap().0.to_owned()).or_default();
        *latest = latest.max(at);
    }
    let (whole, short) = (last["whole"], last["short"]);
    println!(
        "TOTALS: {NODES} pods of a DaemonSet: {whole:.1} s until the last one is evicted, {short:.1} s with a node that is not Ready, ratio {:.2}",
        short / whole
    );
    // Each eviction waits for a replacement, so this is pacing and not the speed of the machine.
    assert!(whole >= f64::from(NODES - 1), "no pacing");
    assert!(short <= 1.2 * whole);
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    sets.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    remove(&client, &namespace).await;
    nodes.end().await;
}

/// A kubeconfig of Pristine's own account, with the rights that install.yaml gives it.
async fn own_kubeconfig(folder: &tempfile::TempDir) -> String {
    let kubectl = async |arguments: &[&str]| {
        let mut command = Command::new("kubectl");
        let output = command.args(arguments).env("KUBECONFIG", kubeconfig(1)).output().await.unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for file in ["namespace.yaml", "rbac.yaml"] {
        kubectl(&["apply", "-f", &format!("{}/manifests/base/{file}", env!("CARGO_MANIFEST_DIR"))]).await;
    }
    let token = kubectl(&["create", "token", "pristine", "-n", SYSTEM, "--duration=1h"]).await;
    let view = kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]).await;
    let mut config: Value = serde_json::from_str(&view).unwrap();
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = folder.path().join("pristine.conf");
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Pods without a controller.
struct BarePods {
    pods: Api<Pod>,
    namespace: String,
    /// With or without a kubelet.
    node: String,
}

impl BarePods {
    async fn create(&self, name: &str) -> Option<Pod> {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": self.node, "containers": [{"name": "app", "image": "none"}]},
        });
        self.pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.ok()
    }

    /// Creates pods with these names, and waits until a kubelet has started all.
    async fn create_all(&self, names: &[String]) -> Vec<Pod> {
        let create = stream::iter(names).map(|name| self.create(name)).buffer_unordered(20);
        assert_eq!(create.filter(|pod| ready(pod.is_some())).count().await, names.len());
        let created = async || {
            sleep(Duration::from_secs(1)).await;
            let pods = self.pods.list(&ListParams::default()).await.unwrap().items;
            (self.node == NOWHERE || pods.iter().all(pristine::mark::is_ready)).then_some(pods)
        };
        eventually("all pods are Ready", 120, created).await
    }

    /// An exec into the pod, which is deleted a second later. Without a kubelet, the next pod gets its name.
    async fn enter_and_delete(&self, pod: &Pod, at: Instant) {
        sleep_until(at).await;
        let name = name_of(pod);
        let patch = Patch::Merge(json!({"metadata": mark(pod, now(), in_seconds(3600))}));
        self.pods.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        // Not by its kubelet: on a machine with other work to do, kwok takes so long that Pristine writes on each pod why it
        // still terminates, and those calls are not for successors.
        self.pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
        if self.node == NOWHERE {
            assert!(self.create(name).await.is_some());
        }
    }

    /// What Pristine asked the API server for in this namespace, and how often.
    fn calls(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for line in audit::requests(&kubeconfig(1), &self.namespace) {
            if line["user"]["username"] == ACCOUNT && line["stage"] == "ResponseComplete" {
                let object = &line["objectRef"];
                let words = [&line["verb"], &object["resource"], &object["subresource"]];
                let words: Vec<&str> = words.into_iter().filter_map(Value::as_str).collect();
                *found.entry(words.join(" ")).or_default() += 1;
            }
        }
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_thousand_deleted_bare_pods_cost_at_most_two_calls_each_for_their_successors() {
    const PODS: usize = 1_000;
    let client = client(1).await;
    let nodes = SimulatedNodes::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let own = own_kubeconfig(&folder).await;
    let replicas = Replicas::start_through(vec![own.clone(), own], &[]).await;
    sleep(Duration::from_secs(5)).await;
    let memory = || [replicas.memory(0), replicas.memory(1)].map(|(now, _)| now);
    let idle = memory();
    // kwok ends pods by their names, so it could end the next one of a name too.
    let kubelet = format!("{}-0", nodes.fleet);
    for (comes_back, node, bound) in [(false, kubelet, MEMORY), (true, NOWHERE.to_owned(), MEMORY_WITH_SUCCESSORS)] {
        let namespace = namespace(&client).await;
        let pods = Api::namespaced(client.clone(), &namespace);
        let bare = BarePods { pods, namespace, node };
        let names: Vec<String> = (0..PODS).map(|n| format!("p{n}")).collect();
        let all = bare.create_all(&names).await;
        let start = Instant::now();
        // Within a minute.
        let work = all.iter().zip(0..).map(async |(pod, n)| {
            bare.enter_and_delete(pod, start + Duration::from_millis(50) * n).await;
        });
        join_all(work).await;
        let took = start.elapsed();
        // The last look is when an exec can have reached no pod any more, 35 s after it.
        sleep(Duration::from_secs(45)).await;
        let labels = ListParams::default().labels("pristine/interacted");
        let marked = bare.pods.list(&labels).await.unwrap().items.len();
        let (calls, after) = (bare.calls(), memory());
        // An Event about each is written too, as far as the API server keeps up with them.
        let count: usize = calls.iter().filter(|(call, _)| call.contains("pods")).map(|(_, count)| count).sum();
        println!(
            "TOTALS: {PODS} bare pods deleted in {took:.0?}, {marked} successors marked, {count} calls for them of {calls:?}; memory {idle:?} MiB before, {after:?} MiB after"
        );
        assert_eq!(marked, if comes_back { PODS } else { 0 });
        assert!(count <= PODS * 2, "{count} calls");
        assert!(after.iter().zip(idle).all(|(after, idle)| *after <= idle + bound), "{idle:?} MiB, {after:?} MiB");
        // At once: one after the other, they take minutes.
        let all = ListParams::default();
        bare.pods.delete_collection(&DeleteParams::default().grace_period(0), &all).await.unwrap();
    }
    nodes.end().await;
    replicas.end().await;
}
