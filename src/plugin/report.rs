//! `kubectl pristine report`: for a person who was in a pod past the API server. A policy in the API server checks who may.

use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Patch;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    connection::{Connection, pod_name},
    format::duration as human,
    output::{DryRun, Failure, each},
    row::Row,
};
use crate::{
    clock::Clock,
    mark::{
        Operation,
        report::{REPORT, REPORTED},
        shorten,
    },
};

/// The value of the label, as the source of the report.
const SOURCE: &str = "kubectl-pristine";
/// Bytes of a report that Pristine records.
const MAX_TEXT: usize = 256;
/// How long to wait for a replica to mark the pod, which it does within a fraction of a second.
const MARKED_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// The arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Names of pods, as NAME or pod/NAME.
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    /// What happened, recorded on the pod with your user name.
    #[arg(long)]
    reason: String,
    /// Check what the command would do, without changing anything.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// Reports an interaction with pods.
///
/// # Errors
/// The answer of the API server, or that no replica marked the pod.
pub async fn run(connection: &Connection, clock: &Clock, arguments: &Arguments) -> Result<(), Failure> {
    let user = connection.whoami().await?;
    let text = shorten(&format!("{}, reported by {user}", arguments.reason.trim()), MAX_TEXT);
    let params = arguments.dry_run.patch_params();
    let names: Vec<String> = arguments.pods.iter().map(|name| pod_name(name).to_owned()).collect();
    each(&names, async |name| {
        let pod = connection.pod(name).await?;
        let before = interactions(&pod);
        let uid = pod.metadata.uid.clone();
        if arguments.dry_run != DryRun::Client {
            // With the UID, because a pod of a StatefulSet can have a successor with the same name by now.
            let metadata = json!({"uid": uid, "labels": {REPORTED: SOURCE}, "annotations": {REPORT: text}});
            let patch = Patch::Merge(json!({"metadata": metadata}));
            connection.call("patch pods", connection.pods().patch(name, &params, &patch)).await?;
        }
        if arguments.dry_run != DryRun::None {
            return Ok(format!("pod/{name} reported{}\n", arguments.dry_run.suffix()));
        }
        let end = Instant::now() + MARKED_WITHIN;
        loop {
            let pod = connection.pod(name).await?;
            if pod.metadata.uid != uid {
                return Err(Failure::new(format!("pod/{name} was replaced by a new pod of the same name")));
            }
            let is_waiting = pod.metadata.labels.iter().flatten().any(|(key, _)| key == REPORTED);
            if !is_waiting || interactions(&pod) > before {
                return Ok(marked(name, Row::of(&pod, clock.now()), clock));
            }
            if Instant::now() >= end {
                return Err(Failure::new(format!(
                    "pod/{name}: the report is on the pod, and no replica marked it within {MARKED_WITHIN:?}; \
                     `kubectl describe pod {name}` says why, or `kubectl pristine doctor`"
                )));
            }
            sleep(POLL).await;
        }
    })
    .await
}

/// The number of reports that the mark lists.
fn interactions(pod: &Pod) -> usize {
    let mark = crate::mark::Found::on(pod).mark();
    mark.map_or(0, |mark| mark.latest().filter(|one| one.operation == Operation::Report).count())
}

fn marked(name: &str, row: Option<Row>, clock: &Clock) -> String {
    let then = match row.and_then(|row| row.deadline) {
        Some(at) => format!("due at {at:.0} (in {})", human(at.duration_since(clock.now()))),
        None => "recorded only".to_owned(),
    };
    format!("pod/{name} reported, {then}\n")
}
