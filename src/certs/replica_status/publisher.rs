//! Says on this replica's own pod what it serves. Nothing depends on it: `kubectl pristine certs` and people read it.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    api::pods::{Error, Pods},
    certs::{
        replica_status::{REPLICA, ReplicaStatus},
        resolver::Resolver,
    },
    error::chain,
};

/// A renewal is looked for this often.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(30);

/// Runs until the process ends.
pub async fn run(pods: Pods, namespace: String, name: String, resolver: Resolver) {
    let mut said = None;
    loop {
        let Some(now) = resolver.current().filter(|now| said.as_ref() != Some(now)) else {
            sleep(LOOK).await;
            continue;
        };
        match pods.annotate(&namespace, &name, REPLICA, &ReplicaStatus::new(&now).to_text()).await {
            Ok(()) => said = Some(now),
            // Outside a cluster there is no such pod.
            Err(Error::Gone) => sleep(PAUSE).await,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "cannot say on our own pod what is served");
                sleep(PAUSE).await;
            }
        }
    }
}
