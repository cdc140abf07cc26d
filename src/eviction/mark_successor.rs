//! Marks the successor of a deleted pod: the pod that gets its name next, as long as an exec that was admitted for the
//! deleted pod may still run in it. The I/O for [`super::successor`].
//!
//! Every replica does it, not only the one that evicts. The second replica finds the mark of the first and writes
//! nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::sleep;

use super::successor::SuccessorMark;
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

/// The time between two reads of the successor.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Marks successors.
#[derive(Clone)]
pub struct SuccessorMarker {
    /// Reads and marks the successor.
    pub pods: Pods,
    /// The clock, and the places to report to.
    pub context: Context,
}

impl SuccessorMarker {
    /// Waits for the successor of this pod and marks it. Ends at [`SuccessorMark::until`] at the latest.
    pub async fn run(self, deleted: Pod, mark: SuccessorMark) {
        let (Some(namespace), Some(name)) = (&deleted.metadata.namespace, &deleted.metadata.name) else { return };
        while self.context.clock.corrected() < mark.until {
            match self.reconcile(&deleted, namespace, name, &mark).await {
                Ok(true) => return,
                Ok(false) | Err(pods::Error::Gone | pods::Error::Conflict) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(
                        namespace,
                        pod = name,
                        error,
                        "cannot mark the successor of a deleted pod, retrying"
                    );
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether the successor exists; it is marked then.
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
        if marked.recorded.iter().any(|one| !one.folded) {
            let message = "the previous pod of this name was deleted right after an interaction, \
                           which may have reached this pod instead";
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
