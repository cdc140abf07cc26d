use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use serde_json::{Value, json};

mod steps;

use super::{
    budgets::Selecting,
    conditions::{self, DryRun, Workload, has_failure, resolve, retry_after},
};
use crate::mark::{
    Disposition, Interaction, Mark, Operation, User, before_quarantine,
    surge::{self, End, Ended, Object, Surge},
};
use jiff::{SignedDuration, Timestamp};

const HASH: &str = "pod-template-hash";

#[test]
fn max_surge_is_rounded_up_as_by_the_deployment_controller() {
    let parsed = |value: Value| serde_json::from_value(value).unwrap();
    for (value, wanted, expected) in [
        (json!(3), 1, 3),
        (json!("25%"), 1, 1),
        (json!("25%"), 4, 1),
        (json!("25%"), 5, 2),
        (json!("100%"), 7, 7),
        (json!("0%"), 5, 0),
        (json!("many"), 5, 0),
    ] {
        assert_eq!(resolve(Some(&parsed(value.clone())), wanted), expected, "{value} of {wanted}");
    }
    assert_eq!(resolve(None, 9), 1);
}

#[test]
fn a_replica_set_has_a_failure_while_its_condition_says_so() {
    for (kind, status, expected) in
        [("ReplicaFailure", "True", true), ("ReplicaFailure", "False", false), ("Other", "True", false)]
    {
        let conditions = json!([{"type": kind, "status": status}]);
        let set = json!({"status": {"replicas": 1, "conditions": conditions}});
        assert_eq!(has_failure(&serde_json::from_value(set).unwrap()), expected, "{kind} {status}");
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn mark() -> Mark {
    let interaction = Interaction {
        at: at(-60),
        operation: Operation::Exec,
        container: "app".into(),
        command: vec![],
        stdin: false,
        tty: false,
        user: User::default(),
        review: "r1".into(),
        rule: "default".into(),
    };
    Mark::after(None, "touched", interaction, Disposition::Evict(std::time::Duration::from_secs(60))).unwrap()
}

/// A pod of the Deployment, Ready since the second 0.
fn pod(uid: &str, ready: bool) -> Value {
    json!({
        "metadata": {
            "name": uid, "uid": uid, "namespace": "n", "resourceVersion": "7", "labels": {"app": "web", HASH: "h"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-h", "uid": "set", "controller": true}],
        },
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(0).to_string()}]},
    })
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Merges a patch into an object, as the API server does with the metadata.
fn merge(value: &mut Value, patch: &Value) {
    for (key, new) in patch.as_object().unwrap() {
        match new {
            Value::Null => drop(value.as_object_mut().unwrap().remove(key)),
            Value::Object(_) => {
                if !value[key].is_object() {
                    value[key] = json!({});
                }
                merge(&mut value[key], new);
            }
            other => value[key] = other.clone(),
        }
    }
}

fn touched() -> Value {
    let mut value = pod("touched", true);
    merge(&mut value["metadata"], &mark().patch("7", false)["metadata"]);
    value
}

fn set() -> Value {
    json!({
        "metadata": {"name": "web-h", "uid": "set", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "deployment", "controller": true}]},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web", HASH: "h"}}},
        "status": {"replicas": 1},
    })
}

fn deployment() -> Value {
    json!({
        "metadata": {"name": "web", "uid": "deployment", "generation": 3},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        },
        "status": {"observedGeneration": 3, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
    })
}

fn budget(spec: Value, healthy: i32, desired: i32) -> Value {
    let mut value = json!({
        "metadata": {"name": "web", "uid": "budget", "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"observedGeneration": 1, "currentHealthy": healthy, "desiredHealthy": desired, "disruptionsAllowed": 0, "expectedPods": 1},
    });
    merge(&mut value["spec"], &spec);
    value
}

/// What the conditions say: the surge, or why there is none.
fn begin(
    touched: &Value,
    set: &Value,
    deployment: &Value,
    selecting: &Selecting,
    dry_run: DryRun,
) -> Result<Surge, &'static str> {
    let (touched, set, deployment): (Pod, ReplicaSet, Deployment) =
        (parse(touched.clone()), parse(set.clone()), parse(deployment.clone()));
    let pods = [touched.clone()];
    let found = Workload { set: &set, deployment: &deployment, pods: &pods };
    conditions::pod(&touched)?;
    conditions::workload(&touched, found)?;
    conditions::need(&touched, &deployment, dry_run)?;
    conditions::begin(&touched, found, selecting, at(0))
}

