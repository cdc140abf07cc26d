//! How fast pods go: one of each owner at a time, and not too many at once. Pure.
//!
//! A disruption budget is the owner's own word on this; many have none, and a loop of execs over all replicas of a
//! Deployment would be an outage at the deadline. So a pod waits until the last one's replacement is Ready, or for
//! [`PATIENCE`], after which it is not us who keep the owner from being whole.

use std::{collections::HashMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

/// The longest wait for a replacement, or for an owner that is not whole for reasons of its own.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(300);
/// The wait for a replacement where nobody can tell whether it is Ready: an owner of a kind that is not known here.
const BLIND: SignedDuration = SignedDuration::from_secs(30);
/// Owners need a moment to count a pod out that has just begun to terminate.
const SETTLE: SignedDuration = SignedDuration::from_secs(1);

/// Whether an owner has as many Ready pods as it wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// It has.
    Whole,
    /// It has not.
    Short,
    /// It cannot be told.
    Unknown,
}

/// An eviction that was accepted, and whose replacement is waited for.
#[derive(Clone, Debug)]
struct Flight {
    pod: String,
    since: Timestamp,
    /// When somebody was last let through to ask about the owner.
    asked: Timestamp,
    /// The pod is gone for good.
    gone: bool,
}

/// What is in flight.
#[derive(Debug, Default)]
pub struct Pacing {
    owners: HashMap<String, Flight>,
    /// Owners about whom the API server is being asked, and for which pod.
    asking: HashMap<String, String>,
    /// Evictions that may begin now, in thousandths, and when that was counted.
    budget: Option<(i64, Timestamp)>,
}

impl Pacing {
    /// Whether a look at this pod of this owner could lead to an eviction; if so, no other pod of the owner is looked at
    /// until [`Pacing::asked`]. Of the many that may wait for one owner, one is let through now and then.
    pub fn ask(&mut self, owner: Option<&str>, pod: &str, now: Timestamp) -> bool {
        let Some(owner) = owner else { return true };
        if self.asking.get(owner).is_some_and(|other| other != pod) {
            return false;
        }
        if let Some(flight) = self.owners.get_mut(owner) {
            // The longer it takes, the less often: a look costs two calls of the API server.
            let pause = SETTLE.max(flight.asked.duration_since(flight.since) / 2);
            // Until the pod counts no more, no look could lead to anything.
            let is_early = !flight.gone && now.duration_since(flight.since) < BLIND;
            if flight.pod != pod && (is_early || now.duration_since(flight.asked) < pause) {
                return false;
            }
            flight.asked = now;
        }
        self.asking.insert(owner.to_owned(), pod.to_owned());
        true
    }

    /// The look is over, whatever came of it.
    pub fn asked(&mut self, owner: Option<&str>, pod: &str) {
        if let Some(owner) = owner
            && self.asking.get(owner).is_some_and(|asking| asking == pod)
        {
            self.asking.remove(owner);
        }
    }

    /// Whether the pod may go now, where `state` is its owner's as of now, `is_ready` whether the pod counts as one of the
    /// Ready ones, and `due` since when it should be gone. If so, it is in flight.
    pub fn begin(
        &mut self,
        owner: Option<(&str, Owner)>,
        pod: &str,
        is_ready: bool,
        due: Timestamp,
        now: Timestamp,
    ) -> bool {
        if let Some((owner, state)) = owner {
            let flight = self.owners.get(owner).filter(|flight| flight.pod != pod);
            let free = match (flight, state) {
                (Some(flight), state) => {
                    let waited = now.duration_since(flight.since);
                    let settled = waited >= SETTLE && (state == Owner::Whole && flight.gone);
                    settled || waited >= if state == Owner::Unknown { BLIND } else { PATIENCE }
                }
                (None, Owner::Whole | Owner::Unknown) => true,
                // Taking away one that is not Ready takes nothing away.
                (None, Owner::Short) => !is_ready || now.duration_since(due) >= PATIENCE,
            };
            if !free {
                return false;
            }
            self.owners.insert(owner.to_owned(), Flight { pod: pod.to_owned(), since: now, asked: now, gone: false });
        }
        true
    }

