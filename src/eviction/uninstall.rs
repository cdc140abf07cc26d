//! Ends every surge when Pristine is uninstalled (I/O): without Pristine, no label would be put back, and without the
//! component's policy the pods would lose their owners.

use crate::{
    api::{
        Context,
        pods::{self, Pods},
    },
    error::chain,
    mark::surge::End,
};

/// Puts the label back on every pod in a surge, if the namespace of Pristine is being deleted. Every replica does it after
/// SIGTERM, once it no longer evicts; the second one finds nothing to do.
pub async fn end_surges(pods: &Pods, context: &Context, namespace: &str) {
    match pods.is_namespace_terminating(namespace).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            tracing::warn!(error = chain(&error), "cannot see whether Pristine is being uninstalled");
            return;
        }
    }
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
