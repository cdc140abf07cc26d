//! `kubectl pristine extend`, `hold`, `release`: write the users' keys. A policy in the API server
//! checks who may write them.

use std::time::Duration;

use clap::Args;
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Patch;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    connection::Connection,
    format::duration as human,
    output::{DryRun, Failure, each},
    row::Row,
    targets::Targets,
};
use crate::{
    clock::Clock,
    mark::{
        Status, USERS_KEYS,
        extension::{Extension, HOLD},
    },
};

/// The arguments that all three commands have.
#[derive(Args, Debug)]
pub struct Pods {
    #[command(flatten)]
    targets: Targets,
    /// Check what the command would do, without changing anything.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// `extend`
#[derive(Args, Debug)]
pub struct Extend {
    #[command(flatten)]
    pods: Pods,
    /// How long to extend the current deadline, or from now if the pod is already due; for example 30m or 1h30m.
    #[arg(long = "for", value_parser = duration, value_name = "DURATION")]
    by: Duration,
    /// Reason for the extension, recorded on the pod.
    #[arg(long)]
    reason: Option<String>,
}

/// `hold`
#[derive(Args, Debug)]
pub struct Hold {
    #[command(flatten)]
    pods: Pods,
    /// Reason for the hold, recorded on the pod.
    #[arg(long)]
    reason: String,
}

/// `release`
#[derive(Args, Debug)]
pub struct Release {
    #[command(flatten)]
    pods: Pods,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = crate::duration::parse(text)?;
    if duration.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(duration) }
}

/// How long to wait for a replica to confirm on the pod, which it does within a fraction of a second.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// A change of the users' keys of pods.
struct Change<'a> {
    connection: &'a Connection,
    clock: &'a Clock,
    user: String,
    targets: &'a Targets,
    dry_run: DryRun,
}

/// Of the pods that a selector finds, those that can be extended or held.
const fn has_deadline(_: &Pod, row: &Row) -> bool {
    row.deadline.is_some()
}

impl<'a> Change<'a> {
    async fn new(connection: &'a Connection, clock: &'a Clock, pods: &'a Pods) -> Result<Self, Failure> {
        let Pods { targets, dry_run } = pods;
        Ok(Self { connection, clock, user: connection.whoami().await?, targets, dry_run: *dry_run })
    }

    async fn names(&self, is_wanted: impl Fn(&Pod, &Row) -> bool) -> Result<Vec<String>, Failure> {
        self.targets.names(self.connection, self.clock, is_wanted).await
    }

    /// The pod, and its row.
    async fn find(&self, name: &str) -> Result<(Pod, Row), Failure> {
        let pod = self.connection.pod(name).await?;
        let row = Row::of(&pod, self.clock.now()).ok_or_else(|| self.connection.unmarked(name))?;
        Ok((pod, row))
    }

    /// The same, with its deadline.
    async fn find_due(&self, name: &str) -> Result<(Pod, Row, Timestamp), Failure> {
        let (pod, row) = self.find(name).await?;
        if let Some(deadline) = row.deadline {
            return Ok((pod, row, deadline));
        }
        let why = if row.reason.is_empty() { String::new() } else { format!(" ({})", row.reason) };
        Err(Failure::new(format!("pod/{} has no deadline to extend: its state is {}{why}", row.name, row.state)))
    }

    /// Sets the keys under the user's own name; `None` removes a key.
    async fn write(&self, row: &Row, keys: [Option<&str>; 3]) -> Result<(), Failure> {
        let [to, hold, reason] = keys;
        let values = USERS_KEYS.iter().zip([to, hold, Some(self.user.as_str()), reason]);
        let annotations: Value = values.map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        // With the UID, because a pod of a StatefulSet can have a successor with the same name by now.
        let patch = Patch::Merge(json!({"metadata": {"uid": row.uid, "annotations": annotations}}));
        if self.dry_run == DryRun::Client {
            return Ok(());
        }
        let params = self.dry_run.patch_params();
        let pods = self.connection.pods();
        self.connection.call("patch pods", pods.patch(&row.name, &params, &patch)).await.map(drop)
    }

