//! Watches the marked pods and reconciles those whose time has come.
//!
//! Every reconciliation reads the pod and plans again, because an eviction that is refused for a wrong UID uses up a
//! disruption of the PodDisruptionBudget for two minutes.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Settings,
    entry::{Entry, Observed, Requeue, STATES, observe, waiting_states},
    leadership::Leadership,
    loop_store::LoopStore,
    mark_successor::SuccessorMarker,
    pacing::permit::Pacer,
    queue::Queue,
    reconcile::{Reconcile, SurgeGate},
    suspension::Suspended,
};
use crate::{
    api::{Context, events::EventType, pods::Pods},
    error::chain,
    mark::{
        self, State,
        owner::{controller, group_of, workload},
    },
    server::readiness::Readiness,
    telemetry::StateLabel,
};

/// Concurrent reconciliations: about as many as the default rate limit allows evictions at once. Many pods due at
/// the same moment then wait for the API server and not for each other.
const CONCURRENT: usize = 64;
/// The wall clock is read at least this often, because timers do not advance while a machine is suspended.
const TICK: Duration = Duration::from_secs(5);
/// How soon the deadlines of a machine in a loop are taken off a pod. A machine that execs all the time costs one
/// reconciliation in this time.
const SPARED_AFTER: Duration = Duration::from_secs(1);
/// For one reconciliation: some GETs, an eviction with its own timeout of 15 s, and a PATCH. A reconciliation that
/// hangs must not block one of the [`CONCURRENT`] places.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(30);

/// Evicts the pods that are due.
pub struct Controller {
    /// Watches the marked pods.
    pub client: Client,
    /// Reads pods, writes their status, evicts them.
    pub pods: Pods,
    /// The clock, and the places to report to.
    pub context: Context,
    /// The eviction section of the configuration.
    pub settings: watch::Receiver<Settings>,
    /// Whether this replica may evict.
    pub leadership: Leadership,
    /// Whether any replica may.
    pub suspended: Suspended,
    /// The loops that were noticed.
    pub loops: LoopStore,
    /// Whether surges may begin.
    pub surges: SurgeGate,
    /// This replica's pod, which the Events about a suspension are about.
    pub about: ObjectReference,
    /// For pods that are deleted right after an interaction.
    pub successors: SuccessorMarker,
    /// Ready once all marked pods are known.
    pub synced: Readiness,
}

