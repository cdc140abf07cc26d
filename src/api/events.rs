//! Kubernetes Events: what `kubectl describe` and `kubectl events` show. Told behind the hot path: an admission never
//! waits for an Event, and a flood of interactions cannot queue without bound.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{
    clock::Clock,
    error::chain,
    mark::{owner::controller, shorten},
    telemetry::Metrics,
};

/// Events waiting to be told. At the API server's pace of some 100 a second this is a few seconds.
const QUEUE: usize = 512;

/// client-go's spam filter (`tools/events`, `tools/record`): so many Events about one object at once, and then one each
/// five minutes. A loop of execs would otherwise write two Events for each.
const BURST: u32 = 25;
/// See [`BURST`].
const REFILL: Duration = Duration::from_secs(300);
/// Objects that the filter knows at a time.
const FILTERED: usize = 4096;

/// For one Event: those behind it wait.
const PUBLISH: Duration = Duration::from_secs(5);

/// How many more Events about an object may be told, by UID and reason.
#[derive(Default)]
struct Filter(HashMap<(String, &'static str), (u32, Instant)>);

impl Filter {
    fn admits(&mut self, uid: &str, reason: &'static str, now: Instant) -> bool {
        if self.0.len() >= FILTERED {
            // Whoever is full again is as if never seen; and if all are busy, forgetting some is better than growing.
            self.0.retain(|_, (_, last)| now.duration_since(*last) < REFILL);
            if self.0.len() >= FILTERED {
                self.0.clear();
            }
        }
        let (left, last) = self.0.entry((uid.to_owned(), reason)).or_insert((BURST, now));
        let refilled = u32::try_from(now.duration_since(*last).as_secs() / REFILL.as_secs()).unwrap_or(BURST);
        if refilled > 0 {
            *left = left.saturating_add(refilled).min(BURST);
            *last = now;
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }
}

/// Whether somebody should look.
#[derive(Clone, Copy, Debug)]
pub enum EventType {
    /// What is meant to happen.
    Normal,
    /// What is not.
    Warning,
}

/// Tells Events.
#[derive(Clone)]
pub struct Events {
    filter: Arc<Mutex<Filter>>,
    queue: mpsc::Sender<Event>,
    instance: Arc<str>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Returns the handle, and the task that publishes; `instance` is this replica's name.
    pub fn new(
        client: Client,
        instance: &str,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, mut waiting) = mpsc::channel::<Event>(QUEUE);
        let counters = metrics.clone();
        let publish = async move {
            while let Some(event) = waiting.recv().await {
                let events: Api<Event> = match &event.metadata.namespace {
                    Some(namespace) => Api::namespaced(client.clone(), namespace),
                    None => Api::default_namespaced(client.clone()),
                };
                let problem = match timeout(PUBLISH, events.create(&PostParams::default(), &event)).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(error)) => chain(&error),
                    Err(_) => "the API server does not answer".to_owned(),
                };
                counters.events_dropped.inc();
                tracing::warn!(reason = event.reason, error = problem, "cannot publish an event");
            }
        };
        let instance = shorten(instance, 128).into();
        (Self { filter: Arc::default(), queue, instance, clock, metrics }, publish)
    }

    /// About a pod. The UID is what makes it show in `kubectl describe pod`.
    pub fn pod(&self, pod: &Pod, type_: EventType, reason: &'static str, action: &'static str, note: &str) {
        self.publish(pod.object_ref(&()), type_, reason, action, note);
    }

    /// About the controller of a pod, in whose `kubectl describe` people look first, and which outlives the pod.
    pub fn owner(&self, pod: &Pod, type_: EventType, reason: &'static str, action: &'static str, note: &str) {
        let Some(owner) = controller(pod) else { return };
        let about = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace: pod.metadata.namespace.clone(),
            ..ObjectReference::default()
        };
        self.publish(about, type_, reason, action, note);
    }

    /// About anything.
    pub fn publish(
        &self,
        about: ObjectReference,
        type_: EventType,
        reason: &'static str,
        action: &'static str,
        note: &str,
    ) {
        let uid = about.uid.as_deref().unwrap_or_default();
        if !self.filter.lock().unwrap_or_else(PoisonError::into_inner).admits(uid, reason, Instant::now()) {
            self.metrics.events_dropped.inc();
            return;
        }
        // One object each, and no series: kube's recorder would count the second exec and drop who did it.
        let name = format!("{}.{:016x}", about.name.as_deref().unwrap_or("pristine"), rand::random::<u64>());
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: about.namespace.clone(), ..ObjectMeta::default() },
            type_: Some(if matches!(type_, EventType::Warning) { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(reason.to_owned()),
            action: Some(action.to_owned()),
            // 1024 characters are the API server's limit for a note; bytes are never fewer.
            note: Some(shorten(note, 1024)),
            regarding: Some(about),
            reporting_controller: Some("pristine".to_owned()),
            reporting_instance: Some(self.instance.to_string()),
            event_time: Some(MicroTime(self.clock.now())),
            ..Event::default()
        };
        if self.queue.try_send(event).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_of_events_about_one_object_is_cut_and_others_are_not() {
        let (mut filter, start) = (Filter::default(), Instant::now());
        let told = (0..1000).filter(|_| filter.admits("a", "x", start)).count();
        assert_eq!(told, 25);
        assert!(filter.admits("b", "x", start) && filter.admits("a", "y", start));
        assert!(!filter.admits("a", "x", start + REFILL / 2));
        assert!(filter.admits("a", "x", start + REFILL));
        assert!(!filter.admits("a", "x", start + REFILL));
        for n in 0..3 * FILTERED {
            filter.admits(&n.to_string(), "x", start);
        }
        assert!(filter.0.len() <= FILTERED);
    }
}