    /// Waits until the status on the pod answers the request. None if no replica answered it in time.
    async fn answer(&self, row: &Row, request: &str) -> Result<Option<Answer>, Failure> {
        let end = Instant::now() + CONFIRMED_WITHIN;
        loop {
            let (pod, after) = self.find(&row.name).await?;
            if after.uid != row.uid {
                return Err(Failure::new(format!("pod/{} was replaced by a new pod of the same name", row.name)));
            }
            let status = Status::on(&pod).filter(|status| status.answers.as_deref() == Some(request));
            if let Some(Status { cause, .. }) = status {
                return Ok(Some(Answer { row: after, cause }));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    /// What to print if no replica answered. The request takes effect all the same: the next leader reads it from the
    /// pod.
    ///
    /// # Errors
    /// If the pod is due, where a leader that is there may just as well have granted nothing.
    fn unanswered(&self, row: &Row, what: &str) -> Result<String, Failure> {
        let name = &row.name;
        let is_waiting = row.deadline.is_some_and(|at| at > self.clock.now()) && row.state != "Quarantined";
        let written = format!(
            "pod/{name} {what} requested; no replica confirmed it within {CONFIRMED_WITHIN:?}. It is written on the pod \
             and takes effect when a replica leads; see `kubectl pristine doctor`"
        );
        if is_waiting { Ok(format!("{written}\n")) } else { Err(Failure::new(written)) }
    }

    /// The line that kubectl would print.
    fn confirmed(&self, name: &str, what: &str, until: Timestamp) -> String {
        let left = human(until.duration_since(self.clock.now()));
        format!("pod/{name} {what} until {until:.0} (in {left}){}\n", self.dry_run.suffix())
    }
}

/// The pod as a replica confirmed it.
struct Answer {
    row: Row,
    /// Why not all of the request was granted.
    cause: Option<String>,
}

/// Why the deadline is unchanged.
fn not_extended(answer: &Answer) -> Failure {
    let Answer { row: Row { name, deadline, .. }, cause } = answer;
    let at = deadline.map_or_else(String::new, |at| format!(", still due at {at:.0}"));
    let why = cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
    Failure::new(format!("pod/{name}: extension not granted{at}{why}; see `kubectl describe pod {name}`"))
}

/// Extends the deadlines of pods.
///
/// # Errors
/// The answer of the API server, or that the extension was not granted.
pub async fn extend(connection: &Connection, clock: &Clock, arguments: &Extend) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let by = SignedDuration::try_from(arguments.by).unwrap_or(SignedDuration::MAX);
    let names = change.names(has_deadline).await?;
    each(&names, async |name| {
        let (pod, row, deadline) = change.find_due(name).await?;
        if Extension::on(&pod).holds() {
            return Err(Failure::new(format!(
                "pod/{} is already held until the limit (eviction.maxExtension); release it first",
                row.name
            )));
        }
        let seconds = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        let to = deadline.max(clock.now()).checked_add(by).and_then(|to| to.round(seconds));
        let to = to.map_err(|_| Failure::new(format!("--for {:?} is out of range", arguments.by)))?;
        change.write(&row, [Some(&to.to_string()), None, arguments.reason.as_deref()]).await?;
        if change.dry_run != DryRun::None {
            return Ok(change.confirmed(&row.name, "extended", to));
        }
        let Some(answer) = change.answer(&row, &to.to_string()).await? else {
            return change.unanswered(&row, &format!("extension until {to:.0}"));
        };
        match answer.row.deadline {
            Some(after) if after == to => Ok(change.confirmed(&row.name, "extended", to)),
            Some(after) if after > deadline => {
                Ok(change.confirmed(&row.name, "extended to the limit (eviction.maxExtension),", after))
            }
            _ => Err(not_extended(&answer)),
        }
    })
    .await
}

/// Holds pods.
///
/// # Errors
/// The answer of the API server, or that the hold was not granted.
pub async fn hold(connection: &Connection, clock: &Clock, arguments: &Hold) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let names = change.names(has_deadline).await?;
    each(&names, async |name| {
        let (_, row, _) = change.find_due(name).await?;
        change.write(&row, [None, Some(&arguments.reason), None]).await?;
        if change.dry_run != DryRun::None {
            return Ok(format!("pod/{} held{}\n", row.name, change.dry_run.suffix()));
        }
        let Some(answer) = change.answer(&row, HOLD).await? else { return change.unanswered(&row, "hold") };
        match answer.row.deadline.filter(|_| answer.row.state == "Held") {
            Some(until) => Ok(change.confirmed(&row.name, "held", until)),
            None => Err(not_extended(&answer)),
        }
    })
    .await
}

/// Cancels an extension or a hold.
///
/// # Errors
/// The answer of the API server, or that there is nothing to cancel.
pub async fn release(connection: &Connection, clock: &Clock, arguments: &Release) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let names = change.names(|pod, _| Extension::on(pod).asks()).await?;
    each(&names, async |name| {
        let (pod, row) = change.find(name).await?;
        if !Extension::on(&pod).asks() {
            return Err(Failure::new(format!("pod/{} is neither held nor extended", row.name)));
        }
        change.write(&row, [None, None, None]).await?;
        let now = clock.now();
        // The mark's own deadline is in force again, even while the status still shows the extension.
        let when = match row.mark.as_ref().and_then(|mark| mark.evict_at) {
            Some(at) if at > now => format!("due at {at:.0} (in {})", human(at.duration_since(now))),
            _ => "due now".to_owned(),
        };
        Ok(format!("pod/{} released, {when}{}\n", row.name, change.dry_run.suffix()))
    })
    .await
}
