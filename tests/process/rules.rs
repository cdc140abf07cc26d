//! Rules that tell machines from people, and rules about the labels of the namespace, in process.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    fake::{Fake, Fault, pod},
    harness::{Webhook, denial, exec, webhook},
};

const MACHINES: &str = "default: {action: Evict, ttl: 10m}\nrules: [{name: machines, match: {podToken: true, tty: false}, action: Record}]\n";
const PROD: &str = "default: {action: Record}\nrules: [{name: prod, match: {namespaceSelector: {matchLabels: {env: prod}}}, action: Deny, message: no}]\n";

/// An exec without a terminal, by a ServiceAccount with the token of a pod.
fn machine() -> Value {
    let mut request = exec("system:serviceaccount:ci:runner", &["true"]);
    request["userInfo"]["extra"] = json!({
        "authentication.kubernetes.io/pod-name": ["runner-0"], "authentication.kubernetes.io/pod-uid": ["u"],
    });
    request
}

async fn with(rules: &str) -> Webhook {
    webhook(Fake::with([pod("n", "p", "u1")]), rules).await
}

/// In a namespace with these labels.
async fn in_namespace(labels: Value) -> Webhook {
    let webhook = with(PROD).await;
    webhook.fake.state().namespace_labels = labels;
    webhook
}

#[tokio::test]
async fn a_machine_is_recorded_and_a_person_as_the_same_service_account_is_evicted() {
    let mut terminal = machine();
    terminal["object"]["tty"] = json!(true);
    let mut impersonated = machine();
    impersonated["userInfo"]["extra"] = Value::Null;
    let mut created = machine();
    created["userInfo"]["extra"] = json!({"authentication.kubernetes.io/credential-id": ["JTI=x"]});
    for (request, rule) in
        [(machine(), "machines"), (terminal, "default"), (impersonated, "default"), (created, "default")]
    {
        let webhook = with(MACHINES).await;
        assert_eq!(webhook.review(&request).await["allowed"], true);
        assert_eq!(webhook.interactions()["first"]["rule"], rule, "{request}");
        let evict_at = webhook.fake.pod("n/p")["metadata"]["annotations"]["pristine/evict-at"].clone();
        assert_eq!(evict_at.is_string(), rule == "default", "{request}");
    }
}

#[tokio::test]
async fn the_mark_and_the_audit_log_name_the_pod_of_a_machine() {
    let webhook = with(MACHINES).await;
    webhook.review(&machine()).await;
    let extra = json!({"authentication.kubernetes.io/pod-name": ["runner-0"]});
    assert_eq!(webhook.interactions()["first"]["user"]["extra"], extra);
    assert_eq!(webhook.audit_log.lock().unwrap()[0]["interaction"]["user"]["extra"], extra);
}

#[tokio::test]
async fn the_labels_of_the_namespace_decide() {
    for (labels, allowed) in [(json!({"env": "prod"}), false), (json!({"env": "dev"}), true), (Value::Null, true)] {
        let webhook = in_namespace(labels.clone()).await;
        assert_eq!(webhook.review(&exec("a", &["sh"])).await["allowed"], allowed, "{labels}");
        assert_eq!(webhook.fake.count("GET /api/v1/namespaces/n"), 2, "one of the pod and one of the namespace");
    }
}

#[tokio::test]
async fn the_namespace_is_read_only_if_a_rule_needs_it() {
    let selects = "{name: prod, match: {users: [bob], namespaceSelector: {matchLabels: {env: prod}}}, action: Deny}";
    for first in ["", "{name: first, match: {users: [a]}, action: Record}, "] {
        let webhook = with(&format!("default: {{action: Record}}\nrules: [{first}{selects}]\n")).await;
        webhook.fake.state().refuse_namespaces = Some(500);
        assert_eq!(webhook.review(&exec("a", &["sh"])).await["allowed"], true);
        assert_eq!(webhook.fake.count("GET /api/v1/namespaces/n"), 1, "the pod");
    }
}

