//! Kubernetes Events: what `kubectl describe` and `kubectl events` show. Told behind the hot path: an admission never
//! waits for an Event, and a flood of interactions cannot queue without bound.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{error::chain, mark::shorten, telemetry::Metrics};

/// Events waiting to be told. At the API server's pace of some 100 a second this is a few seconds.
const QUEUE: usize = 512;

/// For one Event: those behind it wait.
const PUBLISH: Duration = Duration::from_secs(5);

/// Tells Events.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Returns the handle, and the task that publishes; `instance` is this replica's name.
    pub fn new(
        client: Client,
        instance: &str,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let reporter = Reporter { controller: "pristine".to_owned(), instance: Some(instance.to_owned()) };
        let recorder = Recorder::new(client, reporter);
        let (queue, mut waiting) = mpsc::channel::<(Event, ObjectReference)>(QUEUE);
        let counters = metrics.clone();
        let publish = async move {
            while let Some((event, about)) = waiting.recv().await {
                let told = timeout(PUBLISH, recorder.publish(&event, &about)).await;
                let problem = match told {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => chain(&error),
                    Err(_) => "the API server does not answer".to_owned(),
                };
                counters.events_dropped.inc();
                tracing::warn!(reason = event.reason, error = problem, "cannot publish an event");
            }
        };
        (Self { queue, metrics }, publish)
    }

    /// About a pod. The UID is what makes it show in `kubectl describe pod`.
    pub fn pod(&self, pod: &Pod, type_: EventType, reason: &'static str, action: &'static str, note: &str) {
        self.tell(pod.object_ref(&()), type_, reason, action, note);
    }

    /// About the controller of a pod, in whose `kubectl describe` people look first, and which outlives the pod.
    pub fn owner(&self, pod: &Pod, type_: EventType, reason: &'static str, action: &'static str, note: &str) {
        let owners = pod.metadata.owner_references.iter().flatten();
        let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else { return };
        let about = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace: pod.metadata.namespace.clone(),
            ..ObjectReference::default()
        };
        self.tell(about, type_, reason, action, note);
    }

    /// About anything.
    pub fn tell(
        &self,
        about: ObjectReference,
        type_: EventType,
        reason: &'static str,
        action: &'static str,
        note: &str,
    ) {
        // 1024 characters are the API server's limit for a note; bytes are never fewer.
        let note = Some(shorten(note, 1024));
        let event = Event { type_, reason: reason.to_owned(), action: action.to_owned(), note, secondary: None };
        if self.queue.try_send((event, about)).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}
