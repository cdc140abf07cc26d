//! What users ask for on a marked pod: more time, or to be left alone. Read off the pod; a policy in the API server has
//! seen to it that whoever wrote it may `extend`, and under their own name. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::{Mark, USERS_KEYS, shorten};

/// The users' keys of a pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extension {
    /// `pristine/extend-to`, as it is.
    to: Option<String>,
    /// `pristine/hold`: why.
    hold: Option<String>,
    /// `pristine/extended-by`
    by: Option<String>,
    /// `pristine/extend-reason`: why, where `to` says until when.
    reason: Option<String>,
}

/// What becomes of an extension.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Granted {
    /// When the pod is to be evicted; none if it is only recorded.
    pub deadline: Option<Timestamp>,
    /// What was granted, for people; none if nothing was asked for, or nothing of it holds.
    pub words: Option<String>,
    /// What is wrong with what was asked for.
    pub problem: Option<String>,
}

impl Extension {
    /// Reads the users' keys.
    #[must_use]
    pub fn on(pod: &Pod) -> Self {
        let [to, hold, by, reason] = USERS_KEYS.map(|key| pod.metadata.annotations.as_ref()?.get(key).cloned());
        Self { to, hold, by, reason }
    }

    /// Whether anything is asked for.
    #[must_use]
    pub const fn asks(&self) -> bool {
        self.hold.is_some() || self.to.is_some()
    }

    /// Whether somebody holds the pod, for as long as the configuration allows.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// The deadline with this extension: never before the mark's own, and never later than `longest` after the first
    /// interaction.
    #[must_use]
    pub fn grant(&self, mark: &Mark, longest: Duration) -> Granted {
        let Some(own) = mark.evict_at else { return Granted::default() };
        let longest = SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX);
        let latest = mark.first.at.checked_add(longest).unwrap_or(Timestamp::MAX);
        // Whole seconds, as everywhere.
        let latest = Timestamp::from_second(latest.as_second()).unwrap_or(latest).max(own);
        let by = shorten(self.by.as_deref().unwrap_or("somebody"), 256);
        if let Some(why) = &self.hold {
            let words = format!("held by {by:?} ({:?}), until {latest} at the longest", shorten(why, 256));
            return Granted { deadline: Some(latest), words: Some(words), problem: None };
        }
        let none = |problem| Granted { deadline: Some(own), words: None, problem };
        let Some(text) = &self.to else { return none(None) };
        let shown = shorten(text, 64);
        match text.parse::<Timestamp>() {
            Err(_) => {
                none(Some(format!("pristine/extend-to {shown:?} is ignored: write a time as 2026-01-31T12:00:00Z")))
            }
            Ok(to) if to <= own => {
                none(Some(format!("pristine/extend-to {shown:?} is ignored: it is not after the deadline, {own}")))
            }
            Ok(to) => {
                let deadline = to.min(latest);
                let problem = (to > latest).then(|| {
                    format!(
                        "pristine/extend-to {shown:?} is more than the configuration allows; extended until {latest}"
                    )
                });
                if deadline <= own {
                    return none(problem);
                }
                let why = self.reason.as_deref().map(|why| format!(" ({:?})", shorten(why, 256))).unwrap_or_default();
                let words = format!("extended by {by:?}{why} until {deadline}");
                Granted { deadline: Some(deadline), words: Some(words), problem }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{Interaction, Operation, User};
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn mark(ttl: Option<u64>) -> Mark {
        let interaction = Interaction {
            at: "2026-01-01T00:00:00.5Z".parse().unwrap(),
            operation: Operation::Exec,
            container: "c".into(),
            command: vec![],
            stdin: false,
            tty: false,
            user: User::default(),
            review: String::new(),
            rule: String::new(),
        };
        Mark::after(None, "u", interaction, ttl.map(Duration::from_secs)).unwrap()
    }

    fn ask(to: Option<&str>, hold: Option<&str>) -> Granted {
        let extension =
            Extension { to: to.map(Into::into), hold: hold.map(Into::into), by: Some("ed".into()), reason: None };
        extension.grant(&mark(Some(600)), HOUR)
    }

    #[test]
    fn more_time_is_granted_up_to_the_longest() {
        let granted = ask(Some("2026-01-01T00:30:00Z"), None);
        assert_eq!(granted.deadline.unwrap().to_string(), "2026-01-01T00:30:00Z");
        assert_eq!(
            (granted.words.unwrap().as_str(), granted.problem),
            ("extended by \"ed\" until 2026-01-01T00:30:00Z", None)
        );
        let granted = ask(Some("2099-01-01T00:00:00+01:00"), None);
        assert_eq!(granted.deadline.unwrap().to_string(), "2026-01-01T01:00:00Z");
        assert!(granted.problem.unwrap().contains("more than the configuration allows"));
        assert_eq!(ask(None, Some("looking")).deadline.unwrap().to_string(), "2026-01-01T01:00:00Z");
    }

    #[test]
    fn what_cannot_be_granted_changes_nothing_and_is_said() {
        for (to, word) in
            [("tomorrow", "write a time"), ("2026-01-01T00:05:00Z", "not after the deadline"), ("", "write")]
        {
            let granted = ask(Some(to), None);
            assert_eq!(granted.deadline, mark(Some(600)).evict_at, "{to}");
            assert!(granted.words.is_none() && granted.problem.as_ref().unwrap().contains(word), "{to}: {granted:?}");
        }
        assert_eq!(ask(None, None), Granted { deadline: mark(Some(600)).evict_at, words: None, problem: None });
        assert_eq!(Extension::default().grant(&mark(None), HOUR), Granted::default(), "nothing to put off");
    }

    proptest! {
        #[test]
        fn never_before_the_marks_own_deadline_and_never_past_the_longest(
            to in proptest::option::of("\\PC{0,40}|20[0-9]{2}-0[1-9]-1[0-9]T0[0-9]:00:00(Z|\\+01:00)"),
            hold in proptest::option::of(".{0,3}"),
            ttl in 1_u64..100_000, longest in 0_u64..100_000,
        ) {
            let (mark, longest) = (mark(Some(ttl)), Duration::from_secs(longest));
            let deadline = Extension { to, hold, by: None, reason: None }.grant(&mark, longest).deadline.unwrap();
            let own = mark.evict_at.unwrap();
            prop_assert!(deadline >= own);
            prop_assert!(deadline <= own.max(mark.first.at.checked_add(SignedDuration::try_from(longest).unwrap()).unwrap()));
        }
    }
}
