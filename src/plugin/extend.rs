//! `kubectl pristine extend`, `hold`, `release`: the users' keys. The API server checks who may write them.

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
    mark::{Status, USERS_KEYS, extension::Extension},
};

/// Names, and whether to really do it.
#[derive(Args, Debug)]
pub struct Pods {
    /// Names of marked pods.
    #[arg(required = true)]
    pods: Vec<String>,
    /// Only say what would be done, or let the API server say so.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// `extend`
#[derive(Args, Debug)]
pub struct Extend {
    #[command(flatten)]
    pods: Pods,
    /// By how long, after the deadline as it is now, or after now if that is later; for example 30m or 1h30m.
    #[arg(long = "for", value_parser = duration)]
    by: Duration,
    /// Why; for whoever looks at the pod.
    #[arg(long)]
    reason: Option<String>,
}

/// `hold`
#[derive(Args, Debug)]
pub struct Hold {
    #[command(flatten)]
    pods: Pods,
    /// Why; for whoever looks at the pod.
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

/// A replica answers on the pod within a fraction of a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// What is to be done with the users' keys of pods.
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

    async fn find(&self, name: &str) -> Result<(Pod, Row), Failure> {
        let pod = self.connection.pod(name).await?;
        let row = Row::of(&pod, self.clock.now()).ok_or_else(|| self.connection.unmarked(name))?;
        Ok((pod, row))
    }

    /// The same, with its deadline.
    async fn find_due(&self, name: &str) -> Result<(Pod, Row, Timestamp), Failure> {
        let (pod, row) = self.find(name).await?;
        match row.deadline {
            Some(deadline) => Ok((pod, row, deadline)),
            None => {
                Err(Failure::new(format!("pod/{} has no deadline to extend: {} {}", row.name, row.state, row.reason)))
            }
        }
    }

    /// Sets the keys, `None` to take one away, under the user's own name.
    async fn write(&self, row: &Row, keys: [Option<&str>; 3]) -> Result<(), Failure> {
        let [to, hold, reason] = keys;
        let values = USERS_KEYS.iter().zip([to, hold, Some(self.user.as_str()), reason]);
        let annotations: Value = values.map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        // The UID, because a pod of a StatefulSet may have a successor of its name by now.
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

    /// The row once Pristine has answered: with a status for which `is_granted`, or with the cause why not. None while no
    /// replica answers.
    async fn answer(&self, row: &Row, is_granted: impl Fn(&Row) -> bool) -> Result<Option<Row>, Failure> {
        let end = Instant::now() + ANSWER_WITHIN;
        loop {
            let (pod, after) = self.find(&row.name).await?;
            if after.uid != row.uid {
                return Err(Failure::new(format!("pod/{} was replaced meanwhile", row.name)));
            }
            if is_granted(&after) || Status::on(&pod).is_some_and(|status| status.cause.is_some()) {
                return Ok(Some(after));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    fn said(&self, name: &str, what: &str, until: Timestamp) -> String {
        let left = human(until.duration_since(self.clock.now()));
        format!("pod/{name} {what} until {until:.0} (in {left}){}\n", self.dry_run.suffix())
    }
}

/// Why the deadline did not move. `answered` is the row with Pristine's answer, if there was one.
fn not_extended(row: &Row, answered: Option<&Row>) -> Failure {
    let name = &row.name;
    let at = row.deadline.map_or_else(String::new, |at| format!(", still due at {at:.0}"));
    Failure::new(match answered {
        Some(after) if !after.reason.is_empty() => {
            format!("pod/{name}: extension not granted{at} ({}); see `kubectl describe pod {name}`", after.reason)
        }
        Some(_) => format!("pod/{name}: extension not granted{at}; see `kubectl describe pod {name}`"),
        None => format!(
            "pod/{name}: extension requested and not confirmed within {ANSWER_WITHIN:?}{at}; the request stays on the pod and is \
             honoured once a replica reads it; see `kubectl pristine doctor`"
        ),
    })
}

/// Extends deadlines.
///
/// # Errors
/// What the API server says; that nothing is left to be granted.
pub async fn extend(connection: &Connection, clock: &Clock, arguments: &Extend) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let by = SignedDuration::try_from(arguments.by).unwrap_or(SignedDuration::MAX);
    each(&arguments.pods.pods, async |name| {
        let (pod, row, deadline) = change.find_due(name).await?;
        if Extension::on(&pod).holds() {
            return Err(Failure::new(format!("pod/{} is held until the limit already; release it first", row.name)));
        }
        let seconds = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        let to = deadline.max(clock.now()).checked_add(by).and_then(|to| to.round(seconds));
        let to = to.map_err(|_| Failure::new(format!("--for {:?} is out of range", arguments.by)))?;
        change.write(&row, [Some(&to.to_string()), None, arguments.reason.as_deref()]).await?;
        if change.dry_run != DryRun::None {
            return Ok(change.said(&row.name, "extended", to));
        }
        let answered = change.answer(&row, |after| after.deadline > Some(deadline)).await?;
        match answered.as_ref().and_then(|after| after.deadline) {
            Some(after) if after == to => Ok(change.said(&row.name, "extended", to)),
            Some(after) if after > deadline => {
                Ok(change.said(&row.name, "extended to the limit (eviction.maxExtension),", after))
            }
            _ => Err(not_extended(&row, answered.as_ref())),
        }
    })
    .await
}

/// Holds pods.
///
/// # Errors
/// What the API server says.
pub async fn hold(connection: &Connection, clock: &Clock, arguments: &Hold) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    each(&arguments.pods.pods, async |name| {
        let (_, row, _) = change.find_due(name).await?;
        change.write(&row, [None, Some(&arguments.reason), None]).await?;
        if change.dry_run != DryRun::None {
            return Ok(format!("pod/{} held{}\n", row.name, change.dry_run.suffix()));
        }
        let answered = change.answer(&row, |after| after.state == "Held").await?;
        match answered.as_ref().filter(|after| after.state == "Held").and_then(|after| after.deadline) {
            Some(until) => Ok(change.said(&row.name, "held", until)),
            None => Err(not_extended(&row, answered.as_ref())),
        }
    })
    .await
}

/// Takes back an extension or a hold.
///
/// # Errors
/// What the API server says.
pub async fn release(connection: &Connection, clock: &Clock, arguments: &Release) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    each(&arguments.pods.pods, async |name| {
        let (pod, row) = change.find(name).await?;
        if !Extension::on(&pod).asks() {
            return Err(Failure::new(format!("pod/{} is neither held nor extended", row.name)));
        }
        change.write(&row, [None, None, None]).await?;
        let now = clock.now();
        // Its own deadline holds again, whatever Pristine says of it.
        let when = match row.mark.as_ref().and_then(|mark| mark.evict_at) {
            Some(at) if at > now => format!("due at {at:.0} (in {})", human(at.duration_since(now))),
            _ => "due now".to_owned(),
        };
        Ok(format!("pod/{} released, {when}{}\n", row.name, change.dry_run.suffix()))
    })
    .await
}
