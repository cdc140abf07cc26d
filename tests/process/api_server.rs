//! The fake API server over HTTP, for programs that are started: what `kubectl pristine` calls.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::fake::{Fake, bump, merge, status, text};

/// The user of every client.
pub const USER: &str = "alice";

type Body = BoxBody<Bytes, Infallible>;

/// Serves it on loopback for as long as the test runs.
pub async fn serve(fake: Fake) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let fake = fake.clone();
            let service = service_fn(move |request| handle(fake.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    address
}

async fn handle(fake: Fake, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace("%2F", "/").replace("%3D", "=").replace("%2C", ",")))
        .collect();
    let path = parts.uri.path();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    let (code, answer) = match (parts.method.as_str(), segments.as_slice()) {
        ("GET", ["api", "v1", "namespaces", _, "pods"]) if query.contains_key("watch") => {
            return Ok(Response::new(watch(fake, selector)));
        }
        ("GET", ["api", "v1", "namespaces", namespace, "pods", name, "log"]) => {
            let log = fake.state().logs.get(&format!("{namespace}/{name}")).cloned().unwrap_or_default();
            return Ok(Response::new(BodyExt::boxed(http_body_util::Full::new(Bytes::from(log)))));
        }
        ("GET", ["api", "v1", .., "pods"]) => {
            let mut items: Vec<Value> = selected(&fake, &selector).into_values().collect();
            if let ["api", "v1", "namespaces", namespace, "pods"] = segments.as_slice() {
                items.retain(|pod| pod["metadata"]["namespace"] == *namespace);
            }
            (200, json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
        }
        ("POST", [.., "selfsubjectreviews"]) => {
            (201, json!({"metadata": {}, "status": {"userInfo": {"username": USER}}}))
        }
        ("PATCH", ["api", "v1", "namespaces", namespace, "pods", name]) => {
            fake.state().calls.push(format!("{} {path}", parts.method));
            match fake.state().pods.get_mut(&format!("{namespace}/{name}")) {
                Some(pod) => {
                    merge(pod, &body);
                    bump(pod);
                    (200, pod.clone())
                }
                None => status(404, "NotFound", "gone"),
            }
        }
        ("POST", ["api", "v1", "namespaces", namespace, "pods", name, "eviction"]) => {
            fake.state().calls.push(format!("{} {path}", parts.method));
            if body["deleteOptions"]["dryRun"].is_null() && !query.contains_key("dryRun") {
                fake.state().pods.remove(&format!("{namespace}/{name}"));
            }
            (201, json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}))
        }
        _ => fake.answer(&parts.method, path, &body),
    };
    let body = http_body_util::Full::new(Bytes::from(answer.to_string()));
    Ok(Response::builder().status(code).body(body.boxed()).unwrap())
}

/// By UID, those with all these labels.
fn selected(fake: &Fake, selector: &str) -> BTreeMap<String, Value> {
    let wanted: Vec<(&str, &str)> = selector.split(',').filter_map(|label| label.split_once('=')).collect();
    let has = |pod: &Value, (key, value): &(&str, &str)| pod["metadata"]["labels"][*key] == *value;
    let pods = fake.state().pods.clone();
    let pods = pods.into_values().filter(|pod| wanted.iter().all(|label| has(pod, label)));
    pods.map(|pod| (text(&pod, "/metadata/uid").to_owned(), pod)).collect()
}

/// The changes since now, as they are seen in a look every 20 ms.
fn watch(fake: Fake, selector: String) -> Body {
    let known = selected(&fake, &selector);
    let changes = stream::unfold((fake, known), move |(fake, known)| {
        let selector = selector.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = selected(&fake, &selector);
            let gone = known.iter().filter(|(uid, _)| !now.contains_key(*uid)).map(|(_, pod)| ("DELETED", pod));
            let kind = |uid| if known.contains_key(uid) { "MODIFIED" } else { "ADDED" };
            let changed = now.iter().filter(|(uid, pod)| known.get(*uid) != Some(pod));
            let changed = changed.map(|(uid, pod)| (kind(uid), pod));
            let lines = gone.chain(changed).map(|(kind, pod)| format!("{}\n", json!({"type": kind, "object": pod})));
            let lines: String = lines.collect();
            Some((Bytes::from(lines), (fake, now)))
        }
    });
    let frames = changes.filter(|bytes| std::future::ready(!bytes.is_empty()));
    BodyExt::boxed(StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes)))))
}
