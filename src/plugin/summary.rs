//! `kubectl pristine summary`: what `pristine simulate` says from an audit log, from what Pristine recorded: the marks on
//! the pods and the logs of the replicas, under the rules in force.

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use serde_json::{Map, json};

use super::{
    connection::Connection,
    output::{Failure, emit},
};
use crate::{
    cli::simulate::{
        event::Event,
        print::{self, Source},
        recorded,
        summary::Summary,
        workload::Pods,
    },
    config,
};

/// Pods in one answer of the API server.
const PAGE: u32 = 500;
/// The latest lines of a replica's log: some 50 MiB.
const LINES: i64 = 100_000;

/// `summary`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Summarize the interactions across all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table", hide_default_value = true)]
    output: Output,
}

/// `-o`
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// Tables, rules and notes.
    Table,
    /// One JSON object.
    Json,
}

/// Prints the summary.
///
/// # Errors
/// The answer of the API server to the list of pods, or an invalid configuration.
pub async fn run(connection: &Connection, arguments: &Arguments) -> Result<(), Failure> {
    let mut notes = Vec::new();
    let pods = pods(connection, arguments.all_namespaces).await?;
    let (name, text) = configuration(connection, &mut notes).await;
    let policy = config::parse(name, &text).map_err(|error| Failure::new(error.to_string()))?.policy;
    let (mut events, mut omitted) = (Vec::new(), 0);
    for pod in &pods {
        let (listed, more) = recorded::on_pod(pod);
        events.extend(listed);
        omitted += more;
    }
    let on_pods = events.len();
    events.extend(logged(connection, &mut notes).await);
    if !arguments.all_namespaces {
        events.retain(|event| event.namespace == connection.namespace);
    }
    events.sort_by_key(|event| event.at);
    let mut summary = Summary::new(policy, pods.into_iter().collect::<Pods>());
    events.into_iter().for_each(|event| summary.add(event));
    notes.insert(0, format!("read from the marks of the pods ({on_pods} interactions) and the logs of the replicas"));
    if omitted > 0 {
        notes.push(format!("{omitted} interactions are no longer listed on their pods; the logs may have them"));
    }
    notes.push(summary.note_about_pods());
    let fields = Map::from_iter([("onPods".to_owned(), json!(on_pods)), ("omitted".to_owned(), json!(omitted))]);
    let source = Source { name, text: &text, notes, fields };
    emit(&match arguments.output {
        Output::Table => print::table(&summary, &source),
        Output::Json => print::json(&summary, &source),
    })
}

async fn pods(connection: &Connection, is_everywhere: bool) -> Result<Vec<Pod>, Failure> {
    let api: Api<Pod> = if is_everywhere { Api::all(connection.client.clone()) } else { connection.pods() };
    let mut params = ListParams::default().limit(PAGE);
    let mut pods = Vec::new();
    loop {
        let page = connection.call("list pods", api.list(&params)).await?;
        pods.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(pods),
        }
    }
}

/// The name and the text of the rules in force, or of the built-in ones if the user may not read them.
async fn configuration(connection: &Connection, notes: &mut Vec<String>) -> (&'static str, String) {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let found = connection.call("get configmaps", api.get_opt("pristine")).await.unwrap_or_else(|failure| {
        notes.push(format!(
            "warning: the built-in rules were applied, because those in force cannot be read: {}",
            failure.message
        ));
        None
    });
    let own = found.and_then(|map| map.data?.remove("pristine.yaml"));
    own.map_or_else(
        || ("the built-in configuration", config::BUILT_IN.to_owned()),
        |text| ("the ConfigMap pristine", text),
    )
}

/// The interactions in the logs of the replicas. Without the permission to read them, those of the pods have to do.
async fn logged(connection: &Connection, notes: &mut Vec<String>) -> Vec<Event> {
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let mut events = Vec::new();
    let mut warn = |failure: Failure| notes.push(format!("warning: a log is missing: {}", failure.message));
    let replicas = match connection.replicas().await {
        Ok(replicas) => replicas,
        Err(failure) => {
            warn(failure);
            return events;
        }
    };
    let params = LogParams { tail_lines: Some(LINES), ..LogParams::default() };
    for name in replicas.into_iter().filter_map(|pod| pod.metadata.name) {
        match connection.call("get pods/log", api.logs(&name, &params)).await {
            Ok(log) => events.extend(log.lines().filter_map(recorded::in_log)),
            Err(failure) => warn(failure),
        }
    }
    events
}
