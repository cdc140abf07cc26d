//! Watches marked pods, plans, evicts. The edge of the eviction room.
//!
//! Memory follows the marked pods, not the cluster: of each only name and next look are kept. Before every attempt the
//! pod is read again and planned anew, because a refused wrong UID burns a disruption budget for two minutes.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{Next, backoff, handover::Handover, inheritance, plan};
use crate::{
    clock::Clock,
    error::chain,
    events::{EventType, Events},
    mark::{self, Mark, State},
    pods::{self, Outcome, Pods},
    telemetry::{Metrics, Reason},
};

/// Attempts at once.
const ATTEMPTS: usize = 16;
/// The wall clock is looked at this often, whatever the timers say: they stand still while a machine is suspended.
const TICK: Duration = Duration::from_secs(5);
/// One attempt: a GET, an eviction, which has 15 s of its own, and a PATCH. One that hangs must not hold its place.
const ATTEMPT: Duration = Duration::from_secs(30);
/// An accepted eviction is looked at again after this, should the pod not be terminating after all.
const RECHECK: SignedDuration = SignedDuration::from_secs(60);

/// Evicts what is due.
pub struct Controller {
    /// For the watch.
    pub client: Client,
    /// Reads, tells and evicts.
    pub pods: Pods,
    /// The wall clock: deadlines are wall-clock times.
    pub clock: Clock,
    /// Where Events go.
    pub events: Events,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Until when this replica may evict.
    pub leading: watch::Receiver<Option<Instant>>,
    /// For pods that are deleted right after an interaction.
    pub handover: Handover,
    /// Set once all marked pods are known.
    pub synced: watch::Sender<bool>,
}

/// A pod to look at later.
struct Tracked {
    namespace: String,
    name: String,
    next: Timestamp,
    deadline: Timestamp,
    refusals: u32,
}

/// All pods to look at, by UID and by time.
#[derive(Default)]
struct Agenda {
    pods: HashMap<String, Tracked>,
    order: BTreeSet<(Timestamp, String)>,
    running: HashSet<String>,
}

impl Agenda {
    fn put(&mut self, uid: String, tracked: Tracked) {
        self.drop(&uid);
        self.order.insert((tracked.next, uid.clone()));
        self.pods.insert(uid, tracked);
    }

    fn drop(&mut self, uid: &str) {
        if let Some(old) = self.pods.remove(uid) {
            self.order.remove(&(old.next, uid.to_owned()));
        }
    }

    /// The next pod that is due and not being worked on; it stays on the agenda until its attempt says otherwise.
    fn take_due(&mut self, now: Timestamp) -> Option<String> {
        let due = self.order.iter().take_while(|(next, _)| *next <= now);
        let uid = due.map(|(_, uid)| uid).find(|uid| !self.running.contains(*uid))?.clone();
        self.running.insert(uid.clone());
        Some(uid)
    }

    fn next(&self) -> Option<Timestamp> {
        self.order.iter().find(|(_, uid)| !self.running.contains(uid)).map(|(next, _)| *next)
    }
}

/// What an attempt ended with.
enum End {
    /// Nothing more to do for this UID.
    Done,
    /// Look again at this time.
    Again(Timestamp),
    /// Refused or failed: look again after this, or after the usual wait.
    Refused(Option<Duration>),
}

impl Controller {
    /// Runs until the process ends.
    pub async fn run(self) {
        let api: Api<Pod> = Api::all(self.client.clone());
        // Below the client's read timeout, so that a watch that says nothing for long is made anew and not taken for dead.
        let config = watcher::Config::default().timeout(60).labels(&format!("{}=true", mark::INTERACTED));
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut agenda = Agenda::default();
        let mut listed = HashSet::new();
        let mut attempts = FuturesUnordered::new();
        loop {
            let now = self.clock.now();
            while attempts.len() < ATTEMPTS && self.leads() {
                let Some(uid) = agenda.take_due(now) else { break };
                let tracked = &agenda.pods[&uid];
                attempts.push(self.attempt(uid, tracked.namespace.clone(), tracked.name.clone(), tracked.refusals));
            }
            self.metrics.marked.set(i64::try_from(agenda.pods.len()).unwrap_or(i64::MAX));
            self.metrics.leader.set(i64::from(self.leads()));
            let wait = agenda.next().and_then(|next| Duration::try_from(next.duration_since(now)).ok()).unwrap_or(TICK);
            let wait = if self.leads() && attempts.len() < ATTEMPTS {
                wait.min(TICK)
            } else {
                TICK.min(Duration::from_secs(1))
            };
            // Cancel safe: the stream and the set keep their state, the sleep is computed anew.
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.observe(event, &mut agenda, &mut listed),
                    Ok(None) => return,
                    Err(error) => tracing::warn!(error = %chain(&error), "the watch of marked pods was interrupted"),
                },
                Some((uid, end)) = attempts.next() => self.settle(&mut agenda, uid, &end),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn leads(&self) -> bool {
        self.leading.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn observe(&self, event: watcher::Event<Pod>, agenda: &mut Agenda, listed: &mut HashSet<String>) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => {
                listed.extend(pod.metadata.uid.clone());
                self.look(&pod, agenda);
            }
            watcher::Event::InitDone => {
                let gone: Vec<String> = agenda.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter().for_each(|uid| agenda.drop(uid));
                listed.clear();
                tracing::info!(marked = agenda.pods.len(), "all marked pods are known");
                self.synced.send_replace(true);
            }
            watcher::Event::Apply(pod) => self.look(&pod, agenda),
            watcher::Event::Delete(pod) => {
                agenda.drop(pod.metadata.uid.as_deref().unwrap_or_default());
                if let Some(inheritance) = inheritance(&pod, self.clock.now()) {
                    tokio::spawn(self.handover.clone().run(pod, inheritance));
                }
            }
        }
    }

