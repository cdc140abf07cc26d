//! One look at one pod that may be due: read it, plan, and do what the plan says.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Next, Settings,
    entry::{End, Entry, Standing},
    leadership::Leadership,
    pacing::{Owner, Pacing},
    plan::{grace_period, plan, standing, stuck},
    quarantine,
};
use crate::{
    api::{
        Context,
        events::EventType,
        owners,
        pods::{self, Outcome, Pods},
    },
    error::chain,
    mark::{self, Mark, State, owner::Counts},
    telemetry,
};

/// One look.
pub struct Reconcile<'a> {
    /// Reads, tells and evicts.
    pub pods: &'a Pods,
    /// The clock, and where what is done is reported.
    pub context: &'a Context,
    /// What the configuration says.
    pub settings: Settings,
    /// What else is in flight.
    pub pacing: &'a Mutex<Pacing>,
    /// Whether this replica may evict.
    pub leadership: &'a Leadership,
    /// The pod that is meant.
    pub uid: &'a str,
    /// What is known of it.
    pub entry: &'a Entry,
}

impl Reconcile<'_> {
    /// Takes it.
    pub async fn run(&self) -> End {
        let Entry { namespace, name, .. } = self.entry;
        match self.look().await {
            Ok(end) => end,
            Err(pods::Error::Gone) => End::Done,
            // Another writer was faster; the next look sees what it wrote.
            Err(pods::Error::Conflict) => End::Refused(None),
            Err(error) => {
                tracing::warn!(namespace, pod = name, uid = self.uid, error = %chain(&error), "cannot evict, will try again");
                self.count("error");
                End::Refused(None)
            }
        }
    }

    async fn look(&self) -> Result<End, pods::Error> {
        let Entry { namespace, name, owner, deadline, .. } = self.entry;
        let (owner, now) = (owner.as_deref(), self.context.clock.never_ahead());
        if *deadline <= now
            && self.entry.standing != Standing::Terminating
            && let Some((end, why)) = self.cannot_go(owner, now)
        {
            // Said on the pod once, and not at the first look: that would keep the API server from those that go now.
            if self.entry.queued == 1
                && self.entry.refusals == 0
                && let Ok(pod) = self.pods.get(namespace, name).await
                && let Next::Evict { mark, .. } = plan(&pod, &self.settings, now)
                && pod.metadata.uid.as_deref() == Some(self.uid)
            {
                self.tell_queued(&pod, &mark, &why).await?;
            }
            return Ok(end);
        }
        let pod = self.pods.get(namespace, name).await?;
        if pod.metadata.uid.as_deref() != Some(self.uid) {
            tracing::info!(namespace, pod = name, uid = self.uid, "replaced already; its successor is left alone");
            self.count("replaced");
            return Ok(End::Done);
        }
        match plan(&pod, &self.settings, self.context.clock.never_ahead()) {
            Next::Nothing(_) | Next::Ignore(_) => Ok(End::Done),
            Next::Wait { mark, until } => {
                // First, so that whoever asks for more time is answered whatever comes of the rest.
                match self.wait(&pod, until).await? {
                    End::Again(at) if self.settings.quarantine && quarantine::is_wanted(&pod) => {
                        Ok(End::Again(at.min(self.quarantine(&pod, &mark).await)))
                    }
                    waiting => Ok(waiting),
                }
            }
            Next::Finished(mark) => {
                let message = format!("{}. Its containers have ended, and it is left for its logs", mark.summary());
                self.pods.set_condition(&pod, mark.first.at, State::Finished, &message).await?;
                Ok(End::Done)
            }
            Next::Terminating { mark, gone_by } => self.terminating(&pod, &mark, gone_by).await,
            Next::NotEvictable(mark, why) => {
                if self.pods.set_condition(&pod, mark.first.at, State::NotEvictable, why).await? {
                    self.count("not_evictable");
                    self.context.events.pod(&pod, EventType::Warning, "NotEvictable", "Evict", why);
                }
                Ok(End::Done)
            }
            Next::Evict { mark, due } => {
                if !self.in_turn(&pod, &mark, owner).await? {
                    return Ok(End::Queued);
                }
                // What was read may be old by now: this process may have been suspended since.
                if !self.leadership.is_held() {
                    lock(self.pacing).abandon(owner, self.uid);
                    return Ok(End::Queued);
                }
                let now = self.context.clock.never_ahead();
                // Not in one with the `if`: the lock would be held to the end of it.
                let spent = lock(self.pacing).spend(self.settings.per_minute, now);
                if let Err(wait) = spent {
                    lock(self.pacing).abandon(owner, self.uid);
                    return Ok(End::Limited(wait));
                }
                let end = self.evict(&pod, &mark, due).await;
                let mut pacing = lock(self.pacing);
                match &end {
                    Ok(End::Accepted) => {}
                    // Somebody else took it: others of its owner wait for its replacement.
                    Err(pods::Error::Gone) => {
                        pacing.gone(owner, self.uid);
                        pacing.refund();
                    }
                    // Without an answer it may have been carried out: they wait as if it was.
                    Err(error) if !error.is_answer() => {}
                    Ok(_) | Err(_) => {
                        pacing.abandon(owner, self.uid);
                        pacing.refund();
                    }
                }
                drop(pacing);
                end
            }
        }
    }

    /// Why the pod cannot go now, if that is known without asking the API server: the many that wait must not keep it busy.
    fn cannot_go(&self, owner: Option<&str>, now: Timestamp) -> Option<(End, String)> {
        let (mut pacing, per_minute) = (lock(self.pacing), self.settings.per_minute);
        if let Some(wait) = pacing.wait(per_minute, now) {
            return Some((End::Limited(wait), format!("no more than {per_minute} pods are evicted in a minute")));
        }
        (!pacing.ask(owner, self.uid, now)).then(|| (End::Queued, OTHERS_FIRST.to_owned()))
    }

    /// Takes the pod out of service, if its owner can spare it; when to look again. Nothing of this keeps an eviction waiting.
    async fn quarantine(&self, pod: &Pod, mark: &Mark) -> Timestamp {
        let (owner, now) = (self.entry.owner.as_deref(), self.context.clock.never_ahead());
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        if !lock(self.pacing).ask(owner, self.uid, now) {
            return later(Duration::from_secs(1).mul_f64(rand::random_range(1.0..2.0)));
        }
        match self.take_out(pod, mark, now).await {
            Ok(true) => now,
            Ok(false) => later(Duration::from_secs(5).mul_f64(rand::random_range(1.0..2.0))),
            Err(error) => {
                lock(self.pacing).abandon(owner, self.uid);
                if matches!(error, pods::Error::Conflict | pods::Error::Gone) {
                    return later(Duration::from_secs(1));
                }
                let Entry { namespace, name, .. } = self.entry;
                tracing::warn!(namespace, pod = name, uid = self.uid, error = %chain(&error), "cannot quarantine, will try again");
                later(Duration::from_secs(30))
            }
        }
    }

    /// Whether it was done. Only where nothing is missing, and where the disruption budgets would let the pod be evicted: it
    /// leaves them with its labels.
    async fn take_out(&self, pod: &Pod, mark: &Mark, now: Timestamp) -> Result<bool, pods::Error> {
        let Entry { namespace, name, owner: Some(owner), .. } = self.entry else { return Ok(false) };
        let found = self.pods.owner(pod).await?;
        if !lock(self.pacing).begin_quarantine(counted(owner, &found), self.uid, now) {
            return Ok(false);
        }
        let is_allowed = matches!(self.pods.evict(namespace, name, self.uid, None, true).await?, Outcome::Accepted);
        let is_allowed = is_allowed && lock(self.pacing).spend(self.settings.per_minute, now).is_ok();
        let found = if is_allowed { self.pods.selectors(pod).await? } else { None };
        let Some((selector, services)) = found else {
            lock(self.pacing).abandon(Some(owner), self.uid);
            return Ok(false);
        };
        let labels = quarantine::labels(pod, &selector, &services);
        let names = labels.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!("{}; until then it is out of service, without the labels {names}", mark.summary());
        self.pods.quarantine(pod, mark, &labels, &message).await?;
        // Its owner does not count it any more, and makes the next one.
        lock(self.pacing).gone(Some(owner), self.uid);
        self.count("quarantined");
        tracing::info!(namespace, pod = name, uid = self.uid, names, "quarantined");
        self.context.events.pod(pod, EventType::Normal, "PodQuarantined", "Quarantine", &message);
        self.context.events.owner(
            pod,
            EventType::Normal,
            "PodQuarantined",
            "Quarantine",
            &format!("pod {name}: {message}"),
        );
        Ok(true)
    }

    /// Answers what users ask for, and warns.
    async fn wait(&self, pod: &Pod, until: Timestamp) -> Result<End, pods::Error> {
        let Some((state, message, problem)) = standing(pod, &self.settings) else { return Ok(End::Done) };
        let since = self.context.clock.now();
        let told = mark::condition(pod, mark::CONDITION).and_then(|condition| condition.reason.as_deref());
        let was_extended = told == Some(State::Extended.reason());
        if (state == State::Extended || was_extended) && self.pods.set_condition(pod, since, state, &message).await? {
            let reason = if state == State::Extended { "EvictionExtended" } else { "ExtensionEnded" };
            self.count("extended");
            self.context.events.pod(pod, EventType::Normal, reason, "Extend", &message);
        }
        if let Some(problem) = problem.filter(|_| !self.entry.is_answered) {
            self.context.events.pod(pod, EventType::Warning, "ExtensionIgnored", "Extend", &problem);
        }
        let warn = self.settings.warn_before.and_then(|before| until.checked_sub(before).ok());
        match warn {
            Some(at) if self.context.clock.never_ahead() < at => Ok(End::Again(at)),
            // Once: by the look that was meant for it, and not by those that come after.
            Some(at) if self.entry.next <= at => {
                let note = format!("{message}; this is the warning before it");
                tracing::info!(namespace = self.entry.namespace, pod = self.entry.name, %until, "eviction soon");
                self.context.events.pod(pod, EventType::Normal, "EvictionSoon", "Evict", &note);
                Ok(End::Again(until))
            }
            _ => Ok(End::Again(until)),
        }
    }

    /// Whether its owner can spare it now; then it is in flight.
    async fn in_turn(&self, pod: &Pod, mark: &Mark, owner: Option<&str>) -> Result<bool, pods::Error> {
        let Some(owner) = owner else { return Ok(true) };
        let found = self.pods.owner(pod).await?;
        let (owner, now) = (counted(owner, &found), self.context.clock.never_ahead());
        let begun = lock(self.pacing).begin(owner, self.uid, mark::is_ready(pod), now);
        if !begun {
            let is_last = mark::is_ready(pod) && found.counts.is_some_and(Counts::is_last_ready);
            self.tell_queued(pod, mark, if is_last { LAST } else { OTHERS_FIRST }).await?;
        }
        Ok(begun)
    }

    /// Says of a pod that takes its time to end what it waits for.
    async fn terminating(&self, pod: &Pod, mark: &Mark, gone_by: Timestamp) -> Result<End, pods::Error> {
        let now = self.context.clock.never_ahead();
        let stuck = stuck(pod, gone_by, now);
        let why = stuck.clone().unwrap_or_else(|| format!("it is to be gone by {gone_by}"));
        let message = format!("{}. It terminates: {why}", mark.summary());
        let is_news = match self.pods.set_condition(pod, mark.first.at, State::Terminating, &message).await {
            Err(pods::Error::Conflict) => return Ok(End::Terminating(now.checked_add(LOOK_AGAIN).unwrap_or(now))),
            told => told?,
        };
        if is_news && stuck.is_some() {
            self.count("stuck");
            tracing::warn!(
                namespace = self.entry.namespace,
                pod = self.entry.name,
                uid = self.uid,
                why,
                "does not end"
            );
            self.context.events.pod(pod, EventType::Warning, "TerminationStuck", "Evict", &message);
        }
        let after = if stuck.is_some() { now } else { gone_by.max(now) };
        Ok(End::Terminating(after.checked_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX)))
    }

    /// Says on the pod why it waits, unless it says so already.
    async fn tell_queued(&self, pod: &Pod, mark: &Mark, why: &str) -> Result<(), pods::Error> {
        let message = format!("{}. It is due, and waits: {why}", mark.summary());
        match self.pods.set_condition(pod, mark.first.at, State::EvictionQueued, &message).await {
            Ok(true) => self.count("queued"),
            // The next look tells it, if it is still true.
            Ok(false) | Err(pods::Error::Conflict) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn evict(&self, pod: &Pod, mark: &Mark, due: Timestamp) -> Result<End, pods::Error> {
        let Entry { namespace, name, refusals, .. } = self.entry;
        let grace = grace_period(pod, &self.settings);
        let (why, after) = match self.pods.evict(namespace, name, self.uid, grace, false).await {
            Ok(Outcome::Accepted) => {
                self.accepted(pod, mark, due);
                return Ok(End::Accepted);
            }
            Ok(Outcome::Refused { message, retry_after }) => {
                self.count("blocked");
                (message, Some(retry_after.unwrap_or_default()))
            }
            Err(error @ pods::Error::Api { .. }) if error.is_answer() => {
                self.count("error");
                (chain(&error), None)
            }
            Err(error) => return Err(error),
        };
        tracing::info!(namespace, pod = name, uid = self.uid, why, "eviction blocked");
        let message = format!("{}. The eviction is blocked and will be tried again: {why}", mark.summary());
        if *refusals == 0 {
            self.context.events.pod(pod, EventType::Warning, "EvictionBlocked", "Evict", &message);
        }
        // Whatever comes of this changes nothing about the refusal, nor about when to ask again.
        if let Err(error) = self.pods.set_condition(pod, mark.first.at, State::EvictionBlocked, &message).await {
            tracing::debug!(namespace, pod = name, uid = self.uid, error = %chain(&error), "cannot say so on the pod");
        }
        Ok(End::Refused(after))
    }

    fn accepted(&self, pod: &Pod, mark: &Mark, due: Timestamp) {
        let late = self.context.clock.now().duration_since(due);
        self.context.metrics.lateness_seconds.observe(late.as_secs_f64());
        self.count("evicted");
        let Entry { namespace, name, .. } = self.entry;
        tracing::info!(namespace, pod = name, uid = self.uid, %due, late_seconds = late.as_secs_f64(), "evicted");
        let note = format!("evicted {:.1} s after its deadline: {}", late.as_secs_f64(), mark.summary());
        self.context.events.pod(pod, EventType::Normal, "PodEvicted", "Evict", &note);
        self.context.events.owner(pod, EventType::Normal, "PodEvicted", "Evict", &format!("pod {name}: {note}"));
    }

    fn count(&self, result: &'static str) {
        self.context.metrics.evictions.get_or_create(&telemetry::Outcome { result }).inc();
    }
}

/// A pod that terminates is looked at again so long after it should be gone: when it counts as stuck, and not just before.
const LOOK_AGAIN: Duration = Duration::from_secs(61);
/// Why a pod waits for others.
const OTHERS_FIRST: &str = "another pod of its controller is to be replaced first";
const LAST: &str = "it is the last Ready pod of its controller, which wants more";

fn counted<'a>(uid: &'a str, found: &'a owners::Owner) -> Owner<'a> {
    Owner { uid, group: found.group.as_deref(), counts: found.counts, version: &found.version }
}

/// What is in flight; a panic elsewhere leaves it as true as it was.
pub(super) fn lock(pacing: &Mutex<Pacing>) -> MutexGuard<'_, Pacing> {
    pacing.lock().unwrap_or_else(PoisonError::into_inner)
}
