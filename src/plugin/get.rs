//! `kubectl pristine get`: lists marked pods.

use std::collections::HashMap;

use clap::{Args, ValueEnum};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use super::{
    connection::Connection,
    format::table,
    output::{Failure, each, emit, emit_stderr},
    row::Row,
};
use crate::{clock::Clock, error::chain, mark::INTERACTED};

const HEADER: [&str; 7] = ["NAME", "INTERACTIONS", "BY", "AGE", "EVICTS-IN", "STATE", "REASON"];

/// `get`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Names of marked pods; all of them if no name is given.
    pods: Vec<String>,
    /// List the marked pods across all namespaces.
    #[arg(short = 'A', long, conflicts_with = "pods")]
    all_namespaces: bool,
    /// Selector (label query) to filter on, for example app=web.
    #[arg(short = 'l', long, conflicts_with = "pods", default_value = "", hide_default_value = true)]
    selector: String,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table", hide_default_value = true)]
    output: Output,
    /// After listing the pods, watch for changes.
    #[arg(short, long, conflicts_with = "pods")]
    watch: bool,
    /// Do not print headers.
    #[arg(long)]
    no_headers: bool,
}

/// `-o`
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// A table.
    Table,
    /// The table with namespace, node and the full reason.
    Wide,
    /// A `MarkedPodList` of `pristine/v1alpha1`, with times in RFC 3339.
    Json,
    /// The same as YAML.
    Yaml,
    /// pod/NAME, as input for other commands.
    Name,
}

/// How rows are printed.
struct View {
    output: Output,
    with_namespace: bool,
    with_header: bool,
}

impl View {
    fn show(&self, rows: &[Row], now: Timestamp) -> Result<String, Failure> {
        let is_wide = self.output == Output::Wide;
        Ok(match self.output {
            Output::Table | Output::Wide => {
                // The columns before the common ones.
                let namespace = (self.with_namespace || is_wide).then_some("NAMESPACE");
                let before = namespace.into_iter().chain(is_wide.then_some("NODE"));
                let header: Vec<&str> = before.chain(HEADER).filter(|_| self.with_header).collect();
                let line = |row: &Row| {
                    let before = namespace.map(|_| row.namespace.clone()).into_iter();
                    let before = before.chain(is_wide.then(|| row.node.clone()));
                    before.chain(row.cells(is_wide, now)).collect::<Vec<_>>()
                };
                table(&header, &rows.iter().map(line).collect::<Vec<_>>())
            }
            Output::Name => rows.iter().flat_map(|row| ["pod/", &row.name, "\n"]).collect(),
            Output::Json | Output::Yaml => {
                let items: Vec<_> = rows.iter().map(Row::value).collect();
                let list = json!({"apiVersion": "pristine/v1alpha1", "kind": "MarkedPodList", "items": items});
                if self.output == Output::Json {
                    format!("{list:#}\n")
                } else {
                    serde_saphyr::to_string(&list)
                        .map_err(|error| Failure::new(format!("cannot write YAML: {error}")))?
                }
            }
        })
    }
}

/// Prints the marked pods.
///
/// # Errors
/// The answer of the API server.
pub async fn run(connection: &Connection, clock: &Clock, arguments: Arguments) -> Result<(), Failure> {
    let view =
        View { output: arguments.output, with_namespace: arguments.all_namespaces, with_header: !arguments.no_headers };
    if !arguments.pods.is_empty() {
        return named(connection, clock, &arguments.pods, view).await;
    }
    let api: Api<Pod> = if arguments.all_namespaces { Api::all(connection.client.clone()) } else { connection.pods() };
    let selector = [&format!("{INTERACTED}=true"), arguments.selector.as_str()];
    let selector = selector.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",");
    let params = ListParams::default().labels(&selector);
    let listed = connection.call("list pods", api.list(&params)).await?;
    let now = clock.now();
    let mut rows: Vec<Row> = listed.iter().filter_map(|pod| Row::of(pod, now)).collect();
    rows.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    if rows.is_empty() && !matches!(view.output, Output::Json | Output::Yaml) && !arguments.watch {
        emit_stderr(&if arguments.all_namespaces {
            "No resources found".to_owned()
        } else {
            format!("No resources found in {} namespace.", connection.namespace)
        });
        return Ok(());
    }
    emit(&view.show(&rows, now)?)?;
    if arguments.watch { watch(clock, api, &selector, rows, view).await } else { Ok(()) }
}

async fn named(connection: &Connection, clock: &Clock, names: &[String], view: View) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let found = each(names, async |name| {
        let pod = connection.pod(name).await?;
        rows.push(Row::of(&pod, clock.now()).ok_or_else(|| connection.unmarked(name))?);
        Ok(String::new())
    })
    .await;
    if !rows.is_empty() {
        emit(&view.show(&rows, clock.now())?)?;
    }
    found
}

/// Prints a pod again whenever a change of it is visible in its line, until the user interrupts.
async fn watch(clock: &Clock, api: Api<Pod>, selector: &str, rows: Vec<Row>, view: View) -> Result<(), Failure> {
    let view = View { with_header: false, ..view };
    // What a line shows, without the columns that change with time alone.
    let visible = |row: &Row| (row.state, row.reason.clone(), row.deadline, row.mark.as_ref().map(|mark| mark.total));
    let mut shown: HashMap<String, _> = rows.iter().map(|row| (row.uid.clone(), visible(row))).collect();
    let mut events = Box::pin(watcher(api, watcher::Config::default().labels(selector)).default_backoff());
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            Err(error) => {
                emit_stderr(&format!("warning: the watch was interrupted and is being restarted: {}", chain(&error)));
                continue;
            }
        };
        let pod = match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => pod,
            watcher::Event::Delete(pod) => {
                shown.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                continue;
            }
            watcher::Event::Init | watcher::Event::InitDone => continue,
        };
        let now = clock.now();
        if let Some(row) = Row::of(&pod, now)
            && shown.insert(row.uid.clone(), visible(&row)).as_ref() != Some(&visible(&row))
        {
            emit(&view.show(&[row], now)?)?;
        }
    }
}
