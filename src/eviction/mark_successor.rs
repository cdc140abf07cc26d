//! Marks the successors of deleted pods: the pods that get their names next, as long as an exec that was admitted for a
//! deleted pod may still run in them. The I/O for [`super::successor`].
//!
//! A few successors are read one by one, and many of one namespace are one list, in pages. So a namespace of which all pods
//! are deleted costs some lists, and not some requests for each pod.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use tokio::time::sleep;

use super::{
    leadership::Leadership,
    successor::{Expected, SuccessorMark, Successors},
};
use crate::{
    api::{
        Context,
        events::EventType,
        pods::{self, Pods},
    },
    audit_log::Line,
    error::chain,
    mark::INTERACTED,
    telemetry::Outcome,
};

/// From so many successors in one namespace on, its pods are listed.
const MANY: usize = 20;
/// Requests at once.
const CONCURRENT: usize = 8;

/// How often it is seen whether there is something to look for.
const TICK: Duration = Duration::from_secs(1);

/// The end of a look for one successor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    /// The successor exists and is marked.
    Marked,
    /// There is no successor.
    Absent,
    /// The API server did not say.
    Failed,
}

/// Marks successors. Cheap to clone.
#[derive(Clone)]
pub struct SuccessorMarker {
    pods: Pods,
    context: Context,
    known: Arc<Mutex<Successors>>,
}

impl SuccessorMarker {
    /// Reads and marks the successors by `pods`, and reports to `context`.
    #[must_use]
    pub fn new(pods: Pods, context: Context) -> Self {
        Self { pods, context, known: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Successors> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod exists.
    pub fn observe(&self, pod: &Pod) {
        self.lock().observe(pod, self.context.clock.corrected());
    }

    /// The pod was deleted.
    pub fn delete(&self, pod: &Pod) {
        self.lock().delete(pod, self.context.clock.corrected());
    }

    /// All pods with a mark have these UIDs.
    pub fn replace(&self, listed: &HashSet<String>) {
        self.lock().replace(listed, self.context.clock.corrected());
    }

    /// Runs until the process ends. Looks for successors while this replica leads, for those of one moment at a time.
    pub async fn run(self, leadership: Leadership) {
        loop {
            sleep(TICK).await;
            let now = self.context.clock.corrected();
            self.lock().sweep(now);
            let due = if leadership.is_held() { self.lock().take_due(now) } else { Vec::new() };
            for (expected, look) in self.look(due).await {
                if look != Look::Marked {
                    self.lock().look_again(expected, look == Look::Failed, now);
                }
            }
        }
    }

    /// Looks once for each of these successors, and marks those that exist.
    async fn look(&self, due: Vec<Expected>) -> Vec<(Expected, Look)> {
        let mut namespaces: BTreeMap<String, Vec<Expected>> = BTreeMap::new();
        for expected in due {
            namespaces.entry(expected.namespace.clone()).or_default().push(expected);
        }
        let mut done = Vec::new();
        for (namespace, expected) in namespaces {
            if expected.len() < MANY {
                done.extend(self.look_for_few(expected).await);
            } else {
                done.extend(self.look_for_many(&namespace, expected).await);
            }
        }
        done
    }

    async fn look_for_few(&self, expected: Vec<Expected>) -> Vec<(Expected, Look)> {
        let looks = stream::iter(expected).map(|expected| async move {
            let look = match self.pods.get(&expected.namespace, &expected.name).await {
                Ok(pod) => self.mark(&expected, &pod).await,
                Err(pods::Error::Gone) => Look::Absent,
                Err(error) => failed(&expected.namespace, &error),
            };
            (expected, look)
        });
        looks.buffer_unordered(CONCURRENT).collect().await
    }

    /// One page after the other and without the specs, so that a namespace of any size needs little memory.
    async fn look_for_many(&self, namespace: &str, expected: Vec<Expected>) -> Vec<(Expected, Look)> {
        let mut missing: HashMap<String, Expected> =
            expected.into_iter().map(|expected| (expected.name.clone(), expected)).collect();
        let (mut done, mut page) = (Vec::new(), None);
        loop {
            let (pods, next) = match self.pods.page(namespace, page).await {
                Ok(found) => found,
                Err(error) => {
                    let look = failed(namespace, &error);
                    done.extend(missing.into_values().map(|expected| (expected, look)));
                    return done;
                }
            };
            let found = pods.into_iter().filter_map(|pod| Some((missing.remove(pod.name.as_ref()?)?, pod)));
            let is_labelled = |pod: &ObjectMeta| pod.labels.as_ref().is_some_and(|all| all.contains_key(INTERACTED));
            let (labelled, found): (Vec<_>, Vec<_>) = found.partition(|(_, pod)| is_labelled(pod));
            let marks = stream::iter(found).map(|(expected, metadata)| async move {
                let look = self.mark(&expected, &Pod { metadata, ..Pod::default() }).await;
                (expected, look)
            });
            done.extend(marks.buffer_unordered(CONCURRENT).collect::<Vec<_>>().await);
            // Such a pod may have the interaction already, and only the whole pod proves it.
            done.extend(self.look_for_few(labelled.into_iter().map(|(expected, _)| expected).collect()).await);
            if next.is_none() || missing.is_empty() {
                done.extend(missing.into_values().map(|expected| (expected, Look::Absent)));
                return done;
            }
            page = next;
        }
    }

    /// Marks the pod if it is the successor.
    async fn mark(&self, expected: &Expected, pod: &Pod) -> Look {
        if !expected.is_succeeded_by(pod) {
            return Look::Absent;
        }
        let Expected { namespace, name, mark: SuccessorMark { interaction, disposition, .. }, .. } = expected;
        let marked = match self.pods.mark(pod, vec![(interaction.clone(), *disposition)]).await {
            Ok(marked) => marked,
            Err(pods::Error::Conflict | pods::Error::Gone) => return Look::Failed,
            Err(error) => return failed(namespace, &error),
        };
        if marked.recorded.iter().any(|one| !one.folded) {
            let message = "the previous pod of this name was deleted right after an interaction, \
                           which may have reached this pod instead";
            self.context.audit_log.write(&Line {
                decision: "marked",
                namespace,
                pod: name,
                pod_uid: pod.metadata.uid.as_deref(),
                evict_at: marked.mark.evict_at,
                total: Some(marked.mark.total),
                message: Some(message),
                interaction,
            });
            self.context.metrics.evictions.get_or_create(&Outcome { result: "successor_marked" }).inc();
            self.context.events.pod(pod, EventType::Normal, "SuccessorMarked", "Mark", message);
        }
        Look::Marked
    }
}

fn failed(namespace: &str, error: &pods::Error) -> Look {
    let error = chain(error);
    tracing::warn!(namespace, error, "cannot mark the successors of deleted pods, retrying");
    Look::Failed
}
