//! Hands the mark of a deleted pod to the pod that has its name next, as long as an exec that was admitted for the first
//! may still arrive at the second. The edge of [`super::plan::successor`].
//!
//! Every replica does it, not only the one that evicts: the second finds what the first has written, and writes nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::sleep;

use super::plan::SuccessorMark;
use crate::{
    api::{
        Context,
        events::EventType,
        pods::{self, Pods},
    },
    audit_log::Line,
    error::chain,
    telemetry::Outcome,
};

/// Between two looks for the successor.
const LOOK: Duration = Duration::from_millis(500);

/// Hands marks over.
#[derive(Clone)]
pub struct SuccessorMarker {
    /// Reads and marks.
    pub pods: Pods,
    /// The clock, and where what is done is reported.
    pub context: Context,
}

impl SuccessorMarker {
    /// Waits for the pod that has the name of this one next, and marks it; no longer than it matters.
    pub async fn run(self, deleted: Pod, mark: SuccessorMark) {
        let (Some(namespace), Some(name)) = (&deleted.metadata.namespace, &deleted.metadata.name) else { return };
        while self.context.clock.now() < mark.until {
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
            self.context.audit_log.write(&Line {
                decision: "marked",
                namespace,
                pod: name,
                pod_uid: successor.metadata.uid.as_deref(),
                evict_at: marked.mark.evict_at,
                total: Some(marked.mark.total),
                message: Some(message),
                interaction,
            });
            self.context.metrics.evictions.get_or_create(&Outcome { result: "successor_marked" }).inc();
            self.context.events.pod(&successor, EventType::Normal, "SuccessorMarked", "Mark", message);
        }
        Ok(true)
    }
}
