use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{at, deployment, in_surge, mark, merge, parse, pod, set, touched};
use crate::{
    eviction::{
        Next,
        surge::step::{Observed, Step, is_settled, step, stop},
    },
    mark::surge::{self, End},
};

/// The step for a pod in a surge, with these other pods.
fn look(set: &Value, deployment: &Value, others: &[Value], now: i64) -> Step {
    let (pod, set, deployment): (Pod, ReplicaSet, Deployment) =
        (in_surge(), parse(set.clone()), parse(deployment.clone()));
    let pods: Vec<Pod> = others.iter().cloned().map(parse).collect();
    step(Observed { pod: &pod, set: Some(&set), deployment: Some(&deployment), pods: &pods }, at(now))
}

#[test]
fn the_pod_is_evicted_once_a_list_shows_another_one_that_serves() {
    assert_eq!(look(&set(), &deployment(), &[], 1), Step::Wait);
    assert_eq!(look(&set(), &deployment(), &[pod("new", false)], 100), Step::Wait);
    assert_eq!(look(&set(), &deployment(), &[pod("new", true)], 1), Step::Wait, "no node knows its address yet");
    assert_eq!(look(&set(), &deployment(), &[pod("new", true)], 2), Step::Evict);
    assert_eq!(look(&set(), &deployment(), &[pod("touched", true)], 9), Step::Wait, "it does not replace itself");
    let mut patient = set();
    patient["spec"]["minReadySeconds"] = json!(20);
    assert_eq!(look(&patient, &deployment(), &[pod("new", true)], 19), Step::Wait);
    assert_eq!(look(&patient, &deployment(), &[pod("new", true)], 20), Step::Evict);
    let mut lying = set();
    lying["status"] = json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1});
    assert_eq!(look(&lying, &deployment(), &[], 9), Step::Wait, "that is the pod itself");
    let mut two = set();
    two["spec"]["replicas"] = json!(2);
    assert_eq!(look(&two, &deployment(), &[pod("sibling", true)], 9), Step::Wait);
    assert_eq!(look(&two, &deployment(), &[pod("sibling", true), pod("new", true)], 9), Step::Evict);
}

#[test]
fn a_pod_that_the_replica_set_does_not_count_replaces_nothing() {
    let damages: [fn(&mut Value); 4] = [
        |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        |pod| pod["metadata"]["ownerReferences"][0]["uid"] = json!("another"),
        |pod| pod["metadata"]["labels"] = json!({"app": "web"}),
        |pod| pod["metadata"]["labels"][surge::HASH] = json!("old"),
    ];
    for damage in damages {
        let mut other = pod("new", true);
        damage(&mut other);
        assert_eq!(look(&set(), &deployment(), &[other.clone()], 9), Step::Wait, "{other}");
    }
}

#[test]
fn a_surge_of_which_nothing_comes_ends() {
    let end = Step::End;
    assert_eq!(look(&set(), &deployment(), &[], 29), Step::Wait);
    assert_eq!(look(&set(), &deployment(), &[], 30), end(End::NotCreated));
    assert_eq!(look(&set(), &deployment(), &[pod("new", false)], 300), end(End::TimedOut));
    let mut failing = set();
    failing["status"]["conditions"] = json!([{"type": "ReplicaFailure", "status": "True"}]);
    assert_eq!(look(&failing, &deployment(), &[], 1), end(End::CreateFailed));
    let mut pending = pod("new", false);
    pending["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": at(1).to_string()}]);
    assert_eq!(look(&set(), &deployment(), &[pending.clone()], 30), Step::Wait);
    assert_eq!(look(&set(), &deployment(), &[pending.clone()], 31), end(End::Unschedulable));
    for (key, value) in [("reason", "SchedulingGated"), ("status", "True")] {
        let mut other = pending.clone();
        other["status"]["conditions"][0][key] = json!(value);
        assert_eq!(look(&set(), &deployment(), &[other], 31), Step::Wait, "{value}");
    }
}

