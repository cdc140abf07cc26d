use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use crate::mark::{Interaction, Operation, User};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod with UID `u`, marked at second 1000 for `ttl`, with a mark of the pod `of`.
fn pod(of: &str, ttl: Option<u64>, change: impl Fn(&mut Pod)) -> Pod {
    let interaction = Interaction {
        at: at(1000),
        operation: Operation::Exec,
        container: "c".into(),
        command: vec![],
        stdin: false,
        tty: false,
        user: User::default(),
        review: String::new(),
        rule: String::new(),
    };
    let patch = Mark::after(None, of, interaction, ttl.map(Duration::from_secs)).unwrap().patch("1", true);
    let mut annotations = patch["metadata"]["annotations"].as_object().unwrap().clone();
    annotations.retain(|_, value| !value.is_null());
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"uid": "u", "labels": patch["metadata"]["labels"], "annotations": annotations},
        "status": {"phase": "Running"},
    }))
    .unwrap();
    change(&mut pod);
    pod
}

#[test]
fn waits_for_the_deadline_and_then_evicts() {
    let pod = pod("u", Some(60), |_| ());
    assert!(matches!(plan(&pod, &Settings::default(), at(1059)), Next::Wait { until, .. } if until == at(1060)));
    assert!(matches!(plan(&pod, &Settings::default(), at(1060)), Next::Evict { .. }));
    assert!(matches!(plan(&pod, &Settings::default(), Timestamp::MAX), Next::Evict { .. }));
}

#[test]
fn never_evicts_another_uid() {
    assert!(matches!(plan(&pod("of-another", Some(60), |_| ()), &Settings::default(), at(9999)), Next::Ignore(_)));
}

#[test]
fn what_is_recorded_finished_or_terminating_is_left_alone() {
    assert_eq!(plan(&pod("u", None, |_| ()), &Settings::default(), at(9999)), Next::Nothing("recorded only"));
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(
            plan(
                &pod("u", Some(60), |pod| pod.status.as_mut().unwrap().phase = Some(phase.into())),
                &Settings::default(),
                at(9999)
            ),
            Next::Nothing("finished")
        );
    }
    let ended = |policy: &'static str| {
        pod("u", Some(60), move |pod| {
            let status = json!({"phase": "Running", "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0}},
            }]});
            pod.status = serde_json::from_value(status).unwrap();
            pod.spec = serde_json::from_value(json!({"restartPolicy": policy, "containers": []})).unwrap();
        })
    };
    assert_eq!(plan(&ended("Never"), &Settings::default(), at(9999)), Next::Nothing("finished"));
    assert!(
        matches!(plan(&ended("Always"), &Settings::default(), at(9999)), Next::Evict { .. }),
        "it will be started again"
    );
    let deleting = |pod: &mut Pod| pod.metadata.deletion_timestamp = Some(Time(at(1)));
    assert_eq!(plan(&pod("u", Some(60), deleting), &Settings::default(), at(9999)), Next::Nothing("terminating"));
    assert_eq!(plan(&Pod::default(), &Settings::default(), at(9999)), Next::Nothing("not marked"));
}

#[test]
fn a_static_pod_is_not_evictable() {
    let mirror = pod("u", Some(60), |pod| {
        pod.metadata.annotations.as_mut().unwrap().insert("kubernetes.io/config.mirror".into(), "x".into());
    });
    assert!(matches!(plan(&mirror, &Settings::default(), at(9999)), Next::NotEvictable(..)));
}

proptest! {
    #[test]
    fn never_early_and_never_forgotten(ttl in 1_u64..10_000_000, now in 0_i64..20_000_000) {
        let deadline = 1000 + i64::try_from(ttl).unwrap();
        match plan(&pod("u", Some(ttl), |_| ()), &Settings::default(), at(now)) {
            Next::Evict { .. } => prop_assert!(now >= deadline),
            Next::Wait { until, .. } => prop_assert!(now < deadline && until == at(deadline)),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn backoff_is_bounded(refusals in any::<u32>(), random in 0.0..1.0) {
        let wait = backoff(refusals, random);
        prop_assert!(wait >= Duration::from_millis(1500) && wait <= Duration::from_millis(37_500), "{wait:?}");
    }
}

#[test]
fn a_pod_deleted_right_after_an_interaction_leaves_its_mark_to_its_successor_once() {
    let interacted = at(1000);
    let left = inheritance(&pod("u", Some(600), |_| ()), at(1010)).unwrap();
    assert_eq!(
        (left.interaction.at, left.fate, left.until),
        (interacted, Fate::Evicted(Duration::from_secs(600)), at(1035))
    );
    // With a deadline that is over before nothing can arrive any more, the heir of the heir would be the next.
    let left = inheritance(&pod("u", Some(5), |_| ()), at(1010)).unwrap();
    assert_eq!(left.fate, Fate::Evicted(Duration::from_secs(35)));
    assert_eq!(inheritance(&pod("u", None, |_| ()), at(1010)).unwrap().fate, Fate::Recorded);
    assert_eq!(inheritance(&pod("u", Some(600), |_| ()), at(1035)), None, "nothing arrives any more");
    assert_eq!(inheritance(&pod("other", Some(600), |_| ()), at(1010)), None, "a mark of another pod");
    for kind in ["ReplicaSet", "DaemonSet", "Job"] {
        let owned = pod("u", Some(600), |pod| {
            pod.metadata.owner_references =
                serde_json::from_value(json!([{"apiVersion": "x", "kind": kind, "name": "o", "uid": "o"}])).unwrap();
        });
        assert_eq!(inheritance(&owned, at(1010)), None, "{kind}: the name never comes again");
    }
}
