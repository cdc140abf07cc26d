//! The secret URL path of the webhook. Replicas share it with API servers through the webhook configuration, and a
//! client that does not know it cannot post a forged review. Pure.
//!
//! It is a speed bump and not a proof: an API server shows the URL to the user when a call fails below HTTP. So the
//! path is renewed after its lifetime, when a replica starts, and after a broken connection. It is stored only in the
//! webhook configuration, where API servers read it: a Secret would be a second copy that can differ.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub mod renewer;

/// How long the previous path is still accepted. API servers learn a new path within 60 ms, and later when they are
/// busy.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);

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
    /// The newest path, and when it was created.
    fn newest(&self) -> Option<(Timestamp, &String)> {
        self.live.iter().filter_map(|path| created_at(path).map(|at| (at, path))).max()
    }

    /// Whether the client of a request to this path can read the webhook configuration.
    #[must_use]
    pub fn accepts(&self, path: &str, now: Timestamp) -> bool {
        let recent = self.newest().is_none_or(|(at, _)| now.duration_since(at) < GRACE);
        let previous = self.previous.iter().filter(|_| recent);
        // All of them are compared, so that the response time reveals nothing.
        self.live.iter().chain(previous).fold(false, |found, known| found | equal(known, path))
    }

    /// The write that is due, if any. `leaked` is whether an error may have shown the path to a user.
    #[must_use]
    pub fn renewal(&self, leaked: bool, lifetime: Duration, random: u128, now: Timestamp) -> Option<Renewal> {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let fresh =
            |previous: Option<&String>| Some(Renewal { path: create(random, now), previous: previous.cloned() });
        let Some((at, newest)) = self.newest() else {
            return fresh(None).filter(|_| !self.live.is_empty());
        };
        let age = now.duration_since(at);
        // A path from the future was created by a wrong clock and would never be renewed.
        if age >= lifetime || age < -GRACE || (leaked && age >= GRACE) {
            return fresh(Some(newest));
        }
        let differs = self.live.iter().any(|path| path != newest);
        differs.then(|| Renewal { path: newest.clone(), previous: self.previous.clone() })
    }

    /// How long until the next renewal.
    #[must_use]
    pub fn next(&self, leaked: bool, lifetime: Duration, now: Timestamp) -> Duration {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let Some((at, _)) = self.newest() else { return Duration::MAX };
        let due = if leaked { lifetime.min(GRACE) } else { lifetime };
        Duration::try_from(due - now.duration_since(at)).unwrap_or_default()
    }
}

/// Compares in constant time.
fn equal(known: &str, path: &str) -> bool {
    // The API server calls the root if an entry has no path.
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
    fn the_root_is_accepted_until_the_first_path_is_written() {
        let paths = Paths { live: vec![String::new(); 3], previous: None };
        assert!(paths.accepts("/", at(0)) && !paths.accepts("/x", at(0)));
        let renewed = after(paths.renewal(false, LIFETIME, 7, at(0)).unwrap());
        assert!(!renewed.accepts("/", at(0)), "the root is not secret");
        assert_eq!(renewed.renewal(false, LIFETIME, 8, at(1)), None);
        assert_eq!(Paths::default().renewal(true, LIFETIME, 8, at(1)), None, "no entry calls Pristine");
        assert!(!Paths::default().accepts("/", at(0)));
    }

    #[test]
    fn the_previous_path_is_accepted_for_one_minute_after_a_renewal() {
        let first =
            after(Paths { live: vec![String::new()], previous: None }.renewal(false, LIFETIME, 1, at(0)).unwrap());
        let old = first.live[0].clone();
        assert_eq!(first.renewal(false, LIFETIME, 2, at(899)), None);
        let second = after(first.renewal(false, LIFETIME, 2, at(900)).unwrap());
        assert!(second.accepts(&second.live[0], at(5000)));
        assert!(second.accepts(&old, at(959)) && !second.accepts(&old, at(960)));
    }

    #[test]
    fn a_leaked_path_is_renewed_once_it_is_one_minute_old() {
        let first =
            after(Paths { live: vec![String::new()], previous: None }.renewal(false, LIFETIME, 1, at(0)).unwrap());
        assert_eq!(first.renewal(true, LIFETIME, 2, at(59)), None);
        assert_eq!(first.next(true, LIFETIME, at(59)), Duration::from_secs(1));
        assert!(first.renewal(true, LIFETIME, 2, at(60)).is_some());
    }

    #[test]
    fn an_entry_that_lost_its_path_gets_the_same_path_back() {
        let mut paths =
            after(Paths { live: vec![String::new()], previous: None }.renewal(false, LIFETIME, 1, at(0)).unwrap());
        paths.live[1] = String::new();
        let renewal = paths.renewal(false, LIFETIME, 2, at(1)).unwrap();
        assert_eq!(renewal.path, paths.live[0]);
    }

    #[test]
    fn foreign_paths_and_paths_from_the_future_are_replaced() {
        for path in ["/review/", "/review/zz-00", "/validate", "/review/6b49d200-123", "review/1-1"] {
            let paths = Paths { live: vec![path.to_owned()], previous: None };
            assert!(paths.renewal(false, LIFETIME, 1, at(0)).is_some(), "{path}");
        }
        let future = Paths { live: vec![create(1, at(100))], previous: None };
        assert!(future.renewal(false, LIFETIME, 1, at(0)).is_some());
        assert_eq!(future.renewal(false, LIFETIME, 1, at(50)), None, "another replica's clock may be a little ahead");
    }
}
