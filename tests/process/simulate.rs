//! `pristine simulate` on audit logs as API servers and clouds write them.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

struct Line {
    id: &'static str,
    user: &'static str,
    pod: &'static str,
    verb: &'static str,
    query: &'static str,
    code: u16,
    /// Minutes after ten.
    minute: u32,
}

const EXEC: Line = Line {
    id: "a1",
    user: "alice@example.com",
    pod: "web-79db7494b-f6q44",
    verb: "get",
    query: "command=mysql&command=-phunter2&container=app&stdin=true&stdout=true&tty=true",
    code: 101,
    minute: 0,
};

impl Line {
    fn stage(&self, stage: &str) -> String {
        let Self { id, user, pod, verb, query, code, minute } = self;
        let is_machine = user.starts_with("system:serviceaccount:");
        let extra =
            if is_machine { json!({"authentication.kubernetes.io/pod-name": ["operator-0"]}) } else { json!({}) };
        let line = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": id, "stage": stage,
            "requestURI": format!("/api/v1/namespaces/shop/pods/{pod}/exec?{query}"), "verb": verb,
            "user": {"username": user, "groups": ["system:authenticated"], "extra": extra},
            "sourceIPs": ["10.0.0.1"], "userAgent": "kubectl/v1.37.2 (linux/amd64) kubernetes/abcdef",
            "objectRef": {"resource": "pods", "namespace": "shop", "name": pod, "apiVersion": "v1", "subresource": "exec"},
            "responseStatus": {"metadata": {}, "code": code},
            "requestReceivedTimestamp": format!("2026-11-20T10:{minute:02}:00.123456Z"),
            "stageTimestamp": format!("2026-11-20T10:{minute:02}:00.223456Z"),
            "annotations": {"authorization.k8s.io/decision": "allow"},
        });
        line.to_string()
    }

    /// The two lines of one request.
    fn both(&self) -> String {
        format!("{}\n{}\n", self.stage("ResponseStarted"), self.stage("ResponseComplete"))
    }
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, bytes).unwrap();
    file
}

