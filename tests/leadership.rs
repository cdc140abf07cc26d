//! Evictions while the replica that does them is killed or suspended, and after a fresh install that finds many pods
//! overdue: two real API servers, no node (a pod that terminates stays), three Pristine processes.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that prints its totals"
)]

mod common;

use std::{collections::BTreeMap, path::Path, time::Duration};

use common::{
    cluster::{now, until},
    replicas::{Replicas, SYSTEM, client, get, setting},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// A namespace of its own, whose name it returns.
async fn namespace(client: &Client) -> String {
    let name = format!("due-{:08x}", rand::random::<u32>());
    let all: Api<Namespace> = Api::all(client.clone());
    all.create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": name}})).unwrap())
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    name
}

/// A pod that somebody exec'd into: no policy guards the mark here, so the test writes it.
async fn marked(client: &Client, namespace: &str, name: &str, owner: Option<Value>, due: Timestamp) -> String {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = json!({
        "metadata": {"name": name, "ownerReferences": owner.map(|owner| [owner])},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "app", "image": "none"}]},
    });
    let created = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let uid = created.metadata.uid.unwrap();
    let first = json!({
        "at": due.checked_sub(SignedDuration::from_secs(600)).unwrap().to_string(), "operation": "exec", "container": "app",
        "user": {"name": "alice"}, "review": "r", "rule": "default",
    });
    let record = json!({"pod": uid, "total": 1, "first": first}).to_string();
    let patch = json!({
        "metadata": {
            "labels": {"pristine/interacted": "true"},
            "annotations": {"pristine/interactions": record, "pristine/evict-at": due.to_string()},
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    uid
}

fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

async fn terminating(client: &Client, namespace: &str) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut all = pods.list(&ListParams::default()).await.unwrap().items;
    all.retain(|pod| pod.metadata.deletion_timestamp.is_some());
    all
}

async fn leader(client: &Client) -> usize {
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
    until("a leader", 40, || async {
        let holder = leases.get_opt("pristine").await.unwrap()?.spec?.holder_identity?;
        holder.strip_prefix("replica-")?.parse().ok()
    })
    .await
}

/// The eviction requests of the audit logs, by pod: when, and the code.
fn evictions(namespace: &str) -> BTreeMap<String, Vec<(Timestamp, u64)>> {
    let folder = setting("PRISTINE_KUBECONFIG_1").unwrap();
    let folder = Path::new(&folder).parent().unwrap().join("logs");
    let mut found: BTreeMap<String, Vec<(Timestamp, u64)>> = BTreeMap::new();
    for file in ["audit.log", "audit-1.log", "audit-2.log"] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains(namespace) && line.contains("ResponseComplete")) {
            let line: Value = serde_json::from_str(line).unwrap();
            let object = &line["objectRef"];
            if object["subresource"] == "eviction" && object["namespace"] == namespace {
                let at = line["requestReceivedTimestamp"].as_str().unwrap().parse().unwrap();
                let code = line["responseStatus"]["code"].as_u64().unwrap();
                found.entry(object["name"].as_str().unwrap().to_owned()).or_default().push((at, code));
            }
        }
    }
    found
}

