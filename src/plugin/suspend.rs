//! `kubectl pristine suspend` and `resume`: switch all evictions off for a limited time, and on again.

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::Patch};
use serde_json::{Value, json};

use super::{
    connection::Connection,
    format::duration as human,
    output::{DryRun, Failure, emit},
};
use crate::{
    clock::Clock,
    eviction::switch::{CONFIG_MAP, KEYS, MAX, Suspension},
};

/// How soon every replica obeys: it reads the switch every two seconds.
const WITHIN: Duration = Duration::from_secs(5);

/// `suspend`
#[derive(Args, Debug)]
pub struct Suspend {
    /// Reason for the suspension, recorded with your name.
    #[arg(long)]
    reason: String,
    /// When evictions go on: a duration from now, for example 2h, or a time, for example 2027-01-15T08:00:00Z. At most 7
    /// days.
    #[arg(long, value_name = "DURATION|TIME")]
    until: String,
    /// Check what the command would do, without changing anything.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// `resume`
#[derive(Args, Debug)]
pub struct Resume {
    /// Check what the command would do, without changing anything.
    #[arg(long, value_enum, default_value = "none", hide_default_value = true)]
    dry_run: DryRun,
}

/// The end of a suspension that begins now.
fn end(until: &str, now: Timestamp) -> Result<Timestamp, String> {
    let by = crate::duration::parse(until).ok().and_then(|by| SignedDuration::try_from(by).ok());
    let at = by.and_then(|by| now.checked_add(by).ok()).or_else(|| until.parse().ok());
    let at = at.ok_or_else(|| format!("--until {until}: neither a duration, like 2h, nor a time, like {now:.0}"))?;
    if at <= now {
        return Err(format!("--until {until}: must be in the future"));
    }
    if SignedDuration::try_from(MAX).is_ok_and(|longest| at.duration_since(now) > longest) {
        let instead = "to evict nothing for longer, set eviction.suspend in the configuration";
        return Err(format!("--until {until}: more than 7 days from now; {instead}"));
    }
    Ok(at)
}

async fn write(connection: &Connection, data: Value, dry_run: DryRun) -> Result<(), Failure> {
    if dry_run == DryRun::Client {
        return Ok(());
    }
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let params = dry_run.patch_params();
    let patch = Patch::Merge(json!({ "data": data }));
    let action = format!("patch the ConfigMap {}/{CONFIG_MAP}", connection.pristine);
    connection.call(&action, api.patch(CONFIG_MAP, &params, &patch)).await.map(drop)
}

/// Suspends all evictions.
///
/// # Errors
/// The answer of the API server, or what is wrong with the end.
pub async fn suspend(connection: &Connection, clock: &Clock, arguments: &Suspend) -> Result<(), Failure> {
    let now = clock.now();
    let until = end(&arguments.until, now).map_err(Failure::new)?;
    if arguments.reason.trim().is_empty() {
        return Err(Failure::new("--reason must not be empty".to_owned()));
    }
    let by = connection.whoami().await?;
    let suspension = Suspension { by, reason: arguments.reason.clone(), since: Some(now), until: Some(until) };
    write(connection, json!(suspension.data()), arguments.dry_run).await?;
    let (left, suffix) = (human(until.duration_since(now)), arguments.dry_run.suffix());
    emit(&format!(
        "evictions suspended until {until:.0} (in {left}){suffix}; no pod is evicted from {WITHIN:?} after this command\n"
    ))
}

/// Ends the suspension.
///
/// # Errors
/// The answer of the API server.
pub async fn resume(connection: &Connection, arguments: &Resume) -> Result<(), Failure> {
    let nothing: Value = KEYS.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
    write(connection, nothing, arguments.dry_run).await?;
    let suffix = arguments.dry_run.suffix();
    emit(&format!("evictions resumed{suffix}; pods that are due are evicted one after the other of each workload\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspension_ends_at_a_time_or_after_a_duration_of_at_most_seven_days() {
        let now: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
        let later = |seconds: i64| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(end("2h", now), Ok(later(7200)));
        assert_eq!(end("168h", now), Ok(later(7 * 86_400)));
        assert_eq!(end("2027-01-15T09:00:00+00:30", now), Ok(later(1800)));
        for (until, why) in [
            ("tomorrow", "neither a duration, like 2h, nor a time, like 2027-01-15T08:00:00Z"),
            ("0s", "must be in the future"),
            ("2027-01-15T08:00:00Z", "must be in the future"),
            ("168h1s", "more than 7 days from now; to evict nothing for longer, set eviction.suspend"),
        ] {
            let error = end(until, now).unwrap_err();
            assert!(error.starts_with(&format!("--until {until}: {why}")), "{error}");
        }
    }
}
