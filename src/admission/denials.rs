//! The denials of the last seconds, so that one attempt of a user is one denial.
//!
//! A client that is denied over WebSocket tries again over SPDY at once. A denied interaction leaves no mark that the
//! second review could find, so it is remembered here. Another replica does not know it: if that one gets the second
//! review, it is one more denial.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::review::Request;
use crate::mark::FOLD;

/// The most denials that are remembered. If there are more in [`FOLD`], all are forgotten rather than growing without
/// bound.
const MAX: usize = 4096;

/// The denials, by a hash of user, namespace, pod and what was asked for, and when the first of each was. A hash, because
/// a command can have a megabyte, and a user who is denied can send thousands. Its key is random, so that no user can find
/// two denials with the same hash.
#[derive(Default)]
pub struct Denials {
    known: Mutex<HashMap<u64, Instant>>,
    hasher: RandomState,
}

impl Denials {
    /// Whether the same was denied within [`FOLD`]. Remembers it otherwise.
    pub fn is_repeated(&self, request: &Request, now: Instant) -> bool {
        let Request { user, namespace, pod, acts, .. } = request;
        let key = self.hasher.hash_one((&user.name, namespace, pod, acts));
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fold = Duration::try_from(FOLD).unwrap_or_default();
        all.retain(|_, first| now.duration_since(*first) <= fold);
        if all.len() >= MAX {
            all.clear();
        }
        let first = *all.entry(key).or_insert(now);
        first != now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::review::Act,
        mark::{Operation, User},
    };

    fn request(user: &str, command: &str) -> Request {
        let act = Act {
            operation: Operation::Exec,
            container: "app".into(),
            command: vec![command.into()],
            stdin: false,
            tty: false,
        };
        let user = User { name: user.into(), ..User::default() };
        Request { uid: "r".into(), namespace: "n".into(), pod: "p".into(), user, dry_run: false, acts: vec![act] }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_attempt_is_repeated_within_ten_seconds_of_the_first_and_others_are_not() {
        let (denials, start) = (Denials::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!denials.is_repeated(&request("a", "id"), start));
        assert!(denials.is_repeated(&request("a", "id"), after(1)));
        assert!(!denials.is_repeated(&request("b", "id"), after(1)));
        assert!(!denials.is_repeated(&request("a", "ls"), after(1)));
        assert!(denials.is_repeated(&request("a", "id"), after(10)));
        assert!(!denials.is_repeated(&request("a", "id"), after(11)));
        for n in 0..2 * MAX {
            denials.is_repeated(&request(&n.to_string(), "id"), after(12));
        }
        assert!(denials.known.lock().unwrap().len() <= MAX);
    }
}