impl Controller {
    /// Runs until the process ends.
    pub async fn run(self) {
        let api: Api<Pod> = Api::all(self.client.clone());
        // Below the client's read timeout, so that a watch without events is restarted and not considered dead.
        let config = watcher::Config::default().timeout(60).labels(&format!("{}=true", mark::INTERACTED));
        let watch = || watcher(api.clone(), config.clone()).default_backoff().boxed();
        let mut events = watch();
        let mut settings = self.settings.clone();
        let (mut queue, mut listed) = (Queue::default(), Listed::default());
        let pacer = Pacer::default();
        let mut reconciles = FuturesUnordered::new();
        let mut swept = Instant::now();
        let (mut suspended, mut led) = (None, false);
        loop {
            let now = self.context.clock.never_ahead();
            if self.report_suspension(&mut suspended, now) {
                // The pods that became due meanwhile are due now, whenever they would have been looked at again.
                listed.replaces_known = true;
                events = watch();
            }
            // Not in every iteration, because it visits every pod.
            if swept.elapsed() >= TICK {
                swept = Instant::now();
                self.report_overdue(&queue, now);
                pacer.lock().sweep(now);
            }
            let leads = self.leadership.is_held();
            if leads && !led {
                pacer.lock().took_over(now);
            }
            led = leads;
            while reconciles.len() < CONCURRENT && self.leadership.is_held() {
                let Some(uid) = queue.take_due(now) else { break };
                if let Some(entry) = queue.get(&uid).cloned() {
                    reconciles.push(self.reconcile(uid, entry, &pacer));
                }
            }
            self.report(&queue);
            let wait = queue.next().and_then(|next| Duration::try_from(next.duration_since(now)).ok()).unwrap_or(TICK);
            let wait = if self.leadership.is_held() && reconciles.len() < CONCURRENT {
                wait.min(TICK)
            } else {
                TICK.min(Duration::from_secs(1))
            };
            // Cancel safe: the stream and the set keep their state, and the sleep is computed again.
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.observe(event, &mut queue, &mut listed, &pacer),
                    Ok(None) => return,
                    Err(error) => tracing::warn!(error = %chain(&error), "the watch of marked pods was interrupted"),
                },
                Some((uid, before, requeue)) = reconciles.next() => self.requeue(&mut queue, uid, &before, requeue),
                Ok(()) = settings.changed() => {
                    // All pods may have another deadline, warning or quarantine now.
                    listed.replaces_known = true;
                    events = watch();
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn report(&self, queue: &Queue) {
        for (state, word) in STATES {
            let count = match state {
                // A replica that is not the leader does not know what delays an eviction. It may have known as a
                // leader.
                State::EvictionQueued | State::EvictionBlocked | State::Suspended | State::Evicting
                    if !self.leadership.is_held() =>
                {
                    0
                }
                State::Marked if !self.leadership.is_held() => {
                    let all = i64::try_from(queue.uids().len()).unwrap_or(i64::MAX);
                    all - queue.count(State::Terminating)
                }
                _ => queue.count(state),
            };
            self.context.metrics.marked.get_or_create(&StateLabel { state: word }).set(count);
        }
        self.context.metrics.leader.set(i64::from(self.leadership.is_held()));
    }

    fn why_suspended(&self, now: Timestamp) -> Option<String> {
        self.suspended.why(self.settings.borrow().suspend, now)
    }

    /// Reports a change of the suspension, where `known` is why evictions were suspended. Returns whether it has ended.
    fn report_suspension(&self, known: &mut Option<String>, now: Timestamp) -> bool {
        let why = self.why_suspended(now);
        self.context.metrics.evictions_suspended.set(i64::from(why.is_some()));
        if why == *known || !self.suspended.is_known() {
            return false;
        }
        let has_ended = why.is_none();
        if self.leadership.is_held() {
            let (reason, note) = why.as_ref().map_or_else(
                || ("EvictionsResumed", "evictions are no longer suspended; pods that are due are evicted"),
                |why| ("EvictionsSuspended", why.as_str()),
            );
            tracing::info!(reason, note, "the suspension of evictions changed");
            self.context.events.publish(self.about.clone(), EventType::Normal, reason, "Evict", note);
        }
        *known = why;
        has_ended
    }

    fn report_overdue(&self, queue: &Queue, now: Timestamp) {
        let mut earliest = if self.leadership.is_held() { queue.earliest() } else { BTreeMap::new() };
        if self.why_suspended(now).is_some() {
            // A suspension holds up evictions, and no pod that terminates already.
            earliest.retain(|state, _| *state == State::Terminating);
        }
        for (state, word) in waiting_states() {
            let overdue =
                earliest.get(&state).map_or(0.0, |deadline| now.duration_since(*deadline).as_secs_f64().max(0.0));
            self.context.metrics.overdue_seconds.get_or_create(&StateLabel { state: word }).set(overdue);
        }
    }

    fn observe(&self, event: watcher::Event<Pod>, queue: &mut Queue, listed: &mut Listed, pacer: &Pacer) {
        match event {
            watcher::Event::Init => listed.uids.clear(),
            watcher::Event::InitApply(pod) => {
                listed.uids.extend(pod.metadata.uid.clone());
                note_terminating(&pod, pacer, self.context.clock.never_ahead());
                self.successors.observe(&pod);
                self.track(&pod, queue, listed.replaces_known);
            }
            watcher::Event::InitDone => {
                let deleted: Vec<String> = queue.uids().filter(|uid| !listed.uids.contains(*uid)).cloned().collect();
                for uid in deleted {
                    let known = queue.remove(&uid);
                    let now = self.context.clock.never_ahead();
                    pacer.lock().gone(known.and_then(|known| known.owner).as_deref(), &uid, now);
                }
                self.successors.replace(&listed.uids);
                *listed = Listed::default();
                tracing::info!(marked = queue.uids().count(), "all marked pods are known");
                self.synced.set_ready();
            }
            watcher::Event::Apply(pod) => {
                note_terminating(&pod, pacer, self.context.clock.never_ahead());
                self.successors.observe(&pod);
                self.track(&pod, queue, false);
            }
            watcher::Event::Delete(pod) => {
                note_gone(&pod, pacer, self.context.clock.never_ahead());
                queue.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                self.successors.delete(&pod);
            }
        }
    }

    /// Puts a pod on the queue, or removes it. With `replaces_known`, as if the pod had never been seen.
    fn track(&self, pod: &Pod, queue: &mut Queue, replaces_known: bool) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let settings = *self.settings.borrow();
        let known = if replaces_known { None } else { queue.get(uid) };
        match observe(pod, known, &settings, self.context.clock.never_ahead()) {
            Observed::Nothing => {}
            Observed::Forget(why) => {
                if let Some(why) = why {
                    let (namespace, pod) = (&pod.metadata.namespace, &pod.metadata.name);
                    tracing::warn!(?namespace, ?pod, uid, why, "ignoring the annotation: not a valid mark of this pod");
                }
                drop(queue.remove(uid));
            }
            Observed::Track(mut entry) => {
                if entry.state == State::Marked && self.loops.may_spare(pod) {
                    // Not only when it is due: until then, users would read a deadline that does not count.
                    let soon = self.context.clock.never_ahead().checked_add(SPARED_AFTER).unwrap_or(Timestamp::MAX);
                    entry.next = entry.next.min(soon);
                }
                queue.put(uid.to_owned(), *entry);
            }
        }
    }

    /// Updates the entry of a pod after its reconciliation; `before` is the entry that was reconciled.
    fn requeue(&self, queue: &mut Queue, uid: String, before: &Entry, requeue: Requeue) {
        queue.done(&uid);
        let Some(old) = queue.get(&uid) else { return };
        // A change that the watch reported meanwhile is newer than the result of the reconciliation.
        if !old.is_same(before) || old.state != before.state {
            return;
        }
        match old.after(&requeue, |state| queue.count(state), self.context.clock.never_ahead(), rand::random()) {
            Some(entry) => queue.put(uid, entry),
            None => drop(queue.remove(&uid)),
        }
    }

    async fn reconcile(&self, uid: String, entry: Entry, pacer: &Pacer) -> (String, Entry, Requeue) {
        let reconcile = Reconcile {
            pods: &self.pods,
            context: &self.context,
            settings: *self.settings.borrow(),
            pacer,
            leadership: &self.leadership,
            suspended: &self.suspended,
            loops: &self.loops,
            surges: &self.surges,
            uid: &uid,
            entry: &entry,
        };
        let requeue = if let Ok(requeue) = timeout(RECONCILE_TIMEOUT, reconcile.run()).await {
            requeue
        } else {
            let Entry { namespace, name, .. } = &entry;
            tracing::warn!(namespace, pod = name, uid, "the API server does not answer, retrying");
            Requeue::Refused(None)
        };
        (uid, entry, requeue)
    }
}

/// The list of all marked pods, as far as it has been received.
#[derive(Default)]
struct Listed {
    uids: HashSet<String>,
    /// Whether the list was requested because the settings changed: the known entries are replaced.
    replaces_known: bool,
}

/// Reports to the pacing that a pod is terminating.
fn note_terminating(pod: &Pod, pacer: &Pacer, now: Timestamp) {
    let (Some(workload), Some(until)) = (workload(pod), &pod.metadata.deletion_timestamp) else { return };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    pacer.lock().terminates(&workload, group_of(pod).as_deref(), uid, until.0, now);
    // A ReplicaSet recreates the pod at once. A StatefulSet waits until the name is free, and a DaemonSet for the node.
    if controller(pod).is_some_and(|owner| owner.kind == "ReplicaSet") {
        note_gone(pod, pacer, now);
    }
}

/// Reports to the pacing that a pod is gone, or that its owner no longer counts it.
fn note_gone(pod: &Pod, pacer: &Pacer, now: Timestamp) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    pacer.lock().gone(workload(pod).as_deref(), uid, now);
}
