//! `kubectl pristine exec`: kubectl exec, with what kubectl does not print: API servers drop the warnings of an exec's
//! admission.

use std::{ffi::OsString, process::Command};

use clap::Args;
use http::{HeaderName, HeaderValue, Request};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use super::{
    connection::{Connection, Global, pod_name},
    format::duration as human,
    output::{Failure, emit_stderr},
    row::Row,
};
use crate::clock::Clock;

/// `exec`, with the flags of kubectl exec.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The pod, or TYPE/NAME for a pod of it, as kubectl chooses.
    #[arg(value_name = "POD")]
    pod: String,
    /// The container; by default the first one, or that of the annotation kubectl.kubernetes.io/default-container.
    #[arg(short, long)]
    container: Option<String>,
    /// Pass stdin to the container.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Stdin is a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Only print output of the remote session.
    #[arg(short, long)]
    quiet: bool,
    /// How long to wait until a pod of TYPE/NAME runs, for example 5s or 1m.
    #[arg(long, value_name = "DURATION")]
    pod_running_timeout: Option<String>,
    /// Reason for the session, recorded on the pod. It needs the permission to impersonate yourself with it.
    #[arg(long)]
    reason: Option<String>,
    /// The command to run.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs kubectl exec, and exits with its exit code.
///
/// # Errors
/// If the pod cannot be read, or kubectl cannot be run.
pub async fn run(
    connection: &Connection,
    clock: &Clock,
    global: &Global,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("exec").args(global.for_kubectl());
    if let Some(reason) = &arguments.reason {
        kubectl.args(with_reason(connection, reason).await?);
    }
    for (flag, is_set) in [("--stdin", arguments.stdin), ("--tty", arguments.tty), ("--quiet", arguments.quiet)] {
        kubectl.args(is_set.then_some(flag));
    }
    let values = [("--container", &arguments.container), ("--pod-running-timeout", &arguments.pod_running_timeout)];
    kubectl.args(values.iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value.as_ref()?))));
    kubectl.arg(&arguments.pod).arg("--").args(&arguments.command);
    // kubectl alone knows which pod of a Deployment it chooses.
    let name = pod_name(&arguments.pod);
    let is_told = !arguments.quiet && !name.contains('/');
    if is_told {
        emit_stderr(
            &deadline(connection, clock, name, "is not marked yet, the rules decide about this session").await?,
        );
    }
    let status = kubectl.status().map_err(|error| Failure::new(format!("cannot run kubectl: {error}")))?;
    if is_told {
        let after = deadline(connection, clock, name, "is not marked").await;
        emit_stderr(&after.unwrap_or_else(|failure| failure.show()));
    }
    // A kubectl that a signal ended has none.
    std::process::exit(status.code().unwrap_or(1))
}

/// Until when the pod lives.
async fn deadline(connection: &Connection, clock: &Clock, name: &str, unmarked: &str) -> Result<String, Failure> {
    let pod = connection.pod(name).await?;
    Ok(match Row::of(&pod, clock.now()) {
        None => format!("pod/{name} {unmarked}"),
        Some(Row { deadline: Some(at), .. }) => {
            let left = human(at.duration_since(clock.now()));
            format!(
                "pod/{name} is due for eviction at {at:.0} (in {left}); to keep it longer: kubectl pristine extend {name}"
            )
        }
        Some(Row { state, .. }) => format!("pod/{name} is not due for eviction: its state is {state}"),
    })
}

/// The flags with which kubectl sends the reason: the user impersonates itself. None, and a warning, if the user may not.
async fn with_reason(connection: &Connection, reason: &str) -> Result<Vec<String>, Failure> {
    let UserInfo { username, groups, .. } = connection.user_info().await?;
    let user = username.unwrap_or_default();
    // The API server adds this one itself.
    let groups: Vec<String> = groups.into_iter().flatten().filter(|group| group != "system:authenticated").collect();
    let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews");
    let pairs = [("impersonate-user", &user), ("impersonate-extra-reason", &reason.to_owned())];
    let pairs = pairs.into_iter().chain(groups.iter().map(|group| ("impersonate-group", group)));
    for (name, value) in pairs.map(|(name, value)| (name, value.clone())) {
        let value = HeaderValue::from_str(&value).map_err(|_| {
            Failure::new(format!("{value:?} cannot be sent to the API server: it is no text of one line"))
        })?;
        request = request.header(HeaderName::from_static(name), value);
    }
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let request = request.header("content-type", "application/json").body(review.to_string().into_bytes());
    let request = request.map_err(|error| Failure::new(format!("cannot ask the API server: {error}")))?;
    match connection.answer("create selfsubjectreviews", connection.client.request::<Value>(request)).await? {
        Ok(_) => {
            let groups = groups.iter().map(|group| format!("--as-group={group}"));
            let who = [format!("--as={user}"), format!("--as-user-extra=reason={reason}")];
            Ok(who.into_iter().chain(groups).collect())
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            emit_stderr(&format!("warning: the reason is not recorded: {}", status.message));
            Ok(Vec::new())
        }
        Err(error) => Err(connection.explain("create selfsubjectreviews", &error)),
    }
}
