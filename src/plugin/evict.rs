//! `kubectl pristine evict`: now, and not at the deadline. By the user's own right to create `pods/eviction`.

use clap::Args;
use serde_json::Value;

use super::{
    connection::Connection,
    output::{DryRun, Failure, each},
    row::Row,
};
use crate::{api::pods, error::chain};

/// `evict`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Names of marked pods.
    #[arg(required = true)]
    pods: Vec<String>,
    /// Only say what would be done, or let the API server say so.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// What the API server says to an eviction.
#[derive(Debug)]
pub enum Answer {
    /// The pod terminates; or would.
    Accepted,
    /// A disruption budget does not allow it now.
    Refused(String),
}

/// Asks for the eviction of the pod with this UID, and no other.
///
/// # Errors
/// What the API server says, but for a budget's no.
pub async fn evict(connection: &Connection, name: &str, uid: &str, is_dry: bool) -> Result<Answer, Failure> {
    let request = pods::eviction_request(&connection.namespace, name, uid, None, is_dry);
    let request = request.map_err(|error| Failure::new(format!("pod {name:?}: not a name: {}", chain(&error))))?;
    match connection.ask("create pods/eviction", connection.client.request::<Value>(request)).await? {
        Ok(_) => Ok(Answer::Accepted),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(Answer::Refused(pods::refusal(&status))),
        Err(error) => Err(connection.explain("create pods/eviction", &error)),
    }
}

/// Evicts them.
///
/// # Errors
/// What the API server says.
pub async fn run(connection: &Connection, arguments: &Arguments) -> Result<(), Failure> {
    let dry_run = arguments.dry_run;
    each(&arguments.pods, async |name| {
        let pod = connection.pod(name).await?;
        let row = Row::of(&pod, jiff::Timestamp::UNIX_EPOCH);
        let row = row.filter(|row| row.mark.is_some()).ok_or_else(|| {
            let Failure { message, .. } = connection.unmarked(name);
            Failure::new(format!("{message}; to replace it all the same, use kubectl delete pod"))
        })?;
        if dry_run != DryRun::Client {
            match evict(connection, &row.name, &row.uid, dry_run == DryRun::Server).await? {
                Answer::Accepted => {}
                Answer::Refused(why) => return Err(Failure::new(format!("pod/{} is not evicted: {why}", row.name))),
            }
        }
        Ok(format!("pod/{} evicted{}\n", row.name, dry_run.suffix()))
    })
    .await
}
