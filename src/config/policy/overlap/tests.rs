use super::*;
use crate::{
    config::policy::{Attributes, Labels, Policy, Verdict, selector::tests::selectors},
    mark::{Disposition, Interaction, POD_NAME, User},
};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

fn rule(name: &str, matches: Value, action: Verdict) -> Rule {
    Rule { name: name.into(), matches: serde_json::from_value(matches).unwrap(), action }
}

fn reasons(rules: &[(Value, Verdict)]) -> Vec<(String, String)> {
    let rules: Vec<Rule> = rules
        .iter()
        .enumerate()
        .map(|(n, (matches, action))| rule(&n.to_string(), matches.clone(), action.clone()))
        .collect();
    dead(&rules).into_iter().map(|dead| (dead.rule, dead.why)).collect()
}

#[test]
fn a_rule_after_a_wider_rule_is_reported_with_that_rule() {
    let found = reasons(&[
        (json!({"namespaces": ["prod-*"]}), Verdict::Mark(Disposition::Record)),
        (json!({"namespaces": ["prod-eu"], "users": ["a"]}), Verdict::Exempt),
        (json!({"namespaces": ["prod-*"]}), Verdict::Mark(Disposition::Record)),
        (json!({"namespaces": ["prod-eu", "dev"]}), Verdict::Exempt),
    ]);
    let all = "the earlier rule \"0\" matches everything that it matches";
    assert_eq!(found, [("1".into(), format!("{all}, with another action")), ("2".into(), all.into())]);
}

#[test]
fn a_rule_without_operations_does_not_cover_port_forward_and_proxy() {
    assert_eq!(
        reasons(&[
            (json!({}), Verdict::Mark(Disposition::Record)),
            (json!({"operations": ["proxy"]}), Verdict::Exempt)
        ]),
        []
    );
    let found = reasons(&[
        (json!({"operations": ["exec", "attach", "debug", "report"]}), Verdict::Mark(Disposition::Record)),
        (json!({}), Verdict::Exempt),
    ]);
    assert_eq!(found.len(), 1);
}

