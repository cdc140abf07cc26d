//! Creates the replacement of a due pod before its eviction (I/O). What happens is decided in [`crate::eviction::surge`].

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::Reconcile;
use crate::{
    api::{
        events::EventType,
        pods::{self, Outcome},
        surge::Workload,
    },
    error::chain,
    eviction::{
        Next,
        entry::{Entry, Requeue},
        plan,
        surge::{
            budgets::Selecting,
            conditions::{self, DryRun},
            step::{Observed, Step, is_settled, step, stop},
        },
    },
    mark::{
        Mark,
        owner::is_controller,
        surge::{End, Surge, is_in_surge},
    },
    telemetry,
};

/// Whether surges may begin. Cheap to clone.
#[derive(Clone, Default)]
pub struct SurgeGate(Arc<Closed>);

#[derive(Default)]
struct Closed {
    /// A ReplicaSet has released a pod in a surge: the policy that prevents it is not in force. Until a restart.
    owner_lost: AtomicBool,
    /// The webhook configuration is gone, which is how an uninstallation begins.
    uninstalled: AtomicBool,
}

impl SurgeGate {
    /// Says whether Pristine is being uninstalled.
    pub fn uninstall(&self, is_uninstalled: bool) {
        self.0.uninstalled.store(is_uninstalled, Ordering::Relaxed);
    }

    fn is_uninstalled(&self) -> bool {
        self.0.uninstalled.load(Ordering::Relaxed)
    }

    fn is_open(&self) -> bool {
        !self.is_uninstalled() && !self.0.owner_lost.load(Ordering::Relaxed)
    }
}

