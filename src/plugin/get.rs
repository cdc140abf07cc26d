//! `kubectl pristine get`: lists marked pods.

use std::collections::{HashMap, HashSet};

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
    targets::marked,
};
use crate::{clock::Clock, error::chain};

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
    /// After listing the pods, watch for changes, and say which pods are gone.
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
    let selector = marked(Some(&arguments.selector));
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

/// Prints a pod again whenever a change of it is visible in its line, and once more when it is gone, until the user
/// interrupts.
async fn watch(clock: &Clock, api: Api<Pod>, selector: &str, rows: Vec<Row>, view: View) -> Result<(), Failure> {
    let view = View { with_header: false, ..view };
    let mut shown: HashMap<String, Row> = rows.into_iter().map(|row| (row.uid.clone(), row)).collect();
    // While the watch lists the pods, at its start and after an interruption: those that it has listed.
    let mut listed = HashSet::new();
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
        let now = clock.now();
        let mut changed = Vec::new();
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => {
                listed.extend(pod.metadata.uid.clone());
                changed.extend(news(&pod, &mut shown, now));
            }
            watcher::Event::InitDone => {
                changed.extend(shown.extract_if(|uid, _| !listed.contains(uid)).map(|(_, row)| row.gone()));
            }
            watcher::Event::Apply(pod) => changed.extend(news(&pod, &mut shown, now)),
            watcher::Event::Delete(pod) => {
                let known = shown.remove(pod.metadata.uid.as_deref().unwrap_or_default());
                changed.extend(known.map(Row::gone));
            }
        }
        if !changed.is_empty() {
            emit(&view.show(&changed, now)?)?;
        }
    }
}

/// The row of the pod, if its line differs from the one that is shown, other than by time alone.
fn news(pod: &Pod, shown: &mut HashMap<String, Row>, now: Timestamp) -> Option<Row> {
    let visible = |row: &Row| (row.state, row.reason.clone(), row.deadline, row.mark.as_ref().map(|mark| mark.total));
    let row = Row::of(pod, now)?;
    let before = shown.insert(row.uid.clone(), row.clone());
    (before.as_ref().map(visible) != Some(visible(&row))).then_some(row)
}
