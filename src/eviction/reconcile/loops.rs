//! Ends loops (I/O). What a loop is, is decided in [`crate::eviction::loops`].

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};

use super::Reconcile;
use crate::{
    api::{events::EventType, owners::Owner, pods},
    eviction::{
        entry::{Entry, Requeue},
        loops::{Row, Workload},
    },
    mark::{
        Mark, State, Status,
        owner::{Look, controller},
    },
};

/// How soon a pod is looked at again while the loops are not known.
const NOT_READ: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

impl Reconcile<'_> {
    /// Takes the deadlines of machines in a loop off this pod before it is due. Returns when to reconcile it again; none if
    /// its deadlines count, or if that will be found out when it is due.
    pub(super) async fn spare_early(&self, pod: &Pod, mark: &Mark) -> Result<Option<Requeue>, pods::Error> {
        if !self.loops.may_spare(pod) {
            return Ok(None);
        }
        let owner = self.pods.owner(pod, Look::Status, self.context.clock.never_ahead()).await?;
        match self.spare(pod, mark, &owner).await {
            Err(pods::Error::Conflict) => Ok(None),
            spared => spared,
        }
    }

    /// Takes the deadlines of machines in a loop off this pod. Returns when to reconcile it again; none if it is to be
    /// evicted.
    pub(super) async fn spare(&self, pod: &Pod, mark: &Mark, owner: &Owner) -> Result<Option<Requeue>, pods::Error> {
        let Some(workload) = Workload::of(pod, owner.parent.as_ref()) else { return Ok(None) };
        if !mark.claims.iter().any(|claim| claim.machine) {
            return Ok(None);
        }
        let Some(rows) = self.loops.sparing(&workload, mark) else {
            let soon = self.context.clock.never_ahead().checked_add(NOT_READ).unwrap_or(Timestamp::MAX);
            return Ok(Some(Requeue::Again(soon)));
        };
        let Some(first) = rows.first() else { return Ok(None) };
        let left = mark.without(|claim| rows.iter().any(|row| row.spares(claim)));
        let cause = format!("{}; {}", first.describe(), first.advice());
        let message = format!("{}. {cause}", left.summary());
        let status = match left.evict_at {
            Some(at) => Status::due(State::Marked, Some(at), None),
            None => Status::new(State::EvictionLoop, cause),
        };
        self.pods.spare(pod, &left, &status, &message).await?;
        self.count("spared");
        let Entry { namespace, name, .. } = self.entry;
        let (user, evict_at) = (&first.user, left.evict_at);
        tracing::info!(
            namespace,
            pod = name,
            uid = self.uid,
            user,
            ?evict_at,
            "a machine in an eviction loop is only recorded"
        );
        // Before the deadline, this happens after each exec. The Event of the eviction that was noticed as a loop says it then.
        if self.entry.deadline <= self.context.clock.never_ahead() {
            self.publish_loop(pod, owner.parent.as_ref(), &message);
        }
        Ok(Some(left.evict_at.map_or(Requeue::Done, Requeue::Again)))
    }

    /// Notes that the pod was evicted, and says so if that is a loop. `parent` is the controller of its controller.
    pub(super) fn note_eviction(&self, pod: &Pod, mark: &Mark, parent: Option<&OwnerReference>) {
        let Some(workload) = Workload::of(pod, parent) else { return };
        // By the API servers' clock, as the creation of the successor.
        for row in self.loops.evicted(&workload, pod, mark, self.context.clock.corrected()) {
            let Row { workload: Workload { namespace, kind, name }, user, machine, rounds, .. } = &row;
            tracing::warn!(namespace, kind, workload = name, user, machine, rounds, "eviction loop noticed");
            self.publish_loop(pod, parent, &format!("{}; {}", row.describe(), row.advice()));
        }
    }

    /// A Warning on the pod, and on its workload, which outlives it.
    fn publish_loop(&self, pod: &Pod, parent: Option<&OwnerReference>, note: &str) {
        let events = &self.context.events;
        events.pod(pod, EventType::Warning, "EvictionLoop", "Evict", note);
        let Some(top) = parent.or_else(|| controller(pod)) else { return };
        events.above(top, pod, EventType::Warning, "EvictionLoop", "Evict", note);
    }
}
