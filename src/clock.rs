//! The only reader of the wall clock. Pure modules take `now`; the I/O modules that call them hold a [`Clock`].
//!
//! The clock of one machine can be wrong by any amount, and API servers judge certificates by their own clocks. So what
//! a replica knows about the time is an interval, [`Now`]: from the machine's clock to the clocks of the API servers
//! that answered in the last minute. An API server's clock is taken from the `Date` of its answer and carried forward
//! by a monotonic clock. A step of the machine's clock is therefore noticed at once, and not at the next answer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A larger difference to the API server's clock is an error. A smaller one comes from rounding to seconds or from a
/// slow answer.
pub const TOLERATED_SKEW: SignedDuration = SignedDuration::from_secs(5);

/// An answer of an API server says something about the time for this long. The API server is asked every two seconds.
const MAX_AGE: Duration = Duration::from_secs(60);

/// What a replica knows about the time now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Now {
    /// No clock that was seen shows less: for what must not be done early.
    pub earliest: Timestamp,
    /// No clock that was seen shows more: for what must be done in time.
    pub latest: Timestamp,
    /// The best single answer: this machine's clock, unless every API server contradicts it, then theirs.
    pub corrected: Timestamp,
    /// Whether an API server has shown its time in the last minute. Otherwise this machine's clock is all there is.
    pub is_confirmed: bool,
}

impl Now {
    /// The time by a single clock, which nothing confirms.
    #[must_use]
    pub const fn unconfirmed(own: Timestamp) -> Self {
        Self { earliest: own, latest: own, corrected: own, is_confirmed: false }
    }

    /// The time by clocks that all show the same.
    #[cfg(test)]
    #[must_use]
    pub const fn exact(at: Timestamp) -> Self {
        Self { is_confirmed: true, ..Self::unconfirmed(at) }
    }

    /// Whether an API server confirms this machine's clock, to within `limit`.
    #[must_use]
    pub fn is_agreed(&self, limit: Duration) -> bool {
        let spread = self.latest.duration_since(self.earliest);
        self.is_confirmed && SignedDuration::try_from(limit).is_ok_and(|limit| spread <= limit)
    }
}

/// The clock of an API server: at the monotonic time `at` it showed a time between `from` and `to`.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    at: Duration,
    from: Timestamp,
    to: Timestamp,
}

/// The times that API servers have shown in the last minute. Pure: `at` is a monotonic time.
#[derive(Clone, Debug, Default)]
pub struct Sightings(VecDeque<Sighting>);

impl Sightings {
    /// Adds the `Date` of an answer that arrived at `at` and took `took`. `Date` is cut to a second, and the API server
    /// may have written it at any moment of the call.
    pub fn add(&mut self, date: Timestamp, took: Duration, at: Duration) {
        self.0.retain(|seen| at.saturating_sub(seen.at) <= MAX_AGE);
        let to = later(date, Duration::from_secs(1).saturating_add(took));
        self.0.push_back(Sighting { at, from: date, to });
    }

    /// The time at `at`, when this machine's clock shows `own`.
    #[must_use]
    pub fn now(&self, own: Timestamp, at: Duration) -> Now {
        let mut now = Now::unconfirmed(own);
        let (mut is_contradicted, mut newest) = (true, own);
        for seen in self.0.iter().filter(|seen| at.saturating_sub(seen.at) <= MAX_AGE) {
            let passed = at.saturating_sub(seen.at);
            let (from, to) = (later(seen.from, passed), later(seen.to, passed));
            now.is_confirmed = true;
            // A sighting that this machine's clock falls into shows no difference.
            if to < own {
                now.earliest = now.earliest.min(from);
            } else if own < from {
                now.latest = now.latest.max(to);
            } else {
                is_contradicted = false;
            }
            // The end of the sighting, so that a deadline that counts from this time is never early.
            newest = to;
        }
        let is_between = now.earliest < own && own < now.latest;
        if now.is_confirmed && is_contradicted && !is_between {
            now.corrected = newest;
        }
        now
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[derive(Default)]
struct Compared {
    sightings: Sightings,
    /// How far this clock was ahead of the API server's at the last answer.
    ahead: SignedDuration,
}

/// The wall clock. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    time: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    started: Instant,
    compared: Arc<Mutex<Compared>>,
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
        Self { time: Arc::new(now), started: Instant::now(), compared: Arc::default() }
    }

