//! Workloads of three members while the replica that evicts is killed: two real API servers, three Pristine processes, no
//! node. The test is the kubelet and the controllers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    common::{eventually, name_of},
    leadership::{in_seconds, leader, marked, namespace, remove},
    replicas::{Replicas, client},
};

/// A kind that Pristine does not know, as operators define them.
const GROUP: &str = "pacing.example.com";

async fn custom_kind(client: &Client) -> ApiResource {
    let all: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("trios.{GROUP}")},
        "spec": {
            "group": GROUP, "scope": "Namespaced", "names": {"kind": "Trio", "plural": "trios", "singular": "trio"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector",
                }},
            }],
        },
    });
    let params = PatchParams::apply("test").force();
    all.patch(&format!("trios.{GROUP}"), &params, &Patch::Apply(definition)).await.unwrap();
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", "Trio"), "trios");
    let trios: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    eventually("the kind", 20, || async { trios.list(&ListParams::default()).await.ok() }).await;
    resource
}

/// Three members whose pods have this label, and a reference to it.
async fn custom_resource(client: &Client, namespace: &str) -> Value {
    let resource = custom_kind(client).await;
    let trios: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let trio = DynamicObject::new("trio", &resource).data(json!({"spec": {"replicas": 3}}));
    let uid = trios.create(&PostParams::default(), &trio).await.unwrap().metadata.uid.unwrap();
    let status = json!({"status": {"replicas": 3, "selector": "a=trio"}});
    trios.patch_status("trio", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Trio", "name": "trio", "uid": uid, "controller": true})
}

async fn stateful_set(client: &Client, namespace: &str) -> Value {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let set = json!({
        "metadata": {"name": "quorum"},
        "spec": {"replicas": 3, "serviceName": "quorum", "selector": {"matchLabels": {"a": "quorum"}}, "template": {
            "metadata": {"labels": {"a": "quorum"}}, "spec": {"containers": [{"name": "app", "image": "none"}]},
        }},
    });
    let made = sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "quorum", "uid": made.metadata.uid.unwrap(), "controller": true})
}

/// Lets each terminating member end after `ends_in`, and makes its replacement, which is Ready after `starts_in`. Ends
/// when `replaced` members are new. Returns the fewest members that were there at once, Ready and not terminating.
async fn members(
    client: &Client,
    namespace: &str,
    owner: &Value,
    ends_in: Duration,
    starts_in: Duration,
    until: impl Fn(usize) -> bool,
) -> usize {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let name = owner["name"].as_str().unwrap();
    let (mut fewest, mut replaced) = (3, BTreeSet::new());
    let (mut leaving, mut starting) = (BTreeMap::<String, Instant>::new(), BTreeMap::<String, Instant>::new());
    while !until(replaced.len()) {
        let all = pods.list(&ListParams::default().labels(&format!("a={name}"))).await.unwrap().items;
        let is_there = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none() && pristine::mark::is_ready(pod);
        fewest = fewest.min(all.iter().filter(is_there).count());
        for pod in all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
            let since = *leaving.entry(name_of(pod).to_owned()).or_insert_with(Instant::now);
            if since.elapsed() < ends_in {
                continue;
            }
            // As the kubelet confirms the end; then its controller.
            let _ = pods.delete(name_of(pod), &DeleteParams::default().grace_period(0)).await;
            leaving.remove(name_of(pod));
            starting.insert(format!("{}-new", name_of(pod)), Instant::now());
            create(&pods, &format!("{}-new", name_of(pod)), name, owner).await;
        }
        let ready: Vec<String> =
            starting.iter().filter(|(_, since)| since.elapsed() >= starts_in).map(|(name, _)| name.clone()).collect();
        for name in ready {
            starting.remove(&name);
            let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
            replaced.insert(name);
        }
        sleep(Duration::from_millis(200)).await;
    }
    fewest
}

async fn create(pods: &Api<Pod>, name: &str, label: &str, owner: &Value) {
    let pod = json!({
        "metadata": {"name": name, "labels": {"a": label}, "ownerReferences": [owner]},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "app", "image": "none"}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

async fn three_marked(client: &Client, namespace: &str, owner: &Value, due: Timestamp) {
    for n in 0..3 {
        let name = format!("{}-{n}", owner["name"].as_str().unwrap());
        marked(client, namespace, &name, Some(owner.clone()), due).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_custom_resource_with_a_scale_never_lacks_two_members_although_the_leader_is_killed_twice() {
    let client = client(1).await;
    let namespace = namespace(&client).await;
    let mut replicas = Replicas::start(3).await;
    let owner = custom_resource(&client, &namespace).await;
    three_marked(&client, &namespace, &owner, in_seconds(5)).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let kills = async {
        // While the first member terminates, and while its replacement starts.
        for phase in ["terminating", "starting"] {
            eventually(phase, 120, || async {
                let all = pods.list(&ListParams::default()).await.unwrap().items;
                let is_it = |pod: &Pod| match phase {
                    "terminating" => pod.metadata.deletion_timestamp.is_some(),
                    _ => name_of(pod).ends_with("-new") && !pristine::mark::is_ready(pod),
                };
                all.iter().any(is_it).then_some(())
            })
            .await;
            let victim = leader(&client).await;
            replicas.signal(victim, "KILL");
            replicas.start_again(victim).await;
        }
    };
    let (ends_in, starts_in) = (Duration::from_secs(40), Duration::from_secs(30));
    let start = Instant::now();
    let work = members(&client, &namespace, &owner, ends_in, starts_in, |replaced| replaced == 3);
    let (fewest, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(600), work), kills);
    let fewest = fewest.expect("three members are replaced within ten minutes");
    println!(
        "TOTALS: 3 members replaced in {:.0?}, never fewer than {fewest} there, the leader killed twice",
        start.elapsed()
    );
    assert_eq!(fewest, 2);
    remove(&client, &namespace).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn the_second_member_of_a_quorum_stays_while_the_first_one_terminates_for_longer_than_five_minutes() {
    let client = client(1).await;
    let namespace = namespace(&client).await;
    let _replicas = Replicas::start(2).await;
    let owner = stateful_set(&client, &namespace).await;
    three_marked(&client, &namespace, &owner, in_seconds(5)).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    // The grace period of the first one that is evicted; no kubelet ends it before.
    let start = Instant::now();
    let long = Duration::from_secs(330);
    let fewest = members(&client, &namespace, &owner, long * 2, long, |_| start.elapsed() >= long).await;
    let leaving = pods.list(&ListParams::default()).await.unwrap().items;
    let leaving = leaving.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count();
    println!("TOTALS: one member terminates for {:.0?}, {fewest} of 3 stay", start.elapsed());
    assert_eq!((fewest, leaving), (2, 1));
    remove(&client, &namespace).await;
}
