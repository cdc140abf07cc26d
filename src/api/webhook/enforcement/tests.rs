use std::sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering::SeqCst};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::{api::link::Link, audit_log::AuditLog, clock::Clock, telemetry::Metrics};

/// The Events that an API server was sent: kind and name of the object, type, reason and note.
type Events = Arc<Mutex<Vec<[String; 5]>>>;

/// The task with an API server whose namespace `n` may be terminating, and the Events that it was sent.
fn task(terminating: &Arc<AtomicBool>) -> (Enforcement, Events, watch::Sender<bool>, watch::Sender<Seen>) {
    let (events, terminating) = (Events::default(), terminating.clone());
    let sent = events.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (sent, is_terminating) = (sent.clone(), terminating.load(SeqCst));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let answer = if parts.method == http::Method::POST {
                let event: Value = serde_json::from_slice(&body).unwrap();
                let text =
                    |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
                let about = ["/regarding/kind", "/regarding/name", "/type", "/reason", "/note"].map(text);
                let namespace = if about[0] == "Pod" { "n" } else { "default" };
                assert_eq!(parts.uri.path(), format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"));
                sent.lock().unwrap().push(about);
                event
            } else {
                let since = is_terminating.then_some("2026-01-01T00:00:00Z");
                json!({"kind": "Namespace", "metadata": {"name": "n", "deletionTimestamp": since}})
            };
            let response = Response::builder().body(Body::from(answer.to_string().into_bytes()));
            Ok::<_, std::convert::Infallible>(response.unwrap())
        }
    });
    let client = Client::new(service, "n");
    let (audit_log, metrics) = (AuditLog::stdout(), Arc::new(Metrics::default()));
    let (context, publish) =
        Context::new(client.clone(), "replica", Clock::system(), audit_log, metrics, Link::default());
    tokio::spawn(publish);
    let (stop, stopping) = watch::channel(false);
    let about = ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some("n".to_owned()),
        name: Some("replica".to_owned()),
        ..ObjectReference::default()
    };
    let [service, namespace] = ["pristine", "n"].map(str::to_owned);
    let (sender, seen) = watch::channel(Seen::default());
    (Enforcement { client, seen, service, namespace, about, context, stopping }, events, stop, sender)
}

/// The shipped configuration, for the namespace `n`.
fn shipped() -> ValidatingWebhookConfiguration {
    let text = include_str!("../../../../manifests/base/webhook.yaml");
    serde_saphyr::from_str(&text.replace("pristine-system", "n")).unwrap()
}

fn weakened() -> ValidatingWebhookConfiguration {
    let mut weakened = shipped();
    weakened.webhooks.as_mut().unwrap()[1].failure_policy = Some("Ignore".to_owned());
    weakened
}

/// The value of the metric, if it has one.
fn intact(task: &Enforcement) -> Option<i64> {
    let text = task.context.metrics.render();
    let line = text.lines().find(|line| line.starts_with("pristine_enforcement_intact"))?;
    line.rsplit(' ').next().unwrap().parse().ok()
}

/// Follows these changes, one each minute; the metric after each of them.
async fn follow(
    task: &Enforcement,
    sender: &watch::Sender<Seen>,
    changes: Vec<Option<ValidatingWebhookConfiguration>>,
) -> Vec<Option<i64>> {
    let minute = Duration::from_secs(60);
    let mut after = Vec::new();
    let change = async {
        for live in changes {
            sleep(minute).await;
            sender.send_replace(Seen { is_known: true, live: live.map(Arc::new), ..Seen::default() });
            sleep(Duration::from_secs(1)).await;
            after.push(intact(task));
        }
    };
    tokio::select! {
        () = task.follow() => {}
        () = change => {}
    }
    after
}

#[tokio::test(start_paused = true)]
async fn the_metric_and_the_events_follow_the_configuration() {
    let (task, events, _stop, sender) = task(&Arc::default());
    let before = tokio::time::timeout(Duration::from_secs(9), task.follow()).await;
    assert!(before.is_err() && intact(&task).is_none(), "nothing is known yet");
    let changes = vec![Some(weakened()), Some(weakened()), Some(shipped()), None, Some(shipped()), None];
    let seen = follow(&task, &sender, changes).await;
    assert_eq!(seen, [Some(0), Some(0), Some(1), Some(0), Some(1), Some(0)]);

    let events = events.lock().unwrap();
    let short: Vec<_> = events.iter().map(|[kind, name, _, reason, _]| format!("{kind} {name} {reason}")).collect();
    let ours = "ValidatingWebhookConfiguration pristine";
    let pod = "Pod replica EnforcementWeakened";
    let (weakened, restored) = (format!("{ours} EnforcementWeakened"), format!("{ours} EnforcementRestored"));
    assert_eq!(short, [weakened.as_str(), &restored, pod, &restored, pod]);
    let note = "debug.pods.pristine: failurePolicy is Ignore, not Fail: requests are not recorded while no replica \
                answers; kubectl apply -f install.yaml restores the shipped configuration";
    assert_eq!((events[0][2].as_str(), events[0][4].as_str(), events[1][2].as_str()), ("Warning", note, "Normal"));
}

#[tokio::test(start_paused = true)]
async fn an_accepted_deviation_leaves_the_metric_at_one_and_publishes_nothing() {
    let (task, events, _stop, sender) = task(&Arc::default());
    let mut accepted = weakened();
    accepted.metadata.annotations.as_mut().unwrap().insert(ACCEPTED.to_owned(), "failurePolicy".to_owned());
    let seen = follow(&task, &sender, vec![Some(accepted)]).await;
    assert_eq!((seen.last().unwrap(), events.lock().unwrap().len()), (&Some(1), 0));
}

#[tokio::test(start_paused = true)]
async fn uninstalling_publishes_no_warning() {
    let terminating = Arc::new(AtomicBool::new(true));
    let (task, events, _stop, sender) = task(&terminating);
    let seen = follow(&task, &sender, vec![None]).await;
    assert_eq!((seen.last().unwrap(), events.lock().unwrap().len()), (&Some(0), 0));
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_sigterm() {
    let (task, _, stop, _sees) = task(&Arc::default());
    stop.send_replace(true);
    timeout(Duration::from_secs(1), task.run()).await.unwrap();
}
