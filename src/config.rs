//! The configuration file: one versioned kind, parsed strictly, rejected with file, line and field.
//!
//! Every value is checked while it is parsed, so that an error can name its line. A parsed configuration needs no
//! further checks. Pure, except [`read`] and [`load`].

use std::{fs, path::Path, time::Duration};

use policy::{Match, Policy, Rule, Verdict};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::{
    duration,
    eviction::Settings,
    mark::{Disposition, Operation},
};

pub mod explain;
pub mod policy;
pub mod reload;
pub mod source;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "pristine/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "PristineConfiguration";

/// The configuration that is in force while there is no file.
pub const BUILT_IN: &str = include_str!("config/default.yaml");

/// The longest duration: a leap year. `Record` is the action of a rule that never evicts.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Why a configuration was rejected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is invalid. The text has file, line, column and field.
    #[error("{0}")]
    Invalid(String),
}

/// Which interactions with pods Pristine exempts, records or denies, and which pods it evicts afterwards.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "PristineConfiguration")]
struct File {
    /// The version of the format.
    #[serde(rename = "apiVersion", deserialize_with = "api_version")]
    #[schemars(with = "String", extend("const" = API_VERSION))]
    _api_version: (),
    /// The kind of the file.
    #[serde(rename = "kind", deserialize_with = "kind")]
    #[schemars(with = "String", extend("const" = KIND))]
    _kind: (),
    /// The action if no rule matches. It is weaker than in a rule: Evict only records bare pods and pods that run to
    /// completion (of a Job, for example), and Evict and Deny only record port-forward and proxy.
    #[schemars(with = "RawAction")]
    default: Verdict,
    /// Checked in the order of the file: the first rule that matches decides.
    #[serde(default)]
    #[schemars(with = "Vec<RawRule>")]
    rules: Vec<Rule>,
    /// How pods are evicted.
    #[serde(default)]
    eviction: RawEviction,
}

/// How pods are evicted.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "Eviction")]
struct RawEviction {
    /// The longest time from the first interaction to a deadline that a user extends. Default: 24h.
    max_extension: Option<Ttl>,
    /// The longest grace period of an eviction. It replaces a longer `terminationGracePeriodSeconds` of the pod.
    /// Default: no limit.
    max_grace_period: Option<Ttl>,
    /// How long before the deadline Pristine publishes the Event `EvictionSoon`. Default: no such Event.
    warn_before: Option<Ttl>,
    /// The most evictions per minute in the cluster. Up to a tenth of them can happen at once. Default: 600.
    #[schemars(range(min = 1, max = 60000))]
    per_minute: Option<u32>,
    /// Whether Pristine removes from a ReplicaSet's marked pod the labels by which the ReplicaSet and Services select it.
    /// The ReplicaSet creates a replacement at once, and the marked pod remains until its deadline. Requires the
    /// component `quarantine`. Default: false.
    quarantine: bool,
    /// Whether Pristine creates the replacement of a due pod before it evicts the pod, if the pod is the only one of a
    /// Deployment or a PodDisruptionBudget refuses the eviction. Requires the component `surge`. Default: false.
    surge: bool,
    /// Whether Pristine evicts no pod: pods are marked and get deadlines as usual, and a pod that is due has the state
    /// `Suspended`. For observing before evictions are switched on; for an incident, use `kubectl pristine suspend`.
    /// Default: false.
    suspend: bool,
}

/// A parsed configuration.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The rules.
    pub policy: Policy,
    /// How pods are evicted.
    pub eviction: Settings,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Default")]
struct RawAction {
    /// What Pristine does.
    action: ActionName,
    /// With Evict, required: the time from the interaction to the eviction. A later interaction never postpones it.
    ttl: Option<Ttl>,
    /// With Deny: what the user reads. Default: `the rules of this cluster do not allow it`.
    message: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rule")]
struct RawRule {
    /// Unique, not `default`, and part of every record that the rule causes.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    /// The interactions that the rule applies to: every field must match. If absent: every exec, attach and debug.
    #[serde(default, rename = "match")]
    matches: Match,
    /// What Pristine does.
    action: ActionName,
    /// With Evict, required: the time from the interaction to the eviction. A later interaction never postpones it.
    ttl: Option<Ttl>,
    /// With Deny: what the user reads. Default: `the rules of this cluster do not allow it`.
    message: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Action")]
enum ActionName {
    /// Admit the interaction and write nothing.
    Exempt,
    /// Admit the interaction and record it on the pod, without an eviction.
    Record,
    /// Admit the interaction, record it on the pod, and evict the pod after `ttl`.
    Evict,
    /// Deny the interaction with `message`. Break-glass users are admitted and recorded instead.
    Deny,
}

struct Ttl(Duration);

impl JsonSchema for Ttl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let description = "A duration in Go's notation (90s, 10m, 1h30m), from 1s to 8784h.";
        let pattern = r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$";
        json_schema!({ "type": "string", "pattern": pattern, "description": description })
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_ttl(&text).map(Self).map_err(de::Error::custom)
    }
}

