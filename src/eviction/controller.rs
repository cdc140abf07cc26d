//! Watches marked pods, plans, evicts. The edge of the eviction room.
//!
//! Before every attempt the pod is read again and planned anew, because a refused wrong UID burns a disruption budget for
//! two minutes.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
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
    entry::{Entry, Observed, Requeue, STATES, observe},
    leadership::Leadership,
    mark_successor::SuccessorMarker,
    pacing::Pacing,
    plan::successor_mark,
    queue::Queue,
    reconcile::{Reconcile, lock},
};
use crate::{
    api::{Context, pods::Pods},
    error::chain,
    mark::{self, State, owner::controller},
    server::readiness::Readiness,
    telemetry::StateLabel,
};

/// Attempts at once: what the standard rate limit lets begin at once, so that many due at one moment wait for the API server
/// and not for each other.
const CONCURRENT: usize = 64;
/// The wall clock is looked at this often, whatever the timers say: they stand still while a machine is suspended.
const TICK: Duration = Duration::from_secs(5);
/// One attempt: some GETs, an eviction, which has 15 s of its own, and a PATCH. One that hangs must not hold its place.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(30);
/// Evicts what is due.
pub struct Controller {
    /// For the watch.
    pub client: Client,
    /// Reads, tells and evicts.
    pub pods: Pods,
    /// The clock, and where what is done is reported.
    pub context: Context,
    /// What the configuration says.
    pub settings: watch::Receiver<Settings>,
    /// Whether this replica may evict.
    pub leadership: Leadership,
    /// For pods that are deleted right after an interaction.
    pub successors: SuccessorMarker,
    /// Ready once all marked pods are known.
    pub synced: Readiness,
}

