//! What more than one ring of tests uses.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "a test says so by failing")]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

pub mod audit;
pub mod https;

pub const SYSTEM: &str = "pristine-system";

#[allow(clippy::disallowed_methods, reason = "how hack/test says where the cluster is")]
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[allow(clippy::disallowed_methods, reason = "the real cluster's clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

pub fn name_of(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap()
}

/// Says why a test has nothing to test on this version of Kubernetes. `hack/test` counts these lines; the harness, which
/// hides what a successful test prints, does not see them.
pub fn skip(reason: &str) {
    use std::io::Write as _;
    std::io::stderr().write_all(format!("\nSKIPPED: {reason}\n").as_bytes()).unwrap();
}

/// Median and 99th percentile.
pub fn figures(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{} execs, median {:?}, p99 {:?}", times.len(), times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Looks until `look` finds something; the error says what was waited for.
pub async fn eventually<T>(what: &str, seconds: u64, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {seconds} s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
