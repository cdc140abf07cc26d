//! The only reader of the wall clock. Everything that decides takes `now`; the edges that call it hold a [`Clock`].

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::{SignedDuration, Timestamp};

/// A difference that is a mistake and not the API server's rounding to seconds, or a slow answer.
pub const TOLERATED: SignedDuration = SignedDuration::from_secs(5);

/// Tells the time.
#[derive(Clone)]
pub struct Clock {
    time: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Milliseconds that it is ahead of the API server's, as last seen.
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// The machine's.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn system() -> Self {
        Self::of(Timestamp::now)
    }

    /// One that a test drives.
    #[must_use]
    pub fn of(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { time: Arc::new(now), ahead: Arc::default() }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.time)()
    }

    /// The time now, but not later than the API server has it, if the two differ by more than is [`TOLERATED`]: for what
    /// must not be done early.
    #[must_use]
    pub fn never_ahead(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.ahead.load(Ordering::Relaxed));
        let now = self.now();
        if ahead > TOLERATED { now.checked_sub(ahead).unwrap_or(now) } else { now }
    }

    /// The API server's clock showed `its`, cut to a second, when ours did `ours`. Says how far ahead ours is at the most, and
    /// whether that is news.
    #[must_use]
    pub fn compare(&self, its: Timestamp, ours: Timestamp) -> (SignedDuration, bool) {
        let ahead = ours.duration_since(its);
        let milliseconds = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        let before = SignedDuration::from_millis(self.ahead.swap(milliseconds, Ordering::Relaxed));
        (ahead, (ahead.abs() > TOLERATED) != (before.abs() > TOLERATED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_of_the_api_server_is_not_believed_for_what_must_not_be_early() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let clock = Clock::of(move || at(1000));
        for (its, believed, news) in [
            (999, 1000, false),
            (995, 1000, false),
            (900, 900, true),
            (901, 901, false),
            (1100, 1000, false),
            (1000, 1000, true),
        ] {
            assert_eq!(clock.compare(at(its), at(1000)).1, news, "{its}");
            assert_eq!(clock.never_ahead(), at(believed), "{its}");
            assert_eq!(clock.now(), at(1000));
        }
    }
}
