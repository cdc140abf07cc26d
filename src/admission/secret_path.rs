//! The secret URL path of the webhook. Replicas share it with API servers through the webhook configuration, and a
//! client that does not know it cannot post a forged review. Pure.
//!
//! It is a speed bump and not a proof: an API server shows the URL to the user when a call fails below HTTP. So the
//! path is renewed after its lifetime, when a replica starts, and after a broken connection. It is stored only in the
//! webhook configuration, where API servers read it: a Secret would be a second copy that can differ.
//!
//! The clocks of two replicas can differ by more than the lifetime. So a path is also as old as this replica has known
//! it, by a clock that does not jump, and no replica replaces one that it has known for less than [`rest`]: two replicas
//! never renew against each other. Renewals are rare, because API servers before 1.37 keep a TLS transport for every path
//! that there ever was.

use std::time::Duration;

use jiff::Timestamp;

pub mod renewer;

/// How long the previous path is still accepted. API servers learn a new path within 60 ms, and later when they are
/// busy.
pub const GRACE: Duration = Duration::from_secs(60);
/// How long a path rests before it is renewed, whatever happens: strangers can break as many connections as they like.
const REST: Duration = Duration::from_secs(3600);

/// How long a path of this lifetime rests: [`REST`], or a quarter of a short lifetime in tests.
#[must_use]
pub fn rest(lifetime: Duration) -> Duration {
    REST.min(lifetime / 4)
}

/// The paths in the webhook configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Paths {
    /// The path of each entry that calls Pristine.
    pub live: Vec<String>,
    /// The previous path.
    pub previous: Option<String>,
}

/// What to write into the webhook configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Renewal {
    /// The path for each entry that calls Pristine.
    pub path: String,
    /// The annotation with the previous path.
    pub previous: Option<String>,
}

/// A path created at this time. The API server accepts only lower-case letters, digits and dashes in a segment.
fn create(random: u128, now: Timestamp) -> String {
    format!("/review/{:x}-{random:032x}", now.as_second())
}

/// When a path was created; none if Pristine did not create it.
fn created_at(path: &str) -> Option<Timestamp> {
    let (time, random) = path.strip_prefix("/review/")?.split_once('-')?;
    let is_random = random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    let second = i64::from_str_radix(time, 16).ok().filter(|_| is_random)?;
    Timestamp::from_second(second).ok()
}

impl Paths {
    /// The newest path.
    #[must_use]
    pub fn newest_path(&self) -> Option<&str> {
        self.newest().map(|(_, path)| path.as_str())
    }

    /// The newest path, and when it was created.
    fn newest(&self) -> Option<(Timestamp, &String)> {
        self.live.iter().filter_map(|path| created_at(path).map(|at| (at, path))).max()
    }

    /// Whether the client of a request to this path can read the webhook configuration. `known_for` is how long this
    /// replica has known the newest path.
    #[must_use]
    pub fn accepts(&self, path: &str, known_for: Duration) -> bool {
        let previous = self.previous.iter().filter(|_| known_for < GRACE);
        // All of them are compared, so that the response time reveals nothing.
        self.live.iter().chain(previous).fold(false, |found, known| found | equal(known, path))
    }

    /// The write that is due, if any. `leaked` is whether an error may have shown the path to a user, `known_for` how long
    /// this replica has known the newest path.
    #[must_use]
    pub fn renewal(
        &self,
        leaked: bool,
        lifetime: Duration,
        known_for: Duration,
        random: u128,
        now: Timestamp,
    ) -> Option<Renewal> {
        let fresh =
            |previous: Option<&String>| Some(Renewal { path: create(random, now), previous: previous.cloned() });
        let Some((_, newest)) = self.newest() else {
            return fresh(None).filter(|_| !self.live.is_empty());
        };
        if self.next(leaked, lifetime, known_for, now).is_zero() {
            return fresh(Some(newest));
        }
        let differs = self.live.iter().any(|path| path != newest);
        differs.then(|| Renewal { path: newest.clone(), previous: self.previous.clone() })
    }

    /// How long until the next renewal.
    #[must_use]
    pub fn next(&self, leaked: bool, lifetime: Duration, known_for: Duration, now: Timestamp) -> Duration {
        let Some((at, _)) = self.newest() else { return Duration::MAX };
        // A path from the future was created by a wrong clock: it is as old as it is known.
        let age = Duration::try_from(now.duration_since(at)).unwrap_or_default().max(known_for);
        let due = if leaked { Duration::ZERO } else { lifetime.saturating_sub(age) };
        due.max(rest(lifetime).saturating_sub(known_for))
    }
}

/// Compares in constant time.
fn equal(known: &str, path: &str) -> bool {
    // The API server calls the root if an entry has no path.
    let known = if known.is_empty() { "/" } else { known };
    known.len() == path.len() && known.bytes().zip(path.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests;
