//! Takes a marked pod out of service before its deadline (I/O). Which labels it loses is decided in
//! [`crate::eviction::quarantine`].

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Reconcile, counted, settle};
use crate::{
    api::{
        events::EventType,
        pods::{self, Outcome},
    },
    error::chain,
    eviction::{entry::Entry, pacing::permit::Turn, quarantine},
    mark::{Mark, owner::group_of},
};

impl Reconcile<'_> {
    /// Takes the pod out of service if its workload can spare it, and returns when to reconcile it again. A failure
    /// here never delays the eviction.
    pub(super) async fn quarantine(&self, turn: Option<Turn>, pod: &Pod, mark: &Mark) -> Timestamp {
        let (owner, now) = (self.entry.owner.as_deref(), self.context.clock.never_ahead());
        let later = |wait: Duration| now.checked_add(wait).unwrap_or(Timestamp::MAX);
        let Some(turn) = turn.or_else(|| self.pacer.turn(owner, self.uid, now)) else {
            return later(Duration::from_secs(1).mul_f64(rand::random_range(1.0..2.0)));
        };
        match self.try_quarantine(&turn, pod, mark, now).await {
            Ok(true) => now,
            Ok(false) => later(Duration::from_secs(5).mul_f64(rand::random_range(1.0..2.0))),
            Err(pods::Error::Conflict | pods::Error::Gone) => later(Duration::from_secs(1)),
            Err(error) => {
                let Entry { namespace, name, .. } = self.entry;
                let error = chain(&error);
                tracing::warn!(namespace, pod = name, uid = self.uid, error, "cannot quarantine the pod, retrying");
                later(Duration::from_secs(30))
            }
        }
    }

    /// Whether the pod was quarantined. Only if its owner is fully Ready and the disruption budgets would allow its
    /// eviction: without its labels, the pod no longer counts for them.
    async fn try_quarantine(&self, turn: &Turn, pod: &Pod, mark: &Mark, now: Timestamp) -> Result<bool, pods::Error> {
        let Entry { namespace, name, owner: Some(owner), .. } = self.entry else { return Ok(false) };
        let found = self.pods.owner(pod, turn.look(now), now).await?;
        let group = group_of(pod);
        let owner = counted(owner, group.as_deref(), &found);
        let Some(mut permit) = turn.begin_quarantine(owner, now) else { return Ok(false) };
        let is_allowed = matches!(self.pods.evict(namespace, name, self.uid, None, true).await?, Outcome::Accepted);
        if !is_allowed || permit.spend(self.settings.per_minute, now).is_err() {
            return Ok(false);
        }
        let Some((selector, services)) = self.pods.selectors(pod).await? else { return Ok(false) };
        let labels = quarantine::labels(pod, &selector, &services);
        let names = labels.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!("{}; until then it is out of service, without the labels {names}", mark.summary());
        let sent = permit.send(now);
        match self.pods.quarantine(pod, mark, &labels, &message).await {
            // Its owner no longer counts it, and creates the replacement.
            Ok(()) => sent.is_released(now),
            Err(error) => {
                settle(sent, &error, now);
                return Err(error);
            }
        }
        self.count("quarantined");
        tracing::info!(namespace, pod = name, uid = self.uid, names, "the pod is quarantined");
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
}
