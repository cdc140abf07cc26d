//! The rate limit of all evictions together. Pure.

use std::time::Duration;

use jiff::Timestamp;

/// How many evictions may start now.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct RateLimit {
    /// In thousandths of an eviction, and when that was counted; none before the first eviction.
    budget: Option<(i64, Timestamp)>,
}

impl RateLimit {
    /// How long until the rate limit allows an eviction; none if it does now.
    #[must_use]
    pub(super) fn wait(&self, per_minute: u32, now: Timestamp) -> Option<Duration> {
        let (left, rate) = (self.left(per_minute, now), i64::from(per_minute.max(1)));
        // Rounding loses nothing that was earned, because the time it is counted from only changes with
        // [`Self::spend`].
        (left < 1000).then(|| Duration::from_millis(u64::try_from((1000 - left) * 60 / rate).unwrap_or(0).max(10)))
    }

    fn left(&self, per_minute: u32, now: Timestamp) -> i64 {
        let (rate, burst) = (i64::from(per_minute.max(1)), i64::from((per_minute / 10).max(1)) * 1000);
        let (left, at) = self.budget.unwrap_or((burst, now));
        let earned = now.duration_since(at).as_millis().clamp(0, 60_000);
        (left + rate * i64::try_from(earned).unwrap_or(0) / 60).min(burst)
    }

    /// Counts one eviction against the rate limit of `per_minute`, a tenth of which may happen at once.
    ///
    /// # Errors
    /// How long to wait, when the rate limit allows no eviction now.
    pub(super) fn spend(&mut self, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        if let Some(wait) = self.wait(per_minute, now) {
            return Err(wait);
        }
        self.budget = Some((self.left(per_minute, now) - 1000, now));
        Ok(())
    }

    /// Uncounts an eviction that was refused: pods that wait for a PodDisruptionBudget must not delay the eviction of
    /// others.
    pub(super) fn refund(&mut self) {
        self.budget = self.budget.map(|(left, at)| (left + 1000, at));
    }

    /// Corrects a time in the future: the clock was set back.
    pub(super) fn correct(&mut self, now: Timestamp) {
        self.budget = self.budget.map(|(left, at)| (left, at.min(now)));
    }
}

#[cfg(test)]
mod tests;