impl Reconcile<'_> {
    /// Goes on with the surge of this pod; none if it is in none.
    pub(super) async fn surging(&self, pod: &Pod) -> Result<Option<Requeue>, pods::Error> {
        if !is_in_surge(pod) || pod.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let now = self.context.clock.never_ahead();
        let next = plan(pod, &self.settings, now);
        let uninstalled = self.surges.is_uninstalled().then_some(End::Uninstalled);
        let stopped = uninstalled.or_else(|| stop(&next, self.why_suspended().is_some(), self.settings.surge));
        if let Some(end) = stopped {
            return self.end_surge(pod, end, now).await.map(Some);
        }
        let Workload { set, deployment, pods } = self.pods.workload(pod).await?;
        let observed = Observed { pod, set: set.as_ref(), deployment: deployment.as_ref(), pods: &pods };
        match (step(observed, now), next) {
            (Step::Evict, Next::Evict { mark, due }) => {
                let evicted = self.evict_replaced(pod, &mark, due, now).await?;
                if evicted == Requeue::Accepted {
                    let owners = set.into_iter().flat_map(|set| set.metadata.owner_references.unwrap_or_default());
                    self.note_eviction(pod, &mark, owners.into_iter().find(is_controller).as_ref());
                }
                Ok(Some(evicted))
            }
            (Step::End(end), _) => self.end_surge(pod, end, now).await.map(Some),
            (Step::Wait | Step::Evict, _) => Ok(Some(Requeue::Queued)),
        }
    }

    /// Begins a surge instead of the eviction of this pod, or waits for the end of one; none if the pod is evicted now. A
    /// surge that the API server refuses never delays the eviction.
    pub(super) async fn surge_first(&self, pod: &Pod, mark: &Mark) -> Option<Requeue> {
        if !self.settings.surge || !self.surges.is_open() {
            return None;
        }
        match self.try_surge(pod, mark).await {
            Ok(Ok(requeue)) => Some(requeue),
            Ok(Err(why)) => {
                let Entry { namespace, name, .. } = self.entry;
                tracing::debug!(namespace, pod = name, uid = self.uid, why, "evicting the pod without a surge");
                None
            }
            Err(pods::Error::Conflict | pods::Error::Gone) => Some(Requeue::Queued),
            Err(error) => {
                let Entry { namespace, name, .. } = self.entry;
                // Without an answer, the surge may have begun.
                let is_refused = error.is_answer();
                let error = chain(&error);
                tracing::warn!(namespace, pod = name, uid = self.uid, error, "cannot begin a surge of the pod");
                (!is_refused).then_some(Requeue::Queued)
            }
        }
    }

    async fn try_surge(&self, pod: &Pod, mark: &Mark) -> Result<Result<Requeue, &'static str>, pods::Error> {
        let Entry { namespace, name, .. } = self.entry;
        if let Err(why) = conditions::pod(pod) {
            return Ok(Err(why));
        }
        let Workload { set, deployment, pods } = self.pods.workload(pod).await?;
        let now = self.context.clock.never_ahead();
        if !is_settled(pod, set.as_ref(), &pods, now) {
            return Ok(Ok(Requeue::Queued));
        }
        let (Some(set), Some(deployment)) = (&set, &deployment) else { return Ok(Err("it belongs to no Deployment")) };
        let found = conditions::Workload { set, deployment, pods: &pods };
        if let Err(why) = conditions::workload(pod, found) {
            return Ok(Err(why));
        }
        let dry_run = match self.pods.evict(namespace, name, self.uid, None, true).await {
            Ok(Outcome::Accepted) => DryRun::Accepted,
            Ok(Outcome::Refused { .. }) => DryRun::Refused,
            Err(error @ pods::Error::Api { .. }) if error.is_answer() => DryRun::Failed,
            Err(error) => return Err(error),
        };
        if let Err(why) = conditions::need(pod, deployment, dry_run) {
            return Ok(Err(why));
        }
        let (services, policies, budgets) = self.pods.selecting(namespace).await?;
        let selecting = Selecting { services, policies, budgets };
        let surge = match conditions::begin(pod, found, &selecting, now) {
            Ok(surge) => surge,
            Err(why) => return Ok(Err(why)),
        };
        if !self.leadership.is_held() || self.why_suspended().is_some() || !self.surges.is_open() {
            return Ok(Ok(Requeue::Queued));
        }
        self.pods.begin_surge(pod, mark, &surge).await?;
        self.began(pod, mark, &surge);
        Ok(Ok(Requeue::Queued))
    }

    fn began(&self, pod: &Pod, mark: &Mark, surge: &Surge) {
        let Entry { namespace, name, .. } = self.entry;
        let until = surge.until;
        self.count_surge("started");
        tracing::info!(namespace, pod = name, uid = self.uid, %until, "the replacement of the pod starts first");
        let note = format!("{}; its replacement starts first, until {until:.0} at the latest", mark.summary());
        self.context.events.pod(pod, EventType::Normal, "SurgeStarted", "Surge", &note);
        self.context.events.owner(pod, EventType::Normal, "SurgeStarted", "Surge", &format!("pod {name}: {note}"));
    }

    /// Evicts the pod whose replacement serves. A budget may need a moment to count the replacement.
    async fn evict_replaced(
        &self,
        pod: &Pod,
        mark: &Mark,
        due: Timestamp,
        now: Timestamp,
    ) -> Result<Requeue, pods::Error> {
        if !self.leadership.is_held() {
            return Ok(Requeue::Queued);
        }
        let spent = match self.pacer.spend(self.settings.per_minute, now) {
            Ok(spent) => spent,
            Err(wait) => return Ok(Requeue::Limited(wait)),
        };
        let Entry { namespace, name, .. } = self.entry;
        let grace = super::grace_period(pod, &self.settings);
        match self.pods.evict(namespace, name, self.uid, grace, false).await {
            Ok(Outcome::Accepted) => {
                spent.keep();
                self.accepted(pod, mark, due);
                self.count_surge("replaced");
                self.context.events.pod(pod, EventType::Normal, "SurgeEnded", "Surge", "its replacement is Ready");
                Ok(Requeue::Accepted)
            }
            Ok(Outcome::Refused { message, .. }) => {
                tracing::debug!(namespace, pod = name, uid = self.uid, why = message, "a budget refused the eviction");
                match Surge::on(pod).filter(|surge| now < surge.until) {
                    Some(_) => Ok(Requeue::Queued),
                    None => self.end_surge(pod, End::TimedOut, now).await,
                }
            }
            Err(error @ pods::Error::Api { .. }) if error.is_answer() => {
                let why = chain(&error);
                tracing::warn!(namespace, pod = name, uid = self.uid, why, "the eviction failed, ending the surge");
                self.end_surge(pod, End::EvictionFailed, now).await
            }
            // Without an answer, the eviction may have been accepted.
            Err(error) => {
                spent.keep();
                Err(error)
            }
        }
    }

    /// Puts the label back. The next reconciliation decides about the pod as if there had been no surge.
    async fn end_surge(&self, pod: &Pod, why: End, now: Timestamp) -> Result<Requeue, pods::Error> {
        if !self.leadership.is_held() {
            return Ok(Requeue::Queued);
        }
        self.pods.end_surge(pod, why, now).await?;
        if why == End::OwnerLost {
            self.surges.0.owner_lost.store(true, Ordering::Relaxed);
        }
        self.pacer.surge_ended(self.entry.owner.as_deref(), self.uid);
        let Entry { namespace, name, .. } = self.entry;
        let reason = why.reason();
        tracing::info!(
            namespace,
            pod = name,
            uid = self.uid,
            reason,
            "the surge of the pod has ended without an eviction"
        );
        self.count_surge(why.word());
        let type_ = if why.is_failure() { EventType::Warning } else { EventType::Normal };
        let note = format!("the pod was not replaced: {reason}");
        self.context.events.pod(pod, type_, "SurgeEnded", "Surge", &note);
        self.context.events.owner(pod, type_, "SurgeEnded", "Surge", &format!("pod {name}: {note}"));
        Ok(Requeue::Again(now))
    }

    fn count_surge(&self, result: &'static str) {
        self.context.metrics.surges.get_or_create(&telemetry::Outcome { result }).inc();
    }
}
