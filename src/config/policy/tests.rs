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

/// The decision about [`interaction`] with this pod, in a namespace with the label `env: prod`.
fn decided(policy: &Policy, pod: &Pod) -> Decision {
    let labels = [("env".to_owned(), "prod".to_owned())].into();
    let i = interaction();
    let it = Attributes { interaction: &i, user: &i.user, argv: &i.command, pod, namespace: Some(&labels) };
    policy.decide(it).unwrap()
}

fn rule(matches: serde_json::Value) -> Rule {
    Rule { name: "r".into(), matches: serde_json::from_value(matches).unwrap(), action: Verdict::Exempt }
}

fn decide(matches: serde_json::Value) -> String {
    decided(&Policy { default: EVICT, rules: vec![rule(matches)] }, &pod(Some("ReplicaSet"))).rule
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
        (json!({"tty": false}), json!({"tty": true})),
        (json!({"podToken": false}), json!({"podToken": true})),
        (json!({"commandPrefix": ["sh", "-c"]}), json!({"commandPrefix": ["sh", "id"]})),
        (
            json!({"podSelector": {"matchLabels": {"tier": "db"}}}),
            json!({"podSelector": {"matchLabels": {"tier": "web"}}}),
        ),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["db", "web"]}]}}),
            json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}}),
        ),
        (json!({"ownerKinds": ["ReplicaSet"]}), json!({"ownerKinds": ["None"]})),
        (
            json!({"namespaceSelector": {"matchLabels": {"env": "prod"}}}),
            json!({"namespaceSelector": {"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod"]}]}}),
        ),
        (json!({}), json!({"namespaces": ["prod-*"], "groups": ["dev"]})),
    ] {
        assert_eq!(decide(yes.clone()), "r", "{yes}");
        assert_eq!(decide(no.clone()), "default", "{no}");
    }
}

#[test]
fn only_a_service_account_with_the_token_of_a_pod_has_a_pod_token() {
    let user = |name: &str, extra: &[&str]| User {
        name: name.into(),
        extra: extra.iter().map(|key| ((*key).to_owned(), vec!["x".to_owned()])).collect(),
        ..User::default()
    };
    let (account, pod, credential) = (
        "system:serviceaccount:ci:runner",
        "authentication.kubernetes.io/pod-name",
        "authentication.kubernetes.io/credential-id",
    );
    assert!(user(account, &[pod, credential]).has_pod_token());
    // kubectl --as, kubectl create token, and a person whose authenticator adds the key.
    for other in [user(account, &[]), user(account, &[credential]), user("alice", &[pod])] {
        assert!(!other.has_pod_token(), "{other:?}");
    }
}

#[test]
fn a_terminal_is_one_way_to_be_interactive() {
    for (stdin, tty, expected) in [
        (false, false, [false, false]),
        (true, false, [true, false]),
        (true, true, [true, true]),
        (false, true, [true, true]),
    ] {
        let i = Interaction { stdin, tty, ..interaction() };
        let found = ["interactive", "tty"].map(|field| {
            let matches: Match = serde_json::from_value(json!({ field: true })).unwrap();
            let it = Attributes { interaction: &i, user: &i.user, argv: &[], pod: &pod(None), namespace: None };
            matches.misses(it).unwrap().is_none()
        });
        assert_eq!(found, expected, "stdin {stdin}, tty {tty}");
    }
}

#[test]
fn labels_of_the_namespace_that_were_not_read_are_no_miss() {
    let i = interaction();
    let pod = pod(None);
    let decide = |rules: Vec<Rule>| {
        let it = Attributes { interaction: &i, user: &i.user, argv: &i.command, pod: &pod, namespace: None };
        Policy { default: EVICT, rules }.decide(it)
    };
    let selects = |mut matches: serde_json::Value| {
        matches["namespaceSelector"] = json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        rule(matches)
    };
    assert_eq!(decide(vec![selects(json!({}))]), Err(NamespaceNeeded));
    // They are not needed if another field decides, or an earlier rule.
    assert_eq!(decide(vec![selects(json!({"users": ["bob"]}))]).unwrap().rule, "default");
    assert_eq!(decide(vec![rule(json!({})), selects(json!({}))]).unwrap().rule, "r");
    assert_eq!(decide(vec![rule(json!({"namespaceSelector": {}}))]).unwrap().rule, "r");
}

