//! Marks the pods on which a detector has put the label `pristine/reported`. I/O.
//!
//! Every replica does this, so a report waits for no leader. The write that marks also removes the label, and it is a
//! compare-and-swap: of two replicas one writes, and the other finds the report in the mark.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{
        controller::{self, Action, Controller},
        watcher,
    },
};
use tokio::time::Instant;

use super::{
    denials::Denials,
    marking::{Admitted, Marking, Refused},
    report::Report,
    review::{Act, Request},
};
use crate::{
    api::{Context, events::EventType},
    error::chain,
    mark::{
        FOLD, Operation, User,
        report::{self, REPORTED},
    },
};

/// Reports that are written at the same time.
const CONCURRENT: u16 = 16;
/// For one attempt, as for an admission.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Marks reported pods.
pub struct Reported {
    /// Watches the pods with the label.
    pub client: Client,
    /// Decides and marks.
    pub marking: Arc<Marking>,
    /// The clock, Events, audit log and metrics.
    pub context: Context,
}

/// Why a report is not on its pod yet.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotMarked(String);

impl Reported {
    /// Runs until the process ends.
    pub async fn run(self) {
        // Below the client's read timeout, so that a watch without events is restarted and not considered dead.
        let config = watcher::Config::default().timeout(60).labels(REPORTED);
        let controller = Controller::new(Api::<Pod>::all(self.client.clone()), config)
            .with_config(controller::Config::default().concurrency(CONCURRENT));
        let retry = |_: Arc<Pod>, _: &NotMarked, _: Arc<Self>| Action::requeue(RETRY);
        let reconciled =
            controller.run(|pod, this: Arc<Self>| async move { this.mark(&pod).await }, retry, Arc::new(self));
        reconciled
            .for_each(async |done| match done {
                // A pod that is gone has no report.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!(error = %chain(&error), "a report is not on its pod yet, retrying"),
            })
            .await;
    }

    async fn mark(&self, pod: &Pod) -> Result<Action, NotMarked> {
        let report = match report::Report::on(pod) {
            None => return Ok(Action::await_change()),
            Some(Ok(report)) => report,
            Some(Err(why)) => {
                self.ignored(pod, &why.to_string());
                return Ok(Action::await_change());
            }
        };
        let request = Arc::new(request(pod, &report));
        let report_of = Report { request: &request, context: &self.context, denials: &Denials::default() };
        match Box::pin(self.marking.record(&request, Instant::now() + TIMEOUT)).await {
            Ok(Admitted::Marked(written)) => {
                drop(report_of.marked(&written));
                // Another replica may have been faster, and then the label is gone.
                if report::Report::on(&written.marked.pod).is_some() {
                    self.ignored(pod, "the mark has it already. The label stays");
                    // With other words it is a report of its own, once it is not one of a burst.
                    return Ok(Action::requeue(Duration::try_from(FOLD).unwrap_or(TIMEOUT)));
                }
            }
            Ok(Admitted::Exempt(interactions)) => {
                drop(report_of.exempt(&interactions));
                let rule = interactions.first().map_or("", |one| one.rule.as_str());
                self.ignored(pod, &format!("rule {rule:?} exempts it"));
            }
            // The pod no longer exists.
            Ok(Admitted::NothingToMark) | Err(Refused::Validation(_) | Refused::Rule { .. }) => {}
            Err(Refused::Never(why) | Refused::Now(why)) => return Err(NotMarked(why)),
        }
        Ok(Action::await_change())
    }

    /// Says on the pod why its label changes nothing.
    fn ignored(&self, pod: &Pod, why: &str) {
        let note = format!("the label {REPORTED} causes no mark: {why}");
        self.context.events.pod(pod, EventType::Normal, "ReportIgnored", "Mark", &note);
    }
}

/// The report in the form of a review, so that rules, record and audit log are those of every interaction.
fn request(pod: &Pod, report: &report::Report) -> Request {
    let command = report.text.iter().cloned().collect();
    Request {
        // Of this replica alone: what another one wrote is not this one's to tell.
        uid: format!("report-{:016x}", rand::random::<u64>()),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        user: User { name: report.source.clone(), ..User::default() },
        dry_run: false,
        acts: vec![Act { operation: Operation::Report, container: String::new(), command, stdin: false, tty: false }],
    }
}
