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

use super::{
    Next, Settings,
    agenda::{Agenda, Standing, Tracked},
    attempt::{Attempt, End, lock},
    backoff,
    handover::Handover,
    inheritance,
    pacing::Pacing,
    plan, quarantine, standing,
};
use crate::{
    clock::Clock,
    error::chain,
    events::Events,
    mark::{self, State, extension::Extension},
    owner::controller,
    pods::Pods,
    telemetry::{Metrics, State as Label},
};

/// Attempts at once: what the standard rate limit lets begin at once, so that many due at one moment wait for the API server
/// and not for each other.
const ATTEMPTS: usize = 64;
/// The wall clock is looked at this often, whatever the timers say: they stand still while a machine is suspended.
const TICK: Duration = Duration::from_secs(5);
/// One attempt: some GETs, an eviction, which has 15 s of its own, and a PATCH. One that hangs must not hold its place.
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
    /// What the configuration says.
    pub settings: watch::Receiver<Settings>,
    /// Until when this replica may evict.
    pub leading: watch::Receiver<Option<Instant>>,
    /// For pods that are deleted right after an interaction.
    pub handover: Handover,
    /// Set once all marked pods are known.
    pub synced: watch::Sender<bool>,
}

impl Controller {
    /// Runs until the process ends.
    pub async fn run(self) {
        let api: Api<Pod> = Api::all(self.client.clone());
        // Below the client's read timeout, so that a watch that says nothing for long is made anew and not taken for dead.
        let config = watcher::Config::default().timeout(60).labels(&format!("{}=true", mark::INTERACTED));
        let mut events = watcher(api, config).default_backoff().boxed();
        let (mut agenda, mut listed) = (Agenda::default(), HashSet::new());
        let pacing = Arc::new(Mutex::new(Pacing::default()));
        let mut attempts = FuturesUnordered::new();
        let mut counted = Instant::now();
        loop {
            let now = self.clock.never_ahead();
            // It goes through all of them, so not on every turn.
            if counted.elapsed() >= TICK {
                counted = Instant::now();
                self.report_overdue(&agenda, now);
            }
            while attempts.len() < ATTEMPTS && self.leads() {
                let Some(uid) = agenda.take_due(now) else { break };
                if let Some(tracked) = agenda.get(&uid).cloned() {
                    attempts.push(self.attempt(uid, tracked, pacing.clone()));
                }
            }
            self.report(&agenda);
            let wait = agenda.next().and_then(|next| Duration::try_from(next.duration_since(now)).ok()).unwrap_or(TICK);
            let wait = if self.leads() && attempts.len() < ATTEMPTS {
                wait.min(TICK)
            } else {
                TICK.min(Duration::from_secs(1))
            };
            // Cancel safe: the stream and the set keep their state, the sleep is computed anew.
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.observe(event, &mut agenda, &mut listed, &pacing),
                    Ok(None) => return,
                    Err(error) => tracing::warn!(error = %chain(&error), "the watch of marked pods was interrupted"),
                },
                Some((uid, before, end)) = attempts.next() => self.settle(&mut agenda, uid, &before, end),
                () = tokio::time::sleep(wait) => lock(&pacing).sweep(now),
            }
        }
    }

    fn leads(&self) -> bool {
        self.leading.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn report(&self, agenda: &Agenda) {
        for (standing, state) in Standing::ALL {
            self.metrics.marked.get_or_create(&Label { state }).set(agenda.count(standing));
        }
        self.metrics.leader.set(i64::from(self.leads()));
    }

    fn report_overdue(&self, agenda: &Agenda, now: Timestamp) {
        let earliest = if self.leads() { agenda.earliest() } else { None };
        let overdue = earliest.map_or(0.0, |deadline| now.duration_since(deadline).as_secs_f64().max(0.0));
        self.metrics.overdue_seconds.set(overdue);
    }

    fn observe(
        &self,
        event: watcher::Event<Pod>,
        agenda: &mut Agenda,
        listed: &mut HashSet<String>,
        pacing: &Mutex<Pacing>,
    ) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => {
                listed.extend(pod.metadata.uid.clone());
                self.look(&pod, agenda);
            }
            watcher::Event::InitDone => {
                let gone: Vec<String> = agenda.uids().filter(|uid| !listed.contains(*uid)).cloned().collect();
                for uid in gone {
                    let known = agenda.remove(&uid);
                    lock(pacing).gone(known.and_then(|known| known.owner).as_deref(), &uid);
                }
                listed.clear();
                tracing::info!(marked = agenda.uids().count(), "all marked pods are known");
                self.synced.send_replace(true);
            }
            watcher::Event::Apply(pod) => {
                // A ReplicaSet makes the next one at once; the others wait until the name is free, or the node.
                if pod.metadata.deletion_timestamp.is_some()
                    && controller(&pod).is_some_and(|owner| owner.kind == "ReplicaSet")
                {
                    gone(&pod, pacing);
                }
                self.look(&pod, agenda);
            }
            watcher::Event::Delete(pod) => {
                gone(&pod, pacing);
                agenda.remove(pod.metadata.uid.as_deref().unwrap_or_default());
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
        let (now, settings) = (self.clock.never_ahead(), *self.settings.borrow());
        let deadline = match plan(pod, &settings, now) {
            Next::Nothing(_) => return drop(agenda.remove(uid)),
            Next::Ignore(why) => {
                tracing::warn!(namespace, pod = name, uid, why, "not a mark");
                return drop(agenda.remove(uid));
            }
            Next::Wait { until, .. } => until,
            Next::Evict { due, .. } => due,
            Next::NotEvictable(mark, _) => mark.evict_at.unwrap_or(now),
        };
        let asked = Extension::on(pod);
        let known = agenda.get(uid);
        // Our own writes come back as events: they must not undo the wait after a refusal.
        let owner = controller(pod).map(|owner| owner.uid.clone());
        if known.is_some_and(|known| known.deadline == deadline && known.asked == asked && known.owner == owner) {
            return;
        }
        // What users ask for is answered on the pod at once; and so is what they take back.
        let answer = standing(pod, &settings).is_some_and(|(state, ..)| state == State::Extended);
        let answer = answer || asked != known.map_or_else(Extension::default, |known| known.asked.clone());
        let warn = settings.warn_before.and_then(|before| deadline.checked_sub(before).ok()).filter(|at| now < *at);
        let takes_out = settings.quarantine && quarantine::is_wanted(pod);
        let next = if answer || takes_out { now } else { warn.unwrap_or(deadline) };
        let tracked = Tracked {
            namespace: namespace.clone(),
            name: name.clone(),
            owner,
            next,
            deadline,
            asked,
            refusals: 0,
            queued: 0,
            standing: Standing::Marked,
        };
        agenda.put(uid.clone(), tracked);
    }

    /// Puts the pod back on the agenda, where it was before the attempt.
    fn settle(&self, agenda: &mut Agenda, uid: String, before: &Tracked, end: End) {
        agenda.done(&uid);
        let Some(old) = agenda.get(&uid) else { return };
        // What was observed during the attempt is newer than what came of it.
        if (old.deadline, &old.asked, &old.owner) != (before.deadline, &before.asked, &before.owner) {
            return;
        }
        let now = self.clock.never_ahead();
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let (next, standing, refusals) = match end {
            End::Done => return drop(agenda.remove(&uid)),
            End::Again(at) => (at, Standing::Marked, 0),
            End::Queued(wait) => (later(wait), Standing::Queued, 0),
            End::Accepted => (now.checked_add(RECHECK).unwrap_or(Timestamp::MAX), Standing::Evicting, 0),
            End::Refused(after) => {
                let wait = after.unwrap_or(Duration::ZERO).max(backoff(old.refusals, rand::random()));
                (later(wait), Standing::Blocked, old.refusals.saturating_add(1))
            }
        };
        let queued = if standing == Standing::Queued { old.queued.saturating_add(1) } else { 0 };
        let tracked = Tracked { next, refusals, queued, standing, ..old.clone() };
        agenda.put(uid, tracked);
    }

    async fn attempt(&self, uid: String, tracked: Tracked, pacing: Arc<Mutex<Pacing>>) -> (String, Tracked, End) {
        let attempt = Attempt {
            pods: &self.pods,
            clock: &self.clock,
            events: &self.events,
            metrics: &self.metrics,
            settings: *self.settings.borrow(),
            pacing: &pacing,
            uid: &uid,
            tracked: &tracked,
        };
        let end = if let Ok(end) = timeout(ATTEMPT, attempt.run()).await {
            end
        } else {
            let Tracked { namespace, name, .. } = &tracked;
            tracing::warn!(namespace, pod = name, uid, "the API server does not answer, will try again");
            lock(&pacing).abandon(tracked.owner.as_deref(), &uid);
            End::Refused(None)
        };
        lock(&pacing).asked(tracked.owner.as_deref(), &uid);
        (uid, tracked, end)
    }
}

fn gone(pod: &Pod, pacing: &Mutex<Pacing>) {
    lock(pacing).gone(controller(pod).map(|owner| owner.uid.as_str()), pod.metadata.uid.as_deref().unwrap_or_default());
}
