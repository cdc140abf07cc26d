//! `kubectl pristine extend`, `hold`, `release`: write the users' keys. A policy in the API server
//! checks who may write them.

use std::time::Duration;

use clap::Args;
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    connection::Connection,
    format::duration as human,
    output::{DryRun, Failure, each},
    row::Row,
};
use crate::{
    clock::Clock,
    mark::{State, Status, USERS_KEYS, extension::Extension},
};

/// The arguments that all three commands have.
#[derive(Args, Debug)]
pub struct Pods {
    /// Names of marked pods.
    #[arg(required = true)]
    pods: Vec<String>,
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
    dry_run: DryRun,
}

impl<'a> Change<'a> {
    async fn new(connection: &'a Connection, clock: &'a Clock, pods: &Pods) -> Result<Self, Failure> {
        Ok(Self { connection, clock, user: connection.whoami().await?, dry_run: pods.dry_run })
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
        let params = PatchParams {
            dry_run: self.dry_run == DryRun::Server,
            field_manager: Some("kubectl-pristine".to_owned()),
            ..PatchParams::default()
        };
        let pods = self.connection.pods();
        self.connection.call("patch pods", pods.patch(&row.name, &params, &patch)).await.map(drop)
    }

    /// Waits until a replica has granted the request, or has written into the status why not. None if no replica did so in
    /// time.
    ///
    /// The status that was there before (`before`) may be the answer to an earlier request. It counts only once the time is up.
    async fn answer(
        &self,
        row: &Row,
        before: Option<&Status>,
        is_granted: impl Fn(&Row) -> bool,
    ) -> Result<Option<Answer>, Failure> {
        let end = Instant::now() + CONFIRMED_WITHIN;
        loop {
            let (pod, after) = self.find(&row.name).await?;
            if after.uid != row.uid {
                return Err(Failure::new(format!("pod/{} was replaced by a new pod of the same name", row.name)));
            }
            let status = Status::on(&pod);
            let is_news = status.as_ref() != before;
            let cause =
                status.filter(|status| matches!(status.state, State::Marked | State::Extended)).and_then(|it| it.cause);
            let is_over = Instant::now() >= end;
            if (is_granted(&after) || cause.is_some()) && (is_news || is_over) {
                return Ok(Some(Answer { row: after, cause }));
            }
            if is_over {
                return Ok(None);
            }
            sleep(POLL).await;
        }
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

/// Why the deadline is unchanged. `answer` is none if no replica confirmed the request.
fn not_extended(row: &Row, answer: Option<&Answer>) -> Failure {
    let name = &row.name;
    let at = row.deadline.map_or_else(String::new, |at| format!(", still due at {at:.0}"));
    Failure::new(match answer {
        Some(Answer { cause, .. }) => {
            let why = cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
            format!("pod/{name}: extension not granted{at}{why}; see `kubectl describe pod {name}`")
        }
        None => format!(
            "pod/{name}: extension requested, but not confirmed within {CONFIRMED_WITHIN:?}{at}; the request remains \
             on the pod and takes effect when a replica reads it; see `kubectl pristine doctor`"
        ),
    })
}

/// Extends the deadlines of pods.
///
/// # Errors
/// The answer of the API server, or that the extension was not granted.
pub async fn extend(connection: &Connection, clock: &Clock, arguments: &Extend) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let by = SignedDuration::try_from(arguments.by).unwrap_or(SignedDuration::MAX);
    each(&arguments.pods.pods, async |name| {
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
        let answer = change.answer(&row, Status::on(&pod).as_ref(), |after| after.deadline > Some(deadline)).await?;
        match answer.as_ref().and_then(|answer| answer.row.deadline) {
            Some(after) if after == to => Ok(change.confirmed(&row.name, "extended", to)),
            Some(after) if after > deadline => {
                Ok(change.confirmed(&row.name, "extended to the limit (eviction.maxExtension),", after))
            }
            _ => Err(not_extended(&row, answer.as_ref())),
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
    each(&arguments.pods.pods, async |name| {
        let (pod, row, _) = change.find_due(name).await?;
        change.write(&row, [None, Some(&arguments.reason), None]).await?;
        if change.dry_run != DryRun::None {
            return Ok(format!("pod/{} held{}\n", row.name, change.dry_run.suffix()));
        }
        let answer = change.answer(&row, Status::on(&pod).as_ref(), |after| after.state == "Held").await?;
        let held = answer.as_ref().map(|answer| &answer.row).filter(|after| after.state == "Held");
        match held.and_then(|after| after.deadline) {
            Some(until) => Ok(change.confirmed(&row.name, "held", until)),
            None => Err(not_extended(&row, answer.as_ref())),
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
    each(&arguments.pods.pods, async |name| {
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