fn simulate(arguments: &[&str], input: &[u8]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pristine"));
    let command = command.arg("simulate").args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn as_json(arguments: &[&str], input: &[u8]) -> Value {
    let (ok, text) = simulate(&[arguments, &["-o", "json"]].concat(), input);
    assert!(ok, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

const PODS: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {
    "namespace": "shop", "name": "web-79db7494b-f6q44", "labels": {"pod-template-hash": "79db7494b"}, "ownerReferences": [
    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-79db7494b", "uid": "u", "controller": true}]},
    "spec": {"nodeName": "n", "restartPolicy": "Always", "containers": [{"name": "app"}]}}]}"#;

#[test]
fn the_tables_say_who_execs_where_and_what_the_built_in_rules_would_do() {
    let pods = file(PODS.as_bytes());
    let machine = Line {
        id: "b1",
        user: "system:serviceaccount:shop:operator",
        pod: "db-0",
        query: "command=true&container=db&stdout=true",
        ..EXEC
    };
    let log = format!("{}{}cut\"}}\n", EXEC.both(), machine.both());
    let arguments = ["--audit-log", "-", "--pods", pods.path().to_str().unwrap()];
    let expected = "2 interactions from 2026-11-20T10:00:00Z to 2026-11-20T10:00:00Z, under the built-in configuration

USER                                        WORKLOAD   OPERATION   COUNT   DECISION                   RULE       COMMAND
alice@example.com                           shop/web   exec        1       would evict                default    mysql -p•••
system:serviceaccount:shop:operator (pod)   shop/db*   exec        1       would not evict (record)   machines   true

WORKLOAD   EVICTIONS   AT-MOST   INTERACTIONS   USERS
shop/web   1           1         1              1

5 records read: 0 of other requests; skipped: 1 not JSON or cut, 0 not of an audit log, 0 too long
1 of 2 interactions were with pods that are in the list of pods; it shows them as they are now
*: the name of the workload is a guess from the name of its pod
EVICTIONS counts at most one eviction of a pod name in each ttl. AT-MOST adds those that depend on what is not known. Interactions with the pods that replace evicted ones are not simulated
";
    let (ok, text) = simulate(&arguments, log.as_bytes());
    assert!(ok && text == expected, "{text}");
}

/// Execs of this user without a terminal, one every six minutes.
fn every_six_minutes(user: &'static str, count: u32) -> String {
    let line = |n| Line { user, pod: "db-0", query: "command=true", minute: 6 * (n % 10), ..EXEC }.both();
    (0..count)
        .map(|n| line(n).replace("\"a1\"", &format!("\"c{n}\"")).replace("T10:", &format!("T{}:", 10 + n / 10)))
        .collect()
}

/// The suggested rules are the whole configuration, and `check-config` accepts them.
fn accepted(found: &Value, rules: u32) -> tempfile::NamedTempFile {
    assert_eq!(found["suggestedRulesAreWholeConfiguration"], true);
    let file = file(found["suggestedRules"].as_str().unwrap().as_bytes());
    let path = file.path().to_str().unwrap();
    let check = Command::new(env!("CARGO_BIN_EXE_pristine")).args(["check-config", path]).output().unwrap();
    let expected = format!("{path}: ok, {rules} rules and a default\n");
    assert_eq!(String::from_utf8([check.stdout, check.stderr].concat()).unwrap(), expected);
    file
}

const OPERATOR: &str = "system:serviceaccount:shop:operator";

#[test]
fn the_built_in_rules_record_the_token_of_a_pod_without_a_terminal_and_no_rule_is_suggested() {
    let found = as_json(&["--audit-log", "-"], every_six_minutes(OPERATOR, 9).as_bytes());
    let row = &found["interactions"][0];
    assert_eq!((&row["count"], &row["decision"]), (&json!(9), &json!("would-not-evict")), "{found}");
    assert_eq!((&row["rules"], &row["hasPodToken"]), (&json!(["machines"]), &json!(true)));
    assert_eq!((&found["workloads"][0]["evictionsAtMost"], &found["suggestedRules"]), (&json!(0), &Value::Null));
}

#[test]
fn check_config_accepts_the_suggested_rules_and_with_them_the_machine_evicts_nothing() {
    let text = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: 10m}\n";
    let (own, log) = (file(text.as_bytes()), every_six_minutes(OPERATOR, 9));
    let found = as_json(&["--audit-log", "-", "--config", own.path().to_str().unwrap()], log.as_bytes());
    // At 0, 12, 24, 36 and 48 minutes: the execs in between are with a pod that is already marked.
    assert_eq!(found["workloads"][0]["evictionsAtMost"], 5, "{found}");
    let rules = accepted(&found, 1);
    assert!(found["suggestedRules"].as_str().unwrap().contains("\"podToken\":true,\"tty\":false"), "{found}");
    let found = as_json(&["--audit-log", "-", "--config", rules.path().to_str().unwrap()], log.as_bytes());
    assert_eq!((&found["interactions"][0]["count"], &found["workloads"][0]["evictionsAtMost"]), (&json!(9), &json!(0)));
    assert_eq!(found["suggestedRules"], Value::Null);
}

#[test]
fn for_a_machine_without_the_token_of_a_pod_a_rule_is_suggested_before_the_built_in_ones() {
    let log = every_six_minutes("ci@example.com", 20);
    let found = as_json(&["--audit-log", "-"], log.as_bytes());
    assert_eq!(found["workloads"][0]["evictionsAtMost"], 10, "{found}");
    let rules = accepted(&found, 3);
    let found = as_json(&["--audit-log", "-", "--config", rules.path().to_str().unwrap()], log.as_bytes());
    assert_eq!((&found["workloads"][0]["evictionsAtMost"], &found["suggestedRules"]), (&json!(0), &Value::Null));
}

#[test]
fn a_fallback_from_websocket_is_one_interaction_and_a_denied_request_is_none() {
    let denied = Line { id: "d1", code: 403, user: "bob", ..EXEC }.stage("ResponseComplete");
    let first = Line { id: "d2", code: 500, ..EXEC }.stage("ResponseComplete");
    let second = Line { id: "d3", verb: "create", ..EXEC }.both();
    let found = as_json(&["--audit-log", "-"], format!("{denied}\n{first}\n{second}").as_bytes());
    assert_eq!((&found["interactions"][0]["count"], &found["notAdmitted"]), (&json!(1), &json!(1)));
}

#[test]
fn a_log_without_the_verb_get_brings_a_warning() {
    let has_warning = |verb| {
        let found = as_json(&["--audit-log", "-"], Line { verb, ..EXEC }.both().as_bytes());
        found["notes"].to_string().contains("has the verb get")
    };
    assert!(has_warning("create") && !has_warning("get"));
}

#[test]
fn files_are_read_together_in_the_order_of_time_in_whatever_order_they_are_named() {
    // Of two API servers, the second of which has the earlier exec. In the other order, they are two marks.
    let early = file(Line { id: "e1", minute: 0, ..EXEC }.both().as_bytes());
    let late = file(
        gzip(&[Line { id: "e2", minute: 8, ..EXEC }.both(), Line { id: "e3", minute: 16, ..EXEC }.both()].concat())
            .as_slice(),
    );
    let (early, late) = (early.path().to_str().unwrap(), late.path().to_str().unwrap());
    for files in [[early, late], [late, early]] {
        let found = as_json(&["--audit-log", files[0], files[1]], b"");
        assert_eq!((&found["interactions"][0]["count"], &found["records"]), (&json!(3), &json!(6)), "{files:?}");
        assert_eq!(found["workloads"][0]["evictionsAtMost"], 2, "{files:?}");
    }
}

#[test]
fn exports_of_cloudwatch_and_of_cloud_logging_are_read() {
    let message = |stage| json!({"timestamp": 1_763_632_800_000_u64, "message": EXEC.stage(stage)});
    let (started, complete) = (message("ResponseStarted"), message("ResponseComplete"));
    let document = json!({"events": [started, complete], "searchedLogStreams": []});
    let entry = json!({
        "insertId": "i", "timestamp": "2026-11-20T10:00:00Z", "operation": {"id": "a1", "producer": "k8s.io"},
        "protoPayload": {
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog", "serviceName": "k8s.io",
            "methodName": "io.k8s.core.v1.pods.exec.create", "authenticationInfo": {"principalEmail": "alice@example.com"},
            "resourceName": "core/v1/namespaces/shop/pods/web-79db7494b-f6q44/exec", "status": {},
        },
    });
    for text in [
        document.to_string(),
        serde_json::to_string_pretty(&document).unwrap(),
        format!("{started}\n{complete}\n"),
        serde_json::to_string_pretty(&json!([entry, entry])).unwrap(),
        format!("{entry}\n{entry}\n"),
    ] {
        let found = as_json(&["--audit-log", "-"], text.as_bytes());
        let row = &found["interactions"][0];
        assert_eq!(
            (&row["user"], &row["workload"], &row["count"]),
            (&json!("alice@example.com"), &json!("web"), &json!(1)),
            "{text}"
        );
    }
}

#[test]
fn damaged_files_are_read_as_far_as_possible_and_reported() {
    let whole = gzip(&EXEC.both().repeat(2000));
    let cut = file(&whole[..whole.len() / 2]);
    let found = as_json(&["--audit-log", cut.path().to_str().unwrap()], b"");
    assert_eq!(found["interactions"][0]["count"], 1);
    assert!(found["incompleteFiles"][0].as_str().unwrap().starts_with(cut.path().to_str().unwrap()), "{found}");

    let found = as_json(&["--audit-log", "-"], b"\x1f\x8bgarbage");
    assert_eq!(
        (found["incompleteFiles"].as_array().unwrap().len(), &found["interactions"]),
        (1, &json!([])),
        "{found}"
    );

    let other = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "stage": "ResponseComplete", "verb": "get",
        "objectRef": {"resource": "pods", "apiGroup": "metrics.k8s.io", "subresource": "exec"}});
    let log = format!("{other}\n\u{0}\u{1}\n{{\"a\": 1}}\n{}", EXEC.both());
    let found = as_json(&["--audit-log", "-"], log.as_bytes());
    assert_eq!((&found["records"], &found["otherRequests"]), (&json!(5), &json!(1)));
    assert_eq!(found["skipped"], json!({"notJson": 1, "notAuditLog": 1, "tooLong": 0}));
}

#[test]
fn a_file_that_is_not_there_or_has_no_pods_is_named() {
    let (ok, text) = simulate(&["--audit-log", "/does/not/exist"], b"");
    assert!(!ok && text.starts_with("pristine: cannot read /does/not/exist: No such file"), "{text}");
    let (log, pods) = (file(b""), file(b"{}"));
    let (log, pods) = (log.path().to_str().unwrap(), pods.path().to_str().unwrap());
    let (ok, text) = simulate(&["--audit-log", log, "--pods", pods], b"");
    assert!(!ok && text.starts_with(&format!("pristine: {pods} is not a list of pods")), "{text}");
}