impl Controller {
    /// Runs until the process ends.
    pub async fn run(self) {
        let api: Api<Pod> = Api::all(self.client.clone());
        // Below the client's read timeout, so that a watch that says nothing for long is made anew and not taken for dead.
        let config = watcher::Config::default().timeout(60).labels(&format!("{}=true", mark::INTERACTED));
        let watch = || watcher(api.clone(), config.clone()).default_backoff().boxed();
        let mut events = watch();
        let mut settings = self.settings.clone();
        let (mut queue, mut listed) = (Queue::default(), Listed::default());
        let pacing = Arc::new(Mutex::new(Pacing::default()));
        let mut reconciles = FuturesUnordered::new();
        let mut counted = Instant::now();
        loop {
            let now = self.context.clock.never_ahead();
            // It goes through all of them, so not on every turn.
            if counted.elapsed() >= TICK {
                counted = Instant::now();
                self.report_overdue(&queue, now);
                lock(&pacing).sweep(now);
            }
            while reconciles.len() < CONCURRENT && self.leadership.is_held() {
                let Some(uid) = queue.take_due(now) else { break };
                if let Some(entry) = queue.get(&uid).cloned() {
                    reconciles.push(self.reconcile(uid, entry, pacing.clone()));
                }
            }
            self.report(&queue);
            let wait = queue.next().and_then(|next| Duration::try_from(next.duration_since(now)).ok()).unwrap_or(TICK);
            let wait = if self.leadership.is_held() && reconciles.len() < CONCURRENT {
                wait.min(TICK)
            } else {
                TICK.min(Duration::from_secs(1))
            };
            // Cancel safe: the stream and the set keep their state, the sleep is computed anew.
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.observe(event, &mut queue, &mut listed, &pacing),
                    Ok(None) => return,
                    Err(error) => tracing::warn!(error = %chain(&error), "the watch of marked pods was interrupted"),
                },
                Some((uid, before, end)) = reconciles.next() => self.settle(&mut queue, uid, &before, end),
                Ok(()) = settings.changed() => {
                    // Deadlines, warnings and quarantines of all pods may be others now.
                    listed.is_anew = true;
                    events = watch();
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn report(&self, queue: &Queue) {
        for (state, word) in STATES {
            let count = match state {
                // Who does not evict does not know what holds evictions up; it may have known once.
                State::EvictionQueued | State::EvictionBlocked | State::Evicting if !self.leadership.is_held() => 0,
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

    fn report_overdue(&self, queue: &Queue, now: Timestamp) {
        let earliest = if self.leadership.is_held() { queue.earliest() } else { None };
        let overdue = earliest.map_or(0.0, |deadline| now.duration_since(deadline).as_secs_f64().max(0.0));
        self.context.metrics.overdue_seconds.set(overdue);
    }

    fn observe(&self, event: watcher::Event<Pod>, queue: &mut Queue, listed: &mut Listed, pacing: &Mutex<Pacing>) {
        match event {
            watcher::Event::Init => listed.uids.clear(),
            watcher::Event::InitApply(pod) => {
                listed.uids.extend(pod.metadata.uid.clone());
                terminates(&pod, pacing, self.context.clock.never_ahead());
                self.look(&pod, queue, listed.is_anew);
            }
            watcher::Event::InitDone => {
                let gone: Vec<String> = queue.uids().filter(|uid| !listed.uids.contains(*uid)).cloned().collect();
                for uid in gone {
                    let known = queue.remove(&uid);
                    lock(pacing).gone(known.and_then(|known| known.owner).as_deref(), &uid);
                }
                *listed = Listed::default();
                tracing::info!(marked = queue.uids().count(), "all marked pods are known");
                self.synced.set_ready();
            }
            watcher::Event::Apply(pod) => {
                terminates(&pod, pacing, self.context.clock.never_ahead());
                self.look(&pod, queue, false);
            }
            watcher::Event::Delete(pod) => {
                gone(&pod, pacing);
                queue.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                if let Some(mark) = successor_mark(&pod, self.context.clock.now()) {
                    tokio::spawn(self.successors.clone().run(pod, mark));
                }
            }
        }
    }

    /// Puts a pod on the queue, or takes it off; `is_anew` as if it was never seen.
    fn look(&self, pod: &Pod, queue: &mut Queue, is_anew: bool) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let settings = *self.settings.borrow();
        let known = if is_anew { None } else { queue.get(uid) };
        match observe(pod, known, &settings, self.context.clock.never_ahead()) {
            Observed::Nothing => {}
            Observed::Forget(why) => {
                if let Some(why) = why {
                    let (namespace, pod) = (&pod.metadata.namespace, &pod.metadata.name);
                    tracing::warn!(?namespace, ?pod, uid, why, "not a mark");
                }
                drop(queue.remove(uid));
            }
            Observed::Track(entry) => queue.put(uid.to_owned(), *entry),
        }
    }

    /// Puts the pod back on the queue, where it was before the attempt.
    fn settle(&self, queue: &mut Queue, uid: String, before: &Entry, end: Requeue) {
        queue.done(&uid);
        let Some(old) = queue.get(&uid) else { return };
        // What was observed during the attempt is newer than what came of it.
        if !old.is_same(before) || old.state != before.state {
            return;
        }
        match old.after(&end, |state| queue.count(state), self.context.clock.never_ahead(), rand::random()) {
            Some(entry) => queue.put(uid, entry),
            None => drop(queue.remove(&uid)),
        }
    }

    async fn reconcile(&self, uid: String, entry: Entry, pacing: Arc<Mutex<Pacing>>) -> (String, Entry, Requeue) {
        let reconcile = Reconcile {
            pods: &self.pods,
            context: &self.context,
            settings: *self.settings.borrow(),
            pacing: &pacing,
            leadership: &self.leadership,
            uid: &uid,
            entry: &entry,
        };
        let end = if let Ok(end) = timeout(RECONCILE_TIMEOUT, reconcile.run()).await {
            end
        } else {
            let Entry { namespace, name, .. } = &entry;
            tracing::warn!(namespace, pod = name, uid, "the API server does not answer, will try again");
            // It may have been carried out: others of its owner wait as if it was.
            Requeue::Refused(None)
        };
        lock(&pacing).asked(entry.owner.as_deref(), &uid);
        (uid, entry, end)
    }
}

/// What a list of all marked pods has said so far.
#[derive(Default)]
struct Listed {
    uids: HashSet<String>,
    /// Whether it was asked for because the settings changed.
    is_anew: bool,
}

/// Takes note of a pod that ends.
fn terminates(pod: &Pod, pacing: &Mutex<Pacing>, now: Timestamp) {
    let (Some(owner), Some(_)) = (controller(pod), &pod.metadata.deletion_timestamp) else { return };
    lock(pacing).terminates(&owner.uid, pod.metadata.uid.as_deref().unwrap_or_default(), now);
    // A ReplicaSet makes the next one at once; the others wait until the name is free, or the node.
    if owner.kind == "ReplicaSet" {
        gone(pod, pacing);
    }
}

fn gone(pod: &Pod, pacing: &Mutex<Pacing>) {
    lock(pacing).gone(controller(pod).map(|owner| owner.uid.as_str()), pod.metadata.uid.as_deref().unwrap_or_default());
}
