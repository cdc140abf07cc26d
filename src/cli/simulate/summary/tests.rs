use super::*;
use crate::{
    admission::review::Act,
    config::{self, policy::possible::Unknown},
    mark::{POD_NAME, User},
};
use serde_json::json;

const HEAD: &str = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\n";

/// The pods of the list: `db-0` of a StatefulSet, `bare`, and `static-node`.
fn pods() -> Pods {
    let pod = |name: &str, owner: Option<&str>, annotations: serde_json::Value| {
        let owners =
            owner.map(|kind| json!([{"apiVersion": "v1", "kind": kind, "name": "db", "uid": "u", "controller": true}]));
        json!({
            "metadata": {"namespace": "n", "name": name, "labels": {"tier": "db"}, "ownerReferences": owners, "annotations": annotations},
            "spec": {"nodeName": "node", "containers": [{"name": "app"}]},
        })
    };
    let mirror = json!({"kubernetes.io/config.mirror": "x"});
    let items = json!([
        pod("db-0", Some("StatefulSet"), json!({})),
        pod("bare", None, json!({})),
        pod("static-node", Some("Node"), mirror)
    ]);
    Pods::parse(json!({"items": items}).to_string().as_bytes()).unwrap()
}

fn summary(rules: &str, pods: Pods) -> Summary {
    Summary::new(config::parse("f", &format!("{HEAD}{rules}")).unwrap().policy, pods)
}

/// An exec into this pod, so many seconds after the first.
fn exec(pod: &str, second: i64) -> Event {
    let at = Timestamp::from_second(1_790_000_000 + second).unwrap();
    let command = vec!["mysql".to_owned(), "--password=hunter2".to_owned()];
    Event {
        id: String::new(),
        at,
        written: at,
        is_get: true,
        is_admitted: true,
        uri: format!("{pod}{second}"),
        namespace: "n".into(),
        pod: pod.into(),
        user: User { name: "alice".into(), ..User::default() },
        act: Act { operation: Operation::Exec, container: String::new(), command, stdin: false, tty: false },
        unknown: Unknown { pod: true, ..Unknown::default() },
    }
}

fn only(summary: &Summary) -> (&Key, &Row) {
    assert_eq!(summary.rows.len(), 1, "{:?}", summary.rows);
    summary.rows.first_key_value().unwrap()
}

#[test]
fn a_pod_in_the_list_decides_what_depends_on_its_owner_without_it() {
    let rules = "default: {action: Evict, ttl: 10m}\n";
    for (pods, pod, outcome, kind, evictions) in [
        (Pods::default(), "db-0", Outcome::Depends, None, (0, 1)),
        (pods(), "db-0", Outcome::WouldEvict, Some("StatefulSet"), (1, 1)),
        (pods(), "bare", Outcome::WouldNotEvict, Some("Pod"), (0, 0)),
        (pods(), "db-1", Outcome::Depends, None, (0, 1)),
        (pods(), "static-node", Outcome::WouldNotEvict, Some("Pod"), (0, 0)),
    ] {
        let mut summary = summary(rules, pods);
        summary.add(exec(pod, 0));
        let (key, row) = only(&summary);
        assert_eq!((key.effect.outcome, row.kind.as_deref(), row.is_guess), (outcome, kind, kind.is_none()), "{pod}");
        assert_eq!((row.evictions, row.evictions_at_most), evictions, "{pod}");
    }
}

#[test]
fn the_only_container_of_a_known_pod_is_the_one_that_a_rule_compares() {
    let rules = "default: {action: Exempt}\nrules: [{name: app, match: {containers: [app]}, action: Evict, ttl: 1m}]\n";
    for (pods, outcome, on) in
        [(pods(), Outcome::WouldEvict, vec![]), (Pods::default(), Outcome::Depends, vec!["container"])]
    {
        let mut summary = summary(rules, pods);
        summary.add(exec("db-0", 0));
        let effect = &only(&summary).0.effect;
        assert_eq!((effect.outcome, &effect.depends_on), (outcome, &on));
    }
}

#[test]
fn a_pod_is_evicted_at_most_once_in_a_ttl() {
    let rules = "default: {action: Record}\nrules: [{name: all, action: Evict, ttl: 10m}]\n";
    for (seconds, expected) in [
        (vec![0, 1, 599, 600], 1),
        (vec![0, 601], 2),
        (vec![0, 599, 1198], 2),
        (vec![0, 3600, 7200], 3),
        // Out of order, as the ends of long sessions are.
        (vec![7200, 0, 7201, 7199], 2),
    ] {
        let mut summary = summary(rules, Pods::default());
        seconds.iter().for_each(|second| summary.add(exec("db-0", *second)));
        let row = only(&summary).1;
        assert_eq!((row.evictions, row.evictions_at_most), (expected, expected), "{seconds:?}");
    }
    let mut summary = summary(rules, Pods::default());
    ["db-0", "db-1", "db-0"].into_iter().for_each(|pod| summary.add(exec(pod, 0)));
    assert_eq!(only(&summary).1.evictions, 2, "each pod name has its own");
}