    /// Whether the pod may be taken out of service now, of an owner that has all it wants. There is no bound to this wait: the
    /// pod keeps its place in quotas and on its node, so that its replacement may never come.
    pub fn begin_quarantine(&mut self, owner: &str, pod: &str, now: Timestamp) -> bool {
        let flight = self.owners.get(owner).filter(|flight| flight.pod != pod);
        if flight.is_some_and(|flight| !flight.gone || now.duration_since(flight.since) < SETTLE) {
            return false;
        }
        self.owners.insert(owner.to_owned(), Flight { pod: pod.to_owned(), since: now, asked: now, gone: false });
        true
    }

    /// The eviction was refused, or came to nothing.
    pub fn abandon(&mut self, owner: Option<&str>, pod: &str) {
        if let Some(owner) = owner
            && self.owners.get(owner).is_some_and(|flight| flight.pod == pod)
        {
            self.owners.remove(owner);
        }
    }

    /// The pod of an eviction does not count any more: it is gone, or its owner makes the next one without waiting for that.
    pub fn gone(&mut self, owner: Option<&str>, pod: &str) {
        let flight = owner.and_then(|owner| self.owners.get_mut(owner));
        if let Some(flight) = flight.filter(|flight| flight.pod == pod) {
            flight.gone = true;
        }
    }

    /// Forgets flights that hold up nobody any more.
    pub fn sweep(&mut self, now: Timestamp) {
        self.owners.retain(|_, flight| now.duration_since(flight.since) < PATIENCE);
    }

