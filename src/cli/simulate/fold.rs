//! One interaction for each request: a request has a record at each of its stages, and kubectl sends a second one when
//! WebSocket fails. Pure.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
};

use jiff::{SignedDuration, Timestamp};

use super::event::Event;

/// The time in which the second request follows the first that failed.
const FALLBACK: SignedDuration = SignedDuration::from_secs(2);
/// Requests that are remembered. A session can end hours after it began; more requests than these in between, and it
/// counts twice.
const MAX_IDS: usize = 1 << 18;
/// Failed requests that are remembered.
const MAX_FAILED: usize = 1 << 14;

/// What a record adds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Folded {
    /// An admitted interaction.
    Admitted,
    /// An admitted interaction whose first attempt was counted as refused.
    FellBack,
    /// A request that was not admitted.
    Refused,
    /// Nothing: another stage of a request that is counted, or its second attempt.
    Repeated,
}

/// Remembers requests, as many as fit.
pub struct Fold {
    hasher: RandomState,
    ids: HashSet<u64>,
    order: VecDeque<u64>,
    failed: HashMap<u64, Timestamp>,
}

impl Default for Fold {
    fn default() -> Self {
        Self { hasher: RandomState::new(), ids: HashSet::new(), order: VecDeque::new(), failed: HashMap::new() }
    }
}

impl Fold {
    /// What this record adds to those before it.
    pub fn add(&mut self, event: &Event) -> Folded {
        let id = self.hasher.hash_one(&event.id);
        if !event.id.is_empty() {
            if !self.ids.insert(id) {
                return Folded::Repeated;
            }
            self.order.push_back(id);
            if self.order.len() > MAX_IDS
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
        let key = self.hasher.hash_one((&event.user.name, &event.uri));
        let is_soon = |at: &Timestamp| event.at.duration_since(*at).abs() <= FALLBACK;
        if event.is_admitted {
            let failed = self.failed.remove(&key);
            return if failed.as_ref().is_some_and(is_soon) { Folded::FellBack } else { Folded::Admitted };
        }
        if self.failed.len() >= MAX_FAILED {
            self.failed.retain(|_, at| is_soon(at));
            // So many at once are no fallbacks of kubectl. To search them at each record would take too long.
            if self.failed.len() > MAX_FAILED / 2 {
                self.failed.clear();
            }
        }
        match self.failed.insert(key, event.at) {
            Some(at) if is_soon(&at) => Folded::Repeated,
            _ => Folded::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::review::Act,
        config::policy::possible::Unknown,
        mark::{Operation, User},
    };

    fn event(id: &str, second: i64, is_admitted: bool) -> Event {
        let at = Timestamp::from_second(second).unwrap();
        let act =
            Act { operation: Operation::Exec, container: String::new(), command: Vec::new(), stdin: false, tty: false };
        let (namespace, pod, uri) = ("n".to_owned(), "p".to_owned(), "/exec?command=id".to_owned());
        let user = User { name: "alice".into(), ..User::default() };
        let unknown = Unknown::default();
        Event { id: id.into(), at, written: at, is_get: true, is_admitted, uri, namespace, pod, user, act, unknown }
    }

    #[test]
    fn the_stages_of_one_request_count_once() {
        let mut fold = Fold::default();
        assert_eq!(fold.add(&event("a", 0, true)), Folded::Admitted);
        assert_eq!(fold.add(&event("a", 9000, true)), Folded::Repeated);
        assert_eq!(fold.add(&event("b", 0, true)), Folded::Admitted);
    }

    #[test]
    fn a_second_attempt_within_two_seconds_is_the_same_interaction() {
        for (wait, expected) in [(2, Folded::FellBack), (3, Folded::Admitted)] {
            let mut fold = Fold::default();
            assert_eq!(fold.add(&event("a", 0, false)), Folded::Refused);
            assert_eq!(fold.add(&event("b", wait, true)), expected, "{wait}");
        }
        for (wait, expected) in [(2, Folded::Repeated), (3, Folded::Refused)] {
            let mut fold = Fold::default();
            assert_eq!(fold.add(&event("a", 0, false)), Folded::Refused);
            assert_eq!(fold.add(&event("b", wait, false)), expected, "{wait}");
        }
    }

    #[test]
    fn another_user_or_another_command_is_no_second_attempt() {
        let mut fold = Fold::default();
        assert_eq!(fold.add(&event("a", 0, false)), Folded::Refused);
        let mut other = event("b", 1, true);
        other.user.name = "bob".into();
        assert_eq!(fold.add(&other), Folded::Admitted);
        let mut other = event("c", 1, true);
        other.uri.push_str("&tty=true");
        assert_eq!(fold.add(&other), Folded::Admitted);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut fold = Fold::default();
        for n in 0..i64::try_from(MAX_IDS).unwrap() + 1000 {
            let mut failed = event(&n.to_string(), n / 100_000, false);
            failed.uri = n.to_string();
            fold.add(&failed);
        }
        assert!(fold.ids.len() == MAX_IDS && fold.order.len() == MAX_IDS && fold.failed.len() <= MAX_FAILED);
    }
}
