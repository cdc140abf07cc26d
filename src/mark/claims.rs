//! Whose interactions cause the deadline of a pod. Pure.
//!
//! A machine whose evictions are a loop is only recorded for a day ([`crate::eviction::loops`]), and a person is not. So
//! the mark knows the earliest deadline of each user, also of interactions that it no longer lists. A deadline of which the
//! user is not known here belongs to [`Claims::others`], which are never spared: a missing claim evicts the pod.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Interaction;

/// The users of one pod that are kept; the deadlines of all others are one.
const MAX_CLAIMS: usize = 4;
/// Bytes of a user's name. The longest name of a service account has 339.
const MAX_USER: usize = 350;

/// The earliest deadline that the interactions of one user cause.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The user's name.
    pub user: String,
    /// Whether the user is a machine: a program with the token of its own pod, and without a terminal. The same service
    /// account may also be a person's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub machine: bool,
    /// When the interaction was admitted.
    pub at: Timestamp,
    /// The deadline.
    pub evict_at: Timestamp,
}

/// The deadlines of one pod, by their users.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Claims {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    by: Vec<Claim>,
    /// The earliest deadline of all users that are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<Timestamp>,
}

impl Claims {
    /// Whether there is no deadline.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The claims of the users that are kept.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.by.iter()
    }

    /// The earliest deadline.
    #[must_use]
    pub fn earliest(&self) -> Option<Timestamp> {
        self.by.iter().map(|claim| claim.evict_at).chain(self.others).min()
    }

    /// Adds the deadline that this interaction causes.
    pub fn add(&mut self, interaction: &Interaction, evict_at: Timestamp) {
        let (user, machine, at) = (&interaction.user.name, interaction.is_machine(), interaction.at);
        let has_place = self.by.len() < MAX_CLAIMS && user.len() <= MAX_USER;
        match self.by.iter_mut().find(|known| known.user == *user && known.machine == machine) {
            Some(known) if known.evict_at <= evict_at => {}
            Some(known) => (known.at, known.evict_at) = (at, evict_at),
            None if has_place => self.by.push(Claim { user: user.clone(), machine, at, evict_at }),
            None => self.add_other(evict_at),
        }
    }

    fn add_other(&mut self, evict_at: Timestamp) {
        self.others = self.others.into_iter().chain([evict_at]).min();
    }

    /// Makes the claims agree with the deadline of the pod. A deadline that no claim explains, of a mark of another
    /// version for example, is of other users.
    pub(super) fn agree_with(&mut self, evict_at: Option<Timestamp>) {
        match (evict_at, self.earliest()) {
            (None, _) => *self = Self::default(),
            (Some(at), earliest) if earliest.is_none_or(|earliest| at < earliest) => self.add_other(at),
            _ => {}
        }
    }

    /// The claims without those that are spared.
    #[must_use]
    pub fn without(&self, is_spared: impl Fn(&Claim) -> bool) -> Self {
        Self { by: self.by.iter().filter(|claim| !is_spared(claim)).cloned().collect(), others: self.others }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::mark::{Disposition, Mark, Operation, POD_NAME, User};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn exec(user: &str, is_machine: bool, second: i64) -> Interaction {
        let extra = if is_machine { [(POD_NAME.to_owned(), vec!["p".to_owned()])].into() } else { BTreeMap::new() };
        Interaction {
            at: at(second),
            operation: Operation::Exec,
            container: "c".into(),
            command: vec![second.to_string()],
            stdin: false,
            tty: false,
            user: User { name: user.into(), extra, ..User::default() },
            review: second.to_string(),
            rule: "default".into(),
        }
    }

    const SA: &str = "system:serviceaccount:ns:operator";

    #[test]
    fn each_user_has_the_earliest_deadline_of_its_own_interactions() {
        let mut claims = Claims::default();
        for (user, is_machine, second) in [(SA, true, 5), ("ann", false, 3), (SA, true, 9), (SA, false, 7)] {
            claims.add(&exec(user, is_machine, second), at(second + 600));
        }
        let found: Vec<_> = claims.iter().map(|claim| (claim.user.as_str(), claim.machine, claim.evict_at)).collect();
        assert_eq!(found, [(SA, true, at(605)), ("ann", false, at(603)), (SA, false, at(607))]);
        assert_eq!(claims.earliest(), Some(at(603)));
        let people = claims.without(|claim| claim.machine);
        assert_eq!((people.iter().count(), people.earliest()), (2, Some(at(603))));
    }

    #[test]
    fn a_user_that_does_not_fit_has_a_deadline_all_the_same() {
        let mut claims = Claims::default();
        for n in 0..5 {
            claims.add(&exec(&format!("{SA}{n}"), true, 10 - n), at(610 - n));
        }
        claims.add(&exec(&"u".repeat(MAX_USER + 1), true, 100), at(700));
        assert_eq!(claims.without(|_| true).earliest(), Some(at(606)), "the fifth");
    }

    #[test]
    fn a_deadline_that_no_claim_explains_is_never_spared() {
        let mut claims = Claims::default();
        claims.add(&exec(SA, true, 0), at(600));
        for (annotated, spared) in [(at(600), None), (at(599), Some(at(599))), (at(601), None)] {
            let mut claims = claims.clone();
            claims.agree_with(Some(annotated));
            assert_eq!(claims.without(|_| true).earliest(), spared, "{annotated}");
        }
        claims.agree_with(None);
        assert!(claims.is_empty());
    }

    proptest! {
        /// However many machines enter the pod, and however much of the list they push out.
        #[test]
        fn without_its_machines_a_pod_has_the_deadline_of_its_people(
            acts in proptest::collection::vec((0..7_u8, any::<bool>(), 1..900_u64), 1..40),
        ) {
            let mut mark = None;
            let mut people: Option<Timestamp> = None;
            for (second, (user, is_machine, ttl)) in (0..).zip(acts) {
                let next = exec(&format!("{SA}{user}"), is_machine, second * 20);
                let deadline = at(second * 20 + i64::try_from(ttl).unwrap());
                let evict = Disposition::Evict(Duration::from_secs(ttl));
                mark = Mark::after(mark.clone(), "u", next, evict).or(mark);
                if !is_machine {
                    people = people.into_iter().chain([deadline]).min();
                }
            }
            let mark = mark.unwrap();
            prop_assert_eq!(mark.claims.earliest(), mark.evict_at);
            let left = mark.claims.without(|claim| claim.machine).earliest();
            // Earlier only if a machine did not fit.
            prop_assert!(people.is_none_or(|people| left.is_some_and(|left| left <= people)), "{left:?} {people:?}");
        }
    }
}
