//! The webhook in process: real TLS on loopback, the real handler, a fake API server behind it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    common::https::connect,
    fake::{Fake, pod},
    harness::{debug, denial, exec, standard, webhook},
};

#[tokio::test]
async fn a_review_to_a_wrong_path_is_rejected_and_counted() {
    let webhook = standard().await;
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": exec("a", &["id"])});
    let mut connection = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let answer = connection.post_to("/review/1-2", review.to_string().as_bytes()).await.unwrap();
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert_eq!(webhook.fake.state().calls, Vec::<String>::new());
    assert!(webhook.metrics.render().contains("pristine_http_requests_rejected_total{reason=\"path\"} 1"));
    assert_eq!(
        connection.post_to("/", review.to_string().as_bytes()).await.unwrap().status,
        200,
        "the same connection"
    );
}

#[tokio::test]
async fn the_pod_is_marked_before_the_review_is_answered() {
    let webhook = standard().await;
    let response = webhook.review(&exec("alice@example.com", &["sh"])).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response["auditAnnotations"]["evict-at"], "2026-01-01T00:10:00Z");
    let pod = webhook.fake.pod("n/p");
    assert_eq!(pod["metadata"]["labels"]["pristine/interacted"], "true");
    assert_eq!(pod["metadata"]["annotations"]["pristine/evict-at"], "2026-01-01T00:10:00Z");
    assert_eq!(pod["status"]["conditions"][0]["type"], "pristine/Pristine");
    let mark = webhook.interactions();
    assert_eq!((&mark["pod"], &mark["first"]["user"]["name"]), (&json!("u1"), &json!("alice@example.com")));
}

#[tokio::test]
async fn any_user_name_is_recorded_unchanged() {
    for name in
        ["alice@example.com", "a\"b'c\\d", "😀 Zoë", "oidc:https://issuer/#1", &"x".repeat(1024), "tab\tnew\nline"]
    {
        let webhook = standard().await;
        assert_eq!(webhook.review(&exec(name, &["sh"])).await["allowed"], true);
        assert_eq!(webhook.interactions()["first"]["user"]["name"], name);
    }
}

#[tokio::test]
async fn a_mark_that_conflicts_with_another_write_is_retried() {
    let webhook = standard().await;
    webhook.fake.state().conflicts = 3;
    assert_eq!(webhook.review(&exec("a", &["sh"])).await["allowed"], true);
    assert_eq!((webhook.fake.count("PATCH"), webhook.interactions()["total"].as_u64()), (4, Some(1)));
}

#[tokio::test]
async fn concurrent_interactions_are_all_recorded() {
    let webhook = standard().await;
    let commands: Vec<String> = (0..8).map(|n| format!("echo {n}")).collect();
    let requests: Vec<Value> = commands.iter().map(|command| exec("a", &[command])).collect();
    for response in futures_util::future::join_all(requests.iter().map(|request| webhook.review(request))).await {
        assert_eq!(response["allowed"], true);
    }
    assert_eq!(webhook.interactions()["total"], 8);
}

#[tokio::test]
async fn a_repeated_interaction_is_written_once() {
    let webhook = standard().await;
    webhook.review(&debug(false)).await;
    assert_eq!(webhook.review(&debug(false)).await["allowed"], true);
    assert_eq!(webhook.fake.count("PATCH"), 1);
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let webhook = standard().await;
    assert_eq!(webhook.review(&debug(true)).await["allowed"], true);
    assert_eq!(webhook.fake.count("PATCH"), 0);
}

#[tokio::test]
async fn a_request_that_the_api_server_would_reject_gets_its_message_and_no_mark() {
    let webhook = standard().await;
    let mut request = exec("a", &["sh"]);
    request["name"] = json!("absent");
    assert_eq!(denial(&webhook.review(&request).await), (false, 404, "pods \"absent\" not found"));
    let mut request = exec("a", &["sh"]);
    request["object"]["container"] = json!("nosuch");
    assert_eq!(denial(&webhook.review(&request).await), (false, 400, "container nosuch is not valid for pod p"));
    webhook.fake.state().pods.get_mut("n/p").unwrap()["spec"]["nodeName"] = Value::Null;
    assert_eq!(denial(&webhook.review(&exec("a", &["sh"])).await), (false, 400, "pod p does not have a host assigned"));
    let two = json!([{"name": "app", "image": "i"}, {"name": "proxy", "image": "i"}]);
    webhook.fake.state().pods.get_mut("n/p").unwrap()["spec"]["containers"] = two;
    let mut request = exec("a", &["sh"]);
    request["object"]["container"] = json!("");
    let message = "a container name must be specified for pod p, choose one of: [app proxy]";
    assert_eq!(denial(&webhook.review(&request).await), (false, 400, message));
    assert_eq!(webhook.fake.count("PATCH"), 0);
}

#[tokio::test]
async fn an_exec_without_a_container_name_is_recorded_with_the_only_container() {
    let webhook = standard().await;
    let mut request = exec("a", &["sh"]);
    request["object"]["container"] = json!("");
    assert_eq!(webhook.review(&request).await["allowed"], true);
    assert_eq!(webhook.interactions()["first"]["container"], "app");
}

#[tokio::test]
async fn a_user_who_may_not_exec_is_denied_and_the_pod_is_not_marked() {
    let webhook = standard().await;
    webhook.fake.state().forbidden = vec!["create pods/exec".into(), "patch pods/ephemeralcontainers".into()];
    let response = webhook.review(&exec("reader", &["sh"])).await;
    let message = "pods \"p\" is forbidden: User \"reader\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"n\"";
    assert_eq!(denial(&response), (false, 403, message));
    // Who may update need not be able to patch.
    assert_eq!(webhook.review(&debug(false)).await["allowed"], true);
    webhook.fake.state().forbidden.push("update pods/ephemeralcontainers".into());
    assert_eq!(webhook.review(&debug(false)).await["allowed"], false);
    assert_eq!(webhook.fake.count("PATCH"), 1);
}

