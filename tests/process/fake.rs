//! A fake API server for faults that cannot be staged on a real one: it holds pods, checks what guards a write, and
//! keeps a list of the calls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, header::ACCEPT};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use pristine::api::link::Link;
use serde_json::{Value, json};

#[derive(Default)]
pub struct State {
    /// By `namespace/name`.
    pub pods: HashMap<String, Value>,
    /// What a SubjectAccessReview answers; `create pods/exec` and the like.
    pub forbidden: Vec<String>,
    /// So many writes of `pods/status` are refused with 409, because somebody else was faster.
    pub conflicts: usize,
    /// Every write takes this long.
    pub slow: Duration,
    /// Every check of a permission takes this long.
    pub slow_checks: Duration,
    /// No call is answered.
    pub silent: bool,
    /// Answered to every write of `pods/status`.
    pub refuse_writes: Option<u16>,
    /// The webhook configuration, if there is one.
    pub configuration: Option<Value>,
    /// The Events that were published.
    pub events: Vec<Value>,
    /// The logs of pods, by `namespace/name`.
    pub logs: HashMap<String, String>,
    /// `METHOD path`, without the query.
    pub calls: Vec<String>,
    /// What happens to the first call of each kind.
    pub fault: Option<Fault>,
    /// The labels of every namespace.
    pub namespace_labels: Value,
    /// Answered to every read of a namespace.
    pub refuse_namespaces: Option<u16>,
    /// The ConfigMap of the loops cannot be read.
    pub refuse_maps: bool,
    /// Leases, ConfigMaps and controllers of pods, by path.
    pub objects: HashMap<String, Value>,
    /// What another admission plugin does to every write of `pods/status`.
    pub plugin: Option<Plugin>,
    /// Answers to GET, by path: the first one once, and so on; the last one always.
    pub answers: HashMap<String, Vec<Value>>,
}

impl State {
    fn prepared(&mut self, method: &Method, path: &str) -> Option<(u16, Value)> {
        let answers = self.answers.get_mut(path).filter(|_| method == Method::GET)?;
        Some((200, if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }))
    }
}

/// Changes a pod after a write.
pub type Plugin = fn(&mut Value);

/// How one call fails.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// With this answer, and nothing done.
    Answer(u16),
    /// The connection is reset before anything is done.
    Reset,
    /// No answer, and nothing done.
    Silence,
    /// No answer, although it was done.
    DoneInSilence,
}

#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    pub link: Link,
}

pub fn pod(namespace: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "uid": uid, "resourceVersion": "1",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}],
        },
        "spec": {"nodeName": "n", "containers": [{"name": "app", "image": "i"}]},
        "status": {"phase": "Running"},
    })
}

impl Fake {
    pub fn with(pods: impl IntoIterator<Item = Value>) -> Self {
        let fake = Self::default();
        for pod in pods {
            let key = format!("{}/{}", text(&pod, "/metadata/namespace"), text(&pod, "/metadata/name"));
            fake.state().pods.insert(key, pod);
        }
        fake
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn pod(&self, key: &str) -> Value {
        self.state().pods[key].clone()
    }

    pub fn count(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|made| made.contains(call)).count()
    }

    pub fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.map_err(|error| error.to_string()).unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let is_check = parts.uri.path().ends_with("/subjectaccessreviews");
                let slow = if is_check { this.state().slow_checks } else { this.state().slow };
                if parts.method != Method::GET && !slow.is_zero() {
                    tokio::time::sleep(slow).await;
                }
                while this.state().silent {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let fault = this.fault(&parts.method, parts.uri.path());
                let (code, answer) = match fault {
                    Some(Fault::Reset) => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
                    Some(Fault::Silence) => std::future::pending().await,
                    Some(Fault::Answer(code)) => status(code, "InternalError", "a fault of the API server"),
                    Some(Fault::DoneInSilence) | None => {
                        let query = parts.uri.query().unwrap_or_default();
                        match (parts.method.as_str(), parts.uri.path().trim_matches('/').rsplit_once("/pods")) {
                            ("GET", Some((namespace, ""))) => this.page(namespace, query, &parts.headers),
                            _ => this.answer(&parts.method, parts.uri.path(), &body),
                        }
                    }
                };
                if matches!(fault, Some(Fault::DoneInSilence)) {
                    std::future::pending::<()>().await;
                }
                this.link.answered();
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok(Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "default")
    }