#[tokio::test]
async fn a_namespace_that_cannot_be_read_is_no_namespace_without_labels() {
    let review =
        |request: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
    let webhook = in_namespace(json!({"env": "prod"})).await;
    webhook.fake.state().refuse_namespaces = Some(503);
    let answer = webhook.post(review(exec("a", &["sh"])).to_string().as_bytes()).await;
    assert_eq!((answer.status, answer.retry, answer.close), (503, true, true), "{answer:?}");
    assert_eq!(webhook.interactions(), Value::Null);

    // Once it can be read, the same review is decided.
    let webhook = in_namespace(json!({"env": "dev"})).await;
    webhook.fake.state().refuse_namespaces = Some(503);
    let fake = webhook.fake.clone();
    let heal = async {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        fake.state().refuse_namespaces = None;
    };
    let request = review(exec("a", &["sh"]));
    let ((answer, calls), ()) = tokio::join!(webhook.call(&request), heal);
    assert!(answer.status == 200 && calls > 1, "{calls} calls: {answer:?}");
    assert_eq!(webhook.interactions()["total"], 1);

    // Without the permission it is denied, and the message names it.
    let webhook = in_namespace(json!({"env": "dev"})).await;
    webhook.fake.state().refuse_namespaces = Some(403);
    let response = webhook.review(&exec("a", &["sh"])).await;
    let (allowed, code, message) = denial(&response);
    assert!(!allowed && code == 503 && message.contains("cannot get namespaces"), "{message}");

    // Another client deleted it, and its pods with it.
    let webhook = in_namespace(json!({"env": "dev"})).await;
    webhook.fake.state().refuse_namespaces = Some(404);
    assert_eq!(denial(&webhook.review(&exec("a", &["sh"])).await), (false, 404, "pods \"p\" not found"));
}

#[tokio::test]
async fn one_failure_to_read_the_namespace_refuses_no_exec() {
    for fault in [Fault::Answer(429), Fault::Answer(500), Fault::Reset, Fault::Silence] {
        let webhook = in_namespace(json!({"env": "dev"})).await;
        webhook.fake.state().fault = Some(fault);
        assert_eq!(webhook.review(&exec("a", &["sh"])).await["allowed"], true, "{fault:?}");
        assert_eq!(webhook.interactions()["total"], 1, "{fault:?}");
    }
}

#[tokio::test]
async fn reviews_that_are_written_together_read_the_namespace_once_each() {
    let webhook = in_namespace(json!({"env": "dev"})).await;
    webhook.fake.state().conflicts = 2;
    webhook.fake.state().slow = Duration::from_millis(20);
    let requests: Vec<Value> = (0..20)
        .map(|n| {
            let mut request = exec("a", &["echo", &n.to_string()]);
            request["uid"] = json!(format!("r{n}"));
            request
        })
        .collect();
    futures_util::future::join_all(requests.iter().map(|request| webhook.review(request))).await;
    assert_eq!(webhook.interactions()["total"], 20);
    let calls = webhook.fake.state().calls.clone();
    assert_eq!(calls.iter().filter(|call| *call == "GET /api/v1/namespaces/n").count(), 20);
}

#[tokio::test]
async fn each_interaction_counts_for_the_rule_that_decided_it() {
    let rules = "default: {action: Evict, ttl: 10m}\nrules:\n- {name: out, match: {users: [mallory]}, action: Deny}\n\
                 - {name: backups, match: {users: [velero]}, action: Exempt}\n- {name: idle, match: {users: [x]}, action: Record}\n";
    let webhook = with(rules).await;
    let counts = || ["out", "backups", "idle", "default"].map(|rule| webhook.decisions(rule).unwrap());
    assert_eq!(counts(), [0, 0, 0, 0]);
    for (n, user) in ["mallory", "velero", "velero", "alice", "alice"].into_iter().enumerate() {
        let mut request = exec(user, &["sh"]);
        request["uid"] = json!(format!("r{n}"));
        webhook.review(&request).await;
    }
    // The second exec of alice repeats the first, and is no further interaction.
    assert_eq!(counts(), [1, 2, 0, 1]);
    assert_eq!(webhook.audit_log.lock().unwrap().len(), 4);
    // No rule decides about a pod that does not exist.
    let mut request = exec("alice", &["sh"]);
    (request["uid"], request["name"]) = (json!("r9"), json!("none"));
    assert_eq!(webhook.review(&request).await["allowed"], false);
    assert_eq!(counts(), [1, 2, 0, 1]);
}