/// Parses a duration of the file, in Go's notation (`10m`, `1h30m`, `90s`) and within the bounds.
///
/// # Errors
/// A sentence with the value, and what to write instead.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let parsed = duration::parse(text).map_err(|error| format!("duration {text:?} {error}"))?;
    if parsed < Duration::from_secs(1) {
        return Err(format!("duration {text:?} is too short; the shortest is 1s"));
    }
    if parsed > MAX_DURATION {
        return Err(format!(
            "duration {text:?} is too long; the longest is 8784h; use `action: Record` to never evict"
        ));
    }
    Ok(parsed)
}

fn require<'de, D: Deserializer<'de>>(deserializer: D, field: &str, expected: &str) -> Result<(), D::Error> {
    let found = String::deserialize(deserializer)?;
    if found == expected {
        Ok(())
    } else {
        Err(de::Error::custom(format!("{field} {found:?} is not supported; use {expected}")))
    }
}

fn api_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    require(deserializer, "apiVersion", API_VERSION)
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    require(deserializer, "kind", KIND)
}

fn action(name: ActionName, ttl: Option<Ttl>, message: Option<String>) -> Result<Verdict, String> {
    match (name, ttl, message) {
        (ActionName::Exempt, None, None) => Ok(Verdict::Exempt),
        (ActionName::Record, None, None) => Ok(Verdict::Mark(Disposition::Record)),
        (ActionName::Evict, Some(Ttl(ttl)), None) => Ok(Verdict::Mark(Disposition::Evict(ttl))),
        (ActionName::Evict, None, _) => Err("action Evict needs a ttl, for example `ttl: 10m`".to_owned()),
        (ActionName::Deny, None, message) => Ok(Verdict::Deny {
            message: message.unwrap_or_else(|| "the rules of this cluster do not allow it".to_owned()),
        }),
        (name, Some(_), _) => Err(format!("action {name:?} takes no ttl; only Evict does")),
        (name, _, Some(_)) => Err(format!("action {name:?} takes no message; only Deny does")),
    }
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawAction { action: name, ttl, message } = RawAction::deserialize(deserializer)?;
        action(name, ttl, message).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawRule { name, matches, action: action_name, ttl, message } = RawRule::deserialize(deserializer)?;
        if name.is_empty() || name.len() > 63 || name == "default" {
            return Err(de::Error::custom(format!(
                "rule name {name:?} is invalid: use 1 to 63 characters, and not `default`"
            )));
        }
        let action =
            action(action_name, ttl, message).map_err(|error| de::Error::custom(format!("rule {name:?}: {error}")))?;
        if matches!(action, Verdict::Deny { .. }) && matches.operations.contains(&Operation::Report) {
            return Err(de::Error::custom(format!(
                "rule {name:?}: a report cannot be denied, because it says what has happened; use Evict or Record"
            )));
        }
        Ok(Self { name, matches, action })
    }
}

/// Parses a configuration. `name` is the file in errors.
///
/// # Errors
/// [`Error::Invalid`] with name, line, column and field.
pub fn parse(name: &str, text: &str) -> Result<Configuration, Error> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let message = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
        let Some(at) = error.location() else { return Error::Invalid(format!("{name}: {message}")) };
        // The library appends the position. Editors expect it before the message.
        let message =
            message.strip_suffix(&format!(" at line {}, column {}", at.line(), at.column())).unwrap_or(&message);
        Error::Invalid(format!("{name}:{}:{}: {message}", at.line(), at.column()))
    })?;
    for (n, rule) in file.rules.iter().enumerate() {
        if file.rules[..n].iter().any(|earlier| earlier.name == rule.name) {
            return Err(Error::Invalid(format!(
                "{name}: rules[{n}].name: an earlier rule has the name {:?}",
                rule.name
            )));
        }
    }
    let raw = file.eviction;
    let defaults = Settings::default();
    let per_minute = raw.per_minute.unwrap_or(defaults.per_minute);
    if !(1..=60_000).contains(&per_minute) {
        return Err(Error::Invalid(format!(
            "{name}: eviction.perMinute: {per_minute} is out of range; use 1 to 60000"
        )));
    }
    let eviction = Settings {
        max_extension: raw.max_extension.map_or(defaults.max_extension, |Ttl(longest)| longest),
        max_grace_period: raw.max_grace_period.map(|Ttl(longest)| longest),
        warn_before: raw.warn_before.map(|Ttl(before)| before),
        per_minute,
        quarantine: raw.quarantine,
        surge: raw.surge,
        suspend: raw.suspend,
    };
    Ok(Configuration { policy: Policy { default: file.default, rules: file.rules }, eviction })
}

/// Those of these rules that are not word for word built in: in many clusters it is normal that one of those never decides.
#[must_use]
pub fn own(rules: &[Rule]) -> Vec<&Rule> {
    let built_in = parse("the built-in configuration", BUILT_IN).map(|read| read.policy.rules).unwrap_or_default();
    rules.iter().filter(|rule| !built_in.contains(rule)).collect()
}

/// The JSON Schema of the file, for editors and for policies that check the ConfigMap.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(File);
    serde_json::to_string_pretty(&schema).expect("a schema serialises") + "\n"
}

/// Reads the text of a configuration file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.display().to_string(), source })
}

/// Reads a configuration file.
///
/// # Errors
/// When it cannot be read, or is invalid.
pub fn load(path: &Path) -> Result<Configuration, Error> {
    parse(&path.display().to_string(), &read(path)?)
}

#[cfg(test)]
mod tests;
