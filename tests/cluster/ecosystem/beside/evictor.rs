//! A program that evicts by the name of a pod, and knows nothing of Pristine: as the updater of the VerticalPodAutoscaler,
//! which leaves half of the replicas and asks again in its next round.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{EvictParams, ListParams},
};
use serial_test::serial;
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    common::{audit, eventually, name_of, now, setting},
    kubectl::{Namespace, apply, serves, uid_of},
    pacing::website,
    poller::Poller,
};

const REPLICAS: usize = 5;
const PRISTINE: &str = "system:serviceaccount:pristine-system:pristine";

/// Evicts one pod of the namespace in each round, the oldest first, while more than half of them are Ready.
fn evictor(ns: &Namespace, round: Duration) -> JoinHandle<()> {
    let pods: Api<Pod> = ns.pods();
    tokio::spawn(async move {
        loop {
            sleep(round).await;
            let mut all = pods.list(&ListParams::default()).await.unwrap().items;
            all.retain(serves);
            all.sort_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0));
            if let Some(oldest) = all.first().filter(|_| all.len() > REPLICAS / 2 + 1) {
                // A budget may refuse; the next round asks again.
                let _ = pods.evict(name_of(oldest), &EvictParams::default()).await;
            }
        }
    })
}

/// An eviction that the API server accepted.
#[derive(Debug)]
struct Evicted {
    at: Timestamp,
    pod: String,
    by_pristine: bool,
}

fn evicted(ns: &Namespace) -> Vec<Evicted> {
    let lines = audit::requests(&setting("KUBECONFIG").unwrap(), &ns.name);
    let done = lines.iter().filter(|line| {
        line["objectRef"]["subresource"] == "eviction"
            && line["stage"] == "ResponseComplete"
            && line["responseStatus"]["code"] == 201
    });
    let mut found: Vec<Evicted> = done
        .map(|line| Evicted {
            at: line["stageTimestamp"].as_str().unwrap().parse().unwrap(),
            pod: line["objectRef"]["name"].as_str().unwrap().to_owned(),
            by_pristine: line["user"]["username"] == PRISTINE,
        })
        .collect();
    found.sort_by_key(|one| one.at);
    found
}

/// Marks all pods while the evictor runs, until none of the marked ones is left. Returns the fewest that served.
async fn beside_an_evictor(budget: Option<&str>, round: Duration) -> usize {
    let ns = Namespace::new("t-paced-").await;
    website(&ns, REPLICAS).await;
    if let Some(budget) = budget {
        apply(&ns.name, budget).await;
        ns.run(&["wait", "--timeout=20s", "--for=jsonpath={.status.disruptionsAllowed}=1", "pdb/web"]).await;
    }
    let poller = Poller::start(&ns, "fine\n").await;
    let marked = ns.ready(REPLICAS).await;
    for pod in &marked {
        ns.run(&["exec", name_of(pod), "--", "true"]).await;
    }
    let task = evictor(&ns, round);
    let samples = Arc::<Mutex<Vec<(Timestamp, usize)>>>::default();
    eventually("all marked pods replaced", 240, async || {
        let asked = now();
        let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        let serving = pods.iter().filter(|pod| serves(pod)).count();
        samples.lock().unwrap().push((asked, serving));
        let is_marked = |pod: &&Pod| marked.iter().any(|one| uid_of(one) == uid_of(pod));
        (!pods.iter().any(|pod| is_marked(&pod))).then_some(())
    })
    .await;
    task.abort();
    let outcome = poller.stop().await;
    let evicted = evicted(&ns);
    let samples = std::mem::take(&mut *samples.lock().unwrap());
    let fewest = samples.iter().map(|one| one.1).min().unwrap();
    let ours: Vec<&Evicted> = evicted.iter().filter(|one| one.by_pristine).collect();
    println!(
        "TOTALS: beside an evictor, {}: {} evicted by Pristine, {} by the evictor, never fewer than {fewest} of {REPLICAS} \
         Ready, {} of {} polls failed",
        if budget.is_some() { "with a budget" } else { "without a budget" },
        ours.len(),
        evicted.len() - ours.len(),
        outcome.failed.len(),
        outcome.polls
    );
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    assert!(evicted.len() >= REPLICAS, "{evicted:?}");
    for one in &ours {
        assert!(marked.iter().any(|pod| name_of(pod) == one.pod), "not marked, and evicted by Pristine: {one:?}");
        assert_eq!(evicted.iter().filter(|other| other.pod == one.pod).count(), 1, "evicted twice: {one:?}");
        // What the evictor did in the same second, Pristine could not see.
        let second = Duration::from_secs(1);
        let is_sudden = |other: &Evicted| {
            !other.by_pristine && other.at < one.at && one.at.duration_since(other.at).unsigned_abs() < second
        };
        let seen = samples.iter().rev().find(|sample| sample.0 < one.at).unwrap();
        let missing = evicted.iter().filter(|other| is_sudden(other)).count();
        assert!(seen.1 + missing >= REPLICAS, "{} Ready before {one:?}; all: {evicted:?}", seen.1);
    }
    fewest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn pristine_evicts_no_pod_of_a_workload_that_an_evictor_has_made_short() {
    let fewest = beside_an_evictor(None, Duration::from_secs(10)).await;
    // One by each hand at most: the evictor does not look at Pristine's.
    assert!(fewest >= REPLICAS - 2, "{fewest} Ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_budget_binds_pristine_and_an_evictor_together() {
    let budget = "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}\n";
    // Each of them evicts some, and which ones is chance.
    let fewest = beside_an_evictor(Some(budget), Duration::from_secs(2)).await;
    assert!(fewest >= REPLICAS - 1, "{fewest} Ready");
}
