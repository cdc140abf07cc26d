//! The only reader of the wall clock. Pure modules take `now`; the I/O modules that call them hold a [`Clock`].

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};

/// A larger difference to the API server's clock is an error. A smaller one comes from rounding to seconds or from a
/// slow answer.
pub const TOLERATED_SKEW: SignedDuration = SignedDuration::from_secs(5);

/// The wall clock. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    time: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Milliseconds that this clock is ahead of the API server's, as last compared.
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// The clock of this machine.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the only reader of the wall clock")]
    pub fn system() -> Self {
        Self::of(Timestamp::now)
    }

    /// A clock that a test controls.
    #[must_use]
    pub fn of(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { time: Arc::new(now), ahead: Arc::default() }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.time)()
    }

    /// The time now, or the API server's time if this clock is ahead of it by more than [`TOLERATED_SKEW`]: for what
    /// must not be done early.
    #[must_use]
    pub fn never_ahead(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.ahead.load(Ordering::Relaxed));
        let now = self.now();
        if ahead > TOLERATED_SKEW { now.checked_sub(ahead).unwrap_or(now) } else { now }
    }

    /// Compares the API server's clock, which showed `its` (truncated to a second), with this one, which showed `ours`.
    /// Returns how far ahead this clock is at most, and whether it just began or ceased to differ by more than
    /// [`TOLERATED_SKEW`].
    #[must_use]
    pub fn compare(&self, its: Timestamp, ours: Timestamp) -> (SignedDuration, bool) {
        let ahead = ours.duration_since(its);
        let milliseconds = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        let before = SignedDuration::from_millis(self.ahead.swap(milliseconds, Ordering::Relaxed));
        (ahead, (ahead.abs() > TOLERATED_SKEW) != (before.abs() > TOLERATED_SKEW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_ahead_of_the_api_servers_never_makes_anything_early() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let clock = Clock::of(move || at(1000));
        for (its, expected, is_news) in [
            (999, 1000, false),
            (995, 1000, false),
            (900, 900, true),
            (901, 901, false),
            (1100, 1000, false),
            (1000, 1000, true),
        ] {
            assert_eq!(clock.compare(at(its), at(1000)).1, is_news, "{its}");
            assert_eq!(clock.never_ahead(), at(expected), "{its}");
            assert_eq!(clock.now(), at(1000));
        }
    }
}