    /// Takes one eviction out of the budget of `per_minute`, of which a tenth may be spent at once; or says how long to
    /// wait.
    ///
    /// # Errors
    /// The wait, when the budget is spent.
    pub fn spend(&mut self, per_minute: u32, now: Timestamp) -> Result<(), Duration> {
        let (rate, most) = (i64::from(per_minute.max(1)), i64::from((per_minute / 10).max(1)) * 1000);
        let (left, at) = self.budget.unwrap_or((most, now));
        let earned = now.duration_since(at).as_millis().clamp(0, 60_000);
        let left = (left + rate * i64::try_from(earned).unwrap_or(0) / 60).min(most);
        if left < 1000 {
            // What was earned is not lost to rounding: the time it is counted from stays until something is spent.
            return Err(Duration::from_millis(u64::try_from((1000 - left) * 60 / rate).unwrap_or(0).max(10)));
        }
        self.budget = Some((left - 1000, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn one_of_an_owner_at_a_time_until_it_is_whole_again() {
        let mut pacing = Pacing::default();
        assert!(pacing.begin(Some(("o", Owner::Whole)), "a", true, at(0), at(0)));
        assert!(
            !pacing.begin(Some(("o", Owner::Whole)), "b", true, at(0), at(500)),
            "its status is of the time before"
        );
        assert!(!pacing.ask(Some("o"), "b", at(500)) && pacing.ask(Some("o"), "a", at(500)));
        assert!(pacing.begin(Some(("other", Owner::Whole)), "c", true, at(0), at(500)));
        pacing.asked(Some("o"), "a");
        assert!(!pacing.ask(Some("o"), "b", at(29_000)), "it is not gone yet");
        pacing.gone(Some("o"), "a");
        assert!(pacing.ask(Some("o"), "b", at(2000)));
        pacing.asked(Some("o"), "b");
        assert!(!pacing.ask(Some("o"), "c", at(2900)) && pacing.ask(Some("o"), "c", at(3000)));
        pacing.asked(Some("o"), "c");
        assert!(!pacing.begin(Some(("o", Owner::Short)), "b", true, at(0), at(2000)));
        assert!(pacing.begin(Some(("o", Owner::Whole)), "b", true, at(0), at(2000)));
    }

    #[test]
    fn while_one_is_looked_at_nobody_asks_about_another_of_its_owner() {
        let mut pacing = Pacing::default();
        assert!(pacing.ask(Some("o"), "a", at(0)) && !pacing.ask(Some("o"), "b", at(0)));
        assert!(pacing.ask(Some("other"), "c", at(0)) && pacing.ask(None, "d", at(0)));
        pacing.asked(Some("o"), "b");
        assert!(!pacing.ask(Some("o"), "b", at(60_000)), "only the one who asks can end it");
        pacing.asked(Some("o"), "a");
        assert!(pacing.ask(Some("o"), "b", at(0)));
    }

    #[test]
    fn nothing_is_taken_out_of_service_before_the_last_one_is_replaced_however_long_that_takes() {
        let mut pacing = Pacing::default();
        assert!(pacing.begin_quarantine("o", "a", at(0)));
        assert!(!pacing.begin_quarantine("o", "b", at(3_600_000)), "the first one still counts");
        pacing.gone(Some("o"), "a");
        assert!(pacing.begin_quarantine("o", "b", at(3_600_000)));
    }

    #[test]
    fn a_replacement_that_never_comes_holds_nobody_up_for_ever() {
        let mut pacing = Pacing::default();
        assert!(pacing.begin(Some(("o", Owner::Whole)), "a", true, at(0), at(0)));
        assert!(!pacing.begin(Some(("o", Owner::Short)), "b", true, at(0), at(299_999)));
        assert!(pacing.begin(Some(("o", Owner::Short)), "b", true, at(0), at(300_000)));
        // Nobody can tell: half a minute.
        assert!(!pacing.begin(Some(("o", Owner::Unknown)), "c", true, at(0), at(329_999)));
        assert!(pacing.begin(Some(("o", Owner::Unknown)), "c", true, at(0), at(330_000)));
    }

    #[test]
    fn an_owner_that_is_short_already_loses_only_what_is_not_ready() {
        let mut pacing = Pacing::default();
        assert!(!pacing.begin(Some(("o", Owner::Short)), "a", true, at(0), at(1000)));
        assert!(pacing.begin(Some(("o", Owner::Short)), "b", false, at(0), at(1000)));
        pacing.abandon(Some("o"), "b");
        assert!(pacing.begin(Some(("o", Owner::Short)), "a", true, at(0), at(300_000)));
    }

    proptest! {
        #[test]
        fn never_two_of_an_owner_within_a_second_and_never_more_than_the_budget(
            steps in proptest::collection::vec((0_u8..3, 0_u8..6, 0_i64..3000, any::<bool>(), 0_u8..3), 1..200),
            per_minute in 1_u32..1000,
        ) {
            let (mut pacing, mut now, mut last, mut started) = (Pacing::default(), 0, HashMap::new(), Vec::new());
            for (owner, pod, passed, ready, state) in steps {
                now += passed;
                let (owner, pod) = (owner.to_string(), format!("{owner}-{pod}"));
                let state = [Owner::Whole, Owner::Short, Owner::Unknown][usize::from(state)];
                if pacing.begin(Some((&owner, state)), &pod, ready, at(0), at(now)) {
                    if let Some((other, since)) = last.insert(owner.clone(), (pod.clone(), now)) {
                        prop_assert!(other == pod || now - since >= 1000, "{other} and {pod}");
                    }
                    if pacing.spend(per_minute, at(now)).is_ok() {
                        started.push(now);
                        pacing.gone(Some(&owner), &pod);
                    } else {
                        pacing.abandon(Some(&owner), &pod);
                        last.remove(&owner);
                    }
                }
            }
            for (n, first) in started.iter().enumerate() {
                let minute = started[n..].iter().take_while(|at| **at < first + 60_000).count();
                prop_assert!(minute <= per_minute as usize + (per_minute as usize / 10).max(1) + 1, "{minute}");
            }
        }

        #[test]
        fn the_budget_is_never_shut_for_ever(per_minute in 1_u32..10_000) {
            let mut pacing = Pacing::default();
            let mut now = 0;
            for _ in 0..50 {
                while let Err(wait) = pacing.spend(per_minute, at(now)) {
                    prop_assert!(wait <= Duration::from_secs(61));
                    now += i64::try_from(wait.as_millis()).unwrap();
                }
            }
            prop_assert!(now <= 61_000 * 50);
        }
    }
}
