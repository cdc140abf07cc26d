//! Rules → verdict: what happens to a pod that somebody interacts with.
//!
//! Pure. The first rule that matches decides; the default decides when none does. A list that is empty or absent in a
//! rule matches everything, as in Kubernetes' own webhook rules.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::mark::{Disposition, Interaction, Operation, User, before_quarantine, is_recreated, owner::controller};

pub mod conditions;
mod glob;
pub mod overlap;
pub use glob::Glob;

/// What a rule does about an interaction. It is the one form of the decision from the configuration file to the answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The interaction is admitted and nothing is written.
    Exempt,
    /// The interaction is admitted with a mark on the pod.
    Mark(Disposition),
    /// The interaction is denied.
    Deny {
        /// What the user reads.
        message: String,
    },
}

/// A verdict and the rule that gave it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// The rule's name, or `default`.
    pub rule: String,
}

/// The rules in force.
#[derive(Clone, Debug)]
pub struct Policy {
    /// When no rule matches.
    pub default: Verdict,
    /// In order; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// One named rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Unique in the file; it is in every record that the rule causes.
    pub name: String,
    /// To which interactions it applies.
    pub matches: Match,
    /// What it does.
    pub action: Verdict,
}

/// All the lists must match; within one list, any entry.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Match {
    /// Namespaces, `*` and `?` allowed.
    pub namespaces: Vec<Glob>,
    /// User names, exactly. Never prefixes: `system:serviceaccount:` would be a trap.
    pub users: Vec<String>,
    /// Groups, exactly; one of the user's must be listed.
    pub groups: Vec<String>,
    /// `exec`, `attach`, `debug`; these three if there is none. And `port-forward`, `proxy`.
    pub operations: Vec<Operation>,
    /// Container names, exactly.
    pub containers: Vec<String>,
    /// `true` for a terminal or standard input, `false` for neither.
    pub interactive: Option<bool>,
    /// The first words of the command.
    pub command_prefix: Vec<String>,
    /// Labels of the pod.
    pub pod_selector: Selector,
    /// Kinds of the pod's controller (`ReplicaSet`, `StatefulSet`, `DaemonSet`, `Job`, …), or `None` for a bare pod.
    pub owner_kinds: Vec<String>,
}

/// As in Kubernetes, `matchLabels` alone.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    /// All of these labels with these values.
    pub match_labels: BTreeMap<String, String>,
}

/// Kind of the pod's controller.
#[must_use]
pub fn owner_kind(pod: &Pod) -> Option<&str> {
    controller(pod).map(|owner| owner.kind.as_str())
}

impl Policy {
    /// What to do about this interaction with this pod. User and command are given as the API server sent them: those
    /// in the interaction are bounded and redacted, and a rule must not be escaped by a 33rd group.
    #[must_use]
    pub fn decide(&self, interaction: &Interaction, user: &User, argv: &[String], pod: &Pod) -> Decision {
        let pod = &*before_quarantine(pod);
        let matching = self.rules.iter().find(|rule| rule.matches.covers(interaction, user, argv, pod));
        let (action, rule) = matching.map_or((&self.default, "default"), |rule| (&rule.action, rule.name.as_str()));
        let verdict = match action {
            Verdict::Exempt | Verdict::Mark(Disposition::Record) => action.clone(),
            _ if matching.is_none() && !interaction.operation.enters() => Verdict::Mark(Disposition::Record),
            // Nothing recreates a bare pod, and evicting a pod that runs to completion counts as a failure. Only a named
            // rule may evict these.
            Verdict::Mark(Disposition::Evict(ttl)) if matching.is_none() && !is_recreated(pod) => {
                Verdict::Mark(Disposition::EvictIfOwned(*ttl))
            }
            Verdict::Mark(_) | Verdict::Deny { .. } => action.clone(),
        };
        Decision { verdict, rule: rule.to_owned() }
    }
}

impl Match {
    fn covers(&self, interaction: &Interaction, user: &User, argv: &[String], pod: &Pod) -> bool {
        self.misses(interaction, user, argv, pod).is_none()
    }

    /// The first field that does not match.
    #[must_use]
    pub fn misses(&self, interaction: &Interaction, user: &User, argv: &[String], pod: &Pod) -> Option<&'static str> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.as_ref();
        let labelled = |(key, value)| labels.and_then(|all| all.get(key)) == Some(value);
        let interactive = interaction.stdin || interaction.tty;
        // In order of cost: most rules of a long file are about other namespaces.
        if !any(&self.namespaces, |glob| glob.matches(namespace)) {
            Some("namespaces")
        } else if !any(&self.users, |name| *name == user.name) {
            Some("users")
        } else if !self.covers_operation(interaction.operation) {
            Some("operations")
        } else if !any(&self.groups, |group| user.groups.contains(group)) {
            Some("groups")
        } else if !any(&self.containers, |container| *container == interaction.container) {
            Some("containers")
        } else if self.interactive.is_some_and(|wanted| wanted != interactive) {
            Some("interactive")
        } else if !argv.starts_with(&self.command_prefix) {
            Some("commandPrefix")
        } else if !self.pod_selector.match_labels.iter().all(labelled) {
            Some("podSelector")
        } else if !any(&self.owner_kinds, |kind| kind == owner_kind(pod).unwrap_or("None")) {
            Some("ownerKinds")
        } else {
            None
        }
    }

    /// Ports are reached all the time by tools; a rule is about them only if it names them.
    fn covers_operation(&self, operation: Operation) -> bool {
        if self.operations.is_empty() { operation.enters() } else { self.operations.contains(&operation) }
    }
}

fn any<T>(list: &[T], found: impl FnMut(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(found)
}

#[cfg(test)]
mod tests;
