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

fn mark(ttl: Option<u64>) -> Mark {
    Found::on(&pod("u", ttl, |_| ())).mark().unwrap()
}

#[test]
fn a_stuck_pod_names_its_finalizers_or_its_node() {
    let kept = pod("u", Some(60), |pod| pod.metadata.finalizers = Some(vec!["a/b".into(), "c/d".into()]));
    assert_eq!(stuck(&kept, at(1000), at(1059)), None);
    assert_eq!(stuck(&kept, at(1000), at(1060)).unwrap(), "its finalizers have not been removed: a/b, c/d");
    let lost = pod("u", Some(60), |pod| {
        pod.spec = serde_json::from_value(json!({"nodeName": "n1", "containers": []})).unwrap();
    });
    assert_eq!(
        stuck(&lost, at(1000), at(1060)).unwrap(),
        "node \"n1\" has not confirmed that its containers have terminated"
    );
}

#[test]
fn a_pod_is_evicted_at_its_deadline_and_not_before() {
    let pod = pod("u", Some(60), |_| ());
    assert!(matches!(plan(&pod, &Settings::default(), at(1059)), Next::Wait { until, .. } if until == at(1060)));
    assert!(matches!(plan(&pod, &Settings::default(), at(1060)), Next::Evict { .. }));
    assert!(matches!(plan(&pod, &Settings::default(), Timestamp::MAX), Next::Evict { .. }));
}

#[test]
fn a_pod_with_the_mark_of_another_uid_is_ignored() {
    assert!(matches!(plan(&pod("of-another", Some(60), |_| ()), &Settings::default(), at(9999)), Next::Ignore(_)));
}

#[test]
fn a_recorded_finished_or_terminating_pod_is_not_evicted() {
    assert_eq!(plan(&pod("u", None, |_| ()), &Settings::default(), at(9999)), Next::Nothing("recorded only"));
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(
            plan(
                &pod("u", Some(60), |pod| pod.status.as_mut().unwrap().phase = Some(phase.into())),
                &Settings::default(),
                at(9999)
            ),
            Next::Finished(mark(Some(60)))
        );
    }
    let terminated = |policy: &'static str| {
        pod("u", Some(60), move |pod| {
            let status = json!({"phase": "Running", "containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0}},
            }]});
            pod.status = serde_json::from_value(status).unwrap();
            pod.spec = serde_json::from_value(json!({"restartPolicy": policy, "containers": []})).unwrap();
        })
    };
    assert_eq!(plan(&terminated("Never"), &Settings::default(), at(9999)), Next::Finished(mark(Some(60))));
    assert!(
        matches!(plan(&terminated("Always"), &Settings::default(), at(9999)), Next::Evict { .. }),
        "its containers restart"
    );
    let deleting = |pod: &mut Pod| pod.metadata.deletion_timestamp = Some(Time(at(1)));
    let terminating = Next::Terminating { mark: mark(Some(60)), gone_by: at(1) };
    assert_eq!(plan(&pod("u", Some(60), deleting), &Settings::default(), at(9999)), terminating);
    assert_eq!(plan(&pod("u", None, deleting), &Settings::default(), at(9999)), Next::Nothing("recorded only"));
    assert_eq!(plan(&Pod::default(), &Settings::default(), at(9999)), Next::Nothing("not marked"));
}

#[test]
fn a_static_pod_is_never_evicted() {
    let mirror = pod("u", Some(60), |pod| {
        pod.metadata.annotations.as_mut().unwrap().insert("kubernetes.io/config.mirror".into(), "x".into());
    });
    assert!(matches!(plan(&mirror, &Settings::default(), at(9999)), Next::NotEvictable(..)));
    assert!(matches!(plan(&mirror, &Settings::default(), at(1001)), Next::NotEvictable(..)), "before its deadline");
}