#[tokio::test]
async fn an_interaction_that_cannot_be_recorded_is_denied_with_advice() {
    let webhook = standard().await;
    webhook.fake.state().refuse_writes = Some(403);
    let response = webhook.review(&exec("a", &["sh"])).await;
    let (allowed, code, message) = denial(&response);
    assert_eq!((allowed, code), (false, 503));
    assert!(
        message.starts_with("pristine could not record this session on pod n/p: ")
            && message.contains("patch pods/status"),
        "{message}"
    );
    webhook.fake.state().refuse_writes = None;
    webhook.fake.state().slow = Duration::from_secs(60);
    let response = webhook.review(&exec("a", &["sh"])).await;
    assert!(denial(&response).2.contains("did not answer Pristine in time"), "{response}");
}

#[tokio::test]
async fn rules_can_exempt_record_and_deny() {
    let rules = "default: {action: Record}
rules:
- {name: ci, match: {users: [ci]}, action: Exempt}
- {name: db, match: {users: [dev]}, action: Deny, message: use the replica}
";
    let webhook = webhook(Fake::with([pod("n", "p", "u1")]), rules).await;
    let response = webhook.review(&exec("ci", &["sh"])).await;
    assert_eq!((&response["allowed"], &response["auditAnnotations"]["rule"]), (&json!(true), &json!("ci")));
    assert_eq!(denial(&webhook.review(&exec("dev", &["sh"])).await), (false, 403, "rule \"db\": use the replica"));
    assert_eq!(webhook.fake.count("PATCH"), 0);
    assert_eq!(webhook.review(&exec("a", &["sh"])).await["allowed"], true);
    assert_eq!(webhook.fake.pod("n/p")["metadata"]["annotations"]["pristine/evict-at"], Value::Null);
}

#[tokio::test]
async fn an_invalid_body_gets_400_or_413_and_the_connection_stays_open() {
    let webhook = standard().await;
    let mut connection = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    for body in [&b""[..], b"hello", b"{}", br#"{"apiVersion":"v1","kind":"Pod"}"#, b"[[[[", &[0xff; 100]] {
        let answer = connection.post(body).await.unwrap();
        assert_eq!((answer.status, answer.close), (400, false), "{answer:?}");
        assert!(answer.body.contains("AdmissionReview"), "{answer:?}");
    }
    let answer = connection.post(&vec![b' '; 3 * 1024 * 1024 + 1]).await.unwrap();
    assert_eq!((answer.status, answer.close), (413, false), "{answer:?}");
    // Chunked, so that no length is announced.
    let mut chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..4 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&vec![b' '; 0x0010_0000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    connection.send(&chunked).await.unwrap();
    assert_eq!(connection.receive().await.unwrap().status, 413);
    connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(connection.receive().await.unwrap().status, 405);
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": exec("a", &["sh"])});
    assert_eq!(connection.post(review.to_string().as_bytes()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_disconnected() {
    let webhook = standard().await;
    let silent = tokio::net::TcpStream::connect(webhook.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(
        webhook.metrics.render().contains(r#"pristine_tls_handshakes_total{result="timeout"} 1"#),
        "{}",
        webhook.metrics.render()
    );
    drop(silent);
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_and_one_with_a_request_stays_open() {
    let webhook = standard().await;
    let mut silent = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let mut spoke = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    assert_eq!(spoke.post(b"x").await.unwrap().status, 400);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(silent.post(b"x").await.is_err());
    assert_eq!(spoke.post(b"x").await.unwrap().status, 400);
}

#[tokio::test]
async fn reviews_beyond_the_memory_budget_get_503() {
    let webhook = standard().await;
    webhook.fake.state().slow = Duration::from_secs(3);
    // Each takes 3 MiB of the budget of 24 while its mark is written.
    let padded = {
        let mut request = exec("a", &["sh"]);
        request["object"]["padding"] = json!("x".repeat(2_900_000));
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string()
    };
    let answers = (0..10).map(|_| webhook.post(padded.as_bytes()));
    let answers = futures_util::future::join_all(answers).await;
    let (ok, busy) =
        (answers.iter().filter(|a| a.status == 200).count(), answers.iter().filter(|a| a.status == 503).count());
    assert_eq!((ok, busy), (8, 2), "{answers:?}");
}

#[tokio::test]
async fn a_request_with_a_wrong_path_uses_no_memory_budget() {
    let webhook = standard().await;
    let mut strangers = Vec::new();
    for _ in 0..12 {
        let mut stranger = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
        // 3 MiB are announced and do not come: 12 of these are more than all reviews may have at once.
        stranger.send(b"POST /guess HTTP/1.1\r\nHost: x\r\nContent-Length: 3145728\r\n\r\n{").await.unwrap();
        strangers.push(stranger);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut known = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": exec("a", &["sh"])});
    let answer = tokio::time::timeout(Duration::from_secs(1), known.post(review.to_string().as_bytes())).await;
    assert_eq!(answer.expect("an answer at once").unwrap().status, 200);
}

#[tokio::test]
async fn requests_after_sigterm_are_answered_with_connection_close() {
    let webhook = standard().await;
    let mut connection = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    assert!(!connection.post(b"x").await.unwrap().close);
    webhook.stop.send_replace(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(webhook.post(b"x").await.status, 400, "a new connection is still answered");
    assert!(connection.post(b"x").await.unwrap().close);
    tokio::time::timeout(Duration::from_secs(3), webhook.served).await.expect("the drain ends").unwrap();
}
