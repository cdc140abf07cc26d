use super::*;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod with UID `u` and a mark of the pod `of`: an exec at second 1000, and a deadline `ttl` seconds later.
fn pod(of: &str, ttl: Option<i64>) -> Pod {
    let exec = json!({
        "at": at(1000), "operation": "exec", "container": "c", "user": {"name": "a"}, "review": "r", "rule": "d",
    });
    let mut annotations = json!({ "pristine/interactions": json!({"pod": of, "total": 1, "first": exec}).to_string() });
    if let Some(ttl) = ttl {
        annotations["pristine/evict-at"] = json!(at(1000 + ttl));
    }
    serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "p", "uid": "u", "annotations": annotations}}))
        .unwrap()
}

/// Its successor, created at this second.
fn successor(created: i64) -> Pod {
    let metadata = json!({"namespace": "n", "name": "p", "uid": "u2", "creationTimestamp": at(created)});
    serde_json::from_value(json!({ "metadata": metadata })).unwrap()
}

fn deleted_at(second: i64) -> Successors {
    let mut successors = Successors::default();
    successors.observe(&pod("u", Some(600)), at(1001));
    successors.delete(&pod("u", Some(600)), at(second));
    successors
}

#[test]
fn a_pod_deleted_right_after_an_interaction_leaves_a_mark_for_its_successor() {
    let left = successor_mark(&pod("u", Some(600)), at(1010)).unwrap();
    assert_eq!(
        (left.interaction.at, left.disposition, left.until),
        (at(1000), Disposition::Evict(Duration::from_secs(600)), at(1035))
    );
    assert_eq!(successor_mark(&pod("u", None), at(1010)).unwrap().disposition, Disposition::Record);
}

#[test]
fn a_report_is_about_one_pod_and_never_about_its_successor() {
    let mut reported = pod("u", Some(5));
    let annotations = reported.metadata.annotations.as_mut().unwrap();
    let text = annotations["pristine/interactions"].replace("\"exec\"", "\"report\"");
    annotations.insert("pristine/interactions".into(), text.clone());
    assert_eq!(successor_mark(&reported, at(1005)), None);
    // An exec before it may arrive in the successor, until its own time is over.
    let mut mark: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut report = mark["first"].clone();
    report["at"] = json!(at(1020));
    (mark["first"]["operation"], mark["recent"]) = (json!("exec"), json!([report]));
    reported.metadata.annotations.as_mut().unwrap().insert("pristine/interactions".into(), mark.to_string());
    let left = successor_mark(&reported, at(1025)).unwrap();
    assert_eq!((left.interaction.operation, left.until), (crate::mark::Operation::Exec, at(1035)));
    assert_eq!(successor_mark(&reported, at(1040)), None);
}

#[test]
fn a_successor_is_not_evicted_while_it_could_pass_the_mark_on() {
    let left = successor_mark(&pod("u", Some(5)), at(1010)).unwrap();
    assert_eq!(left.disposition, Disposition::Evict(Duration::from_secs(35)));
}

#[test]
fn a_successor_is_not_marked_after_the_window_nor_for_another_pods_mark() {
    assert_eq!(successor_mark(&pod("u", Some(600)), at(1035)), None, "the exec cannot arrive any more");
    assert_eq!(successor_mark(&pod("other", Some(600)), at(1010)), None, "the mark of another pod");
}

#[test]
fn a_pod_whose_name_is_never_reused_has_no_successor() {
    for (version, kind, has_successor) in [
        ("apps/v1", "ReplicaSet", false),
        ("apps/v1", "DaemonSet", false),
        ("batch/v1", "Job", false),
        ("apps/v1", "StatefulSet", true),
        // CloneSets and others of OpenKruise keep names, and so may a controller of any other group.
        ("apps.kruise.io/v1alpha1", "DaemonSet", true),
        ("batch.volcano.sh/v1alpha1", "Job", true),
    ] {
        let mut deleted = pod("u", Some(600));
        let owner = json!([{"apiVersion": version, "kind": kind, "name": "o", "uid": "o"}]);
        deleted.metadata.owner_references = serde_json::from_value(owner).unwrap();
        assert_eq!(successor_mark(&deleted, at(1010)).is_some(), has_successor, "{version} {kind}");
    }
}