    /// Puts a pod on the agenda, or takes it off.
    fn look(&self, pod: &Pod, agenda: &mut Agenda) {
        let metadata = &pod.metadata;
        let (Some(uid), Some(namespace), Some(name)) = (&metadata.uid, &metadata.namespace, &metadata.name) else {
            return;
        };
        let now = self.clock.now();
        let deadline = match plan(pod, now) {
            Next::Nothing(_) => return agenda.drop(uid),
            Next::Ignore(why) => {
                tracing::warn!(namespace, pod = name, uid, why, "not a mark");
                return agenda.drop(uid);
            }
            Next::Wait { until } => until,
            Next::Evict(mark) | Next::NotEvictable(mark, _) => mark.evict_at.unwrap_or(now),
        };
        // Our own writes come back as events: they must not undo the wait after a refusal.
        if agenda.pods.get(uid).is_some_and(|known| known.deadline == deadline) {
            return;
        }
        let (namespace, name) = (namespace.clone(), name.clone());
        agenda.put(uid.clone(), Tracked { namespace, name, next: deadline, deadline, refusals: 0 });
    }

    fn settle(&self, agenda: &mut Agenda, uid: String, end: &End) {
        agenda.running.remove(&uid);
        let Some(old) = agenda.pods.get(&uid) else { return };
        let (next, refusals) = match end {
            End::Done => return agenda.drop(&uid),
            End::Again(at) => (*at, 0),
            End::Refused(after) => {
                let wait = after.unwrap_or(Duration::ZERO).max(backoff(old.refusals, rand::random()));
                let wait = SignedDuration::try_from(wait).unwrap_or(RECHECK);
                (self.clock.now().checked_add(wait).unwrap_or(Timestamp::MAX), old.refusals.saturating_add(1))
            }
        };
        let Tracked { namespace, name, deadline, .. } = old;
        let tracked = Tracked { namespace: namespace.clone(), name: name.clone(), next, deadline: *deadline, refusals };
        agenda.put(uid, tracked);
    }

    async fn attempt(&self, uid: String, namespace: String, name: String, refusals: u32) -> (String, End) {
        let end = match timeout(ATTEMPT, self.try_evict(&uid, &namespace, &name, refusals)).await {
            Ok(Ok(end)) => end,
            Ok(Err(pods::Error::Gone)) => End::Done,
            // Another writer was faster; the next look sees what it wrote.
            Ok(Err(pods::Error::Conflict)) => End::Refused(None),
            Ok(Err(error)) => {
                tracing::warn!(namespace, pod = name, uid, error = %chain(&error), "cannot evict, will try again");
                End::Refused(None)
            }
            Err(_) => {
                tracing::warn!(namespace, pod = name, uid, "the API server does not answer, will try again");
                End::Refused(None)
            }
        };
        if matches!(end, End::Refused(None)) {
            self.count("error");
        }
        (uid, end)
    }

    async fn try_evict(&self, uid: &str, namespace: &str, name: &str, refusals: u32) -> Result<End, pods::Error> {
        let pod = self.pods.get(namespace, name).await?;
        if pod.metadata.uid.as_deref() != Some(uid) {
            tracing::info!(namespace, pod = name, uid, "replaced already; its successor is left alone");
            return Ok(End::Done);
        }
        let mark = match plan(&pod, self.clock.now()) {
            Next::Nothing(_) | Next::Ignore(_) => return Ok(End::Done),
            Next::Wait { until } => return Ok(End::Again(until)),
            Next::NotEvictable(mark, why) => {
                if self.pods.tell(&pod, mark.first.at, State::NotEvictable, why).await? {
                    self.count("not_evictable");
                    self.events.pod(&pod, EventType::Warning, "NotEvictable", "Evict", why);
                }
                return Ok(End::Done);
            }
            Next::Evict(mark) => mark,
        };
        let (why, after) = match self.pods.evict(namespace, name, uid).await {
            Ok(Outcome::Accepted) => {
                self.accepted(&pod, &mark);
                return Ok(End::Again(self.clock.now().checked_add(RECHECK).unwrap_or(Timestamp::MAX)));
            }
            Ok(Outcome::Refused { message, retry_after }) => {
                self.count("blocked");
                (message, Some(retry_after.unwrap_or_default()))
            }
            Err(error @ pods::Error::Api { .. }) => (chain(&error), None),
            Err(error) => return Err(error),
        };
        tracing::info!(namespace, pod = name, uid, why, "eviction blocked");
        let message = format!("{}. The eviction is blocked and will be tried again: {why}", mark.summary());
        if refusals == 0 {
            self.events.pod(&pod, EventType::Warning, "EvictionBlocked", "Evict", &message);
        }
        self.pods.tell(&pod, mark.first.at, State::EvictionBlocked, &message).await?;
        Ok(End::Refused(after))
    }

    fn accepted(&self, pod: &Pod, mark: &Mark) {
        let deadline = mark.evict_at.unwrap_or(mark.first.at);
        let late = self.clock.now().duration_since(deadline);
        self.metrics.lateness_seconds.observe(late.as_secs_f64());
        self.count("evicted");
        tracing::info!(
            namespace = pod.metadata.namespace,
            pod = pod.metadata.name,
            uid = mark.pod,
            deadline = %deadline,
            late_seconds = late.as_secs_f64(),
            "evicted"
        );
        let note = format!("evicted {:.1} s after its deadline: {}", late.as_secs_f64(), mark.summary());
        self.events.pod(pod, EventType::Normal, "PodEvicted", "Evict", &note);
    }

    fn count(&self, reason: &'static str) {
        self.metrics.evictions.get_or_create(&Reason { reason }).inc();
    }
}