#[test]
fn a_surge_whose_workload_changed_ends_at_once_although_its_replacement_serves() {
    let damages: [fn(&mut Value, &mut Value); 6] = [
        |_, deployment| deployment["metadata"]["generation"] = json!(4),
        |_, deployment| deployment["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        |_, deployment| deployment["metadata"]["uid"] = json!("another"),
        |set, _| set["spec"]["replicas"] = json!(0),
        |set, _| set["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        |set, _| set["metadata"]["uid"] = json!("another"),
    ];
    for damage in damages {
        let (mut set, mut deployment) = (set(), deployment());
        damage(&mut set, &mut deployment);
        assert_eq!(look(&set, &deployment, &[pod("new", true)], 9), Step::End(End::OwnerChanged));
    }
    let gone = Observed { pod: &in_surge(), set: None, deployment: None, pods: &[] };
    assert_eq!(step(gone, at(9)), Step::End(End::OwnerChanged));
    let mut unreadable = in_surge();
    unreadable.metadata.annotations.as_mut().unwrap().insert(surge::SURGE.into(), "{".into());
    assert_eq!(step(Observed { pod: &unreadable, ..gone }, at(9)), Step::End(End::Unreadable));
    assert!(surge::end(&unreadable, End::Unreadable, at(9)).is_some(), "the label can be put back all the same");
}

/// `kubectl delete replicaset --cascade=orphan` releases pods too, and says nothing about the policy.
#[test]
fn a_released_pod_shows_a_missing_policy_only_if_its_replica_set_is_not_being_deleted() {
    let mut orphan = in_surge();
    orphan.metadata.owner_references = None;
    let look = |set: Option<Value>| {
        let (set, deployment): (Option<ReplicaSet>, Deployment) = (set.map(parse), parse(deployment()));
        step(Observed { pod: &orphan, set: set.as_ref(), deployment: Some(&deployment), pods: &[] }, at(9))
    };
    assert_eq!(look(Some(set())), Step::End(End::OwnerLost));
    let mut going = set();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(look(Some(going)), Step::End(End::OwnerChanged));
    assert_eq!(look(None), Step::End(End::OwnerChanged));
}

#[test]
fn a_pod_that_is_not_to_be_evicted_any_more_ends_its_surge() {
    let due = Next::Evict { mark: mark(), due: at(0) };
    assert_eq!(stop(&due, false, true), None);
    assert_eq!(stop(&due, true, true), Some(End::Suspended));
    assert_eq!(stop(&due, false, false), Some(End::Disabled));
    assert_eq!(stop(&Next::Wait { mark: mark(), until: at(9) }, false, true), Some(End::NotDue));
}

#[test]
fn after_a_surge_the_pod_waits_until_its_replica_set_counts_it_again() {
    let ended = |replicas: i64, pods: &[Value], now: i64| {
        let mut value = serde_json::to_value(in_surge()).unwrap();
        let patch = surge::end(&in_surge(), End::CreateFailed, at(0)).unwrap();
        merge(&mut value["metadata"], &patch["metadata"]);
        let (mut set, pods) = (set(), pods.iter().cloned().map(parse).collect::<Vec<Pod>>());
        set["status"]["replicas"] = json!(replicas);
        is_settled(&parse(value), Some(&parse(set)), &pods, at(now))
    };
    assert!(!ended(1, &[touched()], 1), "the status may be older than the end");
    assert!(ended(1, &[touched()], 2) && !ended(0, &[touched()], 2));
    assert!(!ended(1, &[touched(), pod("new", false)], 2), "the ReplicaSet deletes one of them");
    assert!(ended(0, &[touched(), pod("new", false)], 60), "a minute at most");
    let uncounted: [fn(&mut Value); 3] = [
        |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        |pod| pod["metadata"]["ownerReferences"][0]["uid"] = json!("another"),
        |pod| pod["metadata"]["labels"] = json!({"app": "web"}),
    ];
    for damage in uncounted {
        let mut other = pod("new", true);
        damage(&mut other);
        assert!(ended(1, &[touched(), other.clone()], 2), "{other}");
    }
    assert!(is_settled(&parse(touched()), None, &[], at(0)), "without a surge there is nothing to wait for");
}

proptest! {
    /// Whatever the API server returns: an eviction needs as many other pods that serve as are wanted, and no surge
    /// outlives its bound.
    #[test]
    fn no_pod_is_evicted_without_a_replacement_that_serves(
        others in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0_i64..20), 0..4),
        wanted in 0_i64..4,
        generation in 3_i64..5,
        failing in any::<bool>(),
        now in 0_i64..400,
    ) {
        let pods: Vec<Value> = others.iter().enumerate().map(|(n, (ready, own, labelled, going, since))| {
            let mut it = pod(&format!("other-{n}"), *ready);
            it["status"]["conditions"][0]["lastTransitionTime"] = json!(at(*since).to_string());
            if !own { it["metadata"]["ownerReferences"][0]["uid"] = json!("another"); }
            if !labelled { it["metadata"]["labels"] = json!({"app": "web"}); }
            if *going { it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"); }
            it
        }).collect();
        let serving = others.iter().filter(|(ready, own, labelled, going, since)| {
            *ready && *own && *labelled && !*going && since + 2 <= now
        }).count();
        let (mut set, mut deployment) = (set(), deployment());
        set["spec"]["replicas"] = json!(wanted);
        deployment["metadata"]["generation"] = json!(generation);
        if failing { set["status"]["conditions"] = json!([{"type": "ReplicaFailure", "status": "True"}]); }
        let step = look(&set, &deployment, &pods, now);
        let may_evict = wanted > 0 && serving >= usize::try_from(wanted).unwrap() && generation == 3;
        prop_assert_eq!(step == Step::Evict, may_evict);
        prop_assert!(now < 300 || step != Step::Wait);
    }

    #[test]
    fn any_record_is_read_without_panic(text in any::<String>()) {
        let mut pod = in_surge();
        pod.metadata.annotations.as_mut().unwrap().insert(surge::SURGE.into(), text);
        let _ = step(Observed { pod: &pod, set: None, deployment: None, pods: &[] }, at(0));
        prop_assert!(surge::end(&pod, End::Unreadable, at(0)).is_some());
    }
}