#[test]
fn the_first_matching_rule_decides() {
    let rule = |name: &str, action| Rule { name: name.into(), matches: Match::default(), action };
    let policy = Policy {
        default: EVICT,
        rules: vec![rule("a", Verdict::Mark(Disposition::Record)), rule("b", Verdict::Exempt)],
    };
    let decision = decided(&policy, &pod(None));
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
        let unnamed = decided(&by_default, &pod(owner)).verdict;
        assert_eq!(unnamed, Verdict::Mark(Disposition::EvictIfOwned(Duration::from_secs(60))));
        assert_eq!(decided(&by_rule, &pod(owner)).verdict, Verdict::Mark(Disposition::Evict(Duration::from_secs(60))));
    }
    assert!(matches!(decided(&by_default, &pod(Some("StatefulSet"))).verdict, Verdict::Mark(Disposition::Evict(_))));
}

#[test]
fn pods_that_run_to_completion_are_evicted_only_by_a_named_rule() {
    let by_default = Policy { default: EVICT, rules: vec![] };
    for (policy, evicted) in [("Never", false), ("OnFailure", false), ("Always", true)] {
        let mut task = pod(Some("TaskRun"));
        task.spec = serde_json::from_value(json!({"restartPolicy": policy, "containers": []})).unwrap();
        let verdict = decided(&by_default, &task).verdict;
        assert_eq!(matches!(verdict, Verdict::Mark(Disposition::Evict(_))), evicted, "{policy}: {verdict:?}");
    }
}

#[test]
fn rules_see_a_quarantined_pod_as_it_was_before() {
    let database: Match = serde_json::from_value(json!({"podSelector": {"matchLabels": {"tier": "db"}}})).unwrap();
    let deny = Rule { name: "db".into(), matches: database, action: Verdict::Deny { message: "no".into() } };
    let policy = Policy { default: EVICT, rules: vec![deny] };
    let decide = |pod: &Pod| decided(&policy, pod).verdict;
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

#[test]
fn a_report_is_decided_by_every_rule_but_those_that_deny() {
    let mut report = interaction();
    (report.operation, report.command) = (Operation::Report, vec!["Terminal shell in container".into()]);
    let pod = pod(Some("ReplicaSet"));
    let deny = Verdict::Deny { message: String::new() };
    let decide = |rules: &[(serde_json::Value, &Verdict)], default: &Verdict| {
        let rules = rules.iter().map(|(matches, action)| Rule { action: (*action).clone(), ..rule(matches.clone()) });
        let policy = Policy { default: default.clone(), rules: rules.collect() };
        let it = Attributes {
            interaction: &report,
            user: &report.user,
            argv: &report.command,
            pod: &pod,
            namespace: Some(&Labels::new()),
        };
        let Decision { verdict, rule } = policy.decide(it).unwrap();
        assert_eq!(
            policy.possible(it, possible::Unknown::default()).decisions,
            [Decision { verdict: verdict.clone(), rule: rule.clone() }]
        );
        (verdict, rule)
    };
    let record = Verdict::Mark(Disposition::Record);
    assert_eq!(decide(&[(json!({}), &record)], &EVICT), (record.clone(), "r".into()));
    assert_eq!(decide(&[(json!({"operations": ["report"]}), &record)], &EVICT), (record.clone(), "r".into()));
    assert_eq!(decide(&[(json!({"operations": ["exec"]}), &record)], &EVICT), (EVICT, "default".into()));
    assert_eq!(decide(&[(json!({}), &deny)], &EVICT), (EVICT, "default".into()));
    assert_eq!(decide(&[], &deny), (record, "default".into()));
}