#[test]
fn a_successor_is_looked_for_soon_after_the_deletion_and_when_no_exec_can_arrive_any_more() {
    let mut successors = deleted_at(1010);
    assert!(successors.take_due(at(1014)).is_empty());
    let due = successors.take_due(at(1015));
    assert_eq!(due.len(), 1);
    assert!(successors.take_due(at(1100)).is_empty(), "it is being looked for");
    successors.look_again(due[0].clone(), false, at(1015));
    assert!(successors.take_due(at(1039)).is_empty());
    let due = successors.take_due(at(1040));
    assert_eq!(due.len(), 1);
    successors.look_again(due[0].clone(), false, at(1040));
    assert!(successors.take_due(at(2000)).is_empty(), "two looks are enough");
}

#[test]
fn looks_for_many_pods_are_at_the_same_moments() {
    let mut successors = Successors::default();
    for n in 0..40 {
        let mut one = pod("u", Some(600));
        one.metadata.name = Some(format!("p{n}"));
        successors.delete(&one, at(1003 + n / 10));
    }
    let looks: Vec<usize> = (1003..1020).map(|second| successors.take_due(at(second)).len()).collect();
    let looks: Vec<usize> = looks.into_iter().filter(|count| *count > 0).collect();
    assert_eq!(looks, [40]);
}

#[test]
fn a_look_that_failed_is_repeated_until_the_next_leader_would_not_do_it_either() {
    let mut successors = deleted_at(1010);
    let mut times = Vec::new();
    for second in 1010..1200 {
        successors.sweep(at(second));
        for expected in successors.take_due(at(second)) {
            times.push(second);
            successors.look_again(expected, true, at(second));
        }
    }
    assert_eq!(times, [1015, 1020, 1025, 1030, 1035, 1040, 1045, 1050, 1055, 1060]);
}

#[test]
fn a_pod_that_vanished_while_the_watch_was_interrupted_has_a_successor_too() {
    let mut successors = Successors::default();
    successors.observe(&pod("u", Some(600)), at(1001));
    successors.replace(&HashSet::from(["u".to_owned()]), at(1005));
    assert!(successors.take_due(at(1034)).is_empty(), "it is still there");
    successors.replace(&HashSet::new(), at(1006));
    assert_eq!(successors.take_due(at(1010)).len(), 1);
    successors.observe(&pod("u", Some(600)), at(1020));
    successors.replace(&HashSet::new(), at(1035));
    assert!(successors.take_due(at(9999)).is_empty(), "no exec can arrive any more");
    assert!(successors.entered.is_empty());
}

#[test]
fn memory_is_given_back_after_the_window() {
    let mut successors = deleted_at(1010);
    successors.observe(&pod("u", Some(600)), at(1011));
    successors.sweep(at(1034));
    assert_eq!((successors.entered.len(), successors.waiting.len()), (1, 1));
    successors.sweep(at(1035));
    assert_eq!((successors.entered.len(), successors.waiting.len()), (0, 1));
    successors.sweep(at(1065));
    assert_eq!(successors.waiting.len(), 0);
}

#[test]
fn a_pod_that_the_interaction_cannot_have_reached_is_no_successor() {
    let expected = deleted_at(1010).take_due(at(1015)).remove(0);
    assert!(expected.is_succeeded_by(&successor(1011)) && expected.is_succeeded_by(&successor(1035)));
    assert!(!expected.is_succeeded_by(&successor(1038)), "created after the window");
    assert!(!expected.is_succeeded_by(&pod("u", Some(600))), "the deleted pod itself");
    let mut terminating = successor(1011);
    terminating.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1012)));
    assert!(!expected.is_succeeded_by(&terminating));
}

#[test]
fn of_several_interactions_that_may_arrive_that_of_a_person_is_passed_on() {
    let exec = |user: &str, extra: serde_json::Value, second: i64| {
        json!({"at": at(second), "operation": "exec", "container": "c", "user": {"name": user, "extra": extra},
            "review": "r", "rule": "d"})
    };
    let machine = json!({"authentication.kubernetes.io/pod-name": ["o"]});
    let mut deleted = pod("u", Some(600));
    let recent = json!([exec("ann", json!({}), 1005), exec("system:serviceaccount:n:o", machine, 1010)]);
    let mark = json!({"pod": "u", "total": 3, "first": exec("bob", json!({}), 1000), "recent": recent});
    deleted.metadata.annotations.as_mut().unwrap().insert("pristine/interactions".into(), mark.to_string());
    let left = successor_mark(&deleted, at(1012)).unwrap();
    assert_eq!((left.interaction.user.name.as_str(), left.until), ("ann", at(1045)));
    assert_eq!(left.disposition, Disposition::Evict(Duration::from_secs(595)), "the deadline stays");
    let late = successor_mark(&deleted, at(1040)).unwrap();
    assert_eq!(late.interaction.user.name, "system:serviceaccount:n:o", "only this one can still arrive");
}
