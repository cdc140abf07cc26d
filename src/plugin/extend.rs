//! `kubectl pristine extend`, `hold`, `release`: the users' keys. The API server checks who may write them.

use std::time::Duration;

use clap::Args;
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{DryRun, Failure, connection::Connection, each, format::duration as human, row::Row};
use crate::{
    clock::Clock,
    mark::{USERS_KEYS, extension::Extension},
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

/// How long Pristine is waited for: it answers on the pod, within a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

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
                Err(Failure::new(format!("pod/{} is not going to be evicted: {} {}", row.name, row.state, row.reason)))
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

    /// The row once Pristine has answered so, or as it is after a while.
    async fn answer(&self, row: &Row, is_answer: impl Fn(&Row) -> bool) -> Result<Row, Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            let (_, after) = self.find(&row.name).await?;
            if after.uid != row.uid {
                return Err(Failure::new(format!("pod/{} was replaced meanwhile", row.name)));
            }
            if is_answer(&after) || Instant::now() >= end {
                return Ok(after);
            }
            sleep(LOOK).await;
        }
    }

    fn said(&self, name: &str, what: &str, until: Timestamp) -> String {
        let left = human(until.duration_since(self.clock.now()));
        format!("pod/{name} {what} until {until:.0} (in {left}){}\n", self.dry_run.suffix())
    }
}

fn not_granted(row: &Row) -> Failure {
    let at = row.deadline.map_or_else(String::new, |at| format!(" at {at:.0}"));
    Failure::new(format!(
        "pod/{} is to be evicted{at} as before: Pristine grants no more; its Events say why (eviction.maxExtension of the \
         configuration is the longest time after the first interaction)",
        row.name
    ))
}

/// Puts evictions off.
///
/// # Errors
/// What the API server says; that nothing is left to be granted.
pub async fn extend(connection: &Connection, clock: &Clock, arguments: &Extend) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let by = SignedDuration::try_from(arguments.by).unwrap_or(SignedDuration::MAX);
    each(&arguments.pods.pods, async |name| {
        let (pod, row, deadline) = change.find_due(name).await?;
        if Extension::on(&pod).holds() {
            return Err(Failure::new(format!("pod/{} is held, which is longer; release it first", row.name)));
        }
        let seconds = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        let to = deadline.max(clock.now()).checked_add(by).and_then(|to| to.round(seconds));
        let to = to.map_err(|_| Failure::new(format!("--for {:?} is beyond all calendars", arguments.by)))?;
        change.write(&row, [Some(&to.to_string()), None, arguments.reason.as_deref()]).await?;
        if change.dry_run != DryRun::None {
            return Ok(change.said(&row.name, "extended", to));
        }
        match change.answer(&row, |after| after.deadline > Some(deadline)).await?.deadline {
            Some(after) if after == to => Ok(change.said(&row.name, "extended", to)),
            Some(after) if after > deadline => {
                Ok(change.said(&row.name, "extended, the longest that is allowed,", after))
            }
            _ => Err(not_granted(&row)),
        }
    })
    .await
}

/// Keeps pods.
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
        let after = change.answer(&row, |after| after.state == "Held").await?;
        match after.deadline.filter(|_| after.state == "Held") {
            Some(until) => Ok(change.said(&row.name, "held", until)),
            None => Err(not_granted(&row)),
        }
    })
    .await
}

/// Takes back what was asked for.
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
            Some(at) if at > now => format!("to be evicted at {at:.0} (in {})", human(at.duration_since(now))),
            _ => "due now".to_owned(),
        };
        Ok(format!("pod/{} released, {when}{}\n", row.name, change.dry_run.suffix()))
    })
    .await
}