fn refused(touched: &Value, set: &Value, deployment: &Value) -> &'static str {
    begin(touched, set, deployment, &Selecting::default(), DryRun::Refused).unwrap_err()
}

fn surge() -> Surge {
    begin(&touched(), &set(), &deployment(), &Selecting::default(), DryRun::Accepted).unwrap()
}

/// The touched pod after the PATCH that begins the surge.
fn in_surge() -> Pod {
    let mut value = touched();
    merge(&mut value["metadata"], &surge().begin(&mark(), "7", "h")["metadata"]);
    parse(value)
}

#[test]
fn one_patch_takes_the_label_off_and_writes_all_that_a_new_leader_needs() {
    let pod = in_surge();
    assert!(surge::is_in_surge(&pod) && surge::label(&pod, HASH).is_none());
    assert_eq!(surge::label(&pod, surge::SURGE), Some("true"));
    assert_eq!(Surge::on(&pod), Some(surge()));
    let patch = surge().begin(&mark(), "7", "h");
    assert_eq!((&patch["metadata"]["uid"], &patch["metadata"]["resourceVersion"]), (&json!("touched"), &json!("7")));
    assert_eq!(surge::label(&before_quarantine(&pod), HASH), Some("h"), "the rules see the pod as it was");
    assert_eq!((surge().since, surge().until), (at(0), at(300)));
}

#[test]
fn the_end_puts_the_same_label_back_and_keeps_why() {
    let pod = in_surge();
    let patch = surge::end(&pod, End::Unschedulable, at(9)).unwrap();
    assert_eq!(patch["metadata"]["resourceVersion"], "7");
    let mut value = serde_json::to_value(&pod).unwrap();
    merge(&mut value["metadata"], &patch["metadata"]);
    let pod: Pod = parse(value);
    assert!(!surge::is_in_surge(&pod) && surge::annotation(&pod, surge::SURGE_HASH).is_none());
    assert_eq!((surge::label(&pod, HASH), surge::label(&pod, surge::SURGE)), (Some("h"), None));
    let ended = Surge::on(&pod).unwrap().ended;
    assert_eq!(ended, Some(Ended { at: at(9), why: End::Unschedulable }));
    assert!(surge::end(&Pod::default(), End::NotDue, at(0)).is_none(), "without the value of the label");
}

type Damage = fn(&mut Value, &mut Value, &mut Value);

