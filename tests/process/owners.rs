//! What is read of a pod's controller, and with how many calls.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use pristine::{
    api::{owners::Owner, pods::Pods},
    mark::owner::{Counts, Look, Seen},
};
use serde_json::{Value, json};

use crate::{
    fake::{Fake, pod},
    harness::NOW,
};

const PODS: &str = "/api/v1/namespaces/n/pods";

fn before(seconds: i64) -> Timestamp {
    NOW.parse::<Timestamp>().unwrap().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

/// A pod of this controller, which became Ready or not Ready so many seconds ago.
fn member(owner: &Value, is_ready: bool, seconds_ago: i64) -> Value {
    let mut pod = pod("n", "p", "u");
    pod["metadata"]["ownerReferences"] = json!([owner]);
    pod["metadata"]["creationTimestamp"] = json!(before(seconds_ago).to_string());
    let ready = if is_ready { "True" } else { "False" };
    let at = before(seconds_ago).to_string();
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": ready, "lastTransitionTime": at}]);
    pod
}

fn reference(version: &str, kind: &str) -> Value {
    json!({"apiVersion": version, "kind": kind, "name": "web", "uid": "owner", "controller": true})
}

fn with(objects: &[(&str, Vec<Value>)]) -> Fake {
    let fake = Fake::default();
    fake.state().answers = objects.iter().map(|(path, answers)| ((*path).to_owned(), answers.clone())).collect();
    fake
}

async fn owner(fake: &Fake, pod: &Value, look: Look) -> Owner {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    Pods::new(fake.client()).owner(&pod, look, NOW.parse().unwrap()).await.unwrap()
}

fn resources(kind: &str, plural: &str) -> Value {
    let resource = |name: String, kind: &str| json!({"name": name, "singularName": "", "kind": kind, "namespaced": true, "verbs": ["get"]});
    let all = [resource(plural.to_owned(), kind), resource(format!("{plural}/scale"), "Scale")];
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "x", "resources": all})
}

fn scale(uid: &str, selector: &str) -> Value {
    json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web", "uid": uid, "resourceVersion": "7"},
        "spec": {"replicas": 3}, "status": {"replicas": 3, "selector": selector},
    })
}

#[tokio::test]
async fn a_custom_resource_is_counted_by_its_scale_and_its_own_pods_on_all_pages() {
    let reference = reference("apps.kruise.io/v1alpha1", "CloneSet");
    let other = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "other", "controller": true});
    let first = [member(&reference, true, 900), member(&other, true, 900)];
    let second = [member(&reference, false, 40), member(&reference, true, 900)];
    let fake = with(&[
        ("/apis/apps.kruise.io/v1alpha1", vec![resources("CloneSet", "clonesets")]),
        ("/apis/apps.kruise.io/v1alpha1/namespaces/n/clonesets/web/scale", vec![scale("owner", "app=web")]),
        (
            PODS,
            vec![json!({"metadata": {"continue": "second"}, "items": first}), json!({"metadata": {}, "items": second})],
        ),
    ]);
    let found = owner(&fake, &member(&reference, true, 900), Look::Status).await;
    assert_eq!(found.counts, Some(Counts { wanted: 3, ready: 2, is_shared: true }));
    assert_eq!(found.seen, Some(Seen { leaving_until: None, starting_since: Some(before(40)) }));
    assert_eq!((found.version.as_str(), fake.count("GET /api/v1/namespaces/n/pods")), ("7", 2));
}

#[tokio::test]
async fn a_replication_controller_is_counted_too_and_the_name_of_a_resource_is_read_once() {
    let reference = reference("v1", "ReplicationController");
    let fake = with(&[
        ("/api/v1", vec![resources("ReplicationController", "replicationcontrollers")]),
        ("/api/v1/namespaces/n/replicationcontrollers/web/scale", vec![scale("owner", "app=web")]),
        (PODS, vec![json!({"metadata": {}, "items": [member(&reference, true, 900)]})]),
    ]);
    let pods = Pods::new(fake.client());
    let pod: Pod = serde_json::from_value(member(&reference, true, 900)).unwrap();
    for _ in 0..2 {
        let found = pods.owner(&pod, Look::Status, NOW.parse().unwrap()).await.unwrap();
        assert_eq!(found.counts.map(|counts| counts.ready), Some(1));
    }
    assert_eq!(fake.state().calls.iter().filter(|call| *call == "GET /api/v1").count(), 1);
}

#[tokio::test]
async fn a_controller_without_a_scale_or_a_selector_or_with_another_uid_is_unknown() {
    let reference = reference("example.com/v1", "Thing");
    let path = "/apis/example.com/v1/namespaces/n/things/web/scale";
    let discovery = ("/apis/example.com/v1", vec![resources("Thing", "things")]);
    for objects in [
        vec![],
        vec![discovery.clone()],
        vec![discovery.clone(), (path, vec![scale("owner", "")])],
        vec![discovery, (path, vec![scale("its successor", "app=web")])],
    ] {
        let found = owner(&with(&objects), &member(&reference, true, 900), Look::Pods).await;
        assert_eq!(found, Owner::default());
    }
}

#[tokio::test]
async fn the_pods_of_a_replica_set_are_read_only_when_its_status_does_not_show_enough() {
    let reference = reference("apps/v1", "ReplicaSet");
    let set = |ready: i32| {
        let template = json!({"spec": {"containers": []}});
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "uid": "owner", "resourceVersion": "3"},
            "spec": {
                "replicas": 2, "minReadySeconds": 60, "selector": {"matchLabels": {"app": "web"}}, "template": template,
            },
            "status": {"replicas": 2, "readyReplicas": 2, "availableReplicas": ready},
        })
    };
    let list = json!({"metadata": {}, "items": [member(&reference, true, 900), member(&reference, true, 30)]});
    for (available, look, lists, ready) in [
        (2, Look::Status, 0, 2),
        (1, Look::Status, 0, 1),
        (2, Look::PodsIfShort, 0, 2),
        (1, Look::PodsIfShort, 1, 1),
        (2, Look::Pods, 1, 1),
    ] {
        let fake =
            with(&[("/apis/apps/v1/namespaces/n/replicasets/web", vec![set(available)]), (PODS, vec![list.clone()])]);
        let found = owner(&fake, &member(&reference, true, 900), look).await;
        assert_eq!(found.counts.map(|counts| counts.ready), Some(ready), "{look:?}: available pods count");
        assert_eq!(fake.count(&format!("GET {PODS}")), lists, "{available} {look:?}");
    }
}

#[tokio::test]
async fn the_pod_of_an_earlier_revision_of_a_set_with_on_delete_is_held_back() {
    let reference = reference("apps/v1", "StatefulSet");
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "uid": "owner"},
        "spec": {
            "replicas": 1, "serviceName": "web", "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": "web"}}, "template": {"spec": {"containers": []}},
        },
        "status": {"replicas": 1, "updateRevision": "web-2"},
    });
    for (revision, is_held) in [("web-1", true), ("web-2", false)] {
        let mut pod = member(&reference, true, 900);
        pod["metadata"]["labels"] = json!({ "controller-revision-hash": revision });
        let fake = with(&[
            ("/apis/apps/v1/namespaces/n/statefulsets/web", vec![set.clone()]),
            (PODS, vec![json!({"metadata": {}, "items": [pod.clone()]})]),
        ]);
        assert_eq!(owner(&fake, &pod, Look::Status).await.holds_update, is_held, "{revision}");
    }
}
