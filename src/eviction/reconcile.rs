//! Reconciles one marked pod: reads it, plans, and carries out the plan.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Next, Settings,
    entry::{Entry, Requeue},
    leadership::Leadership,
    loop_store::LoopStore,
    pacing::{
        Owner,
        permit::{Pacer, Permit, Sent, Turn},
    },
    plan::{gone_by, grace_period, plan, stuck},
    suspension::Suspended,
};
use crate::{
    api::{
        Context,
        events::EventType,
        owners,
        pods::{self, Outcome, Pods},
    },
    audit_log::Change,
    error::chain,
    mark::{
        Mark, State, Status, is_ready,
        owner::{Counts, group_of},
    },
    telemetry,
};

mod loops;
mod surge;
mod take_out;
mod wait;

pub use surge::SurgeGate;

/// One reconciliation of one pod.
pub struct Reconcile<'a> {
    /// Reads the pod, writes its status, evicts it.
    pub pods: &'a Pods,
    /// The clock, and the places to report to.
    pub context: &'a Context,
    /// The eviction section of the configuration.
    pub settings: Settings,
    /// The evictions in flight.
    pub pacer: &'a Pacer,
    /// Whether this replica may evict.
    pub leadership: &'a Leadership,
    /// Whether any replica may.
    pub suspended: &'a Suspended,
    /// The loops that were noticed.
    pub loops: &'a LoopStore,
    /// Whether surges may begin.
    pub surges: &'a SurgeGate,
    /// UID of the pod.
    pub uid: &'a str,
    /// What the queue knows of the pod.
    pub entry: &'a Entry,
}

