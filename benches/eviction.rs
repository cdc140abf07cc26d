//! Evictions in a large cluster: 10,000 marked pods of 500 owners on kwok nodes, 1,000 of them due at once.
//! `hack/bench eviction` starts everything and runs this. It prints figures, and fails only if a step never completes.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "prints figures, or fails")]
#![allow(
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "not part of the product; its figures are for people"
)]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Namespace, Node, Pod},
};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const NODES: usize = 20;
const OWNERS: usize = 500;
/// Pods of each owner: those that are marked, one for the first run, and one for the baseline.
const PODS: usize = 22;
/// Pods due in a day, in addition to those due in the run: 10,000 marked pods in total.
const LATER: usize = 9000;
/// The same for the large cluster.
const LATER_OF_LARGE: usize = 1000;
/// Due pods of each owner.
const DUE: usize = 2;
/// The evictions that the default rate limit of 600 a minute allows at once.
const AT_ONCE: usize = 60;
/// Concurrent evictions, as in `src/eviction/controller.rs`.
const CONCURRENT: usize = 64;
const NAMESPACE: &str = "bench";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:pristine-system:pristine";

#[tokio::main]
async fn main() {
    let crowd: usize = std::env::var("PRISTINE_BENCH_CROWD").ok().map_or(0, |text| text.parse().unwrap());
    let client = Client::try_default().await.expect("needs a cluster, see hack/bench");
    let mut config = Config::infer().await.unwrap();
    // The policy mark.pods.pristine allows only this account to write a mark.
    config.auth_info.impersonate = Some(SERVICE_ACCOUNT.to_owned());
    let pristine = Client::try_from(config).unwrap();

    nodes_and_owners(&client).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    ready(&client).await;
    let mut of_owner: HashMap<String, Vec<(String, String)>> = HashMap::new();
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        let owner = pod.metadata.owner_references.unwrap().remove(0).name;
        of_owner.entry(owner).or_default().push((pod.metadata.name.unwrap(), pod.metadata.uid.unwrap()));
    }
    let (mut few, mut due, mut later, mut spare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for mut pods in of_owner.into_values() {
        spare.extend(pods.pop());
        few.extend(pods.pop().filter(|_| few.len() < AT_ONCE));
        later.extend(pods.split_off(DUE));
        due.extend(pods);
    }
    later.truncate(if crowd > 0 { LATER_OF_LARGE } else { LATER });
    let later_at = Timestamp::now() + SignedDuration::from_hours(24);
    println!("idle, {} pods, none marked:                 {}", OWNERS * PODS, memory());
    let baseline = baseline(&client, spare).await;
    ready(&client).await;
    if crowd > 0 {
        create_crowd(&client, crowd).await;
        sleep(Duration::from_secs(20)).await;
        println!("{} pods in the cluster, none marked:        {}", OWNERS * PODS + crowd, memory());
        mark(&pristine, &later, later_at).await;
        sleep(Duration::from_secs(20)).await;
        println!("{} pods in the cluster, {} marked:       {}", OWNERS * PODS + crowd, later.len(), memory());
    }
    println!("as many at once as the default rate limit allows:");
    evict_due(&client, &pristine, &few, None).await;
    if crowd == 0 {
        mark(&pristine, &later, later_at).await;
        println!("{} marked, due in a day:                  {}", later.len(), memory());
    }
    println!("{} at once, without a rate limit:", due.len());
    let cpu = processor_time();
    evict_due(&client, &pristine, &due, Some(baseline)).await;
    println!("CPU time, to read the marks and evict:       {:.2} s, all replicas together", processor_time() - cpu);
    println!("after the evictions:                         {}", memory());
}