#[test]
fn only_a_grace_period_longer_than_the_limit_is_shortened() {
    let settings =
        |longest: Option<u64>| Settings { max_grace_period: longest.map(Duration::from_secs), ..Settings::default() };
    let patient = |seconds: Option<i64>| {
        pod("u", Some(60), move |pod| {
            let spec = json!({"containers": [], "terminationGracePeriodSeconds": seconds});
            pod.spec = serde_json::from_value(spec).unwrap();
        })
    };
    assert_eq!(grace_period(&patient(Some(3600)), &settings(Some(300))), Some(300));
    assert_eq!(grace_period(&patient(Some(300)), &settings(Some(300))), None);
    assert_eq!(grace_period(&patient(Some(3600)), &settings(None)), None);
    assert_eq!(grace_period(&patient(None), &settings(Some(29))), Some(29), "the API server's default is 30 s");
    assert_eq!(grace_period(&patient(None), &settings(Some(30))), None);
    for (own, shortened, expected) in [(Some(90), None, 1090), (Some(90), Some(10), 1010), (None, None, 1030)] {
        assert_eq!(gone_by(&patient(own), shortened, at(1000)), at(expected), "{own:?} {shortened:?}");
    }
}

#[allow(clippy::struct_excessive_bools, reason = "they are independent, and all combinations are tested")]
/// Any marked pod: with this mark, this request for an extension, and in this state.
#[derive(Clone, Debug)]
struct Any {
    of: &'static str,
    ttl: Option<u64>,
    extend_to: Option<i64>,
    is_held: bool,
    is_deleted: bool,
    is_mirror: bool,
    phase: &'static str,
    policy: &'static str,
    is_terminated: bool,
}

impl Any {
    fn pod(&self) -> Pod {
        pod(self.of, self.ttl, |pod| {
            pod.spec = serde_json::from_value(json!({"restartPolicy": self.policy, "containers": []})).unwrap();
            let state =
                if self.is_terminated { json!({"terminated": {"exitCode": 0}}) } else { json!({"running": {}}) };
            let container = json!({
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            });
            pod.status =
                serde_json::from_value(json!({"phase": self.phase, "containerStatuses": [container]})).unwrap();
            pod.metadata.deletion_timestamp = self.is_deleted.then(|| Time(at(1)));
            let annotations = pod.metadata.annotations.as_mut().unwrap();
            if let Some(to) = self.extend_to {
                annotations.insert("pristine/extend-to".into(), at(to).to_string());
            }
            if self.is_held {
                annotations.insert("pristine/hold".into(), "why".into());
            }
            if self.is_mirror {
                annotations.insert("kubernetes.io/config.mirror".into(), "x".into());
            }
        })
    }

    /// The documented promises, expressed in another way than the code.
    fn is_not_evicted(&self) -> bool {
        let is_finished =
            ["Succeeded", "Failed"].contains(&self.phase) || (self.policy == "Never" && self.is_terminated);
        self.of != "u" || self.ttl.is_none() || self.is_deleted || is_finished
    }
}

prop_compose! {
    fn any_pod()(
        of in prop_oneof![9 => Just("u"), 1 => Just("other")],
        ttl in prop_oneof![9 => (1_u64..10_000).prop_map(Some), 1 => Just(None)],
        extend_to in proptest::option::of(0_i64..30_000),
        is_held in proptest::bool::weighted(0.2),
        is_deleted in proptest::bool::weighted(0.1),
        is_mirror in proptest::bool::weighted(0.1),
        phase in prop_oneof![8 => Just("Running"), 2 => Just("Pending"), 1 => Just("Succeeded"), 1 => Just("Failed")],
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        is_terminated in any::<bool>(),
    ) -> Any {
        Any { of, ttl, extend_to, is_held, is_deleted, is_mirror, phase, policy, is_terminated }
    }
}

