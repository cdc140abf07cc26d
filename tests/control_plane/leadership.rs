//! Evictions while the replica that does them is killed or suspended, and after a fresh install that finds many pods
//! overdue: two real API servers, no node (a pod that terminates stays), three Pristine processes.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    coordination::v1::Lease,
    core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    common::{SYSTEM, audit, eventually, name_of, now, setting},
    replicas::{Replicas, client, get},
};

/// A namespace of its own, whose name it returns.
pub async fn namespace(client: &Client) -> String {
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
pub async fn marked(client: &Client, namespace: &str, name: &str, owner: Option<Value>, due: Timestamp) -> String {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = json!({
        // By this label its controller selects it.
        "metadata": {
            "name": name, "labels": {"a": owner.as_ref().map_or_else(|| json!(""), |owner| owner["name"].clone())},
            "ownerReferences": owner.map(|owner| [owner]),
        },
        "spec": {
            "nodeName": "nowhere", "terminationGracePeriodSeconds": 360,
            "containers": [{"name": "app", "image": "none"}],
        },
    });
    let created = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let at = due.checked_sub(SignedDuration::from_secs(600)).unwrap();
    let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    let patch = json!({"metadata": mark(&created, at, due), "status": status});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    created.metadata.uid.unwrap()
}

/// The metadata of the mark of one exec into this pod.
pub fn mark(pod: &Pod, at: Timestamp, due: Timestamp) -> Value {
    let first = json!({
        "at": at.to_string(), "operation": "exec", "container": "app",
        "user": {"name": "alice"}, "review": "r", "rule": "default",
    });
    let record = json!({"pod": pod.metadata.uid, "total": 1, "first": first}).to_string();
    json!({
        "labels": {"pristine/interacted": "true"},
        "annotations": {"pristine/interactions": record, "pristine/evict-at": due.to_string()},
    })
}

pub fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

async fn terminating(client: &Client, namespace: &str) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut all = pods.list(&ListParams::default()).await.unwrap().items;
    all.retain(|pod| pod.metadata.deletion_timestamp.is_some());
    all
}

pub async fn leader(client: &Client) -> usize {
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM);
    eventually("a leader", 40, || async {
        let holder = leases.get_opt("pristine").await.unwrap()?.spec?.holder_identity?;
        holder.strip_prefix("replica-")?.parse().ok()
    })
    .await
}

/// The eviction requests, once every pod has an accepted one.
pub async fn evictions(namespace: &str, pods: usize) -> BTreeMap<String, Vec<(Timestamp, u64)>> {
    let kubeconfig = setting("PRISTINE_KUBECONFIG_1").unwrap();
    eventually("the audit log", 20, async || {
        let found = audit::evictions(&kubeconfig, namespace);
        let accepted = found.values().filter(|asked| asked.iter().any(|(_, code)| *code == 201)).count();
        (accepted == pods).then_some(found)
    })
    .await
}

pub async fn remove(client: &Client, namespace: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams::default().grace_period(0);
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        let _ = pods.delete(&pod.metadata.name.unwrap(), &params).await;
    }
}

