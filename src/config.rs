//! The configuration file: one versioned kind, read strictly, refused with file, line and field.
//!
//! Every value is checked while it is read, so that an error can point at its line; what comes out needs no further
//! checks.

use std::{fs, path::Path, time::Duration};

use policy::{Match, Policy, Rule, Verdict};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use crate::{duration, eviction::Settings, mark::Disposition};

pub mod explain;
pub mod policy;
pub mod reload;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "pristine/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "PristineConfiguration";

/// The longest time to live: a year. Past that a rule means to record, and should say so.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not say what it should; the text has file, line, column and field.
    #[error("{0}")]
    Invalid(String),
}

/// What happens to a pod that somebody interacts with.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "PristineConfiguration")]
struct File {
    #[serde(rename = "apiVersion", deserialize_with = "api_version")]
    #[schemars(with = "String", extend("const" = API_VERSION))]
    _api_version: (),
    #[serde(rename = "kind", deserialize_with = "kind")]
    #[schemars(with = "String", extend("const" = KIND))]
    _kind: (),
    /// When no rule matches. Bare pods and what runs to its end, as pods of Jobs do, are recorded by it where it says Evict.
    #[schemars(with = "RawAction")]
    default: Verdict,
    /// The first rule that matches decides.
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
    /// From the first interaction to the latest deadline that users can ask for. 24h if absent.
    max_extension: Option<Ttl>,
    /// A longer grace period of a pod is cut to this.
    max_grace_period: Option<Ttl>,
    /// An Event is told this long before the deadline.
    warn_before: Option<Ttl>,
    /// Evictions of a minute, a tenth of them at once. 600 if absent.
    #[schemars(range(min = 1, max = 60000))]
    per_minute: Option<u32>,
    /// Whether a pod of a ReplicaSet loses the labels that its ReplicaSet and its Services select it by, so that a fresh
    /// one takes its place at once, and stays until its deadline. Needs the component `quarantine`. false if absent.
    quarantine: bool,
}

/// What the file says.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// What is done about an interaction.
    pub policy: Policy,
    /// How pods are evicted.
    pub eviction: Settings,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Default")]
struct RawAction {
    action: ActionName,
    /// With Evict: from the interaction to the eviction.
    ttl: Option<Ttl>,
    /// With Deny: what the user is told.
    message: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rule")]
struct RawRule {
    /// Unique; it is in every record that the rule causes.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    #[serde(default, rename = "match")]
    matches: Match,
    action: ActionName,
    /// With Evict: from the interaction to the eviction.
    ttl: Option<Ttl>,
    /// With Deny: what the user is told.
    message: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Action")]
enum ActionName {
    /// Admit and write nothing.
    Exempt,
    /// Admit and mark, never evict.
    Record,
    /// Admit, mark, and evict after `ttl`.
    Evict,
    /// Refuse with `message`.
    Deny,
}

struct Ttl(Duration);

impl JsonSchema for Ttl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let description = "As Go writes durations: 90s, 10m, 1h30m. From 1s to 8784h.";
        json_schema!({ "type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$", "description": description })
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_ttl(&text).map(Self).map_err(de::Error::custom)
    }
}

/// Parses a duration as Go does (`10m`, `1h30m`, `90s`), within the bounds of a time to live.
///
/// # Errors
/// A sentence with the value and what to write instead.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text).map_err(|error| format!("ttl {text:?} {error}"))?;
    if ttl < Duration::from_secs(1) {
        return Err(format!("ttl {text:?} is too short; the shortest is 1s"));
    }
    if ttl > MAX_TTL {
        return Err(format!("ttl {text:?} is too long; the longest is 8784h, and `action: Record` never evicts"));
    }
    Ok(ttl)
}

fn expect<'de, D: Deserializer<'de>>(deserializer: D, expected: &str) -> Result<(), D::Error> {
    let found = String::deserialize(deserializer)?;
    if found == expected {
        Ok(())
    } else {
        Err(de::Error::custom(format!("{found:?} is not known here; write {expected}")))
    }
}

fn api_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    expect(deserializer, API_VERSION)
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    expect(deserializer, KIND)
}

fn action(name: ActionName, ttl: Option<Ttl>, message: Option<String>) -> Result<Verdict, String> {
    match (name, ttl, message) {
        (ActionName::Exempt, None, None) => Ok(Verdict::Exempt),
        (ActionName::Record, None, None) => Ok(Verdict::Mark(Disposition::Record)),
        (ActionName::Evict, Some(Ttl(ttl)), None) => Ok(Verdict::Mark(Disposition::Evict(ttl))),
        (ActionName::Evict, None, _) => Err("action Evict needs a ttl, for example `ttl: 10m`".to_owned()),
        (ActionName::Deny, None, message) => Ok(Verdict::Deny {
            message: message.unwrap_or_else(|| "the policy of this cluster does not allow it".to_owned()),
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
        let RawRule { name, matches, action: word, ttl, message } = RawRule::deserialize(deserializer)?;
        if name.is_empty() || name.len() > 63 || name == "default" {
            return Err(de::Error::custom(format!("rule name {name:?}: use 1 to 63 characters, and not `default`")));
        }
        let action =
            action(word, ttl, message).map_err(|error| de::Error::custom(format!("rule {name:?}: {error}")))?;
        Ok(Self { name, matches, action })
    }
}

/// Reads a configuration from text; `name` is what errors call it.
///
/// # Errors
/// [`Error::Invalid`] with name, line, column and field.
pub fn parse(name: &str, text: &str) -> Result<Configuration, Error> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let message = error.without_snippet().to_string();
        let Some(at) = error.location() else { return Error::Invalid(format!("{name}: {message}")) };
        // The library ends with the place; it belongs in front, where editors and people look for it.
        let message =
            message.strip_suffix(&format!(" at line {}, column {}", at.line(), at.column())).unwrap_or(&message);
        Error::Invalid(format!("{name}:{}:{}: {message}", at.line(), at.column()))
    })?;
    for (n, rule) in file.rules.iter().enumerate() {
        if file.rules[..n].iter().any(|earlier| earlier.name == rule.name) {
            return Err(Error::Invalid(format!("{name}: rules[{n}].name: {:?} names two rules", rule.name)));
        }
    }
    let raw = file.eviction;
    let standard = Settings::default();
    let per_minute = raw.per_minute.unwrap_or(standard.per_minute);
    if !(1..=60_000).contains(&per_minute) {
        return Err(Error::Invalid(format!("{name}: eviction.perMinute: {per_minute} is not between 1 and 60000")));
    }
    let eviction = Settings {
        max_extension: raw.max_extension.map_or(standard.max_extension, |Ttl(longest)| longest),
        max_grace_period: raw.max_grace_period.map(|Ttl(longest)| longest),
        warn_before: raw.warn_before.map(|Ttl(before)| before),
        per_minute,
        quarantine: raw.quarantine,
    };
    Ok(Configuration { policy: Policy { default: file.default, rules: file.rules }, eviction })
}

/// The JSON Schema of the file, for editors and for policies about ConfigMaps.
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
/// When it cannot be read, or does not say what it should.
pub fn load(path: &Path) -> Result<Configuration, Error> {
    parse(&path.display().to_string(), &read(path)?)
}

#[cfg(test)]
mod tests;
