//! The path that API servers call, a secret shared with them through the webhook configuration: whoever does not know it
//! cannot post a made-up review. Pure.
//!
//! It is a speed bump and not a proof: an API server shows the URL to the user when a call fails below HTTP, so it is
//! renewed by the clock, when a replica starts, and after a connection that broke. It is kept nowhere but in the webhook
//! configuration: API servers read it there, so a Secret would only be a second copy that can differ.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub mod renewer;

/// For how long the last path is still answered: API servers hear of a new one within 60 ms, and later when they are busy.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What the webhook configuration says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Paths {
    /// Of each of our entries.
    pub live: Vec<String>,
    /// The one before.
    pub previous: Option<String>,
}

/// What to write into the webhook configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Renewal {
    /// Into each of our entries.
    pub path: String,
    /// Beside them.
    pub previous: Option<String>,
}

/// A path made at this time. Lower-case letters, digits and dashes are all that the API server takes in a segment.
fn made(random: u128, now: Timestamp) -> String {
    format!("/review/{:x}-{random:032x}", now.as_second())
}

/// When a path was made; none for one that is not ours.
fn made_at(path: &str) -> Option<Timestamp> {
    let (time, random) = path.strip_prefix("/review/")?.split_once('-')?;
    let is_random = random.len() == 32 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    let second = i64::from_str_radix(time, 16).ok().filter(|_| is_random)?;
    Timestamp::from_second(second).ok()
}

impl Paths {
    /// The newest path of ours, and when it was made.
    fn newest(&self) -> Option<(Timestamp, &String)> {
        self.live.iter().filter_map(|path| made_at(path).map(|at| (at, path))).max()
    }

    /// Whether a request to this path comes from somebody who may read the webhook configuration.
    #[must_use]
    pub fn accepts(&self, path: &str, now: Timestamp) -> bool {
        let recent = self.newest().is_none_or(|(at, _)| now.duration_since(at) < GRACE);
        let previous = self.previous.iter().filter(|_| recent);
        // All of them, so that the time tells nothing.
        self.live.iter().chain(previous).fold(false, |found, known| found | equal(known, path))
    }

    /// The write that is due, if any. `leaked` is whether a user may have been shown the path.
    #[must_use]
    pub fn renewal(&self, leaked: bool, lifetime: Duration, random: u128, now: Timestamp) -> Option<Renewal> {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let fresh = |previous: Option<&String>| Some(Renewal { path: made(random, now), previous: previous.cloned() });
        let Some((at, newest)) = self.newest() else {
            return fresh(None).filter(|_| !self.live.is_empty());
        };
        let age = now.duration_since(at);
        // One of the future is a clock's mistake and would never be renewed.
        if age >= lifetime || age < -GRACE || (leaked && age >= GRACE) {
            return fresh(Some(newest));
        }
        let differs = self.live.iter().any(|path| path != newest);
        differs.then(|| Renewal { path: newest.clone(), previous: self.previous.clone() })
    }

    /// When to look again.
    #[must_use]
    pub fn next(&self, leaked: bool, lifetime: Duration, now: Timestamp) -> Duration {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let Some((at, _)) = self.newest() else { return Duration::MAX };
        let due = if leaked { lifetime.min(GRACE) } else { lifetime };
        Duration::try_from(due - now.duration_since(at)).unwrap_or_default()
    }
}

/// In the same time whatever differs.
fn equal(known: &str, path: &str) -> bool {
    // No path at all is how the API server spells the root.
    let known = if known.is_empty() { "/" } else { known };
    known.len() == path.len() && known.bytes().zip(path.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(900);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn after(renewal: Renewal) -> Paths {
        Paths { live: vec![renewal.path; 3], previous: renewal.previous }
    }

    #[test]
    fn a_fresh_install_is_called_at_the_root_until_a_path_is_written() {
        let paths = Paths { live: vec![String::new(); 3], previous: None };
        assert!(paths.accepts("/", at(0)) && !paths.accepts("/x", at(0)));
        let renewed = after(paths.renewal(false, LIFETIME, 7, at(0)).unwrap());
        assert!(!renewed.accepts("/", at(0)), "the root is nobody's secret");
        assert_eq!(renewed.renewal(false, LIFETIME, 8, at(1)), None);
        assert_eq!(Paths::default().renewal(true, LIFETIME, 8, at(1)), None, "no entry of ours");
        assert!(!Paths::default().accepts("/", at(0)));
    }

    #[test]
    fn the_last_path_counts_for_a_minute_after_a_renewal_and_no_longer() {
        let first =
            after(Paths { live: vec![String::new()], previous: None }.renewal(false, LIFETIME, 1, at(0)).unwrap());
        let old = first.live[0].clone();
        assert_eq!(first.renewal(false, LIFETIME, 2, at(899)), None);
        let second = after(first.renewal(false, LIFETIME, 2, at(900)).unwrap());
        assert!(second.accepts(&second.live[0], at(5000)));
        assert!(second.accepts(&old, at(959)) && !second.accepts(&old, at(960)));
    }

    #[test]
    fn a_leak_renews_but_never_one_that_is_younger_than_the_grace_of_its_predecessor() {
        let first =
            after(Paths { live: vec![String::new()], previous: None }.renewal(false, LIFETIME, 1, at(0)).unwrap());
        assert_eq!(first.renewal(true, LIFETIME, 2, at(59)), None);
        assert_eq!(first.next(true, LIFETIME, at(59)), Duration::from_secs(1));
        assert!(first.renewal(true, LIFETIME, 2, at(60)).is_some());
    }

    #[test]
    fn an_entry_that_lost_its_path_gets_the_same_again() {
        let mut paths =
            after(Paths { live: vec![String::new()], previous: None }.renewal(false, LIFETIME, 1, at(0)).unwrap());
        paths.live[1] = String::new();
        let renewal = paths.renewal(false, LIFETIME, 2, at(1)).unwrap();
        assert_eq!(renewal.path, paths.live[0]);
    }

    #[test]
    fn what_is_not_ours_and_what_is_of_the_future_is_replaced() {
        for path in ["/review/", "/review/zz-00", "/validate", "/review/6b49d200-123", "review/1-1"] {
            let paths = Paths { live: vec![path.to_owned()], previous: None };
            assert!(paths.renewal(false, LIFETIME, 1, at(0)).is_some(), "{path}");
        }
        let future = Paths { live: vec![made(1, at(100))], previous: None };
        assert!(future.renewal(false, LIFETIME, 1, at(0)).is_some());
        assert_eq!(future.renewal(false, LIFETIME, 1, at(50)), None, "another replica's clock may be ahead a little");
    }
}
