//! One look at one pod that may be due: read it, plan, and do what the plan says.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Next, Settings,
    agenda::Tracked,
    grace_period,
    pacing::{Owner, Pacing},
    plan, quarantine, standing,
};
use crate::{
    clock::Clock,
    error::chain,
    events::{EventType, Events},
    mark::{self, Mark, State},
    pods::{self, Outcome, Pods},
    telemetry::{self, Metrics},
};

/// What it ended with.
#[derive(Debug)]
pub enum End {
    /// Nothing more to do for this UID.
    Done,
    /// Look again at this time.
    Again(Timestamp),
    /// Due, and it has to wait for others.
    Queued(Duration),
    /// It terminates.
    Accepted,
    /// Refused or failed: look again after this, or after the usual wait.
    Refused(Option<Duration>),
}

/// One look.
pub struct Attempt<'a> {
    /// Reads, tells and evicts.
    pub pods: &'a Pods,
    /// The wall clock.
    pub clock: &'a Clock,
    /// Where Events go.
    pub events: &'a Events,
    /// Counters.
    pub metrics: &'a Arc<Metrics>,
    /// What the configuration says.
    pub settings: Settings,
    /// What else is in flight.
    pub pacing: &'a Mutex<Pacing>,
    /// The pod that is meant.
    pub uid: &'a str,
    /// What is known of it.
    pub tracked: &'a Tracked,
}

