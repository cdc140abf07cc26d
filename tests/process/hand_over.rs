//! Reviews that this replica cannot handle at the first attempt: the hand-over, its schedule, and what is recorded.

use std::time::Duration;

use pristine::server::Limits;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    fake::{Fake, Fault, Plugin, pod},
    harness::{EVICT, Webhook, denial, exec, standard, webhook, webhook_with},
};

fn review(request: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

fn lines(webhook: &Webhook) -> Vec<Value> {
    webhook.audit_log.lock().unwrap().clone()
}

fn decisions(webhook: &Webhook) -> Vec<String> {
    lines(webhook).iter().map(|line| line["decision"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn one_failure_of_each_call_refuses_no_exec_and_records_it_once() {
    for fault in [
        Fault::Answer(429),
        Fault::Answer(500),
        Fault::Answer(503),
        Fault::Answer(401),
        Fault::Reset,
        Fault::Silence,
        Fault::DoneInSilence,
    ] {
        let webhook = standard().await;
        webhook.fake.state().fault = Some(fault);
        let (answer, calls) = webhook.call(&review(&exec("a", &["sh"]))).await;
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer["response"]["allowed"], true, "{fault:?}: {answer}");
        // What fails at once is repeated at once, and the API server notices nothing.
        if matches!(fault, Fault::Answer(_) | Fault::Reset) {
            assert_eq!(calls, 1, "{fault:?}");
        }
        assert_eq!(webhook.interactions()["total"], 1, "{fault:?}");
        assert_eq!(decisions(&webhook), ["marked"], "{fault:?}");
    }
}

#[tokio::test]
async fn without_the_api_server_an_attempt_ends_in_time_and_says_why() {
    let webhook = standard().await;
    webhook.fake.state().silent = true;
    let start = Instant::now();
    let answer = webhook.post(review(&exec("a", &["sh"])).to_string().as_bytes()).await;
    let first = start.elapsed();
    assert_eq!((answer.status, answer.retry, answer.close), (503, true, true), "{answer:?}");
    assert!((450..750).contains(&first.as_millis()), "{first:?}");
    let status: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&status["kind"], &status["apiVersion"], &status["code"]),
        (&json!("Status"), &json!("v1"), &json!(503))
    );
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("pristine could not record this session on pod n/p: "), "{message}");
    // From then on this replica knows, and leaves the exec to others soon.
    let start = Instant::now();
    let answer = webhook.post(review(&exec("b", &["sh"])).to_string().as_bytes()).await;
    assert_eq!(answer.status, 503);
    assert!((250..450).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert!(answer.body.contains("this replica cannot reach the API server"), "{}", answer.body);
}

#[tokio::test]
async fn all_eleven_attempts_fit_into_the_timeout_of_the_api_server() {
    let webhook = standard().await;
    webhook.fake.state().silent = true;
    let (answer, calls) = webhook.call(&review(&exec("a", &["sh"]))).await;
    assert_eq!((answer.status, calls), (503, 11));
}

#[tokio::test]
async fn an_exec_is_admitted_as_soon_as_the_api_server_answers_again() {
    let webhook = standard().await;
    webhook.fake.state().silent = true;
    let request = review(&exec("a", &["sh"]));
    let (heal, fake) = (tokio::time::sleep(Duration::from_millis(2_500)), webhook.fake.clone());
    let healed = async {
        heal.await;
        fake.state().silent = false;
    };
    let ((answer, calls), ()) = tokio::join!(webhook.call(&request), healed);
    assert_eq!(answer.status, 200, "after {calls} calls: {}", answer.body);
    assert_eq!((webhook.interactions()["total"].as_u64(), decisions(&webhook)), (Some(1), vec!["marked".to_owned()]));
}

#[tokio::test]
async fn a_mark_that_comes_after_its_client_is_gone_is_told_all_the_same() {
    let webhook = standard().await;
    webhook.fake.state().slow = Duration::from_millis(400);
    let request = review(&exec("a", &["sh"])).to_string();
    let gave_up = tokio::time::timeout(Duration::from_millis(200), webhook.post(request.as_bytes())).await;
    assert!(gave_up.is_err());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((webhook.interactions()["total"].as_u64(), decisions(&webhook)), (Some(1), vec!["marked".to_owned()]));
}

#[tokio::test]
async fn a_review_that_another_replica_marked_before_is_admitted_and_written_to_the_audit_log() {
    let fake = Fake::with([pod("n", "p", "u1")]);
    let (one, other) = (webhook(fake.clone(), EVICT).await, webhook(fake, EVICT).await);
    assert_eq!(one.review(&exec("a", &["sh"])).await["allowed"], true);
    assert_eq!(other.review(&exec("a", &["sh"])).await["allowed"], true);
    assert_eq!((other.fake.count("PATCH"), other.interactions()["total"].as_u64()), (1, Some(1)));
    assert_eq!(lines(&one)[0]["interaction"]["review"], lines(&other)[0]["interaction"]["review"]);
}

#[tokio::test]
async fn break_glass_is_handed_over_a_few_times_and_then_admitted_with_a_line() {
    let webhook = standard().await;
    webhook.fake.state().silent = true;
    let mut request = exec("a", &["sh"]);
    request["userInfo"]["groups"] = json!(["pristine:break-glass"]);
    let (answer, calls) = webhook.call(&review(&request)).await;
    assert_eq!((answer.status, calls), (200, 4), "{}", answer.body);
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answer["response"]["auditAnnotations"]["decision"], "unrecorded");
    assert_eq!(decisions(&webhook), ["handed-over", "unrecorded"]);
    assert!(webhook.metrics.render().contains("pristine_break_glass_total 1"));
}

