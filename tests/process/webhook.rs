//! The webhook in process: real TLS on loopback, the real handler, a fake API server behind it.

use std::time::Duration;

use pristine::server::Limits;
use serde_json::{Value, json};

use crate::{
    common::https::connect,
    fake::{Fake, pod},
    harness::{EVICT, LIMITS, debug, denial, exec, standard, webhook, webhook_with},
};

#[tokio::test]
async fn a_review_to_an_unknown_path_is_handed_over_and_counted() {
    let webhook = standard().await;
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": exec("a", &["id"])});
    let mut connection = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let answer = connection.post_to("/review/1-2", review.to_string().as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.retry, answer.close), (503, true, true), "{}", answer.body);
    assert_eq!(webhook.fake.state().calls, Vec::<String>::new());
    assert!(webhook.metrics.render().contains("pristine_http_requests_rejected_total{reason=\"path\"} 1"));
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
    let mut request = debug(false);
    assert_eq!(webhook.review(&request).await["allowed"], true);
    webhook.fake.state().forbidden.push("update pods/ephemeralcontainers".into());
    request["uid"] = json!("r3");
    assert_eq!(webhook.review(&request).await["allowed"], false);
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
async fn an_invalid_request_gets_an_answer_and_no_second_attempt() {
    let webhook = standard().await;
    let connect = async || connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    for body in [&b""[..], b"hello", b"{}", br#"{"apiVersion":"v1","kind":"Pod"}"#, b"[[[[", &[0xff; 100]] {
        let answer = webhook.post(body).await;
        assert_eq!((answer.status, answer.close, answer.retry), (400, true, false), "{answer:?}");
        let status: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(400)));
        assert!(status["message"].as_str().unwrap().contains("AdmissionReview"), "{answer:?}");
    }
    assert_eq!(webhook.post(&vec![b' '; 3 * 1024 * 1024 + 1]).await.status, 413);
    // Chunked, so that no length is announced.
    let mut chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..4 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&vec![b' '; 0x0010_0000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let mut connection = connect().await;
    connection.send(&chunked).await.unwrap();
    assert_eq!(connection.receive().await.unwrap().status, 413);
    let mut connection = connect().await;
    connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(connection.receive().await.unwrap().status, 405);
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
async fn a_connection_is_for_one_request_which_must_come_soon() {
    let webhook = standard().await;
    let mut silent = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let mut spoke = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let answer = spoke.post(b"x").await.unwrap();
    assert_eq!((answer.status, answer.close), (400, true));
    assert!(spoke.post(b"x").await.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(silent.post(b"x").await.is_err());
}

#[tokio::test]
async fn clients_that_only_hold_connections_keep_nobody_out() {
    let limits = Limits { connections: 40, drain: LIMITS.drain, ..Limits::default() };
    let webhook = webhook_with(Fake::with([pod("n", "p", "u1")]), EVICT, limits).await;
    // Half of the places with a finished handshake, and then more than all without one.
    let mut quiet = Vec::new();
    for _ in 0..20 {
        quiet.push(connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap());
    }
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(tokio::net::TcpStream::connect(webhook.address).await.unwrap());
    }
    let answer = tokio::time::timeout(Duration::from_secs(2), webhook.post(b"x")).await;
    assert_eq!(answer.expect("an answer at once").status, 400);
    drop((strangers, quiet));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(webhook.metrics.render().contains("pristine_connections 0"), "{}", webhook.metrics.render());
}

#[tokio::test]
async fn large_reviews_take_their_memory_only_until_they_are_read() {
    let webhook = standard().await;
    // Their attempts last 2 s, longer than a review waits for the budget.
    webhook.fake.state().conflicts = usize::MAX;
    let review = |n: usize| {
        let mut request = exec("a", &["sh", &n.to_string()]);
        request["uid"] = json!(format!("large-{n}"));
        // Each takes 3 MiB of the budget of 24 while it is read.
        request["object"]["padding"] = json!("x".repeat(2_900_000));
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string()
    };
    let reviews: Vec<String> = (0..10).map(review).collect();
    let answers = futures_util::future::join_all(reviews.iter().map(|review| webhook.post(review.as_bytes()))).await;
    let busy = answers.iter().filter(|answer| answer.body.contains("too many reviews")).count();
    assert_eq!((answers.len(), busy), (10, 0), "{answers:?}");
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
async fn requests_after_sigterm_are_answered_until_the_drain_ends() {
    let webhook = standard().await;
    webhook.stop.send_replace(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(webhook.post(b"x").await.status, 400, "a new connection is still answered");
    tokio::time::timeout(Duration::from_secs(3), webhook.served).await.expect("the drain ends").unwrap();
}

#[tokio::test]
async fn a_client_that_is_gone_does_not_hold_up_the_shutdown() {
    let webhook = standard().await;
    webhook.fake.state().slow = Duration::from_secs(60);
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": exec("a", &["sh"])});
    let mut client = connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let gave_up = tokio::time::timeout(Duration::from_millis(100), client.post(review.to_string().as_bytes())).await;
    assert!(gave_up.is_err());
    drop(client);
    webhook.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(3), webhook.served).await.expect("the drain ends").unwrap();
}
