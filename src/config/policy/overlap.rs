//! Rules that can never decide, because an earlier rule matches everything that they match, or because no interaction
//! can match them. Pure.
//!
//! Only certain cases are reported: every reported rule is dead, and an unreported rule may be dead too.

use super::{Glob, Match, Rule};
use crate::mark::Operation;

/// A rule that never decides, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dead {
    /// Its name.
    pub rule: String,
    /// A sentence that names the other rule, if there is one.
    pub why: String,
}

/// The dead rules, in the order of the file.
#[must_use]
pub fn dead(rules: &[Rule]) -> Vec<Dead> {
    let mut found = Vec::new();
    for (n, rule) in rules.iter().enumerate() {
        let why = match impossible(&rule.matches) {
            Some(why) => Some(why.to_owned()),
            None => rules[..n].iter().find(|earlier| earlier.matches.contains(&rule.matches)).map(|earlier| {
                let differs = if earlier.action == rule.action { "" } else { ", with another action" };
                format!("the earlier rule {:?} matches everything that it matches{differs}", earlier.name)
            }),
        };
        found.extend(why.map(|why| Dead { rule: rule.name.clone(), why }));
    }
    found
}

/// Why no interaction can match these fields together.
fn impossible(matches: &Match) -> Option<&'static str> {
    let operations = &matches.operations;
    if !operations.is_empty() && operations.iter().all(|operation| !operation.enters()) {
        if !matches.containers.is_empty() {
            return Some("no interaction matches it: port-forward and proxy name no container");
        }
        if matches.interactive == Some(true) {
            return Some("no interaction matches it: port-forward and proxy have no terminal and no standard input");
        }
    }
    if operations.as_slice() == [Operation::Attach] && !matches.command_prefix.is_empty() {
        return Some("no interaction matches it: attach has no command");
    }
    None
}

impl Match {
    /// Whether this one matches everything that `other` matches.
    fn contains(&self, other: &Self) -> bool {
        let all = |wide: &[String], narrow: &[String]| {
            wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|value| wide.contains(value)))
        };
        let operations = |matches: &Self, operation| matches.covers_operation(operation);
        let labels = &self.pod_selector.match_labels;
        (self.namespaces.is_empty()
            || (!other.namespaces.is_empty()
                && other.namespaces.iter().all(|narrow| self.namespaces.iter().any(|wide| wide.contains(narrow)))))
            && all(&self.users, &other.users)
            && all(&self.groups, &other.groups)
            && Operation::ALL.into_iter().all(|it| !operations(other, it) || operations(self, it))
            && all(&self.containers, &other.containers)
            && (self.interactive.is_none() || self.interactive == other.interactive)
            && other.command_prefix.starts_with(&self.command_prefix)
            && labels.iter().all(|(key, value)| other.pod_selector.match_labels.get(key) == Some(value))
            && all(&self.owner_kinds, &other.owner_kinds)
    }
}

impl Glob {
    /// Whether this one matches every name that `other` matches, as far as a simple check can decide.
    fn contains(&self, other: &Self) -> bool {
        // A `*` of this one also matches the characters `*` and `?` of the other. A `?` of this one matches only one
        // character, and a `*` of the other matches many.
        self == other || (!self.has('?') && self.matches(&other.text()))
    }
}

#[cfg(test)]
mod tests;