#[tokio::test]
async fn a_mark_that_another_plugin_removes_is_no_mark() {
    let parts: [(&str, Plugin); 3] = [
        ("the label pristine/interacted", |pod| pod["metadata"]["labels"] = json!({})),
        ("the annotation pristine/interactions", |pod| pod["metadata"]["annotations"] = json!({})),
        ("the condition pristine/Pristine", |pod| pod["status"]["conditions"] = json!([])),
    ];
    for (part, plugin) in parts {
        let webhook = standard().await;
        webhook.fake.state().plugin = Some(plugin);
        let response = webhook.review(&exec("a", &["sh"])).await;
        let (allowed, _, message) = denial(&response);
        assert!(!allowed && message.contains(part) && message.contains("mutatingadmissionpolicies"), "{message}");
        assert_eq!(decisions(&webhook), ["denied"]);
    }
}

#[tokio::test]
async fn a_denial_by_another_webhook_is_not_a_conflict_whatever_its_code() {
    for code in [404, 409, 422] {
        let webhook = standard().await;
        webhook.fake.state().refuse_writes = Some(code);
        let response = webhook.review(&exec("a", &["sh"])).await;
        assert!(!denial(&response).0);
        assert_eq!(webhook.fake.count("PATCH"), 1, "{code}");
    }
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_the_write_ends_the_review_at_the_first_attempt() {
    let webhook = standard().await;
    // The API server's answer if a webhook on pods/status is down and fails closed.
    webhook.fake.state().refuse_writes = Some(500);
    let start = Instant::now();
    let (answer, calls) = webhook.call(&review(&exec("a", &["sh"]))).await;
    // Another replica would get the same answer, and would not know how much of the time is left.
    assert_eq!(calls, 1, "{answer:?}");
    assert!(start.elapsed() < Duration::from_millis(1900), "{:?}", start.elapsed());
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    let (allowed, code, message) = denial(&answer["response"]);
    assert!(!allowed && code == 503 && message.contains("failed calling webhook \"other\""), "{message}");
    assert!(webhook.fake.count("PATCH") > 3, "{}", webhook.fake.count("PATCH"));
    assert_eq!(decisions(&webhook), ["denied"]);
    // One that is up again within a second is not noticed.
    let webhook = standard().await;
    webhook.fake.state().refuse_writes = Some(500);
    let fake = webhook.fake.clone();
    let up = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        fake.state().refuse_writes = None;
    };
    let body = review(&exec("a", &["sh"]));
    let ((answer, calls), ()) = tokio::join!(webhook.call(&body), up);
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    assert!(denial(&answer["response"]).0 && calls == 1, "{answer}");
}