    /// The time now by this machine's clock, right or wrong.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.time)()
    }

    /// The time now by this machine's clock and the clocks of the API servers that answered in the last minute.
    #[must_use]
    pub fn interval(&self) -> Now {
        let compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        compared.sightings.now(self.now(), self.started.elapsed())
    }

    /// The time now: by this machine's clock, or by the API servers' if they contradict it. For times that others
    /// read, and that a deadline counts from.
    #[must_use]
    pub fn corrected(&self) -> Timestamp {
        self.interval().corrected
    }

    /// The earliest time that it may be now: for what must not be done early.
    #[must_use]
    pub fn never_ahead(&self) -> Timestamp {
        self.interval().earliest
    }

    /// Compares this clock with an API server's, which showed `its` in its answer to what was `asked` at that time.
    /// Returns how far ahead this clock is at most, and whether it just began or ceased to differ by more than
    /// [`TOLERATED_SKEW`].
    #[must_use]
    pub fn compare(&self, its: Timestamp, asked: Instant) -> (SignedDuration, bool) {
        let ahead = self.now().duration_since(its);
        let mut compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        compared.sightings.add(its, asked.elapsed(), self.started.elapsed());
        let before = std::mem::replace(&mut compared.ahead, ahead);
        (ahead, (ahead.abs() > TOLERATED_SKEW) != (before.abs() > TOLERATED_SKEW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What a clock that shows 1000 knows after these answers, all at the monotonic time 100.
    fn after_answers(dates: &[i64]) -> Now {
        let mut seen = Sightings::default();
        dates.iter().for_each(|date| seen.add(at(*date), Duration::ZERO, Duration::from_secs(100)));
        seen.now(at(1000), Duration::from_secs(100))
    }

    #[test]
    fn the_interval_reaches_from_this_clock_to_each_clock_that_contradicts_it() {
        for (dates, earliest, latest, corrected) in [
            (&[][..], 1000, 1000, 1000),
            // Cut to a second: no difference.
            (&[1000], 1000, 1000, 1000),
            (&[999], 1000, 1000, 1000),
            (&[900], 900, 1000, 901),
            (&[1100], 1000, 1101, 1101),
            (&[900, 1100], 900, 1101, 1000),
            // One API server agrees with this clock, so the other one is wrong.
            (&[1000, 1100], 1000, 1101, 1000),
        ] {
            let is_confirmed = !dates.is_empty();
            let expected = Now { earliest: at(earliest), latest: at(latest), corrected: at(corrected), is_confirmed };
            assert_eq!(after_answers(dates), expected, "{dates:?}");
        }
    }

    #[test]
    fn a_slow_answer_says_less_about_the_time() {
        let mut seen = Sightings::default();
        seen.add(at(996), Duration::from_secs(3), Duration::ZERO);
        assert_eq!(seen.now(at(1000), Duration::ZERO), Now::exact(at(1000)));
        assert_eq!(seen.now(at(1001), Duration::ZERO).earliest, at(996));
    }

    #[test]
    fn a_step_of_this_clock_is_noticed_before_the_next_answer() {
        let mut seen = Sightings::default();
        seen.add(at(1000), Duration::ZERO, Duration::ZERO);
        let now = seen.now(at(9000), Duration::from_secs(10));
        assert_eq!((now.earliest, now.latest, now.corrected), (at(1010), at(9000), at(1011)));
        assert!(!now.is_agreed(Duration::from_secs(3600)) && now.is_agreed(Duration::from_secs(7990)));
    }

    #[test]
    fn an_answer_of_more_than_a_minute_ago_confirms_nothing() {
        let mut seen = Sightings::default();
        seen.add(at(500), Duration::ZERO, Duration::ZERO);
        assert!(seen.now(at(1000), MAX_AGE).is_confirmed);
        let now = seen.now(at(1000), MAX_AGE + Duration::from_secs(1));
        assert_eq!(now, Now::unconfirmed(at(1000)));
        assert!(!now.is_agreed(Duration::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_ahead_of_the_api_servers_never_makes_anything_early() {
        let clock = Clock::of(move || at(1000));
        for (its, is_news) in [(999, false), (996, false), (900, true), (901, false), (1100, false), (1000, true)] {
            assert_eq!(clock.compare(at(its), Instant::now()).1, is_news, "{its}");
            assert_eq!(clock.now(), at(1000));
        }
        assert_eq!((clock.never_ahead(), clock.interval().latest), (at(900), at(1101)));
        tokio::time::advance(MAX_AGE * 2).await;
        assert_eq!(clock.never_ahead(), at(1000));
    }
}