async fn remove(client: &Client, namespace: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams::default().grace_period(0);
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        let _ = pods.delete(&pod.metadata.name.unwrap(), &params).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn no_eviction_is_lost_and_none_is_early_when_the_leader_is_killed_or_suspended() {
    const PODS: usize = 100;
    let client = client(1).await;
    let mut replicas = Replicas::start(3).await;
    for how in ["killed", "suspended"] {
        let namespace = namespace(&client).await;
        let due = in_seconds(15);
        for n in 0..PODS {
            marked(&client, &namespace, &format!("p{n}"), None, due).await;
        }
        let victim = leader(&client).await;
        // In the middle of it: some are evicted, and most are not.
        let first = until("the first evictions", 40, || async {
            Some(terminating(&client, &namespace).await.len()).filter(|count| *count >= 5)
        })
        .await;
        if how == "killed" {
            replicas.kill_and_start(victim).await;
        } else {
            // Longer than the lease: another one takes over, and this one must notice when it wakes.
            replicas.suspend(victim, Duration::from_secs(20)).await;
        }
        until("every eviction", 60, || async { (terminating(&client, &namespace).await.len() == PODS).then_some(()) })
            .await;
        let asked = evictions(&namespace);
        let early = asked.values().flatten().filter(|(at, _)| *at < due).count();
        let accepted: usize = asked.values().flatten().filter(|(_, code)| *code == 201).count();
        println!(
            "TOTALS: leader {how} after {first} evictions: {PODS} evicted, {accepted} requests accepted, {early} early"
        );
        assert_eq!((asked.len(), early), (PODS, 0));
        // What was under way when it stopped may be asked for once more, by UID; nothing else.
        assert!(accepted <= PODS + 64, "{accepted}");
        remove(&client, &namespace).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn pods_that_are_overdue_at_a_fresh_install_are_paced_like_any_others() {
    let client = client(1).await;
    let namespace = namespace(&client).await;
    for owner in 0..10 {
        let name = format!("owner-{owner}");
        // Nobody runs its controller here: it says that it is whole.
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"a": name}}, "template": {
                "metadata": {"labels": {"a": name}}, "spec": {"containers": [{"name": "app", "image": "none"}]},
            }},
        });
        let sets: Api<k8s_openapi::api::apps::v1::ReplicaSet> = Api::namespaced(client.clone(), &namespace);
        let made = sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
        let uid = made.metadata.uid.unwrap();
        let reference =
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": uid, "controller": true});
        for pod in 0..10 {
            marked(&client, &namespace, &format!("{name}-{pod}"), Some(reference.clone()), in_seconds(-3600)).await;
        }
    }
    // Only now is it installed.
    let start = now();
    let _replicas = Replicas::start(3).await;
    until("every eviction", 120, || async { (terminating(&client, &namespace).await.len() == 100).then_some(()) })
        .await;
    let mut by_owner: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    for (pod, asked) in evictions(&namespace) {
        let accepted: Vec<_> = asked.iter().filter(|(_, code)| *code == 201).collect();
        assert_eq!(accepted.len(), 1, "{pod}: {asked:?}");
        by_owner.entry(pod.rsplit_once('-').unwrap().0.to_owned()).or_default().push(accepted[0].0);
    }
    let mut closest = SignedDuration::MAX;
    for times in by_owner.values_mut() {
        times.sort();
        for pair in times.windows(2) {
            closest = closest.min(pair[1].duration_since(pair[0]));
        }
    }
    println!(
        "TOTALS: 100 overdue pods of {} owners in {:.0} s, two of one owner never within {:.1} s",
        by_owner.len(),
        now().duration_since(start).as_secs_f64(),
        closest.as_secs_f64()
    );
    assert_eq!(by_owner.len(), 10);
    assert!(closest >= SignedDuration::from_millis(950), "{closest}");
    remove(&client, &namespace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_replica_whose_clock_is_two_minutes_ahead_says_so_and_evicts_nothing_early() {
    let client = client(1).await;
    let namespace = namespace(&client).await;
    let replica = Replicas::start_one_at("+120s").await;
    until("its lead", 40, async || (leader(&client).await == 0).then_some(())).await;
    // By its own clock these are overdue from the moment they are there.
    let due = in_seconds(15);
    for n in 0..3 {
        marked(&client, &namespace, &format!("pod-{n}"), None, due).await;
    }
    until("the evictions", 60, || async { (terminating(&client, &namespace).await.len() == 3).then_some(()) }).await;
    for (pod, requests) in evictions(&namespace) {
        for (at, code) in requests {
            let late = at.duration_since(due).as_secs_f64();
            assert!((0.0..10.0).contains(&late), "{pod}: {late} s after its deadline ({code})");
        }
    }
    let log = std::fs::read_to_string(replica.log(0)).unwrap();
    assert!(log.contains("this clock is ahead of the API server's"), "{log}");
    let metrics = get(0, "/metrics").await.unwrap();
    let ahead = metrics.lines().find_map(|line| line.strip_prefix("pristine_clock_ahead_seconds ")).unwrap();
    assert!((118.0..122.0).contains(&ahead.parse::<f64>().unwrap()), "{ahead}");
    remove(&client, &namespace).await;
}
