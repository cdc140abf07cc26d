//! What is decided about each operation by each action, in process: the mark, the answer, the audit log.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    fake::{Fake, pod},
    harness::{EVICT, NOW, Webhook, debug, exec, standard, webhook},
};

fn connect(subresource: &str) -> Value {
    json!({
        "uid": "r3", "resource": {"resource": "pods"}, "subResource": subresource, "operation": "CONNECT",
        "namespace": "n", "name": "p", "userInfo": {"username": "a"}, "object": {"path": "metrics", "ports": [80]},
    })
}

fn glass(mut request: Value) -> Value {
    request["userInfo"] = json!({"username": "pristine:break-glass", "groups": ["pristine:break-glass"]});
    request
}

async fn with(rules: &str) -> Webhook {
    webhook(Fake::with([pod("n", "p", "u1")]), rules).await
}

#[tokio::test]
async fn every_action_has_its_effect_on_every_operation() {
    let attach = || {
        let mut request = exec("a", &[]);
        request["subResource"] = json!("attach");
        request
    };
    for (operation, request) in [("exec", exec("a", &["id"])), ("attach", attach()), ("debug", debug(false))] {
        for (action, allowed, marked, evicted, decision) in [
            ("Exempt", true, false, false, "exempt"),
            ("Record", true, true, false, "marked"),
            ("Evict, ttl: 10m", true, true, true, "marked"),
            ("Deny, message: no", false, false, false, "denied"),
        ] {
            let webhook = with(&format!("default: {{action: Record}}\nrules: [{{name: r, action: {action}}}]\n")).await;
            let response = webhook.review(&request).await;
            let at = format!("{operation} × {action}");
            assert_eq!(response["allowed"], allowed, "{at}");
            assert_eq!(webhook.interactions().is_object(), marked, "{at}");
            let evict_at = &webhook.fake.pod("n/p")["metadata"]["annotations"]["pristine/evict-at"];
            assert_eq!(evict_at.is_string(), evicted, "{at}");
            let audit_log = webhook.audit_log.lock().unwrap().clone();
            assert_eq!(audit_log.len(), 1, "{at}: {audit_log:?}");
            assert_eq!(audit_log[0]["decision"], decision, "{at}");
            assert_eq!(audit_log[0]["interaction"]["operation"], operation, "{at}");
            assert_eq!(response["auditAnnotations"]["decision"], decision, "{at}");
        }
    }
}