    /// The fault of this call, if it is the first of its kind.
    fn fault(&self, method: &Method, path: &str) -> Option<Fault> {
        let state = self.state();
        let is_first = !state.calls.contains(&format!("{method} {path}"));
        let fault = state.fault.filter(|_| is_first && !path.contains("/events"))?;
        drop(state);
        if !matches!(fault, Fault::DoneInSilence) {
            self.state().calls.push(format!("{method} {path}"));
        }
        Some(fault)
    }

    /// A page of the pods of a namespace, as `limit` and `continue` of the query say; of each pod the metadata alone, if
    /// the client accepts that.
    fn page(&self, path: &str, query: &str, headers: &HeaderMap) -> (u16, Value) {
        let mut state = self.state();
        if let Some(answer) = state.prepared(&Method::GET, &format!("/{path}/pods")) {
            state.calls.push(format!("GET /{path}/pods"));
            return answer;
        }
        state.calls.push(format!("LIST {path}/pods"));
        let namespace = path.rsplit('/').next().unwrap();
        let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let limit: usize = parameter("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let begin: usize = parameter("continue").map_or(0, |token| token.parse().unwrap());
        let mut all: Vec<_> = state.pods.iter().filter(|(key, _)| key.starts_with(&format!("{namespace}/"))).collect();
        all.sort_by_key(|(key, _)| (*key).clone());
        let is_partial = headers[ACCEPT].to_str().unwrap().contains("PartialObjectMetadataList");
        let shown = |pod: &Value| if is_partial { json!({"metadata": pod["metadata"]}) } else { pod.clone() };
        let items: Vec<_> = all.iter().skip(begin).take(limit).map(|(_, pod)| shown(pod)).collect();
        let end = begin + items.len();
        let token = if end < all.len() { json!(end.to_string()) } else { Value::Null };
        let metadata = json!({"resourceVersion": "1", "continue": token});
        (200, json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}))
    }

    pub fn answer(&self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        let mut state = self.state();
        state.calls.push(format!("{method} {path}"));
        if let Some(answer) = state.prepared(method, path) {
            return answer;
        }
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (method.as_str(), segments.as_slice()) {
            ("POST", ["apis", "authorization.k8s.io", "v1", "subjectaccessreviews"]) => {
                let asked = format!(
                    "{} pods/{}",
                    text(body, "/spec/resourceAttributes/verb"),
                    text(body, "/spec/resourceAttributes/subresource")
                );
                let mut review = body.clone();
                review["status"] = json!({"allowed": !state.forbidden.contains(&asked)});
                (201, review)
            }
            ("POST", [.., "events"]) => {
                state.events.push(body.clone());
                (201, body.clone())
            }
            ("GET", ["api", "v1", "namespaces", name]) => {
                let labels = &state.namespace_labels;
                let namespace = json!({"metadata": {"name": name, "uid": "namespace-uid", "labels": labels}});
                state.refuse_namespaces.map_or((200, namespace), |code| status(code, "Refused", "cannot be read"))
            }
            ("GET", [.., "validatingwebhookconfigurations", "pristine"]) => match &state.configuration {
                Some(configuration) => (200, configuration.clone()),
                None => status(404, "NotFound", "none"),
            },
            ("PATCH", [.., "validatingwebhookconfigurations", "pristine"]) => {
                let Some(live) = state.configuration.as_mut() else { return status(404, "NotFound", "none") };
                if body["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"] {
                    return status(409, "Conflict", "the object has been modified");
                }
                merge(&mut live["metadata"], &body["metadata"]);
                let patched = &body["webhooks"];
                for entry in live["webhooks"].as_array_mut().unwrap() {
                    let same = patched.as_array().unwrap().iter().find(|other| other["name"] == entry["name"]).unwrap();
                    merge(&mut entry["clientConfig"], &same["clientConfig"]);
                }
                bump(live);
                (200, live.clone())
            }
            ("POST", ["api", "v1", "namespaces", namespace, "pods", name, "eviction"]) => {
                let gone = state.pods.remove(&format!("{namespace}/{name}"));
                assert_eq!(gone.unwrap()["metadata"]["uid"], body["deleteOptions"]["preconditions"]["uid"]);
                (201, json!({"status": "Success"}))
            }
            ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => {
                match state.pods.get(&format!("{namespace}/{name}")) {
                    Some(pod) => (200, pod.clone()),
                    None => status(404, "NotFound", &format!("pods {name:?} not found")),
                }
            }
            ("PATCH", ["api", "v1", "namespaces", namespace, "pods", name, "status"]) => {
                let key = format!("{namespace}/{name}");
                if let Some(code) = state.refuse_writes {
                    return refused_write(code);
                }
                if state.conflicts > 0 {
                    state.conflicts = state.conflicts.wrapping_sub(1);
                    let pod = state.pods.get_mut(&key).unwrap();
                    bump(pod);
                    return status(409, "Conflict", "the object has been modified");
                }
                let Some(pod) = state.pods.get_mut(&key) else { return status(404, "NotFound", "gone") };
                if body["metadata"]["uid"] != pod["metadata"]["uid"] {
                    return status(422, "Invalid", "Pod is invalid: metadata.uid: Invalid value: field is immutable");
                }
                if body["metadata"]["resourceVersion"] != pod["metadata"]["resourceVersion"] {
                    return status(409, "Conflict", "the object has been modified");
                }
                for field in ["labels", "annotations"] {
                    for (key, value) in body["metadata"][field].as_object().into_iter().flatten() {
                        if pod["metadata"][field].is_null() {
                            pod["metadata"][field] = json!({});
                        }
                        if value.is_null() {
                            pod["metadata"][field].as_object_mut().unwrap().remove(key);
                        } else {
                            pod["metadata"][field][key] = value.clone();
                        }
                    }
                }
                pod["status"]["conditions"] = body["status"]["conditions"].clone();
                if let Some(plugin) = state.plugin {
                    plugin(state.pods.get_mut(&key).unwrap());
                }
                let pod = state.pods.get_mut(&key).unwrap();
                bump(pod);
                (200, pod.clone())
            }
            ("GET", [.., "configmaps", "pristine-loops"]) if state.refuse_maps => status(500, "InternalError", "no"),
            _ => object(&mut state.objects, method, path, body),
        }
    }
}