#[test]
fn a_pod_whose_workload_is_not_complete_or_says_so_is_not_replaced_first() {
    let damages: [(&str, Damage); 20] = [
        ("no controller", |pod, _, _| pod["metadata"]["ownerReferences"] = json!([])),
        ("no ReplicaSet", |pod, _, _| pod["metadata"]["ownerReferences"][0]["kind"] = json!("StatefulSet")),
        ("no ReplicaSet", |pod, _, _| pod["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1")),
        ("terminating", |pod, _, _| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        ("static", |pod, _, _| pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x")),
        ("pristine/surge-hash", |pod, _, _| pod["metadata"]["annotations"][surge::SURGE_HASH] = json!("h")),
        ("lacks the label", |pod, _, _| pod["metadata"]["labels"] = json!({"app": "web"})),
        ("pristine/no-surge", |pod, _, _| pod["metadata"]["annotations"]["pristine/no-surge"] = json!("true")),
        ("not to disrupt", |pod, _, _| {
            pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] = json!("false");
        }),
        ("not to disrupt", |pod, _, _| pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("true")),
        ("does not select it", |_, set, _| set["spec"]["selector"] = json!({"matchLabels": {"app": "web"}})),
        ("no Deployment", |_, set, _| {
            set["metadata"]["ownerReferences"][0]["apiVersion"] = json!("argoproj.io/v1alpha1");
        }),
        ("being deleted", |_, _, it| it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        ("no pod more", |_, _, it| it["spec"]["strategy"] = json!({"type": "Recreate"})),
        ("no pod more", |_, _, it| it["spec"]["strategy"]["rollingUpdate"]["maxSurge"] = json!(0)),
        ("paused", |_, _, it| it["spec"]["paused"] = json!(true)),
        ("changing", |_, _, it| it["metadata"]["generation"] = json!(4)),
        ("not complete", |_, _, it| it["status"]["updatedReplicas"] = json!(0)),
        ("not complete", |_, _, it| it["status"]["replicas"] = json!(2)),
        ("minReadySeconds", |_, _, it| it["spec"]["minReadySeconds"] = json!(300)),
    ];
    for (expected, damage) in damages {
        let (mut pod, mut set, mut deployment) = (touched(), set(), deployment());
        damage(&mut pod, &mut set, &mut deployment);
        let why = refused(&pod, &set, &deployment);
        assert!(why.contains(expected), "{expected}: {why}");
    }
    let mut failing = set();
    failing["status"]["conditions"] = json!([{"type": "ReplicaFailure", "status": "True"}]);
    assert!(refused(&touched(), &failing, &deployment()).contains("missing"));
    let mut opted_out = deployment();
    opted_out["metadata"]["annotations"] = json!({"pristine/no-surge": "true"});
    assert!(refused(&touched(), &set(), &opted_out).contains("no-surge"));
}

#[test]
fn one_pod_of_a_deployment_is_in_a_surge_at_a_time() {
    let (touched, set, deployment): (Pod, ReplicaSet, Deployment) =
        (parse(touched()), parse(set()), parse(deployment()));
    let mut other = pod("other", true);
    other["metadata"]["labels"][surge::SURGE] = json!("true");
    let mut stranger = other.clone();
    stranger["metadata"]["ownerReferences"][0]["uid"] = json!("of another Deployment");
    let pods = [touched.clone(), parse(stranger), parse(other)];
    let found = Workload { set: &set, deployment: &deployment, pods: &pods };
    assert!(conditions::workload(&touched, found).unwrap_err().contains("in a surge"));
    let found = Workload { pods: &pods[..2], ..found };
    assert_eq!(conditions::workload(&touched, found), Ok(()));
}

#[test]
fn several_replicas_surge_only_if_a_budget_refuses_the_eviction() {
    let (mut set, mut deployment) = (set(), deployment());
    set["spec"]["replicas"] = json!(2);
    deployment["spec"]["replicas"] = json!(2);
    merge(&mut deployment["status"], &json!({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}));
    let budget = parse(budget(json!({"minAvailable": 2}), 2, 2));
    let selecting = Selecting { budgets: vec![budget], ..Selecting::default() };
    let of = |dry_run| begin(&touched(), &set, &deployment, &selecting, dry_run);
    assert!(of(DryRun::Refused).is_ok());
    let busy = begin(&touched(), &set, &deployment, &Selecting::default(), DryRun::Refused);
    assert!(busy.unwrap_err().contains("busy"));
    assert!(of(DryRun::Accepted).unwrap_err().contains("serve") && of(DryRun::Failed).is_err());
    merge(&mut deployment["status"], &json!({"availableReplicas": 1}));
    assert!(begin(&touched(), &set, &deployment, &selecting, DryRun::Refused).is_err(), "another is missing");
    let mut unready = touched();
    unready["status"]["conditions"][0]["status"] = json!("False");
    assert!(begin(&unready, &set, &deployment, &selecting, DryRun::Refused).is_ok(), "only this one is");
}

#[test]
fn a_single_pod_that_is_not_ready_surges_only_if_a_budget_refuses_the_eviction() {
    let (mut unready, mut deployment) = (touched(), deployment());
    unready["status"]["conditions"][0]["status"] = json!("False");
    deployment["status"]["availableReplicas"] = json!(0);
    let of = |dry_run| begin(&unready, &set(), &deployment, &Selecting::default(), dry_run);
    assert!(of(DryRun::Accepted).unwrap_err().contains("not Ready") && of(DryRun::Refused).is_ok());
}

#[test]
fn a_budget_that_would_not_allow_it_with_one_more_pod_or_says_never_prevents_the_surge() {
    let of = |budgets: &[Value]| {
        let selecting = Selecting { budgets: budgets.iter().cloned().map(parse).collect(), ..Selecting::default() };
        begin(&touched(), &set(), &deployment(), &selecting, DryRun::Refused).map(|surge| surge.budgets)
    };
    assert_eq!(of(&[budget(json!({"minAvailable": 1}), 1, 1)]).unwrap(), "web/budget/1");
    assert!(of(&[budget(json!({"minAvailable": 2}), 1, 2)]).unwrap_err().contains("one more"));
    for never in [json!(0), json!("0%")] {
        assert!(of(&[budget(json!({"maxUnavailable": never}), 1, 1)]).unwrap_err().contains("maxUnavailable 0"));
    }
    assert!(of(&[budget(json!({"maxUnavailable": "25%"}), 1, 1)]).is_ok());
    let two = [budget(json!({"minAvailable": 1}), 1, 1), budget(json!({"maxUnavailable": 1}), 1, 0)];
    assert!(of(&two).unwrap_err().contains("several"));
    let mut stranger = budget(json!({"minAvailable": 2}), 1, 2);
    stranger["spec"]["selector"] = json!({"matchLabels": {"app": "db"}});
    assert_eq!(of(&[stranger]).unwrap(), "");
    let mut stale = budget(json!({"minAvailable": 1}), 1, 1);
    stale["metadata"]["generation"] = json!(2);
    assert!(of(&[stale]).unwrap_err().contains("out of date"));
}

#[test]
fn nothing_surges_in_a_namespace_that_selects_by_the_hash() {
    let of = |selecting: Selecting| begin(&touched(), &set(), &deployment(), &selecting, DryRun::Accepted);
    let by_hash = json!({"matchLabels": {HASH: "h"}});
    let service = parse(json!({"spec": {"selector": {"app": "web", HASH: "other"}}}));
    let peer = json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchExpressions": [{"key": HASH, "operator": "Exists"}]}}]}]}});
    let mut by = budget(json!({"minAvailable": 1}), 1, 1);
    by["spec"]["selector"] = by_hash.clone();
    for selecting in [
        Selecting { services: vec![service], ..Selecting::default() },
        Selecting { policies: vec![parse(json!({"spec": {"podSelector": by_hash}}))], ..Selecting::default() },
        Selecting { policies: vec![parse(peer)], ..Selecting::default() },
        Selecting { budgets: vec![parse(by)], ..Selecting::default() },
    ] {
        assert!(of(selecting).unwrap_err().contains("selects by pod-template-hash"));
    }
    let plain = parse(json!({"spec": {"selector": {"app": "web"}}}));
    assert!(of(Selecting { services: vec![plain], ..Selecting::default() }).is_ok());
}

#[test]
fn a_failed_surge_is_not_repeated_until_something_changed_or_the_wait_is_over() {
    let failed = |ended: i64, why, attempt| {
        let last = Surge { ended: Some(Ended { at: at(ended), why }), attempt, ..surge() };
        let mut pod = touched();
        pod["metadata"]["annotations"][surge::SURGE] = json!(serde_json::to_string(&last).unwrap());
        pod
    };
    let of = |pod: &Value, deployment: &Value| begin(pod, &set(), deployment, &Selecting::default(), DryRun::Refused);
    assert!(of(&failed(-599, End::TimedOut, 1), &deployment()).unwrap_err().contains("last surge failed"));
    assert_eq!(of(&failed(-600, End::TimedOut, 1), &deployment()).unwrap().attempt, 2);
    assert!(of(&failed(-1199, End::OwnerLost, 2), &deployment()).is_err());
    assert_eq!(of(&failed(-1, End::Suspended, 1), &deployment()).unwrap().attempt, 1, "nothing was wrong with it");
    let mut changed = deployment();
    changed["metadata"]["generation"] = json!(4);
    changed["status"]["observedGeneration"] = json!(4);
    assert_eq!(of(&failed(-1, End::TimedOut, 5), &changed).unwrap().attempt, 1);
    let budgets = Selecting { budgets: vec![parse(budget(json!({"minAvailable": 1}), 1, 1))], ..Selecting::default() };
    assert!(begin(&failed(-1, End::TimedOut, 5), &set(), &deployment(), &budgets, DryRun::Refused).is_ok());
    assert_eq!(retry_after(u32::MAX), SignedDuration::from_hours(24));
}

#[test]
fn the_record_names_the_objects_by_uid() {
    let object = |name: &str, uid: &str| Object { name: name.into(), uid: uid.into() };
    assert_eq!((surge().replica_set, surge().deployment), (object("web-h", "set"), object("web", "deployment")));
    assert_eq!((surge().generation, surge().attempt), (3, 1));
}