#[test]
fn commands_are_kept_redacted_and_few() {
    let mut summary = summary("default: {action: Record}\n", Pods::default());
    for n in 0..9 {
        let mut event = exec("db-0", n);
        event.act.command.push(n.to_string());
        summary.add(event);
    }
    let commands = &only(&summary).1.commands;
    assert_eq!(commands.len(), MAX_COMMANDS);
    assert_eq!(commands[0], ["mysql", "--password=•••", "0"]);
}

#[test]
fn a_denial_is_no_eviction_and_break_glass_is_recorded() {
    let mut first = summary("default: {action: Deny}\n", Pods::default());
    first.add(exec("db-0", 0));
    assert_eq!(only(&first).0.effect.actions, ["deny"]);
    assert_eq!(only(&first).0.effect.outcome, Outcome::WouldNotEvict);
    let mut second = summary("default: {action: Deny}\n", Pods::default());
    let mut event = exec("db-0", 0);
    event.user.groups = vec!["pristine:break-glass".into()];
    second.add(event);
    assert_eq!(only(&second).0.effect.actions, ["record"]);
}

/// The token of a pod of this ServiceAccount.
fn machine(pod: &str, second: i64) -> Event {
    let extra = [(POD_NAME.to_owned(), vec!["operator-0".to_owned()])].into();
    let user = User { name: "system:serviceaccount:n:operator".into(), extra, ..User::default() };
    Event { user, ..exec(pod, second) }
}

#[test]
fn terminals_are_counted_where_they_are_known() {
    let mut summary = summary("default: {action: Record}\n", Pods::default());
    let mut tty = exec("db-0", 0);
    tty.act.tty = true;
    let mut unknown = exec("db-0", 2);
    unknown.unknown.streams = true;
    [tty, exec("db-0", 1), unknown].into_iter().for_each(|event| summary.add(event));
    let row = only(&summary).1;
    assert_eq!((row.count, row.with_tty, row.without_tty), (3, 1, 1));
}

#[test]
fn under_the_built_in_rules_a_machine_is_recorded_and_a_person_as_the_same_service_account_is_evicted() {
    let mut terminal = machine("db-0", 0);
    terminal.act.tty = true;
    let mut impersonated = machine("db-0", 0);
    impersonated.user.extra.clear();
    let mut unknown = machine("db-0", 0);
    unknown.unknown.streams = true;
    for (event, has_token, outcome, rules) in [
        (machine("db-0", 0), true, Outcome::WouldNotEvict, &["machines"][..]),
        (terminal, true, Outcome::WouldEvict, &["default"]),
        (impersonated, false, Outcome::WouldEvict, &["default"]),
        (unknown, true, Outcome::Depends, &["machines", "default"]),
    ] {
        let mut summary = Summary::new(config::parse("built in", config::BUILT_IN).unwrap().policy, pods());
        summary.add(event);
        let key = only(&summary).0;
        assert_eq!((key.has_pod_token, key.effect.outcome), (has_token, outcome), "{key:?}");
        assert_eq!(key.effect.rules, rules);
    }
}

#[test]
fn an_audit_log_does_not_say_the_labels_of_a_namespace() {
    let rules = "default: {action: Record}\nrules: [{name: prod, match: {namespaceSelector: {matchLabels: {env: prod}}}, \
                 action: Evict, ttl: 1m}]\n";
    let mut summary = summary(rules, pods());
    summary.add(exec("db-0", 0));
    let effect = &only(&summary).0.effect;
    assert_eq!((effect.outcome, &effect.depends_on), (Outcome::Depends, &vec!["labels of the namespace"]));
}

#[test]
fn a_request_that_was_not_admitted_is_only_counted_as_such() {
    let mut summary = summary("default: {action: Record}\n", Pods::default());
    let mut refused = exec("db-0", 0);
    refused.is_admitted = false;
    summary.add(refused);
    assert_eq!((summary.count(), summary.refused), (0, 1));
    // The second attempt of the same.
    let mut again = exec("db-0", 1);
    again.uri = "db-00".into();
    summary.add(again);
    assert_eq!((summary.count(), summary.refused), (1, 0));
}

#[test]
fn the_memory_does_not_grow_with_the_names_of_pods() {
    let mut summary = summary("default: {action: Evict, ttl: 10m}\n", Pods::default());
    let letters: Vec<char> = "bcdfghjklmnpqrstvwxz".chars().collect();
    for n in 0..50_000_usize {
        let suffix: String = [n, n / 20, n / 400, n / 8000, 0].iter().map(|n| letters[n % 20]).collect();
        summary.add(exec(&format!("web-79db7494b-{suffix}"), i64::try_from(n).unwrap() * 60));
    }
    assert_eq!(only(&summary).1.evictions_at_most, 50_000);
    assert!(summary.marks.len() <= MIN_MARKS, "{}", summary.marks.len());
}

#[test]
fn the_rules_of_the_user_that_decide_none_of_the_interactions_are_named() {
    let rules = "default: {action: Record}\nrules:\n\
                 - {name: kube-system, match: {namespaces: [kube-system]}, action: Record}\n\
                 - {name: typo, match: {users: [alcie]}, action: Exempt}\n\
                 - {name: maybe, match: {podSelector: {matchLabels: {a: b}}}, action: Exempt}\n";
    let mut summary = summary(rules, Pods::default());
    assert!(summary.idle_rules().is_empty(), "there is no interaction");
    summary.add(exec("db-0", 0));
    assert_eq!(summary.idle_rules(), ["typo"]);
}