/// Any other object. A new one has a path that ends with its name, and each write checks the version that it names.
fn object(objects: &mut HashMap<String, Value>, method: &Method, path: &str, body: &Value) -> (u16, Value) {
    if method == Method::POST {
        let mut new = body.clone();
        new["metadata"]["resourceVersion"] = json!("1");
        objects.insert(format!("{path}/{}", text(body, "/metadata/name")), new.clone());
        return (201, new);
    }
    let Some(live) = objects.get_mut(path) else { return status(404, "NotFound", "the fake does not have this") };
    if method == Method::GET {
        return (200, live.clone());
    }
    let version = &body["metadata"]["resourceVersion"];
    if version.is_string() && *version != live["metadata"]["resourceVersion"] {
        return status(409, "Conflict", "the object has been modified");
    }
    merge(live, body);
    bump(live);
    (200, live.clone())
}

/// A JSON merge patch (RFC 7386).
pub fn merge(live: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else { return *live = patch.clone() };
    for (key, value) in fields {
        if value.is_null() {
            live.as_object_mut().map(|live| live.remove(key));
        } else {
            merge(&mut live[key], value);
        }
    }
}

pub fn bump(pod: &mut Value) {
    let version: u64 = text(pod, "/metadata/resourceVersion").parse().unwrap();
    pod["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The answer if another webhook denies a write, or with 500 if it is down and fails closed.
fn refused_write(code: u16) -> (u16, Value) {
    match code {
        500 => status(
            500,
            "InternalError",
            "Internal error occurred: failed calling webhook \"other\": connection refused",
        ),
        _ => status(code, "Forbidden", "admission webhook \"x\" denied the request: no"),
    }
}

pub fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let answer = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, "metadata": {}});
    (code, answer)
}
