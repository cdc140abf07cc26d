//! The pods that a command changes: named, selected by labels, or all of the namespace, as in kubectl.

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

use super::{
    connection::Connection,
    output::{Failure, emit_stderr},
    row::Row,
};
use crate::{clock::Clock, mark::INTERACTED};

/// Names, `-l`, or `--all`.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Targets {
    /// Names of marked pods.
    pods: Vec<String>,
    /// Selector (label query) for marked pods, for example app=web. Pods that the command cannot apply to are skipped.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Select all marked pods in the namespace. Pods that the command cannot apply to are skipped.
    #[arg(long)]
    all: bool,
}

impl Targets {
    /// The names. Of the pods that are not named but selected, those that `is_wanted`.
    ///
    /// # Errors
    /// The answer of the API server.
    pub async fn names(
        &self,
        connection: &Connection,
        clock: &Clock,
        is_wanted: impl Fn(&Pod, &Row) -> bool,
    ) -> Result<Vec<String>, Failure> {
        if !self.pods.is_empty() {
            return Ok(self.pods.clone());
        }
        let params = ListParams::default().labels(&marked(self.selector.as_deref()));
        let listed = connection.call("list pods", connection.pods().list(&params)).await?;
        let rows = listed.iter().filter_map(|pod| Row::of(pod, clock.now()).filter(|row| is_wanted(pod, row)));
        let mut names: Vec<String> = rows.map(|row| row.name).collect();
        names.sort_unstable();
        if names.is_empty() {
            emit_stderr(&format!("No resources found in {} namespace.", connection.namespace));
        }
        Ok(names)
    }
}

/// The label selector for marked pods that match `selector` too.
#[must_use]
pub fn marked(selector: Option<&str>) -> String {
    let marked = format!("{INTERACTED}=true");
    match selector.filter(|selector| !selector.is_empty()) {
        Some(selector) => format!("{marked},{selector}"),
        None => marked,
    }
}
