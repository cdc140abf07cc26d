use std::{collections::HashMap, sync::Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::{
    api::{link::Link, webhook::check},
    audit_log::AuditLog,
    clock::Clock,
    telemetry::Metrics,
};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const NAMESPACE: &str = "/api/v1/namespaces/pristine-system";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/pristine-system/deployments/pristine";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

type OnCreate = Box<dyn FnMut(&mut State) -> Option<StatusCode> + Send>;

#[derive(Default)]
struct State {
    objects: HashMap<String, Value>,
    is_allowed: bool,
    /// Whether the permissions of the component are gone.
    is_forbidden: bool,
    on_create: Option<OnCreate>,
    /// SIGTERM comes at the first question to the API server.
    stop_at_review: Option<watch::Sender<bool>>,
    /// The writes: POST with the UID that was given, DELETE with the UID in the precondition.
    writes: Vec<String>,
    reviews: usize,
    refused_deletes: usize,
    events: Vec<String>,
    created: Option<Value>,
}

impl State {
    /// With the component, and without the configuration.
    fn installed() -> Self {
        let policy: Value =
            serde_saphyr::from_str(include_str!("../../../../manifests/components/self-healing/policy.yaml")).unwrap();
        let admission = "/apis/admissionregistration.k8s.io/v1";
        let binding = json!({ "metadata": {}, "spec": { "policyName": POLICY, "validationActions": ["Deny"] } });
        let deployment = json!({ "metadata": {}, "spec": { "replicas": 2, "selector": {}, "template": {} } });
        let objects = [
            (NAMESPACE.to_owned(), json!({ "metadata": { "name": "pristine-system", "uid": "n" } })),
            (DEPLOYMENT.to_owned(), deployment),
            (format!("{NAMESPACE}/services/pristine"), json!({ "metadata": {} })),
            (format!("{NAMESPACE}/pods/replica"), json!({ "metadata": {} })),
            (format!("{admission}/validatingadmissionpolicies/{POLICY}"), policy),
            (format!("{admission}/validatingadmissionpolicybindings/{POLICY}"), binding),
        ];
        Self { objects: objects.into(), is_allowed: true, ..Self::default() }
    }

    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> Result<Value, StatusCode> {
        let live = format!("{CONFIGURATIONS}/pristine");
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match (method, path) {
            (&Method::POST, ACCESS) => {
                self.reviews += 1;
                if let Some(stop) = &self.stop_at_review {
                    stop.send_replace(true);
                }
                Ok(json!({ "metadata": {}, "spec": {}, "status": { "allowed": self.is_allowed } }))
            }
            (&Method::POST, CONFIGURATIONS) => {
                if self.objects.contains_key(&live) {
                    return Err(StatusCode::CONFLICT);
                }
                let uid = format!("new-{}", self.writes.len());
                let mut object = body;
                object["metadata"]["uid"] = json!(uid);
                self.objects.insert(live, object.clone());
                self.created = Some(object.clone());
                self.writes.push(format!("POST {uid}"));
                let mut on_create = self.on_create.take();
                let refused = on_create.as_mut().and_then(|on_create| on_create(self));
                refused.map_or(Ok(object), Err)
            }
            (&Method::POST, _) => {
                self.events.push(body["reason"].as_str().unwrap().to_owned());
                Ok(body)
            }
            (&Method::DELETE, _) if self.refused_deletes > 0 => {
                self.refused_deletes -= 1;
                Err(StatusCode::SERVICE_UNAVAILABLE)
            }
            (&Method::DELETE, _) => {
                let uid = body["preconditions"]["uid"].as_str().unwrap();
                self.writes.push(format!("DELETE {uid}"));
                let is_there = self.objects.get(path).is_some_and(|object| object["metadata"]["uid"] == *uid);
                if is_there {
                    self.objects.remove(path).ok_or(StatusCode::NOT_FOUND)
                } else {
                    Err(StatusCode::CONFLICT)
                }
            }
            (_, DEPLOYMENT) if self.is_forbidden => Err(StatusCode::FORBIDDEN),
            _ => self.objects.get(path).cloned().ok_or(StatusCode::NOT_FOUND),
        }
    }
}

struct Stage {
    server: Arc<Mutex<State>>,
    watcher: watch::Sender<Seen>,
    stop: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl Stage {
    fn new(state: State) -> Self {
        let server = Arc::new(Mutex::new(state));
        let answers = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answers = answers.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let answer = answers.lock().unwrap().answer(&parts.method, parts.uri.path(), &body);
                let (code, answer) = match answer {
                    Ok(answer) => (200, answer),
                    Err(code) => {
                        let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "" };
                        let code = code.as_u16();
                        (code, json!({ "status": "Failure", "code": code, "reason": reason, "message": "m" }))
                    }
                };
                let response = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        let client = Client::new(service, "pristine-system");
        let metrics = Arc::new(Metrics::default());
        let (clock, audit_log, link) = (Clock::system(), AuditLog::stdout(), Link::default());
        let (context, publish) = Context::new(client.clone(), "replica", clock, audit_log, metrics.clone(), link);
        tokio::spawn(publish);
        let (stop, stopping) = watch::channel(false);
        let (watcher, seen) = watch::channel(Seen::default());
        let [configuration, service, namespace, pod] =
            ["pristine", "pristine", "pristine-system", "replica"].map(str::to_owned);
        let names = Names { configuration, service, namespace };
        let healer = Healer { client, seen, names, pod, context, stopping };
        tokio::spawn(healer.run());
        Self { server, watcher, stop, metrics }
    }

    /// A replica that has seen the configuration with this caBundle, and then sees that it is gone.
    async fn deleted(state: State) -> Self {
        let cluster = Self::new(state);
        cluster.see(Some(live("old"))).await;
        cluster.see(None).await;
        cluster
    }

    async fn see(&self, live: Option<ValidatingWebhookConfiguration>) {
        self.watcher.send_modify(|seen| (seen.is_known, seen.live) = (true, live.map(Arc::new)));
        sleep(Duration::from_millis(1)).await;
    }

    fn change(&self, path: &str, value: Option<Value>) {
        let mut state = self.server.lock().unwrap();
        match value {
            Some(value) => drop(state.objects.insert(path.to_owned(), value)),
            None => drop(state.objects.remove(path)),
        }
    }

    fn switch_off(&self) {
        self.change(NAMESPACE, Some(json!({ "metadata": { "uid": "n", "annotations": { heal::SWITCH: "off" } } })));
    }

    async fn writes_after(&self, seconds: u64) -> Vec<String> {
        sleep(Duration::from_secs(seconds)).await;
        self.server.lock().unwrap().writes.clone()
    }

    fn restores(&self) -> u64 {
        self.metrics.configuration_restores.get()
    }

    /// The watch sees what was created.
    async fn see_created(&self) {
        let created = self.server.lock().unwrap().created.clone().unwrap();
        self.see(Some(serde_json::from_value(created).unwrap())).await;
    }
}

fn live(bundle: &str) -> ValidatingWebhookConfiguration {
    let mut live = check::shipped().clone();
    live.metadata.uid = Some("old".to_owned());
    for entry in live.webhooks.iter_mut().flatten() {
        entry.client_config.ca_bundle = Some(k8s_openapi::ByteString(bundle.as_bytes().to_vec()));
    }
    live
}

const NONE: [&str; 0] = [];

#[tokio::test(start_paused = true)]
async fn a_deleted_configuration_is_created_again_and_reported() {
    let cluster = Stage::deleted(State::installed()).await;
    assert_eq!(cluster.writes_after(9).await, NONE, "too early");
    assert_eq!(cluster.writes_after(7).await, ["POST new-0"]);
    let created = cluster.server.lock().unwrap().created.clone().unwrap();
    assert_eq!(created["metadata"]["ownerReferences"][0]["uid"], "n");
    assert_eq!(created["webhooks"][0]["clientConfig"]["caBundle"], "b2xk", "the last that was seen");
    assert_eq!(
        (cluster.restores(), &cluster.server.lock().unwrap().events[..]),
        (1, &["WebhookConfigurationRestored".to_owned()][..])
    );
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_never_seen_a_configuration_creates_none() {
    let cluster = Stage::new(State::installed());
    cluster.see(None).await;
    assert_eq!(cluster.writes_after(3600).await, NONE);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_back_within_ten_seconds_is_left_alone() {
    let cluster = Stage::deleted(State::installed()).await;
    sleep(Duration::from_secs(9)).await;
    cluster.see(Some(live("old"))).await;
    assert_eq!(cluster.writes_after(3600).await, NONE);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_created_after_sigterm() {
    let cluster = Stage::deleted(State::installed()).await;
    cluster.stop.send_replace(true);
    assert_eq!(cluster.writes_after(3600).await, NONE);
}

#[tokio::test(start_paused = true)]
async fn sigterm_between_the_first_read_and_the_create_stops_it() {
    let cluster = Stage::deleted(State::installed()).await;
    cluster.server.lock().unwrap().stop_at_review = Some(cluster.stop.clone());
    assert_eq!(cluster.writes_after(3600).await, NONE);
    assert_eq!(cluster.server.lock().unwrap().reviews, 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_component_one_question_is_asked_and_nothing_is_created() {
    let mut state = State::installed();
    state.is_allowed = false;
    let cluster = Stage::deleted(state).await;
    assert_eq!(cluster.writes_after(3600).await, NONE);
    assert_eq!(cluster.server.lock().unwrap().reviews, 1);
    // The next time, it may be installed.
    cluster.server.lock().unwrap().is_allowed = true;
    cluster.see(Some(live("old"))).await;
    cluster.see(None).await;
    assert_eq!(cluster.writes_after(20).await, ["POST new-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_another_replica_created_first_is_a_success() {
    let mut state = State::installed();
    state.objects.insert(format!("{CONFIGURATIONS}/pristine"), json!({ "metadata": { "uid": "other" } }));
    let cluster = Stage::deleted(state).await;
    assert_eq!(cluster.writes_after(3600).await, NONE);
    assert_eq!((cluster.restores(), cluster.server.lock().unwrap().reviews), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_obstacle_is_looked_at_again() {
    let cluster = Stage::deleted(State::installed()).await;
    cluster.switch_off();
    assert_eq!(cluster.writes_after(600).await, NONE);
    let asked = cluster.server.lock().unwrap().reviews;
    assert!((5..20).contains(&asked), "{asked} times in ten minutes");
    cluster.change(NAMESPACE, Some(json!({ "metadata": { "uid": "n" } })));
    assert_eq!(cluster.writes_after(60).await, ["POST new-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_is_withdrawn_if_the_rest_is_deleted_at_the_same_time() {
    let mut state = State::installed();
    state.on_create = Some(Box::new(|state: &mut State| {
        state.objects.remove(DEPLOYMENT);
        None
    }));
    let cluster = Stage::deleted(state).await;
    assert_eq!(cluster.writes_after(16).await, ["POST new-0", "DELETE new-0"]);
    assert_eq!((cluster.restores(), cluster.writes_after(3600).await.len()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_configuration_is_withdrawn_if_the_rest_is_deleted_later_and_this_replica_drains() {
    let cluster = Stage::deleted(State::installed()).await;
    assert_eq!(cluster.writes_after(16).await, ["POST new-0"]);
    cluster.see_created().await;
    assert_eq!(cluster.writes_after(300).await, ["POST new-0"]);
    cluster.change(DEPLOYMENT, None);
    cluster.stop.send_replace(true);
    assert_eq!(cluster.writes_after(2).await, ["POST new-0", "DELETE new-0"]);
    cluster.see(None).await;
    assert_eq!(cluster.writes_after(3600).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_is_withdrawn_when_the_permissions_of_the_component_are_deleted() {
    let cluster = Stage::deleted(State::installed()).await;
    sleep(Duration::from_secs(16)).await;
    cluster.see_created().await;
    // An API server that has just started knows no permissions for a moment.
    for _ in 0..3 {
        cluster.server.lock().unwrap().is_forbidden = true;
        assert_eq!(cluster.writes_after(3).await, ["POST new-0"]);
        cluster.server.lock().unwrap().is_forbidden = false;
        sleep(Duration::from_secs(2)).await;
    }
    cluster.server.lock().unwrap().is_forbidden = true;
    assert_eq!(cluster.writes_after(7).await, ["POST new-0", "DELETE new-0"]);
}

#[tokio::test(start_paused = true)]
async fn once_it_is_switched_off_a_created_configuration_is_the_operators() {
    let cluster = Stage::deleted(State::installed()).await;
    sleep(Duration::from_secs(16)).await;
    cluster.see_created().await;
    cluster.switch_off();
    sleep(Duration::from_secs(2)).await;
    cluster.server.lock().unwrap().is_forbidden = true;
    assert_eq!(cluster.writes_after(3600).await, ["POST new-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_of_another_client_is_never_withdrawn() {
    let cluster = Stage::deleted(State::installed()).await;
    sleep(Duration::from_secs(16)).await;
    cluster.see_created().await;
    // Deleted, and applied again by a person, within the same second.
    cluster.see(Some(live("person"))).await;
    cluster.change(DEPLOYMENT, None);
    assert_eq!(cluster.writes_after(3600).await, ["POST new-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_whose_create_was_not_answered_is_withdrawn_like_any_other() {
    let mut state = State::installed();
    state.on_create = Some(Box::new(|_: &mut State| Some(StatusCode::GATEWAY_TIMEOUT)));
    let cluster = Stage::deleted(state).await;
    assert_eq!(cluster.writes_after(16).await, ["POST new-0"]);
    cluster.see_created().await;
    assert_eq!((cluster.restores(), cluster.writes_after(60).await.len()), (1, 1));
    cluster.change(DEPLOYMENT, None);
    assert_eq!(cluster.writes_after(2).await, ["POST new-0", "DELETE new-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_delete_is_tried_again() {
    let mut state = State::installed();
    state.on_create = Some(Box::new(|state: &mut State| {
        state.objects.remove(DEPLOYMENT);
        state.refused_deletes = 3;
        None
    }));
    let cluster = Stage::deleted(state).await;
    sleep(Duration::from_secs(16)).await;
    cluster.see_created().await;
    assert_eq!(cluster.writes_after(5).await, ["POST new-0", "DELETE new-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_deleted_again_is_created_again_with_its_newest_ca_bundle() {
    let cluster = Stage::deleted(State::installed()).await;
    sleep(Duration::from_secs(16)).await;
    cluster.see_created().await;
    let mut renewed: ValidatingWebhookConfiguration = live("new");
    renewed.metadata.uid = Some("new-0".to_owned());
    cluster.see(Some(renewed)).await;
    sleep(Duration::from_secs(2)).await;
    cluster.change(&format!("{CONFIGURATIONS}/pristine"), None);
    cluster.see(None).await;
    assert_eq!(cluster.writes_after(20).await, ["POST new-0", "POST new-1"]);
    let created = cluster.server.lock().unwrap().created.clone().unwrap();
    assert_eq!(created["webhooks"][0]["clientConfig"]["caBundle"], "bmV3");
    assert_eq!(cluster.restores(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_deleted_again_within_a_second_is_created_again() {
    let mut state = State::installed();
    // The watch shows both changes before this replica looks.
    state.on_create = Some(Box::new(|state: &mut State| {
        state.objects.remove(&format!("{CONFIGURATIONS}/pristine"));
        None
    }));
    let cluster = Stage::deleted(state).await;
    sleep(Duration::from_millis(15_100)).await;
    cluster.see(None).await;
    assert_eq!(cluster.writes_after(20).await, ["POST new-0", "POST new-1"]);
}