#[tokio::test]
async fn a_check_that_another_webhook_delays_by_three_seconds_is_waited_for() {
    let webhook = standard().await;
    // Up to Kubernetes 1.36, Gatekeeper as shipped reviews SubjectAccessReviews, and has a timeout of 3 s.
    webhook.fake.state().slow_checks = Duration::from_secs(3);
    let start = Instant::now();
    let (answer, _) = webhook.call(&review(&exec("a", &["sh"]))).await;
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    assert!(denial(&answer["response"]).0, "{answer}");
    assert!(start.elapsed() < Duration::from_millis(4500), "{:?}", start.elapsed());
    assert_eq!(decisions(&webhook), ["marked"]);
}

#[tokio::test]
async fn writes_that_conflict_are_repeated_with_growing_pauses() {
    let webhook = standard().await;
    webhook.fake.state().conflicts = usize::MAX;
    let (answer, calls) = webhook.call(&review(&exec("a", &["sh"]))).await;
    // The last answer is one that the user reads.
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    let (allowed, code, message) = denial(&answer["response"]);
    assert_eq!((allowed, code), (false, 503), "{message}");
    assert!(calls < 8, "{calls}");
    assert!((8..40).contains(&webhook.fake.count("PATCH")), "{}", webhook.fake.count("PATCH"));
}

#[tokio::test]
async fn two_hundred_execs_at_once_into_one_pod_are_all_recorded_by_few_writes() {
    let fake = Fake::with([pod("n", "p", "u1")]);
    fake.state().slow = Duration::from_millis(20);
    // 200 handshakes at once take their time.
    let replicas = [
        webhook_with(fake.clone(), EVICT, Limits::default()).await,
        webhook_with(fake.clone(), EVICT, Limits::default()).await,
    ];
    let mut requests: Vec<Value> = (0..200).map(|n| exec("a", &["echo", &n.to_string()])).collect();
    for (n, request) in requests.iter_mut().enumerate() {
        request["uid"] = json!(format!("r{n}"));
    }
    requests[150]["userInfo"]["groups"] = json!(["pristine:break-glass"]);
    let requests: Vec<Value> = requests.iter().map(review).collect();
    let calls = requests.iter().enumerate().map(|(n, request)| replicas[n % 2].call(request));
    let answers = futures_util::future::join_all(calls).await;
    let refused: Vec<_> = answers.iter().filter(|(answer, _)| answer.status != 200).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(replicas[0].interactions()["total"], 200);
    assert!(fake.count("PATCH") < 120, "{} writes", fake.count("PATCH"));
    let marked = replicas.iter().flat_map(decisions).filter(|decision| decision == "marked").count();
    assert_eq!(marked, 200);
}

#[tokio::test]
async fn every_exempt_interaction_of_an_update_is_in_the_audit_log() {
    let rules = "default: {action: Evict, ttl: 10m}\nrules: [{name: probes, match: {containers: [probe-1, probe-2]}, action: Exempt}]\n";
    let webhook = webhook(Fake::with([pod("n", "p", "u1")]), rules).await;
    let mut request = crate::harness::debug(false);
    let containers = json!([{"name": "probe-1"}, {"name": "d", "command": ["sh"]}, {"name": "probe-2"}]);
    request["object"]["spec"]["ephemeralContainers"] = containers;
    assert_eq!(webhook.review(&request).await["allowed"], true);
    assert_eq!(decisions(&webhook), ["exempt", "exempt", "marked"]);
}

#[tokio::test]
async fn an_authorization_header_is_ignored() {
    let webhook = standard().await;
    let body = review(&exec("a", &["sh"])).to_string();
    let mut client = crate::common::https::connect(webhook.address, std::slice::from_ref(&webhook.root)).await.unwrap();
    let head = format!(
        "POST /?timeout=5s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hush\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes()).await.unwrap();
    client.send(body.as_bytes()).await.unwrap();
    assert_eq!(client.receive().await.unwrap().status, 200);
    assert!(!format!("{:?}", lines(&webhook)).contains("hush"));
}