impl Attempt<'_> {
    /// Takes it.
    pub async fn run(&self) -> End {
        let Tracked { namespace, name, .. } = self.tracked;
        let end = match self.look().await {
            Ok(end) => end,
            Err(pods::Error::Gone) => End::Done,
            // Another writer was faster; the next look sees what it wrote.
            Err(pods::Error::Conflict) => End::Refused(None),
            Err(error) => {
                tracing::warn!(namespace, pod = name, uid = self.uid, error = %chain(&error), "cannot evict, will try again");
                End::Refused(None)
            }
        };
        if matches!(end, End::Refused(None)) {
            self.count("error");
        }
        end
    }

    /// Between a second and two: those of one owner do not all look at once.
    fn queued() -> End {
        End::Queued(Duration::from_secs(1).mul_f64(rand::random_range(1.0..2.0)))
    }

    async fn look(&self) -> Result<End, pods::Error> {
        let Tracked { namespace, name, owner, deadline, .. } = self.tracked;
        let (owner, now) = (owner.as_deref(), self.clock.never_ahead());
        // Nobody needs to be asked while another one of its owner is looked at, or has just gone.
        if *deadline <= now && !lock(self.pacing).ask(owner, self.uid, now) {
            // Said on the pod once, and not at the first look: that would keep the API server from those that go now.
            if self.tracked.queued == 1
                && let Ok(pod) = self.pods.get(namespace, name).await
                && let Next::Evict { mark, .. } = plan(&pod, &self.settings, now)
                && pod.metadata.uid.as_deref() == Some(self.uid)
            {
                self.tell_queued(&pod, &mark).await?;
            }
            return Ok(Self::queued());
        }
        let pod = self.pods.get(namespace, name).await?;
        if pod.metadata.uid.as_deref() != Some(self.uid) {
            tracing::info!(namespace, pod = name, uid = self.uid, "replaced already; its successor is left alone");
            self.count("replaced");
            return Ok(End::Done);
        }
        match plan(&pod, &self.settings, self.clock.never_ahead()) {
            Next::Nothing(_) | Next::Ignore(_) => Ok(End::Done),
            Next::Wait { mark, until } => {
                // First, so that whoever asks for more time is answered whatever comes of the rest.
                let waiting = self.wait(&pod, until).await?;
                if !self.settings.quarantine || !quarantine::is_wanted(&pod) {
                    return Ok(waiting);
                }
                Ok(End::Again(until.min(self.quarantine(&pod, &mark).await)))
            }
            Next::NotEvictable(mark, why) => {
                if self.pods.tell(&pod, mark.first.at, State::NotEvictable, why).await? {
                    self.count("not_evictable");
                    self.events.pod(&pod, EventType::Warning, "NotEvictable", "Evict", why);
                }
                Ok(End::Done)
            }
            Next::Evict { mark, due } => {
                if !self.in_turn(&pod, &mark, owner, due).await? {
                    return Ok(Self::queued());
                }
                let now = self.clock.never_ahead();
                // Not in one with the `if`: the lock would be held to the end of it.
                let spent = lock(self.pacing).spend(self.settings.per_minute, now);
                if let Err(wait) = spent {
                    lock(self.pacing).abandon(owner, self.uid);
                    return Ok(End::Queued(wait));
                }
                let end = self.evict(&pod, &mark, due).await;
                if !matches!(end, Ok(End::Accepted)) {
                    lock(self.pacing).abandon(owner, self.uid);
                }
                end
            }
        }
    }

    /// Takes the pod out of service, if its owner can spare it; when to look again. Nothing of this keeps an eviction waiting.
    async fn quarantine(&self, pod: &Pod, mark: &Mark) -> Timestamp {
        let (owner, now) = (self.tracked.owner.as_deref(), self.clock.never_ahead());
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        if !lock(self.pacing).ask(owner, self.uid, now) {
            return later(Duration::from_secs(1).mul_f64(rand::random_range(1.0..2.0)));
        }
        match self.take_out(pod, mark, now).await {
            Ok(true) => now,
            Ok(false) => later(Duration::from_secs(2).mul_f64(rand::random_range(1.0..2.0))),
            Err(error) => {
                lock(self.pacing).abandon(owner, self.uid);
                if matches!(error, pods::Error::Conflict | pods::Error::Gone) {
                    return later(Duration::from_secs(1));
                }
                let Tracked { namespace, name, .. } = self.tracked;
                tracing::warn!(namespace, pod = name, uid = self.uid, error = %chain(&error), "cannot quarantine, will try again");
                later(Duration::from_secs(30))
            }
        }
    }

    /// Whether it was done. Only where nothing is missing, and where the disruption budgets would let the pod be evicted: it
    /// leaves them with its labels.
    async fn take_out(&self, pod: &Pod, mark: &Mark, now: Timestamp) -> Result<bool, pods::Error> {
        let Tracked { namespace, name, owner: Some(owner), .. } = self.tracked else { return Ok(false) };
        if self.pods.owner_is_whole(pod).await? != Some(true)
            || !lock(self.pacing).begin_quarantine(owner, self.uid, now)
        {
            return Ok(false);
        }
        let spent = lock(self.pacing).spend(self.settings.per_minute, now);
        let is_allowed =
            spent.is_ok() && matches!(self.pods.evict(namespace, name, self.uid, None, true).await?, Outcome::Accepted);
        let Some((selector, services)) = self.pods.selectors(pod).await?.filter(|_| is_allowed) else {
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
        self.events.pod(pod, EventType::Normal, "PodQuarantined", "Quarantine", &message);
        self.events.owner(pod, EventType::Normal, "PodQuarantined", "Quarantine", &format!("pod {name}: {message}"));
        Ok(true)
    }

    /// Answers what users ask for, and warns.
    async fn wait(&self, pod: &Pod, until: Timestamp) -> Result<End, pods::Error> {
        let Some((state, message, problem)) = standing(pod, &self.settings) else { return Ok(End::Done) };
        let since = self.clock.now();
        let told = mark::condition(pod, mark::CONDITION).and_then(|condition| condition.reason.as_deref());
        let was_extended = told == Some(State::Extended.reason());
        if (state == State::Extended || was_extended) && self.pods.tell(pod, since, state, &message).await? {
            let reason = if state == State::Extended { "EvictionPutOff" } else { "EvictionNotPutOff" };
            self.count("put_off");
            self.events.pod(pod, EventType::Normal, reason, "Extend", &message);
        }
        if let Some(problem) = problem {
            self.events.pod(pod, EventType::Warning, "ExtensionIgnored", "Extend", &problem);
        }
        let warn = self.settings.warn_before.and_then(|before| until.checked_sub(before).ok());
        match warn {
            Some(at) if self.clock.never_ahead() < at => Ok(End::Again(at)),
            Some(_) => {
                let note = format!("{message}; this is the warning before it");
                tracing::info!(namespace = self.tracked.namespace, pod = self.tracked.name, %until, "eviction soon");
                self.events.pod(pod, EventType::Normal, "EvictionSoon", "Evict", &note);
                Ok(End::Again(until))
            }
            None => Ok(End::Again(until)),
        }
    }

    /// Whether its owner can spare it now; then it is in flight.
    async fn in_turn(&self, pod: &Pod, mark: &Mark, owner: Option<&str>, due: Timestamp) -> Result<bool, pods::Error> {
        let Some(owner) = owner else { return Ok(true) };
        let state = match self.pods.owner_is_whole(pod).await? {
            Some(true) => Owner::Whole,
            Some(false) => Owner::Short,
            None => Owner::Unknown,
        };
        let now = self.clock.never_ahead();
        let begun = lock(self.pacing).begin(Some((owner, state)), self.uid, mark::is_ready(pod), due, now);
        if !begun {
            self.tell_queued(pod, mark).await?;
        }
        Ok(begun)
    }

    /// Says on the pod that others go first, unless it says so already.
    async fn tell_queued(&self, pod: &Pod, mark: &Mark) -> Result<(), pods::Error> {
        let message =
            format!("{}. It is due, and waits until another pod of its controller is replaced", mark.summary());
        if self.pods.tell(pod, mark.first.at, State::EvictionQueued, &message).await? {
            self.count("queued");
        }
        Ok(())
    }

    async fn evict(&self, pod: &Pod, mark: &Mark, due: Timestamp) -> Result<End, pods::Error> {
        let Tracked { namespace, name, refusals, .. } = self.tracked;
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
            Err(error @ pods::Error::Api { .. }) => (chain(&error), None),
            Err(error) => return Err(error),
        };
        tracing::info!(namespace, pod = name, uid = self.uid, why, "eviction blocked");
        let message = format!("{}. The eviction is blocked and will be tried again: {why}", mark.summary());
        if *refusals == 0 {
            self.events.pod(pod, EventType::Warning, "EvictionBlocked", "Evict", &message);
        }
        self.pods.tell(pod, mark.first.at, State::EvictionBlocked, &message).await?;
        Ok(End::Refused(after))
    }

    fn accepted(&self, pod: &Pod, mark: &Mark, due: Timestamp) {
        let late = self.clock.now().duration_since(due);
        self.metrics.lateness_seconds.observe(late.as_secs_f64());
        self.count("evicted");
        let Tracked { namespace, name, .. } = self.tracked;
        tracing::info!(namespace, pod = name, uid = self.uid, %due, late_seconds = late.as_secs_f64(), "evicted");
        let note = format!("evicted {:.1} s after its deadline: {}", late.as_secs_f64(), mark.summary());
        self.events.pod(pod, EventType::Normal, "PodEvicted", "Evict", &note);
        self.events.owner(pod, EventType::Normal, "PodEvicted", "Evict", &format!("pod {name}: {note}"));
    }

    fn count(&self, result: &'static str) {
        self.metrics.evictions.get_or_create(&telemetry::Outcome { result }).inc();
    }
}

/// What is in flight; a panic elsewhere leaves it as true as it was.
pub(super) fn lock(pacing: &Mutex<Pacing>) -> MutexGuard<'_, Pacing> {
    pacing.lock().unwrap_or_else(PoisonError::into_inner)
}