/// Marks these pods with the same deadline, and waits until all are evicted.
async fn evict_due(client: &Client, pristine: &Client, due: &[(String, String)], baseline: Option<f64>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let at =
        Timestamp::from_second(Timestamp::now().as_second() + 10 + i64::try_from(due.len()).unwrap() / 40).unwrap();
    mark(pristine, due, at).await;
    assert!(Timestamp::now() < at, "marking took until after the deadline");
    sleep(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()).await;
    let names: std::collections::HashSet<&str> = due.iter().map(|(name, _)| name.as_str()).collect();
    let gone = loop {
        let all = pods.list_metadata(&ListParams::default()).await.unwrap();
        let left = all.items.iter().filter(|pod| {
            names.contains(pod.metadata.name.as_deref().unwrap()) && pod.metadata.deletion_timestamp.is_none()
        });
        if left.count() == 0 {
            break Timestamp::now();
        }
        assert!(Timestamp::now().duration_since(at) < SignedDuration::from_mins(10), "not all pods were evicted");
        sleep(Duration::from_millis(500)).await;
    };
    sleep(Duration::from_secs(3)).await;
    figures(at, gone, due.len(), baseline);
}

async fn nodes_and_owners(client: &Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    for n in 0..NODES {
        let node = json!({
            "metadata": {"name": format!("kwok-{n}"), "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"type": "kwok"}},
            "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "2000"}, "capacity": {"cpu": "64", "memory": "256Gi", "pods": "2000"}},
        });
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), NAMESPACE);
    for n in 0..OWNERS {
        let labels = json!({"app": format!("app-{n}")});
        let set = json!({
            "metadata": {"name": format!("app-{n}")},
            "spec": {"replicas": PODS, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeName": format!("kwok-{}", n % NODES), "automountServiceAccountToken": false,
                    "containers": [{"name": "app", "image": "none"}],
                    "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 1,
                },
            }},
        });
        sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    }
}

async fn ready(client: &Client) {
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), NAMESPACE);
    let start = Instant::now();
    loop {
        let all = sets.list(&ListParams::default()).await.unwrap().items;
        let ready: i32 = all.iter().filter_map(|set| set.status.as_ref()?.ready_replicas).sum();
        if usize::try_from(ready).ok() == Some(OWNERS * PODS) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(1200), "{ready} pods Ready");
        sleep(Duration::from_secs(3)).await;
    }
}

/// Creates pods that no scheduler picks up: they only have to exist.
async fn create_crowd(client: &Client, count: usize) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let params = PostParams::default();
    let create = |n: usize| {
        let spec = json!({"schedulerName": "none", "automountServiceAccountToken": false, "containers": [{"name": "app", "image": "none"}]});
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": format!("crowd-{n}")}, "spec": spec})).unwrap();
        let (pods, params) = (pods.clone(), params.clone());
        async move { drop(pods.create(&params, &pod).await.unwrap()) }
    };
    stream::iter(0..count).map(create).buffer_unordered(32).collect::<Vec<()>>().await;
}

async fn mark(client: &Client, pods: &[(String, String)], due: Timestamp) {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let first = json!({
        "at": (due - SignedDuration::from_mins(10)).to_string(), "operation": "exec", "container": "app",
        "command": ["sh", "-c", "curl -s http://localhost:9000/debug/pprof/heap > /tmp/heap"], "stdin": true, "tty": true,
        "user": {"name": "alice@example.com", "groups": ["sre", "platform", "system:authenticated"]},
        "review": "0b5e3f2a-7f0c-4a5e-8a39-3d0a6c3a4f10", "rule": "default",
    });
    let patch = |(name, uid): (String, String)| {
        let record = json!({"pod": uid, "total": 1, "first": first}).to_string();
        let patch = json!({"metadata": {
            "uid": uid, "labels": {"pristine/interacted": "true"},
            "annotations": {"pristine/interactions": record, "pristine/evict-at": due.to_string()},
        }});
        let api = api.clone();
        async move {
            let patch = Patch::Strategic(patch);
            drop(api.patch_status(&name, &PatchParams::default(), &patch).await.unwrap());
        }
    };
    stream::iter(pods.to_vec()).map(patch).buffer_unordered(16).collect::<Vec<()>>().await;
}

/// The processes of the replicas: named `pristine`, and in the cgroup of a pod.
fn processes() -> Vec<PathBuf> {
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == "pristine")
            && fs::read_to_string(path.join("cgroup")).is_ok_and(|cgroup| cgroup.contains("pod"))
    };
    all.filter(ours).collect()
}

