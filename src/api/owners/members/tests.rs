use kube::api::ObjectList;
use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-01T12:00:00Z";

fn at(seconds_before: i64) -> Timestamp {
    NOW.parse::<Timestamp>().unwrap().checked_sub(SignedDuration::from_secs(seconds_before)).unwrap()
}

fn pod(owner: &str, is_ready: bool, seconds_ago: i64) -> Value {
    json!({
        "metadata": {
            "name": "p", "creationTimestamp": at(seconds_ago).to_string(), "managedFields": [{"manager": "kubelet"}],
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": owner, "uid": owner, "controller": true,
            }],
        },
        "spec": {"containers": []},
        "status": {"phase": "Running", "conditions": [{
            "type": "Ready", "status": if is_ready { "True" } else { "False" },
            "lastTransitionTime": at(seconds_ago).to_string(),
        }]},
    })
}

fn terminating(mut pod: Value, until: Timestamp) -> Value {
    pod["metadata"]["deletionTimestamp"] = json!(until.to_string());
    pod
}

fn of_replica_set(mut pod: Value, name: &str, hash: &str) -> Value {
    pod["metadata"]["labels"] = json!({ "pod-template-hash": hash });
    pod["metadata"]["ownerReferences"][0]["kind"] = json!("ReplicaSet");
    pod["metadata"]["ownerReferences"][0]["name"] = json!(format!("{name}-{hash}"));
    pod
}

/// Ready pods, when the last one is gone, and since when one is starting.
fn count(group: Option<&str>, min_ready: i32, pods: &[Value]) -> (i32, Option<Timestamp>, Option<Timestamp>) {
    let page: ObjectList<Member> =
        serde_json::from_value(json!({"metadata": {"continue": ""}, "items": pods})).unwrap();
    let mut tally = Tally::new("db", group.map(str::to_owned), Some(min_ready), at(0));
    page.items.iter().for_each(|member| tally.add(member));
    (tally.ready, tally.seen.leaving_until, tally.seen.starting_since)
}

#[test]
fn only_the_ready_pods_of_the_owner_that_are_not_terminating_are_counted() {
    let pods = [
        pod("db", true, 900),
        terminating(pod("db", true, 900), at(-30)),
        pod("db", false, 900),
        pod("other", true, 900),
    ];
    assert_eq!(count(None, 0, &pods), (1, Some(at(-30)), Some(at(900))));
    let mut finished = pod("db", false, 10);
    finished["status"]["phase"] = json!("Failed");
    let mut bare = pod("db", true, 10);
    bare["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    assert_eq!(count(None, 0, &[finished, bare]), (0, None, None));
}

#[test]
fn a_pod_that_never_ran_is_starting_since_it_was_created() {
    let mut pending = pod("db", false, 40);
    pending["status"] = json!({"phase": "Pending"});
    assert_eq!(count(None, 0, &[pending, pod("db", false, 900)]), (0, None, Some(at(40))));
}

#[test]
fn a_pod_is_available_when_it_is_ready_for_as_long_as_its_owner_demands() {
    assert_eq!(count(None, 60, &[pod("db", true, 60), pod("db", true, 59)]), (1, None, Some(at(59))));
}

#[test]
fn the_pods_of_the_other_replica_set_of_a_rollout_show_a_replacement_and_are_not_counted() {
    let own = |is_ready, since| of_replica_set(pod("db", is_ready, since), "web", "a1");
    let other = |name, is_ready| of_replica_set(pod("other", is_ready, 20), name, "b2");
    assert_eq!(count(Some("web"), 0, &[own(true, 900), other("web", false)]), (1, None, Some(at(20))));
    assert_eq!(count(Some("web"), 0, &[own(true, 900), other("web", true)]), (1, None, None));
    assert_eq!(count(Some("web"), 0, &[own(true, 900), other("api", false)]), (1, None, None));
    // A ReplicaSet recreates a pod when it begins to terminate.
    assert_eq!(count(Some("web"), 0, &[terminating(own(true, 900), at(-900))]), (0, None, None));
}

#[test]
fn a_missing_pod_is_a_replacement_that_has_just_begun() {
    let mut tally = Tally::new("db", None, None, at(0));
    tally.add(&serde_json::from_value(pod("db", true, 900)).unwrap());
    tally.expect(1);
    assert_eq!((tally.live, tally.seen), (1, Seen::default()));
    tally.expect(2);
    assert_eq!(tally.seen.starting_since, Some(at(0)));
}
