//! The switch that stops all evictions in an incident: the ConfigMap `pristine-suspend`, as `kubectl pristine suspend`
//! writes it. Pure.
//!
//! It is shipped empty, so that no apply of the manifest takes away keys that it does not contain. While it does not exist,
//! no pod is evicted either: a replica that has just started cannot know whether it said anything. An end is part of every
//! suspension: one that is forgotten would switch evictions off without anybody noticing.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

/// The ConfigMap.
pub const CONFIG_MAP: &str = "pristine-suspend";
/// The longest suspension. A longer one belongs into the configuration, as `eviction.suspend`.
pub const MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The keys of the ConfigMap. All are optional when it is read, and evictions are suspended while there is any of them.
pub const KEYS: [&str; 4] = ["by", "reason", "since", "until"];

/// A suspension as it was requested.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Suspension {
    /// Who requested it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When it was requested; none if the key is missing or no time.
    pub since: Option<Timestamp>,
    /// When it ends; none if the key is missing or no time: then it lasts until it is corrected or removed.
    pub until: Option<Timestamp>,
}

impl Suspension {
    /// Reads the ConfigMap's data; none if it has none of [`KEYS`].
    #[must_use]
    pub fn parse(data: &BTreeMap<String, String>) -> Option<Self> {
        let text = |key: &str| data.get(key).filter(|value| !value.is_empty()).cloned();
        let time = |key: &str| text(key).and_then(|text| text.parse().ok());
        KEYS.iter().find_map(|key| text(key))?;
        let (by, reason) = (text("by").unwrap_or_default(), text("reason").unwrap_or_default());
        let (since, until) = (time("since"), time("until"));
        // The same limit for a ConfigMap that was written by hand.
        let limit = since.and_then(|since: Timestamp| since.checked_add(SignedDuration::try_from(MAX).ok()?).ok());
        Some(Self { by, reason, since, until: until.map(|until| limit.map_or(until, |limit| until.min(limit))) })
    }

    /// The ConfigMap's data.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, String> {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
        let values = [self.by.clone(), self.reason.clone(), time(self.since), time(self.until)];
        KEYS.iter().map(|key| (*key).to_owned()).zip(values).collect()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// For people: until when, by whom and why.
    #[must_use]
    pub fn describe(&self) -> String {
        let until = self.until.map_or_else(
            || format!("until `until` in the ConfigMap {CONFIG_MAP} is a time, which it is not"),
            |until| format!("until {until:.0}"),
        );
        let by = if self.by.is_empty() { String::new() } else { format!(" by {}", self.by) };
        let reason = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        format!("{until}{by}{reason}")
    }
}

/// What a read of the ConfigMap found.
#[derive(Clone, Debug)]
pub enum Read {
    /// The ConfigMap's data.
    Found(BTreeMap<String, String>),
    /// There is no such ConfigMap.
    Absent,
    /// No answer, or no permission: an API server that has just started knows no permissions for a second or two.
    Failed,
}

/// What this replica knows of the switch.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Switch {
    /// The ConfigMap was not read yet: nothing is evicted until it was.
    #[default]
    Unknown,
    /// Evictions are not suspended.
    Off,
    /// The ConfigMap does not exist: nothing is evicted until it does.
    Missing,
    /// Evictions are suspended.
    On(Suspension),
}

impl Switch {
    /// What is known after a read. A ConfigMap that was deleted or cannot be read ends no suspension.
    #[must_use]
    pub fn after(&self, read: &Read) -> Self {
        match (read, self) {
            (Read::Found(data), _) => Suspension::parse(data).map_or(Self::Off, Self::On),
            (Read::Absent, _) => Self::Missing,
            (Read::Failed, known) => known.clone(),
        }
    }

    /// Why no pod is evicted now; none if pods are. `configured` is `eviction.suspend` of the configuration.
    #[must_use]
    pub fn why(&self, configured: bool, now: Timestamp) -> Option<String> {
        match self {
            Self::On(suspension) if !suspension.is_over(now) => {
                Some(format!("evictions are suspended {}", suspension.describe()))
            }
            _ if configured => Some("evictions are suspended by the configuration (eviction.suspend)".to_owned()),
            Self::Unknown => Some(format!("evictions wait: the ConfigMap {CONFIG_MAP} was not read yet")),
            Self::Missing => Some(format!(
                "evictions are suspended: the ConfigMap {CONFIG_MAP} does not exist; kubectl apply -f install.yaml creates it"
            )),
            Self::Off | Self::On(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn suspension() -> Suspension {
        let (by, reason) = ("ann".to_owned(), "INC-42".to_owned());
        Suspension { by, reason, since: Some(at(0)), until: Some(at(100)) }
    }

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_suspension_is_read_as_it_was_written() {
        assert_eq!(Suspension::parse(&suspension().data()), Some(suspension()));
        assert_eq!(Suspension::parse(&data(&[])), None);
        assert_eq!(Suspension::parse(&data(&[("by", ""), ("until", ""), ("other", "x")])), None);
    }

    #[test]
    fn a_suspension_without_a_readable_end_lasts_and_says_what_is_wrong() {
        for broken in [data(&[("reason", "x")]), data(&[("until", "tomorrow")])] {
            let on = Switch::default().after(&Read::Found(broken));
            let why = on.why(false, at(9_999_999)).unwrap();
            assert!(
                why.contains("until `until` in the ConfigMap pristine-suspend is a time, which it is not"),
                "{why}"
            );
        }
    }

    #[test]
    fn a_suspension_ends_at_its_time_and_after_seven_days_at_the_latest() {
        let on = Switch::On(suspension());
        assert_eq!(on.why(false, at(99)).unwrap(), "evictions are suspended until 2027-01-15T08:01:40Z by ann: INC-42");
        assert_eq!(on.why(false, at(100)), None);
        let long = Suspension { until: Some(at(99_999_999)), ..suspension() };
        assert_eq!(Suspension::parse(&long.data()).unwrap().until, Some(at(7 * 86_400)));
    }

    #[test]
    fn only_a_read_without_it_ends_a_suspension_and_nothing_is_evicted_before_the_first_read() {
        let on = Switch::On(suspension());
        assert_eq!(on.after(&Read::Failed), on);
        assert_eq!(on.after(&Read::Found(data(&[]))), Switch::Off);
        assert_eq!(Switch::Off.after(&Read::Found(suspension().data())), on);
        assert_eq!(
            (Switch::Off.after(&Read::Failed), Switch::Unknown.after(&Read::Failed)),
            (Switch::Off, Switch::Unknown)
        );
        for known in [Switch::Unknown, Switch::Off, on] {
            let missing = known.after(&Read::Absent);
            assert!(missing.why(false, at(999)).unwrap().contains("does not exist"), "{known:?}");
            assert_eq!(missing.after(&Read::Found(data(&[]))), Switch::Off);
        }
        assert!(Switch::Unknown.why(false, at(0)).is_some() && Switch::Off.why(false, at(0)).is_none());
    }

    #[test]
    fn the_configuration_suspends_whatever_the_switch_says() {
        for switch in [Switch::Off, Switch::Unknown, Switch::On(suspension())] {
            assert!(switch.why(true, at(100)).unwrap().contains("eviction.suspend"), "{switch:?}");
        }
        assert!(Switch::On(suspension()).why(true, at(0)).unwrap().contains("INC-42"), "the one with an end is named");
    }
}