fn memory() -> String {
    let resident = |path: &PathBuf| {
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let mib = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).unwrap_or("0").parse::<f64>().unwrap() / 1024.0
        };
        format!("{:.1} MiB (at most {:.1})", mib("VmRSS"), mib("VmHWM"))
    };
    let all: Vec<String> = processes().iter().map(resident).collect();
    format!("{} resident, by replica", all.join(", "))
}

/// CPU time of all replicas, in seconds.
fn processor_time() -> f64 {
    let ticks = |path: &PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let fields: Vec<f64> =
            stat.rsplit(") ").next().unwrap_or_default().split(' ').map(|f| f.parse().unwrap_or(0.0)).collect();
        fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)
    };
    processes().iter().map(ticks).sum::<f64>() / 100.0
}

/// The baseline of this API server: a client that makes no decisions evicts one pod of each owner, with as many concurrent
/// requests as Pristine. Returns the p99 of the time from the common start to the answer, in seconds.
async fn baseline(client: &Client, pods: Vec<(String, String)>) -> f64 {
    let start = Instant::now();
    let evict = |(name, uid): (String, String)| {
        let client = client.clone();
        async move {
            let eviction = json!({
                "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE},
                "deleteOptions": {"preconditions": {"uid": uid}},
            });
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction");
            let request = http::Request::post(path).header("content-type", "application/json");
            client.request::<Value>(request.body(eviction.to_string().into_bytes()).unwrap()).await.unwrap();
            start.elapsed().as_secs_f64()
        }
    };
    let mut times = stream::iter(pods).map(evict).buffer_unordered(CONCURRENT).collect::<Vec<f64>>().await;
    show("baseline, bare evictions, one per owner:    ", &mut times);
    times[(times.len() * 99 / 100).min(times.len() - 1)]
}

fn show(name: &str, times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let last = times[times.len() - 1];
    println!("{name} {:>6}   median {:.2} s   p99 {:.2} s   last {last:.2} s", times.len(), at(50), at(99));
}

/// Prints the figures, from the API server's audit log.
fn figures(due: Timestamp, end: Timestamp, count: usize, baseline: Option<f64>) {
    let kubeconfig = std::env::var("KUBECONFIG").unwrap();
    let log = fs::read_to_string(Path::new(&kubeconfig).parent().unwrap().join("logs/audit.log")).unwrap();
    let (mut calls, mut evicted) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, Vec<SignedDuration>>::new());
    for line in log.lines().filter(|line| line.contains(SERVICE_ACCOUNT)) {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let at: Timestamp = line["requestReceivedTimestamp"].as_str().unwrap().parse().unwrap();
        let (verb, object) = (line["verb"].as_str().unwrap_or_default(), &line["objectRef"]);
        let resource = object["resource"].as_str().unwrap_or_default();
        if at < due || at > end || verb == "watch" || resource == "leases" || line["stage"] != "ResponseComplete" {
            continue;
        }
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        *calls.entry(format!("{verb} {resource}{subresource}")).or_default() += 1;
        if subresource == "/eviction" && line["responseStatus"]["code"] == 201 {
            let (owner, _) = object["name"].as_str().unwrap().rsplit_once('-').unwrap();
            // The time of the answer, as in the baseline.
            let answered: Timestamp = line["stageTimestamp"].as_str().unwrap().parse().unwrap();
            evicted.entry(owner.to_owned()).or_default().push(answered.duration_since(due));
        }
    }
    let mut first: Vec<f64> = evicted.values().map(|times| times.iter().min().unwrap().as_secs_f64()).collect();
    let mut all: Vec<f64> = evicted.values().flatten().map(SignedDuration::as_secs_f64).collect();
    show("lateness, first pod of each owner:          ", &mut first);
    show("lateness, all pods (one per owner at once):", &mut all);
    let p99 = first[(first.len() * 99 / 100).min(first.len() - 1)];
    if let Some(baseline) = baseline {
        println!("p99 of the first pod of each owner, as a ratio to the baseline: {:.2}", p99 / baseline);
    }
    println!("all pods evicted {:.1} s after the deadline", end.duration_since(due).as_secs_f64());
    let total: usize = calls.values().sum();
    println!(
        "API server calls per eviction, without leases and watches: {:.1}  {calls:?}",
        total as f64 / count as f64
    );
}
