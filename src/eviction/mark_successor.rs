//! Hands the mark of a deleted pod to the pod that has its name next, as long as an exec that was admitted for the first
//! may still arrive at the second. The edge of [`super::plan::successor`].
//!
//! Every replica does it, not only the one that evicts: the second finds what the first has written, and writes nothing.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::sleep;

use super::plan::SuccessorMark;
use crate::{
    api::{
        events::{EventType, Events},
        pods::{self, Pods},
    },
    audit_log::{AuditLog, Entry},
    clock::Clock,
    error::chain,
    telemetry::{Metrics, Outcome},
};

/// Between two looks for the successor.
const LOOK: Duration = Duration::from_millis(500);

/// Hands marks over.
#[derive(Clone)]
pub struct SuccessorMarker {
    /// Reads and marks.
    pub pods: Pods,
    /// The wall clock.
    pub clock: Clock,
    /// Where Events go.
    pub events: Events,
    /// Where interactions are written down.
    pub audit_log: AuditLog,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl SuccessorMarker {
    /// Waits for the pod that has the name of this one next, and marks it; no longer than it matters.
    pub async fn run(self, deleted: Pod, mark: SuccessorMark) {
        let (Some(namespace), Some(name)) = (&deleted.metadata.namespace, &deleted.metadata.name) else { return };
        while self.clock.now() < mark.until {
            match self.reconcile(&deleted, namespace, name, &mark).await {
                Ok(true) => return,
                Ok(false) | Err(pods::Error::Gone | pods::Error::Conflict) => {}
                Err(error) => {
                    tracing::warn!(namespace, pod = name, error = %chain(&error), "cannot hand over the mark yet");
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Whether the successor was there.
    async fn reconcile(
        &self,
        deleted: &Pod,
        namespace: &str,
        name: &str,
        mark: &SuccessorMark,
    ) -> Result<bool, pods::Error> {
        let successor = self.pods.get(namespace, name).await?;
        if successor.metadata.uid == deleted.metadata.uid || successor.metadata.deletion_timestamp.is_some() {
            return Ok(false);
        }
        let SuccessorMark { interaction, disposition, .. } = mark;
        let marked = self.pods.mark(&successor, vec![(interaction.clone(), *disposition)]).await?;
        if marked.written {
            let message =
                "the pod of this name was deleted so soon after the interaction that it may have reached its successor";
            self.audit_log.write(&Entry {
                decision: "marked",
                namespace,
                pod: name,
                pod_uid: successor.metadata.uid.as_deref(),
                evict_at: marked.mark.evict_at,
                total: Some(marked.mark.total),
                message: Some(message),
                interaction,
            });
            self.metrics.evictions.get_or_create(&Outcome { result: "successor_marked" }).inc();
            self.events.pod(&successor, EventType::Normal, "SuccessorMarked", "Mark", message);
        }
        Ok(true)
    }
}
