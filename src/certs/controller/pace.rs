//! The pauses between the steps of the controller. Pure, except for random numbers.

use std::time::Duration;

use jiff::Timestamp;

use crate::certs::{after, rotation::Step};

/// The pauses between steps.
#[derive(Default)]
pub(super) struct Pace {
    pub(super) failures: u32,
    last: Option<(&'static str, Timestamp)>,
    repeats: u32,
}

impl Pace {
    /// The pause after a step. Zero, unless the same step is repeated: then another client undoes it each time, and
    /// every new caBundle makes each API server open new connections.
    pub(super) fn after(&mut self, step: &Step, now: Timestamp) -> Duration {
        let again = self.last.is_some_and(|(last, at)| last == step.as_str() && now < after(at, REPEAT_WINDOW));
        self.last = Some((step.as_str(), now));
        self.repeats = if again { self.repeats.saturating_add(1) } else { 0 };
        // Never long: an admission fails if caBundle is repaired late.
        if again { spread(self.repeats.min(3)) } else { Duration::ZERO }
    }

    /// The pause after a failure. It is random, so that two replicas with a conflict do not have another.
    pub(super) fn after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        spread(self.failures)
    }
}

/// A random pause of up to 100 ms, doubling to some 10 s.
fn spread(times: u32) -> Duration {
    Duration::from_millis(50 * 2_u64.saturating_pow(times.min(8))).mul_f64(rand::random_range(0.5..1.0))
}

/// The same step within this time is a repetition.
const REPEAT_WINDOW: Duration = Duration::from_secs(10);
