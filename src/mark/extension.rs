//! The annotations with which a user extends the deadline of a marked pod, or holds the pod. A policy in the API server
//! admits them only from users who may `extend`, and under their own name. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::{Mark, USERS_KEYS, shorten};

/// The request to hold a pod, in [`Extension::request`].
pub const HOLD: &str = "hold";

/// The extension annotations of a pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extension {
    /// `pristine/extend-to`, unparsed.
    to: Option<String>,
    /// `pristine/hold`: why.
    hold: Option<String>,
    /// `pristine/extended-by`
    pub by: Option<String>,
    /// `pristine/extend-reason`: why, where `to` says until when.
    reason: Option<String>,
}

/// What Pristine grants of a requested extension.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Granted {
    /// When the pod is evicted; none if it is only recorded.
    pub deadline: Option<Timestamp>,
    /// Whether that is later than without the extension.
    pub is_extended: bool,
    /// Why the extension is not granted, or not in full.
    pub problem: Option<String>,
}

impl Extension {
    /// Reads the annotations.
    #[must_use]
    pub fn on(pod: &Pod) -> Self {
        let [to, hold, by, reason] = USERS_KEYS.map(|key| pod.metadata.annotations.as_ref()?.get(key).cloned());
        Self { to, hold, by, reason }
    }

    /// Whether an extension is requested.
    #[must_use]
    pub const fn asks(&self) -> bool {
        self.hold.is_some() || self.to.is_some()
    }

    /// The request in one word, for [`Status::answers`](super::Status): the time, or [`HOLD`]; none without one.
    #[must_use]
    pub fn request(&self) -> Option<String> {
        if self.holds() { Some(HOLD.to_owned()) } else { self.to.as_deref().map(|to| shorten(to, 64)) }
    }

    /// Whether a user holds the pod, for as long as the configuration allows.
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// Who extended the deadline, until when (if the caller says it), and why; for people.
    #[must_use]
    pub fn summary(&self, until: Option<Timestamp>) -> String {
        let (verb, why) = match &self.hold {
            Some(why) => ("held", Some(why)),
            None => ("extended", self.reason.as_ref()),
        };
        let by = one_line(self.by.as_deref().unwrap_or("an unnamed user"));
        let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
        let why = why.map(|why| format!(": {}", one_line(why))).unwrap_or_default();
        format!("{verb} by {by}{until}{why}")
    }

    /// The deadline with this extension: never before the mark's own, and never later than `longest` after the first
    /// interaction.
    #[must_use]
    pub fn grant(&self, mark: &Mark, longest: Duration) -> Granted {
        let Some(own) = mark.evict_at else { return Granted::default() };
        let longest = SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX);
        let latest = mark.first.at.checked_add(longest).unwrap_or(Timestamp::MAX);
        // Whole seconds, like every deadline.
        let latest = Timestamp::from_second(latest.as_second()).unwrap_or(latest).max(own);
        let until = |deadline, problem| Granted { deadline: Some(deadline), is_extended: deadline > own, problem };
        if self.hold.is_some() {
            let problem = (latest == own).then(|| format!("{HOLD_KEY} is ignored: {LIMIT}"));
            return until(latest, problem);
        }
        let Some(text) = &self.to else { return until(own, None) };
        let shown = shorten(text, 64);
        let ignored = |why: &str| until(own, Some(format!("{EXTEND_TO} {shown:?} is ignored: {why}")));
        match text.parse::<Timestamp>() {
            Err(_) => ignored("write a time as 2026-01-31T12:00:00Z"),
            Ok(to) if to <= own => ignored(&format!("it is not after the deadline, {own}")),
            Ok(_) if latest == own => ignored(LIMIT),
            Ok(to) if to > latest => until(latest, Some(format!("{EXTEND_TO} {shown:?} is cut to {latest}: {LIMIT}"))),
            Ok(to) => until(to, None),
        }
    }
}

const EXTEND_TO: &str = USERS_KEYS[0];
const HOLD_KEY: &str = USERS_KEYS[1];
/// The limit of every extension.
const LIMIT: &str = "the limit is eviction.maxExtension after the first interaction";

/// Bounded, and without line breaks: a text from a user must not pass for a line of Pristine.
fn one_line(text: &str) -> String {
    let line = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    shorten(&line.collect::<Vec<_>>().join(" "), 256)
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
    fn an_extension_is_granted_up_to_the_longest() {
        let granted = ask(Some("2026-01-01T00:30:00Z"), None);
        assert_eq!(granted.deadline.unwrap().to_string(), "2026-01-01T00:30:00Z");
        assert!(granted.is_extended && granted.problem.is_none());
        let granted = ask(Some("2099-01-01T00:00:00+01:00"), None);
        assert_eq!(granted.deadline.unwrap().to_string(), "2026-01-01T01:00:00Z");
        assert!(granted.problem.unwrap().contains("eviction.maxExtension"));
        assert_eq!(ask(None, Some("looking")).deadline.unwrap().to_string(), "2026-01-01T01:00:00Z");
    }

    #[test]
    fn a_request_that_cannot_be_granted_changes_nothing_and_has_a_reason() {
        for (to, word) in
            [("tomorrow", "write a time"), ("2026-01-01T00:05:00Z", "not after the deadline"), ("", "write")]
        {
            let granted = ask(Some(to), None);
            assert_eq!(granted.deadline, mark(Some(600)).evict_at, "{to}");
            assert!(!granted.is_extended && granted.problem.as_ref().unwrap().contains(word), "{to}: {granted:?}");
        }
        assert_eq!(ask(None, None), Granted { deadline: mark(Some(600)).evict_at, is_extended: false, problem: None });
        assert_eq!(Extension::default().grant(&mark(None), HOUR), Granted::default(), "no deadline to extend");
    }

    #[test]
    fn the_summary_says_who_and_why_on_one_line_and_leaves_nothing_out() {
        let reason = Some("INC-7; heap dump (\"x\")\nsecond line".to_owned());
        let extension = Extension { to: Some("t".into()), hold: None, by: Some("ed".into()), reason };
        assert_eq!(extension.summary(None), "extended by ed: INC-7; heap dump (\"x\") second line");
        let until = Some("2026-01-01T00:30:00Z".parse().unwrap());
        assert_eq!(
            Extension { hold: Some("looking".into()), ..extension }.summary(until),
            "held by ed until 2026-01-01T00:30:00Z: looking"
        );
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
            let latest = mark.first.at.checked_add(SignedDuration::try_from(longest).unwrap()).unwrap();
            prop_assert!(deadline <= own.max(latest));
        }
    }
}
