use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::time::Duration;

fn pod(owner: Option<&str>) -> Pod {
    let owners =
        owner.map(|kind| json!([{"apiVersion": "v1", "kind": kind, "name": "o", "uid": "o", "controller": true}]));
    serde_json::from_value(json!({"metadata": {
        "namespace": "prod-eu", "name": "p", "uid": "u", "labels": {"tier": "db"}, "ownerReferences": owners,
    }}))
    .unwrap()
}

fn interaction() -> Interaction {
    Interaction {
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
        operation: Operation::Exec,
        container: "app".into(),
        command: vec!["sh".into(), "-c".into(), "id".into()],
        stdin: false,
        tty: false,
        user: User { name: "alice@example.com".into(), groups: vec!["sre".into()], ..User::default() },
        review: "r".into(),
        rule: String::new(),
    }
}

const EVICT: Verdict = Verdict::Mark(Disposition::Evict(Duration::from_secs(60)));

fn decide(matches: serde_json::Value) -> String {
    let rule = Rule { name: "r".into(), matches: serde_json::from_value(matches).unwrap(), action: Verdict::Exempt };
    let i = interaction();
    Policy { default: EVICT, rules: vec![rule] }.decide(&i, &i.user, &i.command, &pod(Some("ReplicaSet"))).rule
}

#[test]
fn each_field_narrows_a_rule() {
    for (yes, no) in [
        (json!({"namespaces": ["x", "prod-*"]}), json!({"namespaces": ["prod"]})),
        (json!({"users": ["alice@example.com"]}), json!({"users": ["alice"]})),
        (json!({"groups": ["dev", "sre"]}), json!({"groups": ["dev"]})),
        (json!({"operations": ["exec"]}), json!({"operations": ["attach", "debug"]})),
        (json!({"containers": ["app"]}), json!({"containers": ["sidecar"]})),
        (json!({"interactive": false}), json!({"interactive": true})),
        (json!({"commandPrefix": ["sh", "-c"]}), json!({"commandPrefix": ["sh", "id"]})),
        (
            json!({"podSelector": {"matchLabels": {"tier": "db"}}}),
            json!({"podSelector": {"matchLabels": {"tier": "web"}}}),
        ),
        (json!({"ownerKinds": ["ReplicaSet"]}), json!({"ownerKinds": ["None"]})),
        (json!({}), json!({"namespaces": ["prod-*"], "groups": ["dev"]})),
    ] {
        assert_eq!(decide(yes.clone()), "r", "{yes}");
        assert_eq!(decide(no.clone()), "default", "{no}");
    }
}

#[test]
fn the_first_matching_rule_decides() {
    let rule = |name: &str, action| Rule { name: name.into(), matches: Match::default(), action };
    let policy = Policy {
        default: EVICT,
        rules: vec![rule("a", Verdict::Mark(Disposition::Record)), rule("b", Verdict::Exempt)],
    };
    let decision = policy.decide(&interaction(), &interaction().user, &[], &pod(None));
    assert_eq!(decision, Decision { verdict: Verdict::Mark(Disposition::Record), rule: "a".into() });
}

#[test]
fn bare_pods_and_job_pods_are_evicted_only_by_a_named_rule() {
    let by_default = Policy { default: EVICT, rules: vec![] };
    let by_rule = Policy {
        default: Verdict::Mark(Disposition::Record),
        rules: vec![Rule { name: "r".into(), matches: Match::default(), action: EVICT }],
    };
    for owner in [None, Some("Job")] {
        let unnamed = by_default.decide(&interaction(), &interaction().user, &[], &pod(owner)).verdict;
        assert_eq!(unnamed, Verdict::Mark(Disposition::EvictIfOwned(Duration::from_secs(60))));
        assert_eq!(
            by_rule.decide(&interaction(), &interaction().user, &[], &pod(owner)).verdict,
            Verdict::Mark(Disposition::Evict(Duration::from_secs(60)))
        );
    }
    assert!(matches!(
        by_default.decide(&interaction(), &interaction().user, &[], &pod(Some("StatefulSet"))).verdict,
        Verdict::Mark(Disposition::Evict(_))
    ));
}

#[test]
fn pods_that_run_to_completion_are_evicted_only_by_a_named_rule() {
    let by_default = Policy { default: EVICT, rules: vec![] };
    for (policy, evicted) in [("Never", false), ("OnFailure", false), ("Always", true)] {
        let mut task = pod(Some("TaskRun"));
        task.spec = serde_json::from_value(json!({"restartPolicy": policy, "containers": []})).unwrap();
        let verdict = by_default.decide(&interaction(), &interaction().user, &[], &task).verdict;
        assert_eq!(matches!(verdict, Verdict::Mark(Disposition::Evict(_))), evicted, "{policy}: {verdict:?}");
    }
}

#[test]
fn rules_see_a_quarantined_pod_as_it_was_before() {
    let database: Match = serde_json::from_value(json!({"podSelector": {"matchLabels": {"tier": "db"}}})).unwrap();
    let deny = Rule { name: "db".into(), matches: database, action: Verdict::Deny { message: "no".into() } };
    let policy = Policy { default: EVICT, rules: vec![deny] };
    let decide = |pod: &Pod| policy.decide(&interaction(), &interaction().user, &[], pod).verdict;
    let first = serde_json::to_value(interaction()).unwrap();
    let mut marked = pod(None);
    marked.metadata.labels = None;
    marked.metadata.annotations = Some(
        [
            ("pristine/interactions".to_owned(), json!({"pod": "u", "total": 1, "first": first}).to_string()),
            ("pristine/quarantined".to_owned(), json!({"tier": "db"}).to_string()),
        ]
        .into(),
    );
    assert_eq!(decide(&marked), Verdict::Deny { message: "no".into() });
    marked.metadata.annotations.as_mut().unwrap().insert("pristine/quarantined".into(), json!({"a": "b"}).to_string());
    assert!(matches!(decide(&marked), Verdict::Mark(Disposition::Evict(_))), "it had a controller");
    // Without a mark of this pod, another client wrote it.
    marked.metadata.uid = Some("other".into());
    assert!(matches!(decide(&marked), Verdict::Mark(Disposition::EvictIfOwned(_))));
}

#[test]
fn globs_match_as_in_a_shell() {
    for (pattern, name, expected) in [
        ("*", "", true),
        ("*", "kube-system", true),
        ("prod-*", "prod-", true),
        ("prod-*", "prod", false),
        ("*-eu", "prod-eu", true),
        ("*-eu", "prod-eu-1", false),
        ("a*b*c", "aXbXbXc", true),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("default", "default", true),
    ] {
        assert_eq!(Glob::new(pattern).unwrap().matches(name), expected, "{pattern} {name}");
    }
    for bad in ["", "Prod", "a b", "[a]", "prod/**", "é"] {
        assert!(Glob::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_glob_of_many_stars_is_not_exponential() {
    let glob = Glob::new(&"a*".repeat(60)).unwrap();
    assert!(!glob.matches(&format!("{}b", "a".repeat(59))));
}

proptest! {
    #[test]
    fn a_name_matches_itself_and_any_prefix_with_a_star(name in "[a-z0-9.-]{1,63}", cut in 0_usize..63) {
        prop_assert!(Glob::new(&name).unwrap().matches(&name));
        let prefix = &name[..cut.min(name.len())];
        let pattern = format!("{prefix}*");
        prop_assert!(Glob::new(&pattern).unwrap().matches(&name));
    }
}