impl Reconcile<'_> {
    /// Runs it, and says when to reconcile the pod again.
    pub async fn run(&self) -> Requeue {
        let Entry { namespace, name, .. } = self.entry;
        match self.reconcile().await {
            Ok(requeue) => requeue,
            Err(pods::Error::Gone) => Requeue::Done,
            // Another writer was faster; the next run reads what it wrote.
            Err(pods::Error::Conflict) => Requeue::Refused(None),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(namespace, pod = name, uid = self.uid, error, "cannot evict the pod, retrying");
                self.count("error");
                Requeue::Refused(None)
            }
        }
    }

    async fn reconcile(&self) -> Result<Requeue, pods::Error> {
        let Entry { namespace, name, owner, deadline, .. } = self.entry;
        let (owner, now) = (owner.as_deref(), self.context.clock.never_ahead());
        let is_suspended = self.why_suspended().is_some();
        if is_suspended && self.entry.state == State::Suspended {
            return Ok(Requeue::Suspended);
        }
        let may_be_evicted =
            *deadline <= now && !is_suspended && self.entry.state != State::Terminating && !self.entry.is_in_surge;
        let turn = match may_be_evicted.then(|| self.turn(owner, now)) {
            None => None,
            Some(Ok(turn)) => Some(turn),
            Some(Err((requeue, why))) => {
                self.show_queued(&why, now).await?;
                return Ok(requeue);
            }
        };
        let pod = self.pods.get(namespace, name).await?;
        if pod.metadata.uid.as_deref() != Some(self.uid) {
            tracing::info!(namespace, pod = name, uid = self.uid, "the pod was replaced; its successor is not evicted");
            self.count("replaced");
            return Ok(Requeue::Done);
        }
        if let Some(requeue) = Box::pin(self.surging(&pod)).await? {
            return Ok(requeue);
        }
        match plan(&pod, &self.settings, self.context.clock.never_ahead()) {
            Next::Nothing(_) | Next::Ignore(_) => Ok(Requeue::Done),
            Next::Wait { mark, until } => match self.spare_early(&pod, &mark).await? {
                Some(requeue) => Ok(requeue),
                None => self.wait(turn, &pod, &mark, until).await,
            },
            Next::Finished(mark) => {
                let message =
                    format!("{}. Its containers have terminated; the pod is kept for its logs", mark.summary());
                self.set_status(&pod, &mark, &Status::new(State::Finished, None), &message).await?;
                Ok(Requeue::Done)
            }
            Next::Terminating { mark, gone_by } => self.terminating(&pod, &mark, gone_by).await,
            Next::NotEvictable(mark, why) => {
                let message = format!("{}; not evicted: {why}", mark.who());
                let status = Status::new(State::NotEvictable, why.to_owned());
                if self.set_status(&pod, &mark, &status, &message).await? {
                    self.count("not_evictable");
                    self.context.events.pod(&pod, EventType::Warning, "NotEvictable", "Evict", why);
                }
                Ok(Requeue::Done)
            }
            Next::Evict { mark, due } => match self.why_suspended() {
                Some(why) => self.suspend(&pod, &mark, due, &why).await,
                // The deadline was brought forward after the entry was made, so the turn was not asked for.
                None => match turn.map_or_else(|| self.turn(owner, now), Ok) {
                    Ok(turn) => self.evict_in_turn(&turn, &pod, &mark, due).await,
                    Err((requeue, _)) => Ok(requeue),
                },
            },
        }
    }

    /// Why no pod is evicted now.
    fn why_suspended(&self) -> Option<String> {
        self.suspended.why(self.settings.suspend, self.context.clock.never_ahead())
    }

    /// Writes on a pod that is due that evictions are suspended.
    async fn suspend(&self, pod: &Pod, mark: &Mark, due: Timestamp, why: &str) -> Result<Requeue, pods::Error> {
        let message = format!("{}. It is due and not evicted: {why}", mark.summary());
        let status = Status::due(State::Suspended, Some(due), why.to_owned());
        if self.set_status(pod, mark, &status, &message).await? {
            self.count("suspended");
        }
        Ok(Requeue::Suspended)
    }

    async fn evict_in_turn(&self, turn: &Turn, pod: &Pod, mark: &Mark, due: Timestamp) -> Result<Requeue, pods::Error> {
        let look = turn.look(self.context.clock.never_ahead());
        let found = self.pods.owner(pod, look, self.context.clock.never_ahead()).await?;
        if let Some(requeue) = self.spare(pod, mark, &found).await? {
            return Ok(requeue);
        }
        let mut permit = match self.begin(turn, pod, mark, due, &found).await? {
            Ok(permit) => permit,
            Err(requeue) => return Ok(requeue),
        };
        // The process may have been suspended since the check before: the pod as read, and the Lease, may be out of
        // date.
        if !self.leadership.is_held() || self.why_suspended().is_some() {
            return Ok(Requeue::Queued);
        }
        if let Some(requeue) = Box::pin(self.surge_first(pod, mark)).await {
            // The others of its workload wait for its replacement, as after an eviction.
            permit.send(self.context.clock.never_ahead()).keep();
            return Ok(requeue);
        }
        match permit.spend(self.settings.per_minute, self.context.clock.never_ahead()) {
            Ok(()) => {
                let evicted = self.evict(permit, pod, mark, due).await?;
                if evicted == Requeue::Accepted {
                    self.note_eviction(pod, mark, found.parent.as_ref());
                }
                Ok(evicted)
            }
            Err(wait) => Ok(Requeue::Limited(wait)),
        }
    }

    /// The turn of this pod, or why it cannot be evicted now, if that is known without a request: many waiting pods must
    /// not keep the API server busy.
    fn turn(&self, owner: Option<&str>, now: Timestamp) -> Result<Turn, (Requeue, String)> {
        let per_minute = self.settings.per_minute;
        if let Some(wait) = self.pacer.limit(per_minute, now) {
            let why = format!("the rate limit is {per_minute} evictions a minute (eviction.perMinute)");
            return Err((Requeue::Limited(wait), why));
        }
        self.pacer.turn(owner, self.uid, now).ok_or_else(|| (Requeue::Queued, OTHERS_FIRST.to_owned()))
    }

    /// Writes why the pod waits for its turn, once.
    async fn show_queued(&self, why: &str, now: Timestamp) -> Result<(), pods::Error> {
        let Entry { namespace, name, .. } = self.entry;
        if self.entry.must_show_queued()
            && let Ok(pod) = self.pods.get(namespace, name).await
            && let Next::Evict { mark, due } = plan(&pod, &self.settings, now)
            && pod.metadata.uid.as_deref() == Some(self.uid)
        {
            self.set_queued(&pod, &mark, due, why).await?;
        }
        Ok(())
    }

    /// The permit to evict the pod, if its workload can spare it now; if not, the pod's status says why.
    async fn begin<'a>(
        &self,
        turn: &'a Turn,
        pod: &Pod,
        mark: &Mark,
        due: Timestamp,
        found: &owners::Owner,
    ) -> Result<Result<Permit<'a>, Requeue>, pods::Error> {
        let now = self.context.clock.never_ahead();
        let Some(owner) = self.entry.owner.as_deref() else {
            return Ok(turn.begin(None, is_ready(pod), now).ok_or(Requeue::Queued));
        };
        if found.holds_update {
            self.set_queued(pod, mark, due, HOLDS_UPDATE).await?;
            return Ok(Err(Requeue::Limited(HOLDS_UPDATE_RECHECK)));
        }
        let group = group_of(pod);
        let permit = turn.begin(Some(counted(owner, group.as_deref(), found)), is_ready(pod), now);
        if permit.is_none() {
            let is_last = is_ready(pod) && found.counts.is_some_and(Counts::is_last_ready);
            self.set_queued(pod, mark, due, if is_last { LAST } else { OTHERS_FIRST }).await?;
        }
        Ok(permit.ok_or(Requeue::Queued))
    }

    /// Writes the status of a terminating pod: what it waits for.
    async fn terminating(&self, pod: &Pod, mark: &Mark, gone_by: Timestamp) -> Result<Requeue, pods::Error> {
        let now = self.context.clock.never_ahead();
        let stuck = stuck(pod, gone_by, now);
        let why = stuck.clone().unwrap_or_else(|| format!("its grace period ends at {gone_by}"));
        let message = format!("{}. The pod is terminating: {why}", mark.summary());
        let status = Status::new(State::Terminating, why.clone());
        let is_news = match self.set_status(pod, mark, &status, &message).await {
            Err(pods::Error::Conflict) => return Ok(Requeue::Terminating(now.checked_add(RECHECK).unwrap_or(now))),
            written => written?,
        };
        if is_news && stuck.is_some() {
            self.count("stuck");
            let Entry { namespace, name, .. } = self.entry;
            tracing::warn!(namespace, pod = name, uid = self.uid, why, "the pod is stuck terminating");
            self.context.events.pod(pod, EventType::Warning, "TerminationStuck", "Evict", &message);
        }
        let after = if stuck.is_some() { now } else { gone_by.max(now) };
        Ok(Requeue::Terminating(after.checked_add(RECHECK).unwrap_or(Timestamp::MAX)))
    }

    /// Writes the status of a pod that is due and waits, unless the pod has it already.
    async fn set_queued(&self, pod: &Pod, mark: &Mark, due: Timestamp, why: &str) -> Result<(), pods::Error> {
        let message = format!("{}. It is due and waits: {why}", mark.summary());
        let status = Status::due(State::EvictionQueued, Some(due), why.to_owned());
        match self.set_status(pod, mark, &status, &message).await {
            Ok(true) => self.count("queued"),
            // The next reconciliation writes it, if it still applies.
            Ok(false) | Err(pods::Error::Conflict) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn set_status(&self, pod: &Pod, mark: &Mark, status: &Status, message: &str) -> Result<bool, pods::Error> {
        self.pods.set_condition(pod, mark.first.at, status, message).await
    }

    async fn evict(&self, permit: Permit<'_>, pod: &Pod, mark: &Mark, due: Timestamp) -> Result<Requeue, pods::Error> {
        let Entry { namespace, name, refusals, .. } = self.entry;
        let grace = grace_period(pod, &self.settings);
        let now = self.context.clock.never_ahead();
        let sent = permit.send(gone_by(pod, grace, now));
        let answer = self.pods.evict(namespace, name, self.uid, grace, false).await;
        match &answer {
            Ok(Outcome::Accepted) => sent.keep(),
            Ok(Outcome::Refused { .. }) => sent.refused(),
            Err(error) => settle(sent, error, now),
        }
        let (why, after) = match answer {
            Ok(Outcome::Accepted) => {
                self.accepted(pod, mark, due);
                return Ok(Requeue::Accepted);
            }
            Ok(Outcome::Refused { message, retry_after }) => {
                self.count("blocked");
                tracing::info!(
                    namespace,
                    pod = name,
                    uid = self.uid,
                    why = message,
                    "the eviction was refused, retrying"
                );
                (message, Some(retry_after.unwrap_or_default()))
            }
            Err(error @ pods::Error::Api { .. }) if error.is_answer() => {
                self.count("error");
                let why = chain(&error);
                tracing::warn!(namespace, pod = name, uid = self.uid, why, "the eviction failed, retrying");
                (why, None)
            }
            Err(error) => return Err(error),
        };
        let message = format!("{}. The eviction was refused and is retried: {why}", mark.summary());
        if *refusals == 0 {
            self.context.events.pod(pod, EventType::Warning, "EvictionBlocked", "Evict", &message);
        }
        // A failure here changes nothing about the refusal, nor about when the eviction is retried.
        let status = Status::due(State::EvictionBlocked, Some(due), why);
        if let Err(error) = self.set_status(pod, mark, &status, &message).await {
            let error = chain(&error);
            tracing::debug!(namespace, pod = name, uid = self.uid, error, "cannot write the status of the pod");
        }
        Ok(Requeue::Refused(after))
    }

    fn accepted(&self, pod: &Pod, mark: &Mark, due: Timestamp) {
        let late = self.context.clock.now().duration_since(due);
        self.context.metrics.lateness_seconds.observe(late.as_secs_f64());
        self.count("evicted");
        let Entry { namespace, name, .. } = self.entry;
        let late_seconds = late.as_secs_f64();
        tracing::info!(namespace, pod = name, uid = self.uid, %due, late_seconds, "the pod was evicted");
        let note = format!("evicted {:.1} s after its deadline: {}", late.as_secs_f64(), mark.summary());
        self.context.events.pod(pod, EventType::Normal, "PodEvicted", "Evict", &note);
        self.tell("evicted", due, None, &note);
        self.context.events.owner(pod, EventType::Normal, "PodEvicted", "Evict", &format!("pod {name}: {note}"));
    }

    /// Writes a line of the audit log.
    fn tell(&self, decision: &'static str, evict_at: Timestamp, by: Option<&str>, message: &str) {
        let Entry { namespace, name, .. } = self.entry;
        let (at, pod_uid) = (self.context.clock.now(), self.uid);
        self.context.audit_log.write(&Change { decision, at, namespace, pod: name, pod_uid, evict_at, by, message });
    }

    fn count(&self, result: &'static str) {
        self.context.metrics.evictions.get_or_create(&telemetry::Outcome { result }).inc();
    }
}

/// A terminating pod is read again this long after its grace period: when it counts as stuck, and not just before.
const RECHECK: Duration = Duration::from_secs(61);
/// Why a pod that is due waits.
const OTHERS_FIRST: &str = "another pod of its workload is being replaced";
const LAST: &str = "it is the last Ready pod of its workload";
const HOLDS_UPDATE: &str = "the updateStrategy of its workload is OnDelete, and an eviction would roll out the update that \
                            this pod does not have yet; delete the pod when it may be updated";
const HOLDS_UPDATE_RECHECK: Duration = Duration::from_secs(60);

fn counted<'a>(uid: &'a str, group: Option<&'a str>, found: &'a owners::Owner) -> Owner<'a> {
    Owner { uid, group, counts: found.counts, version: &found.version, seen: found.seen }
}

/// What an error means for a request that was sent.
fn settle(sent: Sent<'_>, error: &pods::Error, now: Timestamp) {
    match error {
        pods::Error::Gone => sent.pod_was_gone(now),
        error if error.is_answer() => sent.refused(),
        // Without an answer the request may have been accepted: the others wait as if it was.
        _ => sent.keep(),
    }
}
