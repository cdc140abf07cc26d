//! `kubectl pristine extend`, `hold`, `release`: the users' keys. The API server checks who may write them.

use std::time::Duration;

use clap::Args;
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{DryRun, Failure, connection::Connection, each, human::duration as human, row::Row};
use crate::{
    clock::Clock,
    eviction::Settings,
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

/// What is to be done with the users' keys of one pod.
struct Change<'a> {
    connection: &'a Connection,
    clock: &'a Clock,
    settings: Settings,
    user: String,
    dry_run: DryRun,
}

impl<'a> Change<'a> {
    async fn new(connection: &'a Connection, clock: &'a Clock, pods: &Pods) -> Result<Self, Failure> {
        let (user, settings) = (connection.whoami().await?, connection.settings().await);
        Ok(Self { connection, clock, settings, user, dry_run: pods.dry_run })
    }

    /// Sets the keys, `None` to take one away, under the user's own name; and the row as it then is.
    async fn write(&self, pod: &Pod, row: &Row, keys: [Option<&str>; 3]) -> Result<Row, Failure> {
        let [to, hold, reason] = keys;
        let values = [to, hold, Some(self.user.as_str()), reason];
        let annotations: Value =
            USERS_KEYS.iter().zip(values).map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        // The UID, because a pod of a StatefulSet may have a successor of its name by now.
        let patch = Patch::Merge(json!({"metadata": {"uid": row.uid, "annotations": annotations}}));
        let mut after = pod.clone();
        if self.dry_run == DryRun::Client {
            let all = after.metadata.annotations.get_or_insert_default();
            for (key, value) in USERS_KEYS.iter().zip(values) {
                match value {
                    Some(value) => drop(all.insert((*key).to_owned(), value.to_owned())),
                    None => drop(all.remove(*key)),
                }
            }
        } else {
            let params = PatchParams {
                dry_run: self.dry_run == DryRun::Server,
                field_manager: Some("kubectl-pristine".to_owned()),
                ..PatchParams::default()
            };
            let pods = self.connection.pods();
            after = self.connection.call("patch pods", pods.patch(&row.name, &params, &patch)).await?;
        }
        Row::of(&after, &self.settings, self.clock.now()).ok_or_else(|| self.connection.unmarked(&row.name))
    }

    /// The pod, if it is marked and to be evicted.
    async fn find(&self, name: &str) -> Result<(Pod, Row, Timestamp), Failure> {
        let pod = self.connection.pod(name).await?;
        let row = Row::of(&pod, &self.settings, self.clock.now()).ok_or_else(|| self.connection.unmarked(name))?;
        match row.deadline {
            Some(deadline) => Ok((pod, row, deadline)),
            None => {
                Err(Failure::new(format!("pod/{} is not going to be evicted: {} {}", row.name, row.state, row.reason)))
            }
        }
    }

    fn said(&self, row: &Row, what: &str) -> String {
        let now = self.clock.now();
        let until = row
            .deadline
            .map_or_else(String::new, |at| format!(" until {at:.0} (in {})", human(at.duration_since(now))));
        format!("pod/{} {what}{until}{}\n", row.name, self.dry_run.suffix())
    }
}

/// Puts evictions off.
///
/// # Errors
/// What the API server says; that nothing is left to be granted.
pub async fn extend(connection: &Connection, clock: &Clock, arguments: &Extend) -> Result<(), Failure> {
    let change = Change::new(connection, clock, &arguments.pods).await?;
    let by = SignedDuration::try_from(arguments.by).unwrap_or(SignedDuration::MAX);
    each(&arguments.pods.pods, async |name| {
        let (pod, row, deadline) = change.find(name).await?;
        if Extension::on(&pod).holds() {
            return Err(Failure::new(format!("pod/{} is held, which is longer; release it first", row.name)));
        }
        let seconds = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        let to = deadline.max(clock.now()).checked_add(by).and_then(|to| to.round(seconds));
        let to = to.map_err(|_| Failure::new(format!("--for {:?} is beyond all calendars", arguments.by)))?;
        let text = to.to_string();
        let after = change.write(&pod, &row, [Some(&text), None, arguments.reason.as_deref()]).await?;
        if after.deadline.is_some_and(|after| after <= deadline) {
            let most = SignedDuration::try_from(change.settings.max_extension).unwrap_or(SignedDuration::MAX);
            return Err(Failure::new(format!(
                "pod/{} stays due at {deadline:.0}: no eviction is put off for more than {} after the first interaction (eviction.maxExtension)",
                row.name, human(most)
            )));
        }
        let short = if after.deadline.is_some_and(|after| after < to) { ", the longest that is allowed," } else { "" };
        Ok(change.said(&after, &format!("extended{short}")))
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
        let (pod, row, _) = change.find(name).await?;
        let after = change.write(&pod, &row, [None, Some(&arguments.reason), None]).await?;
        Ok(change.said(&after, "held"))
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
        let (pod, row, _) = change.find(name).await?;
        if !Extension::on(&pod).asks() {
            return Err(Failure::new(format!("pod/{} is neither held nor extended", row.name)));
        }
        let after = change.write(&pod, &row, [None, None, None]).await?;
        let now = clock.now();
        let when = match after.deadline {
            Some(at) if at > now => format!("to be evicted at {at:.0} (in {})", human(at.duration_since(now))),
            _ => "due now".to_owned(),
        };
        Ok(format!("pod/{} released, {when}{}\n", after.name, arguments.pods.dry_run.suffix()))
    })
    .await
}
