//! Publishes the replica status on this replica's own pod, for `kubectl pristine` and for people. No decision depends
//! on it.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    api::pods::{Error, Pods},
    certs::{
        replica_status::{REPLICA, ReplicaStatus},
        resolver::Resolver,
    },
    error::chain,
    telemetry::Metrics,
};

/// How often the status is compared with the published one.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// Runs until the process ends.
pub async fn run(pods: Pods, namespace: String, name: String, resolver: Resolver, metrics: Arc<Metrics>) {
    let mut published = None;
    loop {
        let status = resolver.current().map(|chain| (chain, metrics.rules.undecided()));
        let Some(now) = status.filter(|now| published.as_ref() != Some(now)) else {
            sleep(POLL_INTERVAL).await;
            continue;
        };
        let text = ReplicaStatus::new(&now.0, now.1.clone()).to_text();
        match pods.annotate(&namespace, &name, REPLICA, &text).await {
            Ok(()) => published = Some(now),
            // Outside a cluster there is no such pod.
            Err(Error::Gone) => sleep(RETRY_DELAY).await,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "cannot write the replica status on our own pod");
                sleep(RETRY_DELAY).await;
            }
        }
    }
}
