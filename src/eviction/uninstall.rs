//! Ends every surge when Pristine is uninstalled (I/O): without Pristine, no label would be put back, and without the
//! component's policy the pods would lose their owners.
//!
//! Every way of uninstalling begins with the webhook configuration: `kubectl delete -f` and Helm delete it first, and if a
//! namespace is deleted, a replica deletes it. The permissions go a moment later, so no replica waits for its SIGTERM.

use tokio::sync::watch;

use super::reconcile::SurgeGate;
use crate::{
    api::{
        Context,
        pods::{self, Pods},
        webhook::watch::Seen,
    },
    error::chain,
    mark::surge::End,
};

/// Follows the webhook configuration until the process ends. Every replica does it: the second one finds nothing to do.
pub async fn run(pods: Pods, context: Context, mut seen: watch::Receiver<Seen>, surges: SurgeGate) {
    loop {
        let is_gone = {
            let seen = seen.borrow_and_update();
            seen.is_known && seen.live.is_none()
        };
        surges.uninstall(is_gone);
        if is_gone {
            end_surges(&pods, &context).await;
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Puts the label back on every pod in a surge. The leader does the same at its next look at one that this misses.
async fn end_surges(pods: &Pods, context: &Context) {
    let found = match pods.in_surge().await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(error = chain(&error), "cannot list the pods in a surge");
            return;
        }
    };
    for pod in found {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        match pods.end_surge(&pod, End::Uninstalled, context.clock.never_ahead()).await {
            Ok(()) => tracing::info!(namespace, pod = name, "the surge of the pod has ended: Pristine is uninstalled"),
            Err(pods::Error::Conflict | pods::Error::Gone) => {}
            Err(error) => {
                tracing::warn!(namespace, pod = name, error = chain(&error), "cannot end the surge of the pod");
            }
        }
    }
}
