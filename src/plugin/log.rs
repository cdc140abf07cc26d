//! `kubectl pristine log`: who was in which pod, and what became of it, from the logs of the replicas and, where given, from
//! audit logs of the API server.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use serde_json::json;

use super::{
    connection::Connection,
    format::{clip, duration as human, table},
    output::{Failure, emit, emit_stderr},
    summary::Output,
};
use crate::{
    cli::simulate::{
        self,
        event::{self, Decoded, Event},
        records::Records,
    },
    clock::Clock,
};
use entry::{Entry, history};

pub mod entry;

/// Bytes that are read of a replica's log. A kubelet keeps 50 MiB of a container's log as shipped.
const BYTES: i64 = 64 * 1024 * 1024;
/// Characters of a command in the table.
const DETAIL: usize = 80;

/// `log`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Show the pods of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How far to look back, for example 30m or 168h.
    #[arg(long, default_value = "24h", value_parser = crate::duration::parse, value_name = "DURATION")]
    since: Duration,
    /// Only what this user did, by its exact name.
    #[arg(long = "by", value_name = "USER")]
    by: Option<String>,
    /// Only what happened to the pod of this name.
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Also read this file, - for standard input: lines of replicas that were collected, or an audit log of the API server;
    /// repeat the flag for several files.
    #[arg(short, long = "filename", value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table", hide_default_value = true)]
    output: Output,
}

/// What was read.
#[derive(Default)]
struct Read {
    lines: Vec<Entry>,
    requests: Vec<Event>,
}

impl Read {
    fn record(&mut self, record: &[u8], since: Timestamp) {
        if let Some(line) = Entry::of_replica(record) {
            if line.at >= since {
                self.lines.push(line);
            }
            return;
        }
        event::decode(record, &mut |decoded| {
            if let Decoded::Event(event) = decoded
                && event.at >= since
            {
                self.requests.push(*event);
            }
        });
    }
}

/// Prints the history.
///
/// # Errors
/// If a file cannot be read; without a file, also the answer of the API server.
pub async fn run(connection: &Connection, clock: &Clock, arguments: &Arguments) -> Result<(), Failure> {
    let now = clock.now();
    let back = SignedDuration::try_from(arguments.since).unwrap_or(SignedDuration::MAX);
    let since = now.checked_sub(back).unwrap_or(Timestamp::MIN);
    let mut read = Read::default();
    match replicas(connection, since, now, &mut read).await {
        // The files may be all that is left.
        Err(failure) if !arguments.filename.is_empty() => {
            emit_stderr(&format!("warning: the logs of the replicas are missing: {}", failure.message));
        }
        done => done?,
    }
    for path in &arguments.filename {
        let input = simulate::open(path).map_err(|error| Failure::new(format!("{error:#}")))?;
        let mut records = Records::new(input);
        while let Some(record) = records.read() {
            read.record(record, since);
        }
        if let Some(error) = records.error {
            return Err(Failure::new(format!("cannot read {}: {error}", path.display())));
        }
    }
    let mut entries = history(read.lines, read.requests);
    entries.retain(|one| {
        (arguments.all_namespaces || one.namespace == connection.namespace)
            && arguments.by.as_ref().is_none_or(|user| one.user == *user)
            && arguments.pod.as_ref().is_none_or(|pod| one.pod == *pod)
    });
    if arguments.output == Output::Json {
        let text = serde_json::to_string_pretty(&json!({ "entries": entries })).expect("entries have string keys only");
        return emit(&format!("{text}\n"));
    }
    if entries.is_empty() {
        let place =
            if arguments.all_namespaces { String::new() } else { format!(" in {} namespace", connection.namespace) };
        emit_stderr(&format!("Nothing is recorded{place} in the last {}", human(back)));
        return Ok(());
    }
    emit(&shown(&entries, arguments.all_namespaces))
}

/// Reads the logs of the replicas. Says how far they go back if that is not far enough.
async fn replicas(connection: &Connection, since: Timestamp, now: Timestamp, read: &mut Read) -> Result<(), Failure> {
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let pods = connection.replicas().await?;
    let oldest = pods.iter().filter_map(|pod| Some(pod.metadata.creation_timestamp.as_ref()?.0)).min();
    let seconds = now.duration_since(since).as_secs().max(1);
    for pod in pods {
        let name = pod.metadata.name.unwrap_or_default();
        let restarted = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let restarted = restarted.map(|container| container.restart_count).sum::<i32>() > 0;
        for previous in [false, true] {
            let params =
                LogParams { previous, since_seconds: Some(seconds), limit_bytes: Some(BYTES), ..LogParams::default() };
            if previous && !restarted {
                continue;
            }
            match connection.call("get pods/log", api.logs(&name, &params)).await {
                Ok(log) => log.lines().for_each(|line| {
                    read.lines.extend(Entry::of_replica(line.as_bytes()).filter(|line| line.at >= since));
                }),
                // A kubelet keeps the log of one earlier container, and only for some time.
                Err(_) if previous => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    if let Some(oldest) = oldest.filter(|oldest| *oldest > since) {
        emit_stderr(&format!(
            "the logs of the replicas begin at {oldest:.0}, when the oldest one was created; for what was before, read \
             the collected logs with --filename"
        ));
    }
    Ok(())
}

fn shown(entries: &[Entry], with_namespace: bool) -> String {
    let mut header = vec!["TIME", "POD", "ACTION", "USER", "CONTAINER", "DECISION", "EVICTS-AT", "DETAIL"];
    if with_namespace {
        header.insert(1, "NAMESPACE");
    }
    let none = || "-".to_owned();
    let or_none = |text: &str| if text.is_empty() { none() } else { text.to_owned() };
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|one| {
            let detail = if one.command.is_empty() { one.message.clone() } else { one.command.join(" ") };
            let mut row = vec![
                format!("{:.0}", one.at),
                one.pod.clone(),
                one.action.clone(),
                or_none(&one.user),
                or_none(&one.container),
                one.decision.clone(),
                one.evict_at.map_or_else(none, |at| format!("{at:.0}")),
                or_none(&clip(&detail, DETAIL)),
            ];
            if with_namespace {
                row.insert(1, one.namespace.clone());
            }
            row
        })
        .collect();
    table(&header, &rows)
}
