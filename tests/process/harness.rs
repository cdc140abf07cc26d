//! The webhook in process: real TLS on loopback, the real handler, a fake API server behind it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use pristine::{
    admission::{handler::Handler, http::Endpoint, marking::Marking, path_guard::PathGuard, writers::Writers},
    api::{
        Context,
        pods::Pods,
        webhook::{path::Paths, watch::Seen},
    },
    audit_log::AuditLog,
    certs::{ca::Ca, resolver::Resolver},
    clock::Clock,
    config,
    server::{self, Limits},
    telemetry::Metrics,
};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    common::https::{self, connect},
    fake::{Fake, pod},
};

pub const NOW: &str = "2026-01-01T00:00:00Z";

pub struct Webhook {
    pub address: SocketAddr,
    pub root: CertificateDer<'static>,
    pub fake: Fake,
    pub metrics: Arc<Metrics>,
    pub audit_log: Arc<Mutex<Vec<Value>>>,
    pub clock: Clock,
    pub stop: watch::Sender<bool>,
    pub served: tokio::task::JoinHandle<()>,
    _policy: watch::Sender<Arc<pristine::config::policy::Policy>>,
}

pub const LIMITS: Limits = Limits {
    handshake: Duration::from_millis(300),
    request: Duration::from_millis(500),
    drain: Duration::from_secs(1),
    connections: 1024,
};

pub async fn webhook(fake: Fake, rules: &str) -> Webhook {
    webhook_with(fake, rules, LIMITS).await
}

pub async fn webhook_with(fake: Fake, rules: &str, limits: Limits) -> Webhook {
    let policy = config::parse("test", &format!("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\n{rules}"))
        .unwrap()
        .policy;
    let now: Timestamp = NOW.parse().unwrap();
    let names = [https::NAME.to_owned()];
    // Certificates of now, because the TLS client of the test has no other clock.
    #[allow(clippy::disallowed_methods)]
    let real = Timestamp::now();
    let (ca, _) = Ca::create(1, &names, Duration::from_secs(9000), real, None).unwrap();
    let resolver = Resolver::default();
    resolver.serve(ca.issue(&names, Duration::from_secs(900), real, None).unwrap()).unwrap();
    let metrics = Arc::new(Metrics::default());
    config::reload::count_decisions(&metrics, &policy, None, now);
    let audit_log = Arc::new(Mutex::new(Vec::new()));
    let (policy, rules) = watch::channel(Arc::new(policy));
    let lines = audit_log.clone();
    let audit = AuditLog::of(move |line| lines.lock().unwrap().push(serde_json::from_str(line).unwrap()));
    let (context, publish) =
        Context::new(fake.client(), "test", Clock::of(move || now), audit, metrics.clone(), fake.link.clone());
    tokio::spawn(publish);
    let clock = context.clock.clone();
    let pods = Pods::new(fake.client());
    let handler = Handler::new(
        Arc::new(Marking { pods, policy: rules, context: context.clone(), writers: Writers::default() }),
        context,
    );
    let paths = Paths { live: vec![String::new()], renewed_at: None };
    let guard = PathGuard::new(watch::channel(Seen { paths, ..Seen::default() }).1, watch::channel(None).1);
    let endpoint = Arc::new(Endpoint::new(handler, guard, metrics.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopping) = watch::channel(false);
    let tls = server::tls_config(Arc::new(resolver)).unwrap();
    let served =
        tokio::spawn(server::serve(listener, tls, endpoint, limits, metrics.clone(), stopping, Arc::default()));
    Webhook { address, root: ca.certificate.der, fake, metrics, audit_log, clock, stop, served, _policy: policy }
}

pub const EVICT: &str = "default: {action: Evict, ttl: 10m}\n";

pub async fn standard() -> Webhook {
    webhook(Fake::with([pod("n", "p", "u1")]), EVICT).await
}

impl Webhook {
    pub async fn post(&self, body: &[u8]) -> https::Answer {
        connect(self.address, std::slice::from_ref(&self.root)).await.unwrap().post(body).await.unwrap()
    }

    /// As an API server does it.
    pub async fn review(&self, request: &Value) -> Value {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let (answer, _) = self.call(&review).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()["response"].clone()
    }

    /// Sends it again, up to ten times within 5 s, while the answer says so; with the number of calls.
    pub async fn call(&self, review: &Value) -> (https::Answer, usize) {
        let all = async {
            for calls in 1.. {
                let answer = self.post(review.to_string().as_bytes()).await;
                if !answer.retry || calls == 11 {
                    return (answer, calls);
                }
            }
            unreachable!()
        };
        tokio::time::timeout(Duration::from_secs(5), all).await.expect("an API server gives up after 5 s")
    }

    /// How often this rule has decided.
    pub fn decisions(&self, rule: &str) -> Option<u32> {
        decisions(&self.metrics.render(), rule)
    }

    pub fn interactions(&self) -> Value {
        let pod = self.fake.pod("n/p");
        pod.pointer("/metadata/annotations/pristine~1interactions")
            .map_or(Value::Null, |text| serde_json::from_str(text.as_str().unwrap()).unwrap())
    }
}

/// How often this rule has decided, in the text of the metrics.
pub fn decisions(metrics: &str, rule: &str) -> Option<u32> {
    let begin = format!("pristine_rule_decisions_total{{rule=\"{rule}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&begin)?.parse().ok())
}

pub fn exec(user: &str, command: &[&str]) -> Value {
    json!({
        "uid": "r1", "resource": {"resource": "pods"}, "subResource": "exec", "operation": "CONNECT",
        "namespace": "n", "name": "p", "userInfo": {"username": user, "groups": ["g"]},
        "object": {"container": "app", "command": command},
    })
}

pub fn debug(dry_run: bool) -> Value {
    json!({
        "uid": "r2", "resource": {"resource": "pods"}, "subResource": "ephemeralcontainers", "operation": "UPDATE",
        "namespace": "n", "name": "p", "userInfo": {"username": "a"}, "dryRun": dry_run,
        "object": {"spec": {"ephemeralContainers": [{"name": "d", "command": ["sh"]}]}}, "oldObject": {"spec": {}},
    })
}

pub fn denial(response: &Value) -> (bool, u64, &str) {
    let status = &response["status"];
    (
        response["allowed"].as_bool().unwrap(),
        status["code"].as_u64().unwrap_or(0),
        status["message"].as_str().unwrap_or(""),
    )
}
