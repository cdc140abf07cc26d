//! Label selectors as in Kubernetes, with the same validation: otherwise a typo would be a rule that never applies,
//! without an error. Pure.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector as in Kubernetes: every label and every expression must match.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    /// The labels that the object must have, with exact values.
    #[serde(deserialize_with = "match_labels")]
    pub match_labels: Labels,
    /// Conditions on labels.
    #[schemars(with = "Vec<RawRequirement>")]
    pub match_expressions: Vec<Requirement>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Requirement")]
struct RawRequirement {
    /// A label's key.
    key: Key,
    /// `In`, `NotIn` (the label has another value, or does not exist), `Exists` or `DoesNotExist`.
    operator: Operator,
    /// With In and NotIn, required: the values. The others take none.
    #[serde(default)]
    values: Vec<LabelValue>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
enum Operator {
    /// The label has one of the values.
    In,
    /// The label has another value, or does not exist.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

/// One of `matchExpressions`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The condition on its value.
    pub condition: Condition,
}

/// What a label must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// The label has one of the values.
    In(BTreeSet<String>),
    /// The label has another value, or does not exist.
    NotIn(BTreeSet<String>),
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

impl<'de> Deserialize<'de> for Requirement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawRequirement { key: Key(key), operator, values } = RawRequirement::deserialize(deserializer)?;
        let values: BTreeSet<String> = values.into_iter().map(|LabelValue(value)| value).collect();
        let condition = match (operator, values.is_empty()) {
            (Operator::In, false) => Condition::In(values),
            (Operator::NotIn, false) => Condition::NotIn(values),
            (Operator::Exists, true) => Condition::Exists,
            (Operator::DoesNotExist, true) => Condition::DoesNotExist,
            (_, true) => {
                return Err(de::Error::custom(format!("label {key:?}: operator {operator:?} needs values")));
            }
            (_, false) => {
                let message = format!("label {key:?}: operator {operator:?} takes no values; only In and NotIn do");
                return Err(de::Error::custom(message));
            }
        };
        Ok(Self { key, condition })
    }
}

/// A label's key.
#[derive(Eq, JsonSchema, Ord, PartialEq, PartialOrd)]
struct Key(
    #[schemars(
        with = "String",
        regex(pattern = r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
    )]
    String,
);

/// With In and NotIn, required: the values. The others take none.
#[derive(JsonSchema)]
struct LabelValue(
    #[schemars(with = "String", regex(pattern = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"))] String,
);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (prefix, name) = text.split_once('/').map_or((None, text.as_str()), |(prefix, name)| (Some(prefix), name));
        if is_word(name) && prefix.is_none_or(is_subdomain) {
            return Ok(Self(text));
        }
        let message = format!(
            "label key {text:?} is invalid: use at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with \
             a letter or a digit; before it, a DNS name and `/` are allowed"
        );
        Err(de::Error::custom(message))
    }
}

impl<'de> Deserialize<'de> for LabelValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || is_word(&text) {
            return Ok(Self(text));
        }
        let message = format!(
            "label value {text:?} is invalid: use at most 63 letters, digits, `-`, `_` and `.`, beginning and ending \
             with a letter or a digit"
        );
        Err(de::Error::custom(message))
    }
}

fn match_labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    let labels = BTreeMap::<Key, LabelValue>::deserialize(deserializer)?;
    Ok(labels.into_iter().map(|(Key(key), LabelValue(value))| (key, value)).collect())
}

/// `IsQualifiedName` of apimachinery, the part after the prefix; also `IsValidLabelValue` of a value that is not empty.
fn is_word(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && text.chars().all(allowed) && ends(text.chars().next()) && ends(text.chars().next_back())
}

/// `IsDNS1123Subdomain` of apimachinery.
fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        part.chars().all(allowed) && ends(part.chars().next()) && ends(part.chars().next_back())
    };
    text.len() <= 253 && text.split('.').all(part)
}

impl Selector {
    /// Whether it has no condition, and so matches everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether an object with these labels matches.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|one| one.condition.holds(labels.get(&one.key)))
    }

    /// What it demands of each label that it names.
    fn demands(&self) -> BTreeMap<&str, Demand<'_>> {
        let mut all: BTreeMap<&str, Demand<'_>> = BTreeMap::new();
        for (key, value) in &self.match_labels {
            all.entry(key).or_default().only([value.as_str()].into());
        }
        for Requirement { key, condition } in &self.match_expressions {
            let demand = all.entry(key).or_default();
            match condition {
                Condition::In(values) => demand.only(values.iter().map(String::as_str).collect()),
                Condition::NotIn(values) => demand.not.extend(values.iter().map(String::as_str)),
                Condition::Exists => demand.exists = true,
                Condition::DoesNotExist => demand.is_absent = true,
            }
        }
        all
    }

    /// A key whose conditions no label fulfils.
    pub(super) fn impossible(&self) -> Option<&str> {
        self.demands().into_iter().find(|(_, demand)| demand.is_impossible()).map(|(key, _)| key)
    }

    /// Whether it matches all labels that `other` matches. For one that nothing matches, the answer may be either.
    pub(super) fn contains(&self, other: &Self) -> bool {
        let narrow = other.demands();
        let none = Demand::default();
        let demand = |key: &str| narrow.get(key).unwrap_or(&none);
        self.match_labels.iter().all(|(key, value)| demand(key).is_within(|one| one == value))
            && self.match_expressions.iter().all(|one| one.condition.follows(demand(&one.key)))
    }
}

/// Everything that one selector demands of one label.
#[derive(Default)]
struct Demand<'a> {
    /// The values of which it must have one, if that is demanded.
    only: Option<BTreeSet<&'a str>>,
    not: BTreeSet<&'a str>,
    exists: bool,
    is_absent: bool,
}

impl<'a> Demand<'a> {
    fn only(&mut self, values: BTreeSet<&'a str>) {
        self.only = Some(match self.only.take() {
            Some(before) => before.intersection(&values).copied().collect(),
            None => values,
        });
    }

    fn is_impossible(&self) -> bool {
        (self.is_absent && (self.exists || self.only.is_some())) || self.is_within(|_| false)
    }

    /// Whether the label exists, with a value of a known list, and each of these is accepted.
    fn is_within(&self, accepts: impl Fn(&str) -> bool) -> bool {
        self.only.as_ref().is_some_and(|only| only.difference(&self.not).all(|value| accepts(value)))
    }
}

impl Condition {
    fn holds(&self, value: Option<&String>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }

    /// Whether it holds for every label that fulfils the demand.
    fn follows(&self, demand: &Demand<'_>) -> bool {
        match self {
            Self::In(values) => demand.is_within(|value| values.contains(value)),
            Self::NotIn(values) => {
                demand.is_absent
                    || demand.is_within(|value| !values.contains(value))
                    || values.iter().all(|value| demand.not.contains(value.as_str()))
            }
            Self::Exists => demand.exists || demand.only.is_some(),
            Self::DoesNotExist => demand.is_absent,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
