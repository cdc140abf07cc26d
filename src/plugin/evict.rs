//! `kubectl pristine evict`: evicts marked pods before their deadline, with the user's own permission to create
//! `pods/eviction`.

use clap::Args;
use serde_json::Value;

use super::{
    connection::Connection,
    output::{DryRun, Failure, each},
    row::Row,
    targets::Targets,
};
use crate::{
    api::pods,
    clock::Clock,
    error::chain,
    mark::owner::{STATIC, is_static},
};

/// `evict`
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pods: Targets,
    /// Check what the command would do, without changing anything.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// The API server's answer to an eviction.
#[derive(Debug)]
pub enum Answer {
    /// The eviction was accepted; after a dry run, it would be.
    Accepted,
    /// A PodDisruptionBudget does not allow the eviction now.
    Refused(String),
}

/// Evicts the pod if it still has this UID.
///
/// # Errors
/// The answer of the API server, unless a PodDisruptionBudget refused the eviction.
pub async fn evict(connection: &Connection, name: &str, uid: &str, is_dry: bool) -> Result<Answer, Failure> {
    let request = pods::eviction_request(&connection.namespace, name, uid, None, is_dry);
    let request =
        request.map_err(|error| Failure::new(format!("pod {name:?} is not a valid name: {}", chain(&error))))?;
    match connection.answer("create pods/eviction", connection.client.request::<Value>(request)).await? {
        Ok(_) => Ok(Answer::Accepted),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(Answer::Refused(pods::refusal(&status))),
        Err(error) => Err(connection.explain("create pods/eviction", &error)),
    }
}

/// Evicts the pods.
///
/// # Errors
/// The answer of the API server.
pub async fn run(connection: &Connection, clock: &Clock, arguments: &Arguments) -> Result<(), Failure> {
    let dry_run = arguments.dry_run;
    let names = arguments.pods.names(connection, clock, |_, row| row.deadline.is_some()).await?;
    each(&names, async |name| {
        let pod = connection.pod(name).await?;
        let row = Row::of(&pod, clock.now());
        let row = row.filter(|row| row.mark.is_some()).ok_or_else(|| {
            let Failure { message, .. } = connection.unmarked(name);
            Failure::new(format!("{message}; to replace the pod anyway, use `kubectl delete pod`"))
        })?;
        // The API server would accept it: the mirror pod disappears with its mark, and the container runs on.
        if is_static(&pod) {
            return Err(Failure::new(format!("pod/{} not evicted: {STATIC}", row.name)));
        }
        if dry_run != DryRun::Client {
            match evict(connection, &row.name, &row.uid, dry_run == DryRun::Server).await? {
                Answer::Accepted => {}
                Answer::Refused(why) => return Err(Failure::new(format!("pod/{} not evicted: {why}", row.name))),
            }
        }
        Ok(format!("pod/{} evicted{}\n", row.name, dry_run.suffix()))
    })
    .await
}