/// How often this API server was asked for a pod by its name, by anybody.
async fn gets(client: &Client) -> usize {
    let text = client.request_text(http::Request::get("/metrics").body(Vec::new()).unwrap()).await.unwrap();
    let asks = |line: &&str| {
        let words = [r#"resource="pods""#, r#"subresource="""#, r#"verb="GET""#];
        line.starts_with("apiserver_request_total{") && words.iter().all(|word| line.contains(word))
    };
    let counts = text.lines().filter(asks).filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    counts.sum()
}

/// What a replica logs when it begins to lead, and for each eviction.
const LEADS: &str = "this replica holds the Lease and evicts";
const EVICTED: &str = "the pod was evicted ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn no_eviction_is_lost_early_or_repeated_when_the_leader_is_killed_or_suspended() {
    const PODS: usize = 100;
    /// 24 at once, and 4 in a second: enough to do for whoever takes over.
    const PER_MINUTE: usize = 240;
    let client = client(1).await;
    let mut replicas = Replicas::start_with(3, &format!("eviction: {{perMinute: {PER_MINUTE}}}")).await;
    for how in ["killed", "suspended"] {
        let namespace = namespace(&client).await;
        let due = in_seconds(15);
        for n in 0..PODS {
            marked(&client, &namespace, &format!("p{n}"), None, due).await;
        }
        let gets_before = gets(&client).await;
        let victim = leader(&client).await;
        let took_over = |replicas: &Replicas| (0..3).map(|n| replicas.logged(n, LEADS)).sum::<usize>();
        let before = took_over(&replicas);
        // The first ones go at once; from then on no more than one or two are under way.
        let first = eventually("the first evictions", 40, async || {
            Some(terminating(&client, &namespace).await.len()).filter(|count| *count > PER_MINUTE / 10 + 1)
        })
        .await;
        replicas.signal(victim, if how == "killed" { "KILL" } else { "STOP" });
        eventually("another leader", 40, async || (took_over(&replicas) > before).then_some(())).await;
        let left = PODS - terminating(&client, &namespace).await.len();
        assert!(left > PODS / 3, "nothing is left to do for another one: {left}");
        let of_victim = replicas.logged(victim, EVICTED);
        assert!(of_victim >= first, "its log says {of_victim} evictions");
        if how == "suspended" {
            // Its lease is over, and it must notice before it does anything.
            replicas.signal(victim, "CONT");
        }
        eventually("every eviction", 120, async || {
            (terminating(&client, &namespace).await.len() == PODS).then_some(())
        })
        .await;
        let asked = evictions(&namespace, PODS).await;
        let early = asked.values().flatten().filter(|(at, _)| *at < due).count();
        let mut accepted: Vec<Timestamp> =
            asked.values().flatten().filter(|(_, code)| *code == 201).map(|(at, _)| *at).collect();
        accepted.sort_unstable();
        let after = replicas.logged(victim, EVICTED) - of_victim;
        println!(
            "TOTALS: leader {how} after {first} evictions, {left} left to the next: {PODS} evicted, {} requests accepted, {early} early, {after} by the former leader",
            accepted.len()
        );
        assert_eq!((asked.len(), early), (PODS, 0));
        // What was under way when it stopped may be answered when it wakes, and asked for once more by UID; nothing else.
        assert!(accepted.len() <= PODS + 2 && after <= 2, "{} and {after}", accepted.len());
        // The rate limit, of one leader after the other: within ten seconds what is allowed at once, and what is earned.
        let most = accepted.iter().map(|start| {
            let end = start.checked_add(SignedDuration::from_secs(10)).unwrap();
            accepted.iter().filter(|at| (*start..end).contains(at)).count()
        });
        let most = most.max().unwrap();
        assert!(most <= PER_MINUTE / 10 + PER_MINUTE / 6 + 2, "{most} within ten seconds");
        // Those that wait ask nothing: each is read when it goes, perhaps once by each leader to say on it why it waits, and
        // twice when it takes its time to end, as all do here.
        let gets = gets(&client).await - gets_before;
        println!("TOTALS: {gets} times a pod was read for it");
        assert!(gets <= PODS * 4, "{gets}");
        remove(&client, &namespace).await;
        if how == "killed" {
            replicas.start_again(victim).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn pods_that_are_overdue_at_install_time_are_evicted_one_per_owner_at_a_time() {
    const OWNERS: usize = 20;
    const PODS: usize = 5;
    let client = client(1).await;
    let namespace = namespace(&client).await;
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), &namespace);
    for owner in 0..OWNERS {
        let name = format!("owner-{owner}");
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
            "spec": {"replicas": PODS, "selector": {"matchLabels": {"a": name}}, "template": {
                "metadata": {"labels": {"a": name}}, "spec": {"containers": [{"name": "app", "image": "none"}]},
            }},
        });
        let made = sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
        let uid = made.metadata.uid.unwrap();
        let reference =
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": uid, "controller": true});
        for pod in 0..PODS {
            marked(&client, &namespace, &format!("{name}-{pod}"), Some(reference.clone()), in_seconds(-3600)).await;
        }
        ready(&sets, &name, PODS).await;
    }
    // Nobody runs their controller here, so that it can be as late as one that has too much to do.
    let controllers = tokio::spawn(slow_controllers(client.clone(), namespace.clone(), PODS));
    // Only now is it installed.
    let start = now();
    let _replicas = Replicas::start(3).await;
    eventually("every eviction", 120, async || {
        (terminating(&client, &namespace).await.len() == OWNERS * PODS).then_some(())
    })
    .await;
    controllers.abort();
    let mut by_owner: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    for (pod, asked) in evictions(&namespace, OWNERS * PODS).await {
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
    assert_eq!(by_owner.len(), OWNERS);
    assert!(closest >= (LAG + START).try_into().unwrap(), "{closest}");
    remove(&client, &namespace).await;
}

/// So long does a controller take to see that a pod of its own is gone,
const LAG: Duration = Duration::from_secs(2);
/// and so long does the next one take to be Ready.
const START: Duration = Duration::from_secs(2);

async fn ready(sets: &Api<ReplicaSet>, name: &str, count: usize) {
    let status = json!({"status": {"replicas": count, "readyReplicas": count}});
    sets.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Says of each pod that terminates, late, that one is missing; and then that it is replaced.
async fn slow_controllers(client: Client, namespace: String, pods: usize) {
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), &namespace);
    let mut known: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    loop {
        for pod in terminating(&client, &namespace).await {
            let owner = name_of(&pod).rsplit_once('-').unwrap().0.to_owned();
            let is_busy = known.iter().any(|(pod, work)| pod.starts_with(&format!("{owner}-")) && !work.is_finished());
            if known.contains_key(name_of(&pod)) || is_busy {
                continue;
            }
            let sets = sets.clone();
            let work = async move {
                sleep(LAG).await;
                ready(&sets, &owner, pods - 1).await;
                sleep(START).await;
                ready(&sets, &owner, pods).await;
            };
            known.insert(name_of(&pod).to_owned(), tokio::spawn(work));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_replica_with_a_clock_two_minutes_ahead_evicts_nothing_early() {
    let client = client(1).await;
    let namespace = namespace(&client).await;
    let replica = Replicas::start_one_at("+120s").await;
    eventually("its lead", 40, async || (leader(&client).await == 0).then_some(())).await;
    // By its own clock these are overdue from the moment they are there.
    let due = in_seconds(15);
    for n in 0..3 {
        marked(&client, &namespace, &format!("pod-{n}"), None, due).await;
    }
    eventually("the evictions", 60, || async { (terminating(&client, &namespace).await.len() == 3).then_some(()) })
        .await;
    for (pod, requests) in evictions(&namespace, 3).await {
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