#[tokio::test]
async fn a_denial_leaves_an_event_on_the_pod_and_is_one_although_the_client_falls_back_to_spdy() {
    let webhook = with("default: {action: Record}\nrules: [{name: r, action: Deny, message: not here}]\n").await;
    for uid in ["over-websocket", "over-spdy"] {
        let mut request = exec("alice", &["id"]);
        request["uid"] = json!(uid);
        let response = webhook.review(&request).await;
        assert_eq!(
            (&response["allowed"], &response["auditAnnotations"]["decision"]),
            (&json!(false), &json!("denied"))
        );
    }
    let count = |decision: &str| {
        let name = format!("pristine_admission_requests_total{{operation=\"exec\",decision=\"{decision}\"}} ");
        let text = webhook.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
    };
    assert_eq!((count("Denied"), count("Folded")), ("1".to_owned(), "1".to_owned()));
    assert_eq!(webhook.audit_log.lock().unwrap().len(), 1);
    crate::common::eventually("the event", 5, async || (!webhook.fake.state().events.is_empty()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let events = webhook.fake.state().events.clone();
    assert_eq!(
        (events.len(), &events[0]["reason"], &events[0]["type"]),
        (1, &json!("InteractionDenied"), &json!("Warning"))
    );
    assert_eq!(events[0]["regarding"]["uid"], "u1");
    let note = events[0]["note"].as_str().unwrap();
    assert_eq!(note, "denied: exec into container app by \"alice\"; rule \"r\": not here");
    assert_eq!(webhook.review(&exec("alice", &["ls"])).await["allowed"], false);
    assert_eq!(count("Denied"), "2", "another command");
}

#[tokio::test]
async fn port_forward_and_proxy_are_only_recorded_unless_a_rule_names_them() {
    for (subresource, operation) in [("portforward", "port-forward"), ("proxy", "proxy")] {
        for rules in
            [EVICT, "default: {action: Deny}\n", "default: {action: Record}\nrules: [{name: r, action: Deny}]\n"]
        {
            let webhook = with(rules).await;
            for _ in 0..3 {
                assert_eq!(webhook.review(&connect(subresource)).await["allowed"], true, "{operation}");
            }
            let interactions = webhook.interactions();
            assert_eq!((&interactions["total"], &interactions["first"]["operation"]), (&json!(1), &json!(operation)));
            let pod = webhook.fake.pod("n/p");
            assert_eq!(pod["metadata"]["annotations"].get("pristine/evict-at"), None);
        }
        let named = format!("{EVICT}rules: [{{name: r, match: {{operations: [{operation}]}}, action: Deny}}]\n");
        assert_eq!(with(&named).await.review(&connect(subresource)).await["allowed"], false, "{operation}");
    }
}

#[tokio::test]
async fn a_proxied_pod_is_found_by_a_name_with_scheme_and_port() {
    for name in ["p", "p:80", "http:p:80", "https:p:"] {
        let webhook = with(EVICT).await;
        let mut request = connect("proxy");
        request["name"] = json!(name);
        webhook.review(&request).await;
        assert_eq!(webhook.interactions()["total"], 1, "{name}");
    }
}

#[tokio::test]
async fn break_glass_is_recorded_and_never_denied() {
    let webhook = with("default: {action: Deny}\n").await;
    assert_eq!(webhook.review(&glass(exec("a", &["id"]))).await["allowed"], true);
    assert_eq!(webhook.interactions()["first"]["user"]["name"], "pristine:break-glass");

    for (code, fails) in [(Some(403), "the write is refused"), (None, "there is no such pod")] {
        let webhook = with(EVICT).await;
        webhook.fake.state().refuse_writes = code;
        if code.is_none() {
            webhook.fake.state().pods.clear();
        }
        assert_eq!(webhook.review(&exec("a", &["id"])).await["allowed"], false, "{fails}");
        for request in [glass(exec("a", &["id"])), connect("portforward"), connect("proxy")] {
            let response = webhook.review(&request).await;
            assert_eq!(response["allowed"], true, "{fails}");
            assert_eq!(response["auditAnnotations"]["decision"], "unrecorded", "{fails}");
            assert_eq!(webhook.audit_log.lock().unwrap().last().unwrap()["decision"], "unrecorded", "{fails}");
        }
        assert!(webhook.metrics.render().contains("pristine_break_glass_total 1"), "{fails}");
    }
}

#[tokio::test]
async fn the_event_about_an_exec_into_a_static_pod_says_that_it_is_not_evicted() {
    let mut mirror = pod("n", "p", "u1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let webhook = webhook(Fake::with([mirror]), EVICT).await;
    assert_eq!(webhook.review(&exec("a", &["id"])).await["allowed"], true);
    let note = crate::common::eventually("the event", 5, async || {
        webhook.fake.state().events.first().map(|event| event["note"].as_str().unwrap().to_owned())
    });
    let note = note.await;
    assert!(note.contains("not evicted: the kubelet runs this static pod") && !note.contains("due"), "{note}");
}

#[tokio::test]
async fn the_audit_log_has_one_complete_line_for_a_repeated_interaction() {
    let webhook = with(EVICT).await;
    let mut request = exec("alice@example.com", &["psql", "--password=hunter2"]);
    request["userInfo"]["extra"] = json!({"reason": ["INC-7"], "scopes": ["x"]});
    for _ in 0..2 {
        assert_eq!(webhook.review(&request).await["allowed"], true);
    }
    let audit_log = webhook.audit_log.lock().unwrap().clone();
    assert_eq!(audit_log.len(), 1);
    assert_eq!(
        audit_log[0],
        json!({
            "decision": "marked", "namespace": "n", "pod": "p", "podUid": "u1", "total": 1,
            "evictAt": "2026-01-01T00:10:00Z",
            "interaction": {
                "at": "2026-01-01T00:00:00Z", "operation": "exec", "container": "app",
                "command": ["psql", "--password=•••"], "review": "r1", "rule": "default",
                "user": {"name": "alice@example.com", "groups": ["g"], "extra": {"reason": ["INC-7"]}},
            },
        })
    );
}

#[tokio::test]
async fn the_first_mark_clears_extension_annotations_and_later_marks_keep_them() {
    let mut planted = pod("n", "p", "u1");
    planted["metadata"]["annotations"] =
        json!({"pristine/hold": "for ever", "pristine/extend-to": "2099-01-01T00:00:00Z"});
    let webhook = webhook(Fake::with([planted]), EVICT).await;
    webhook.review(&exec("a", &["1"])).await;
    let hold = |webhook: &Webhook| webhook.fake.pod("n/p")["metadata"]["annotations"]["pristine/hold"].clone();
    assert_eq!(hold(&webhook), Value::Null);
    webhook.fake.state().pods.get_mut("n/p").unwrap()["metadata"]["annotations"]["pristine/hold"] = json!("mine");
    webhook.review(&exec("a", &["2"])).await;
    assert_eq!(hold(&webhook), "mine");
}

#[tokio::test]
async fn a_mark_has_the_api_servers_time_if_the_replicas_clock_is_an_hour_behind() {
    let webhook = standard().await;
    let right = NOW.parse::<jiff::Timestamp>().unwrap().checked_add(Duration::from_secs(3600)).unwrap();
    let _ = webhook.clock.compare(right, tokio::time::Instant::now());
    webhook.review(&exec("alice", &["sh"])).await;
    let pod = webhook.fake.pod("n/p");
    let evict_at = pod["metadata"]["annotations"]["pristine/evict-at"].as_str().unwrap();
    let evict_at: jiff::Timestamp = evict_at.parse().unwrap();
    let left = evict_at.duration_since(right).as_secs();
    assert!((600..=605).contains(&left), "evicted {left} s after the interaction");
}