#[test]
fn a_rule_that_no_interaction_can_match_is_reported() {
    for (matches, word) in [
        (json!({"operations": ["proxy"], "containers": ["app"]}), "container"),
        (json!({"operations": ["report", "proxy"], "containers": ["app"]}), "container"),
        (json!({"operations": ["port-forward"], "interactive": true}), "terminal"),
        (json!({"operations": ["report"], "tty": true}), "terminal"),
        (json!({"operations": ["attach"], "commandPrefix": ["sh"]}), "command"),
        (json!({"operations": ["proxy", "port-forward"], "tty": true}), "terminal"),
        (json!({"interactive": false, "tty": true}), "an interaction with a terminal is interactive"),
        (json!({"podToken": true, "users": ["alice"]}), "only ServiceAccounts"),
        (
            json!({"podSelector": {"matchLabels": {"k": "a"}, "matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["a"]}]}}),
            "no label k fulfils all conditions of podSelector",
        ),
        (
            json!({"namespaceSelector": {"matchExpressions": [
                {"key": "e", "operator": "Exists"}, {"key": "e", "operator": "DoesNotExist"},
            ]}}),
            "no label e fulfils all conditions of namespaceSelector",
        ),
    ] {
        let found = reasons(&[(matches, Verdict::Mark(Disposition::Record))]);
        assert!(found[0].1.starts_with("no interaction matches it: ") && found[0].1.contains(word), "{found:?}");
    }
}

#[test]
fn a_rule_covers_the_rules_whose_fields_imply_its_own() {
    let env = |values: &[&str]| json!({"matchExpressions": [{"key": "env", "operator": "In", "values": values}]});
    for (wide, narrow, is_dead) in [
        (json!({"interactive": true}), json!({"tty": true}), true),
        (json!({"tty": true}), json!({"interactive": true}), false),
        (json!({"tty": false}), json!({"interactive": false}), true),
        (json!({"interactive": false}), json!({"tty": false}), false),
        (json!({"podSelector": env(&["a", "b"])}), json!({"podSelector": {"matchLabels": {"env": "a"}}}), true),
        (json!({"podSelector": env(&["a", "b"])}), json!({"podSelector": env(&["a", "c"])}), false),
        (json!({"podSelector": env(&["a"])}), json!({"namespaceSelector": env(&["a"])}), false),
        (json!({"namespaceSelector": env(&["a", "b"])}), json!({"namespaceSelector": env(&["b"])}), true),
        (json!({"namespaceSelector": env(&["a"])}), json!({}), false),
        (json!({"podToken": true}), json!({"podToken": true, "tty": false}), true),
        (json!({"podToken": true}), json!({"tty": false}), false),
        (json!({"podToken": false}), json!({"users": ["alice"]}), true),
        (json!({"podToken": false}), json!({"users": ["alice", "system:serviceaccount:a:b"]}), false),
    ] {
        let found = reasons(&[(wide.clone(), Verdict::Exempt), (narrow.clone(), Verdict::Exempt)]);
        assert_eq!(found.len(), usize::from(is_dead), "{wide} {narrow}");
    }
}

fn matches() -> impl Strategy<Value = Match> {
    let some = |words: &'static [&'static str]| proptest::sample::subsequence(words, 0..=words.len().min(2));
    let machines = (proptest::option::of(any::<bool>()), proptest::option::of(any::<bool>()));
    let selectors = (machines, selectors(), selectors());
    (
        some(&["a", "a*", "?", "*", "ab", "b?"]),
        some(&["u", "v", "system:serviceaccount:u"]),
        some(&["g", "h"]),
        some(&["exec", "attach", "proxy", "report"]),
        some(&["c", "d"]),
        proptest::option::of(any::<bool>()),
        some(&["sh", "-c"]),
        selectors,
        some(&["Job", "None"]),
    )
        .prop_map(|(namespaces, users, groups, operations, containers, interactive, prefix, selectors, kinds)| {
            let ((tty, pod_token), pod_selector, namespace_selector) = selectors;
            let matches = serde_json::from_value(json!({
                "namespaces": namespaces, "users": users, "groups": groups, "operations": operations,
                "containers": containers, "interactive": interactive, "tty": tty, "podToken": pod_token,
                "commandPrefix": prefix, "ownerKinds": kinds,
            }));
            Match { pod_selector, namespace_selector, ..matches.unwrap() }
        })
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map("[kl]", "[wxyz]", 0..=2)
}

proptest! {
    #[test]
    fn a_dead_rule_never_decides(
        rules in proptest::collection::vec((matches(), any::<bool>()), 2..6),
        (namespace, user, group) in (prop_oneof!["a", "ab", "b", "bc", "c"], "(system:serviceaccount:)?[uvw]", "[ghi]"),
        (operation, container, stdin, tty) in (0..Operation::ALL.len(), "[cde]", any::<bool>(), any::<bool>()),
        command in prop_oneof![Just(vec![]), Just(vec!["sh"]), Just(vec!["sh", "-c", "id"])],
        (labels, namespace_labels) in (labels(), labels()),
        (owner, has_pod) in (any::<bool>(), any::<bool>()),
    ) {
        let action = |denies| {
            if denies { Verdict::Deny { message: String::new() } } else { Verdict::Mark(Disposition::Record) }
        };
        let rules = rules.into_iter().enumerate();
        let rules = rules.map(|(n, (matches, denies))| Rule { name: n.to_string(), matches, action: action(denies) });
        let rules: Vec<Rule> = rules.collect();
        let owners = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "o", "uid": "o", "controller": true}]);
        let pod: Pod = serde_json::from_value(json!({"metadata": {
            "namespace": namespace, "name": "p", "labels": labels, "ownerReferences": owner.then_some(owners),
        }})).unwrap();
        let operation = Operation::ALL[operation];
        let enters = operation.enters() && operation != Operation::Report;
        let command = if operation == Operation::Attach { vec![] } else { command };
        let argv: Vec<String> = command.into_iter().map(str::to_owned).collect();
        let extra = has_pod.then(|| (POD_NAME.to_owned(), vec!["p".to_owned()]));
        let user = User { name: user, groups: vec![group], extra: extra.into_iter().collect(), ..User::default() };
        let interaction = Interaction {
            at: jiff::Timestamp::UNIX_EPOCH, operation,
            container: if enters { container } else { String::new() },
            command: argv.clone(), stdin: stdin && enters, tty: tty && enters, user: user.clone(),
            review: String::new(), rule: String::new(),
        };
        let dead: Vec<String> = dead(&rules).into_iter().map(|dead| dead.rule).collect();
        let it = Attributes {
            interaction: &interaction, user: &user, argv: &argv, pod: &pod, namespace: Some(&namespace_labels),
        };
        let decided = Policy { default: Verdict::Exempt, rules }.decide(it).unwrap().rule;
        prop_assert!(!dead.contains(&decided), "{decided} of {dead:?}");
    }
}

#[test]
fn a_rule_after_one_that_denies_still_decides_about_reports() {
    let deny = || Verdict::Deny { message: String::new() };
    let after = |matches: Value, action: Verdict| reasons(&[(json!({}), deny()), (matches, action)]).len();
    assert_eq!(after(json!({}), Verdict::Mark(Disposition::Record)), 0);
    assert_eq!(after(json!({"operations": ["report"]}), Verdict::Exempt), 0);
    assert_eq!(after(json!({"operations": ["exec"]}), Verdict::Exempt), 1);
    assert_eq!(after(json!({}), deny()), 1);
}
