//! Repeats a call to the API server until it is answered or its time is over. For reads and compare-and-swaps, which do
//! no harm when they are repeated.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{link::Link, pods::Error};

/// How long the first try waits for its answer; each further one waits twice as long, up to [`LONGEST`]. A healthy API
/// server answers within some milliseconds, so a try that takes this long is probably lost.
const FIRST: Duration = Duration::from_millis(500);
/// See [`FIRST`].
const LONGEST: Duration = Duration::from_secs(2);
/// The pause before the second try; it doubles with each further one, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(20);
/// See [`PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// Whether the API server may have refused this because it has just started. Until it has read all roles, for a second or
/// two, it forbids what it will allow, and until its admission plugins are ready it admits no write.
#[must_use]
pub fn is_of_a_start(error: &Error) -> bool {
    let Error::Api { source, .. } = error else { return false };
    let kube::Error::Api(status) = &**source else { return false };
    let words = [" is forbidden: User ", "not yet ready to handle request"];
    status.code == 403 && words.iter().any(|words| status.message.contains(words))
}

/// How long a write is repeated that another webhook, which fails closed, does not answer. Less than an attempt of the API
/// server, 2 s of 5 s: the replica that gets the next attempt would get the same answer, and with several replicas the time
/// is over before one of them can say why.
const FOR_A_WEBHOOK: Duration = Duration::from_millis(1500);

/// Whether another admission webhook, which fails closed, did not answer the API server. The same everywhere, so another
/// replica does not help.
#[must_use]
pub fn is_of_a_webhook(error: &Error) -> bool {
    let Error::Api { source, .. } = error else { return false };
    let kube::Error::Api(status) = &**source else { return false };
    // As in `pkg/util/webhook/error.go` of k8s.io/apiserver.
    status.code == 500 && status.message.contains("failed calling webhook")
}

/// Repeats the call until `until` while it fails with an error that may pass ([`Error::is_temporary`]), or has no answer yet.
/// A try without an answer is not given up: another webhook that hangs delays it by up to its own timeout, which is longer
/// than any try here, and then the next one would be as late.
///
/// # Errors
/// The last error.
pub async fn persist<T, F: Future<Output = Result<T, Error>>>(
    action: &'static str,
    link: &Link,
    until: Instant,
    mut call: impl FnMut() -> F,
) -> Result<T, Error> {
    let (mut limit, mut pause, start) = (FIRST, PAUSE, Instant::now());
    let mut tries = FuturesUnordered::new();
    loop {
        // The clock of a try starts when it is sent: tries that are given up and sent again while the machine is busy would
        // make it busier.
        let Ok(_turn) = timeout_at(until, link.turn()).await else { return Err(Error::Silent { action }) };
        let left = until.saturating_duration_since(Instant::now());
        tries.push(call());
        let error = match timeout(limit.min(left), tries.next()).await {
            Ok(Some(Err(error))) if error.is_temporary() => error,
            Ok(Some(answer)) => return answer,
            Ok(None) | Err(_) => {
                link.failed();
                Error::Silent { action }
            }
        };
        // Random, so that reviews that failed together are not repeated together.
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        let until = if is_of_a_webhook(&error) { until.min(start + FOR_A_WEBHOOK) } else { until };
        if Instant::now() + wait >= until {
            return Err(error);
        }
        let pause_ends = Instant::now() + wait;
        // An earlier try may be answered meanwhile.
        while let Ok(Some(answer)) = timeout_at(pause_ends, tries.next()).await {
            if !matches!(&answer, Err(error) if error.is_temporary()) {
                return answer;
            }
        }
        sleep_until(pause_ends).await;
        (limit, pause) = ((limit * 2).min(LONGEST), (pause * 2).min(LONGEST_PAUSE));
    }
}
