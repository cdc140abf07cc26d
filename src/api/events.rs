//! Kubernetes Events: what `kubectl describe` and `kubectl events` show. They are published outside the hot path: an
//! admission never waits for an Event, and a flood of interactions cannot fill the queue without bound.

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
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
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

/// Events that wait to be published. At some 100 a second, the API server's pace, the queue is empty after a few
/// seconds.
const QUEUE: usize = 512;

/// The spam filter of client-go (`tools/events`, `tools/record`): this many Events about one object at once, and then
/// one every five minutes. Without it, a loop of execs would write two Events for each exec.
const BURST: u32 = 25;
/// See [`BURST`].
const REFILL: Duration = Duration::from_secs(300);
/// The most entries that the filter has at a time.
const MAX_FILTERED: usize = 4096;

/// For one Event, because the Events behind it wait.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the object's name in the name of an Event. Kubernetes allows 253 bytes for both, and the rest of the Event's
/// name has 17.
const MAX_OBJECT_NAME: usize = 253 - 17;

/// How many more Events about an object may be published, by UID and reason, and when that was refilled.
#[derive(Default)]
struct Filter(HashMap<(String, &'static str), (u32, Instant)>);

impl Filter {
    fn admits(&mut self, uid: &str, reason: &'static str, now: Instant) -> bool {
        if self.0.len() >= MAX_FILTERED {
            // An object with a full budget needs no entry. If every entry is active, all are dropped rather than
            // growing without bound.
            self.0.retain(|_, (_, last)| now.duration_since(*last) < REFILL);
            if self.0.len() >= MAX_FILTERED {
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

/// Whether the Event needs attention.
#[derive(Clone, Copy, Debug)]
pub enum EventType {
    /// Something happened as intended.
    Normal,
    /// Something failed or needs action.
    Warning,
}

/// The name of an Event about the object: the name of the object, shortened if necessary, and a random number.
///
/// The name of an object may be as long as that of an Event, and the API server refuses a longer one. A label of a DNS
/// subdomain is neither empty nor ends with a hyphen.
fn event_name(object: &str, random: u64) -> String {
    let end = object.floor_char_boundary(MAX_OBJECT_NAME);
    let object = object[..end].trim_end_matches(['.', '-']);
    let object = if object.is_empty() { "pristine" } else { object };
    format!("{object}.{random:016x}")
}

/// Publishes Events. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    filter: Arc<Mutex<Filter>>,
    queue: mpsc::Sender<Event>,
    instance: Arc<str>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Returns the handle, and the task that publishes the Events; `instance` is this replica's name.
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
                // The API server accepts Events about an object without a namespace only in the namespace `default`.
                let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
                let events: Api<Event> = Api::namespaced(client.clone(), namespace);
                let problem = match timeout(PUBLISH_TIMEOUT, events.create(&PostParams::default(), &event)).await {
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

    /// Publishes an Event about a pod. `kubectl describe pod` finds it by the pod's UID.
    pub fn pod(&self, pod: &Pod, type_: EventType, reason: &'static str, action: &'static str, note: &str) {
        self.publish(pod.object_ref(&()), type_, reason, action, note);
    }

    /// Publishes an Event about the controller of a pod: people run `kubectl describe` on it first, and it outlives the
    /// pod.
    pub fn owner(&self, pod: &Pod, type_: EventType, reason: &'static str, action: &'static str, note: &str) {
        let Some(owner) = controller(pod) else { return };
        self.above(owner, pod, type_, reason, action, note);
    }

    /// Publishes an Event about an object of the owner chain of a pod, which is in the pod's namespace.
    pub fn above(
        &self,
        owner: &OwnerReference,
        pod: &Pod,
        type_: EventType,
        reason: &'static str,
        action: &'static str,
        note: &str,
    ) {
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

    /// Publishes an Event about any object.
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
        // One object for each Event, and no series: kube's recorder would count the second exec and drop its user.
        let name = event_name(about.name.as_deref().unwrap_or_default(), rand::random());
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: about.namespace.clone(), ..ObjectMeta::default() },
            type_: Some(if matches!(type_, EventType::Warning) { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(reason.to_owned()),
            action: Some(action.to_owned()),
            // The API server's limit for a note is 1024 characters, and a text never has more characters than bytes.
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

    #[test]
    fn the_name_of_an_event_is_a_dns_subdomain_whatever_the_length_of_the_objects_name() {
        assert_eq!(event_name("web-0", 10), "web-0.000000000000000a");
        assert_eq!(event_name("", 10), "pristine.000000000000000a");
        let longest = "a".repeat(253);
        let cut_at_a_dot = format!("{}.-.{}", "a".repeat(233), "b".repeat(17));
        let cut_in_a_character = "é".repeat(126) + "é";
        for (object, bytes) in [(&longest, 253), (&cut_at_a_dot, 250), (&cut_in_a_character, 253)] {
            let name = event_name(object, u64::MAX);
            assert_eq!(name.len(), bytes, "{name}");
            assert!(name.split('.').all(|label| !label.is_empty() && !label.ends_with('-')), "{name}");
        }
        assert_eq!(event_name(&"a".repeat(236), 0).len(), 253);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_events_about_one_object_is_limited_and_other_events_are_not() {
        let (mut filter, start) = (Filter::default(), Instant::now());
        let admitted = (0..1000).filter(|_| filter.admits("a", "x", start)).count();
        assert_eq!(admitted, 25);
        assert!(filter.admits("b", "x", start) && filter.admits("a", "y", start));
        assert!(!filter.admits("a", "x", start + REFILL / 2));
        assert!(filter.admits("a", "x", start + REFILL));
        assert!(!filter.admits("a", "x", start + REFILL));
        for n in 0..3 * MAX_FILTERED {
            filter.admits(&n.to_string(), "x", start);
        }
        assert!(filter.0.len() <= MAX_FILTERED);
    }
}
