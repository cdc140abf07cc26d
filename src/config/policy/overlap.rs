//! Rules that can never decide, because an earlier rule matches everything that they match, or because no interaction
//! can match them. Pure.
//!
//! Only certain cases are reported: every reported rule is dead, and an unreported rule may be dead too.
//! [`evicts_every_kind`] finds rules that do more than their author may expect.

use super::{Glob, Match, Rule, Verdict};
use crate::mark::{Disposition, Operation, SERVICE_ACCOUNT};

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
            Some(why) => Some(format!("no interaction matches it: {why}")),
            None => rules[..n].iter().find(|earlier| earlier.decides_before(rule)).map(|earlier| {
                let differs = if earlier.action == rule.action { "" } else { ", with another action" };
                format!("the earlier rule {:?} matches everything that it matches{differs}", earlier.name)
            }),
        };
        found.extend(why.map(|why| Dead { rule: rule.name.clone(), why }));
    }
    found
}

/// The names of the rules that also evict bare pods and pods of Jobs, without saying so: they name no kind of owner, and
/// no earlier rule decides about those pods. The author of a rule that is only to change the `ttl` does not expect that.
pub fn evicts_every_kind(rules: &[Rule]) -> impl Iterator<Item = &str> {
    rules.iter().enumerate().filter_map(|(n, rule)| {
        let is_broad =
            matches!(rule.action, Verdict::Mark(Disposition::Evict(_))) && rule.matches.owner_kinds.is_empty();
        let owner_kinds = ["None", "Job"].map(str::to_owned).to_vec();
        let special = Match { owner_kinds, ..rule.matches.clone() };
        let is_decided = rules[..n].iter().any(|earlier| earlier.matches.contains(&special));
        (is_broad && !is_decided).then_some(rule.name.as_str())
    })
}

/// Why no interaction can match these fields together.
fn impossible(matches: &Match) -> Option<String> {
    let Match { operations, interactive, tty, .. } = matches;
    let names_container = |it: &Operation| matches!(it, Operation::Attach | Operation::Debug | Operation::Exec);
    let none_does = !operations.is_empty() && !operations.iter().any(names_container);
    let fixed = if none_does && !matches.containers.is_empty() {
        Some("port-forward, proxy and report name no container")
    } else if none_does && (*interactive == Some(true) || *tty == Some(true)) {
        Some("port-forward, proxy and report have no terminal and no standard input")
    } else if operations.as_slice() == [Operation::Attach] && !matches.command_prefix.is_empty() {
        Some("attach has no command")
    } else if (interactive, tty) == (&Some(false), &Some(true)) {
        Some("an interaction with a terminal is interactive")
    } else if matches.pod_token == Some(true) && matches.names_no_service_account() {
        Some("only ServiceAccounts have the token of a pod")
    } else {
        None
    };
    let selectors = [("podSelector", &matches.pod_selector), ("namespaceSelector", &matches.namespace_selector)];
    let contradiction = || {
        let found = selectors.iter().find_map(|(field, selector)| Some((field, selector.impossible()?)));
        found.map(|(field, key)| format!("no label {key} fulfils all conditions of {field}"))
    };
    fixed.map(str::to_owned).or_else(contradiction)
}

impl Rule {
    /// Whether this one decides about everything that `later` would decide about.
    fn decides_before(&self, later: &Self) -> bool {
        let reports = later.matches.covers_operation(Operation::Report) && later.decides(Operation::Report);
        self.matches.contains(&later.matches) && (!reports || self.decides(Operation::Report))
    }
}

impl Match {
    /// Whether this one matches everything that `other` matches.
    fn contains(&self, other: &Self) -> bool {
        let all = |wide: &[String], narrow: &[String]| {
            wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|value| wide.contains(value)))
        };
        let operations = |matches: &Self, operation| matches.covers_operation(operation);
        // A terminal is interactive, and what is not interactive has no terminal.
        let interactive = match self.interactive {
            None => true,
            Some(true) => other.interactive == Some(true) || other.tty == Some(true),
            Some(false) => other.interactive == Some(false),
        };
        let tty = match self.tty {
            None => true,
            Some(true) => other.tty == Some(true),
            Some(false) => other.tty == Some(false) || other.interactive == Some(false),
        };
        let pod_token = match self.pod_token {
            None => true,
            Some(true) => other.pod_token == Some(true),
            Some(false) => other.pod_token == Some(false) || other.names_no_service_account(),
        };
        (self.namespaces.is_empty()
            || (!other.namespaces.is_empty()
                && other.namespaces.iter().all(|narrow| self.namespaces.iter().any(|wide| wide.contains(narrow)))))
            && all(&self.users, &other.users)
            && all(&self.groups, &other.groups)
            && Operation::ALL.into_iter().all(|it| !operations(other, it) || operations(self, it))
            && all(&self.containers, &other.containers)
            && interactive
            && tty
            && pod_token
            && other.command_prefix.starts_with(&self.command_prefix)
            && self.pod_selector.contains(&other.pod_selector)
            && all(&self.owner_kinds, &other.owner_kinds)
            && self.namespace_selector.contains(&other.namespace_selector)
    }

    /// Whether it is about users by their names, and none of them is a ServiceAccount.
    fn names_no_service_account(&self) -> bool {
        !self.users.is_empty() && self.users.iter().all(|name| !name.starts_with(SERVICE_ACCOUNT))
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