proptest! {
    #[test]
    fn any_pod_is_evicted_only_when_due_and_only_for_its_own_mark(
        any in any_pod(), longest in 0_u64..20_000, now in 0_i64..40_000,
    ) {
        let settings = Settings { max_extension: Duration::from_secs(longest), ..Settings::default() };
        let (own, longest) = (any.ttl.map(|ttl| 1000 + i64::try_from(ttl).unwrap()), i64::try_from(longest).unwrap());
        let latest = own.map(|own| own.max(1000 + longest));
        let due = match (own, latest) {
            (Some(_), Some(latest)) if any.is_held => Some(latest),
            (Some(own), Some(latest)) => Some(any.extend_to.unwrap_or(0).clamp(own, latest)),
            _ => None,
        };
        match plan(&any.pod(), &settings, at(now)) {
            Next::Ignore(_) => prop_assert_eq!(any.of, "other"),
            Next::Nothing(_) => prop_assert_eq!((any.of, any.ttl), ("u", None)),
            Next::Terminating { gone_by, .. } => prop_assert!(any.is_deleted && gone_by == at(1)),
            Next::Finished(_) => prop_assert!(!any.is_deleted && any.is_not_evicted()),
            Next::Wait { until, mark } => {
                prop_assert!(!any.is_not_evicted() && !any.is_mirror && now < until.as_second());
                prop_assert_eq!((Some(until.as_second()), mark.pod.as_str()), (due, "u"));
            }
            Next::NotEvictable(..) => prop_assert!(!any.is_not_evicted() && any.is_mirror && due.is_some()),
            Next::Evict { mark, due: since } => {
                prop_assert!(!any.is_not_evicted() && !any.is_mirror && since.as_second() <= now);
                prop_assert_eq!((Some(since.as_second()), mark.pod.as_str()), (due, "u"));
            }
        }
    }

    #[test]
    fn a_marked_pod_is_never_evicted_early_and_never_forgotten(ttl in 1_u64..10_000_000, now in 0_i64..20_000_000) {
        let deadline = 1000 + i64::try_from(ttl).unwrap();
        match plan(&pod("u", Some(ttl), |_| ()), &Settings::default(), at(now)) {
            Next::Evict { .. } => prop_assert!(now >= deadline),
            Next::Wait { until, .. } => prop_assert!(now < deadline && until == at(deadline)),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn the_backoff_is_between_one_and_a_half_and_38_seconds(refusals in any::<u32>(), random in 0.0..1.0) {
        let wait = backoff(refusals, random);
        prop_assert!(wait >= Duration::from_millis(1500) && wait <= Duration::from_millis(37_500), "{wait:?}");
    }
}

#[test]
fn the_status_holds_the_granted_deadline_and_the_reason_against_more() {
    let settings = Settings { max_extension: Duration::from_secs(3600), ..Settings::default() };
    let users = |keys: &[(&str, &str)]| {
        let mut marked = pod("u", Some(600), |_| ());
        let all = marked.metadata.annotations.get_or_insert_default();
        all.extend(keys.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())));
        waiting(&marked, &settings).unwrap()
    };
    let plain = users(&[]);
    assert_eq!((plain.status.state, &plain.status.cause), (State::Marked, &None));
    let own = plain.status.evict_at.unwrap();
    let held = users(&[("pristine/hold", "INC-7; heap"), ("pristine/extended-by", "ed")]);
    assert_eq!((held.status.state, &held.status.cause), (State::Extended, &None));
    assert!(held.status.evict_at.unwrap() > own && held.message.ends_with(": INC-7; heap"), "{held:?}");
    let ignored = users(&[("pristine/extend-to", "tomorrow")]);
    assert_eq!((ignored.status.state, ignored.status.evict_at), (State::Marked, Some(own)));
    assert!(ignored.status.cause.unwrap().contains("write a time"));
    let answers = [plain.status.answers, held.status.answers, ignored.status.answers];
    assert_eq!(answers.each_ref().map(Option::as_deref), [None, Some("hold"), Some("tomorrow")]);
}

#[test]
fn only_an_extension_or_another_answer_to_a_request_replaces_the_status() {
    let of = |state, cause: Option<&str>| Status::new(state, cause.map(str::to_owned));
    let news = |now: &Status, written: Option<&Status>| {
        Waiting { status: now.clone(), message: String::new() }.is_news(written)
    };
    let (marked, ignored) = (of(State::Marked, None), of(State::Marked, Some("the limit")));
    let quarantined = of(State::Quarantined, Some("out of service"));
    assert!(!news(&marked, Some(&marked)) && !news(&marked, None));
    assert!(
        !news(&marked, Some(&quarantined)) && !news(&ignored, Some(&quarantined)),
        "it says so until it is evicted"
    );
    assert!(news(&ignored, Some(&marked)) && !news(&ignored, Some(&ignored)) && news(&marked, Some(&ignored)));
    let extended = of(State::Extended, None);
    assert!(news(&extended, Some(&marked)) && news(&marked, Some(&extended)) && news(&extended, Some(&quarantined)));
}
