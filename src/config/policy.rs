//! The rules: which verdict an interaction with a pod gets.
//!
//! Pure. The first rule that matches decides, and the default if none does. A list that is empty or absent in a rule
//! matches everything, as an empty selector of a Kubernetes webhook does. The exception is `operations`.

use k8s_openapi::api::core::v1::Pod;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::mark::{Disposition, Interaction, Operation, User, before_quarantine, is_recreated, owner::controller};

pub mod conditions;
mod glob;
pub mod overlap;
pub mod possible;
mod selector;
pub use glob::Glob;
pub use selector::{Labels, Selector};

/// What a rule does about an interaction: one type, from the configuration file to the answer.
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

/// A verdict, and the rule that decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule's name, or `default`.
    pub rule: String,
}

/// The rules in force.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The verdict if no rule matches.
    pub default: Verdict,
    /// In the order of the file: the first that matches decides.
    pub rules: Vec<Rule>,
}

/// One named rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Unique in the file, and part of every record that the rule causes.
    pub name: String,
    /// The interactions to which it applies.
    pub matches: Match,
    /// Its verdict.
    pub action: Verdict,
}

/// Every field must match: of a list, one entry. An absent or empty field matches everything, except `operations`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Match {
    /// Namespaces of the pod.
    pub namespaces: Vec<Glob>,
    /// Exact user names. Prefixes are not supported: `system:serviceaccount:` would match every service account.
    pub users: Vec<String>,
    /// Exact group names. The user must be in one of them.
    pub groups: Vec<String>,
    /// `exec` (also `kubectl cp`), `attach`, `debug` (ephemeral containers), `report` (of a detector), `port-forward`,
    /// `proxy`. If absent: the first four; a rule with the action Deny never applies to a report.
    pub operations: Vec<Operation>,
    /// Exact container names. port-forward, proxy and reports have no container.
    pub containers: Vec<String>,
    /// `true`: only with a terminal or standard input. `false`: only with neither. If absent: both.
    pub interactive: Option<bool>,
    /// `true`: only with a terminal (`kubectl exec -t`). `false`: only without one. If absent: both.
    pub tty: Option<bool>,
    /// `true`: only users who authenticated with the token of a pod, as programs in the cluster do. `false`: only other
    /// users, also those of `kubectl --as`, `kubectl create token` and tokens in a Secret. If absent: both.
    pub pod_token: Option<bool>,
    /// The first words of the command, each compared exactly. attach has no command. The words of a report are one word.
    pub command_prefix: Vec<String>,
    /// Labels of the pod. A quarantined pod matches by the labels it had before.
    pub pod_selector: Selector,
    /// The kind of the pod's controller (`ReplicaSet`, `StatefulSet`, `DaemonSet`, `Job`, …), or `None` for a bare pod.
    pub owner_kinds: Vec<String>,
    /// Labels of the pod's namespace.
    pub namespace_selector: Selector,
}

/// What rules compare.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// The interaction.
    pub interaction: &'a Interaction,
    /// The user, as the API server sent it. In the interaction it is bounded and redacted, and a user must not escape a
    /// rule by a 33rd group.
    pub user: &'a User,
    /// The command, as the API server sent it, for the same reason.
    pub argv: &'a [String],
    /// The pod.
    pub pod: &'a Pod,
    /// The labels of the pod's namespace, if they were read.
    pub namespace: Option<&'a Labels>,
}

/// The decision depends on the labels of the pod's namespace, which were not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NamespaceNeeded;

/// The kind of the pod's controller.
#[must_use]
pub fn owner_kind(pod: &Pod) -> Option<&str> {
    controller(pod).map(|owner| owner.kind.as_str())
}

impl Policy {
    /// The verdict on this interaction with this pod.
    ///
    /// # Errors
    /// If a rule that matches otherwise has a `namespaceSelector`, and the labels of the namespace were not read.
    pub fn decide(&self, it: Attributes<'_>) -> Result<Decision, NamespaceNeeded> {
        let pod = &*before_quarantine(it.pod);
        let it = Attributes { pod, ..it };
        let mut matching = None;
        for rule in &self.rules {
            if rule.misses(it)?.is_none() {
                matching = Some(rule);
                break;
            }
        }
        Ok(self.decision(matching, it.interaction.operation, is_recreated(pod)))
    }

    /// The decision of the rule that matches, or of the default.
    fn decision(&self, matching: Option<&Rule>, operation: Operation, is_recreated: bool) -> Decision {
        let (action, rule) = matching.map_or((&self.default, "default"), |rule| (&rule.action, rule.name.as_str()));
        let verdict = match action {
            Verdict::Exempt | Verdict::Mark(Disposition::Record) => action.clone(),
            _ if matching.is_none() && !operation.enters() => Verdict::Mark(Disposition::Record),
            Verdict::Deny { .. } if operation == Operation::Report => Verdict::Mark(Disposition::Record),
            // Nothing recreates a bare pod, and evicting a pod that runs to completion counts as a failure. Only a rule
            // may evict these.
            Verdict::Mark(Disposition::Evict(ttl)) if matching.is_none() && !is_recreated => {
                Verdict::Mark(Disposition::EvictIfOwned(*ttl))
            }
            Verdict::Mark(_) | Verdict::Deny { .. } => action.clone(),
        };
        Decision { verdict, rule: rule.to_owned() }
    }
}

impl Rule {
    /// As [`Match::misses`], and `action` for a report if the rule denies: what has happened cannot be denied.
    ///
    /// # Errors
    /// As [`Match::misses`].
    pub fn misses(&self, it: Attributes<'_>) -> Result<Option<&'static str>, NamespaceNeeded> {
        if self.decides(it.interaction.operation) { self.matches.misses(it) } else { Ok(Some("action")) }
    }

    const fn decides(&self, operation: Operation) -> bool {
        !matches!((&self.action, operation), (Verdict::Deny { .. }, Operation::Report))
    }
}

impl Match {
    /// The first field that does not match.
    ///
    /// # Errors
    /// If every other field matches, and the labels of the namespace were not read.
    pub fn misses(&self, it: Attributes<'_>) -> Result<Option<&'static str>, NamespaceNeeded> {
        let Attributes { interaction, user, argv, pod, .. } = it;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let interactive = interaction.stdin || interaction.tty;
        // In the order of cost: most rules of a long file are for other namespaces, and the labels of the namespace are read
        // only for a rule that matches otherwise.
        let missed = if !any(&self.namespaces, |glob| glob.matches(namespace)) {
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
        } else if self.tty.is_some_and(|wanted| wanted != interaction.tty) {
            Some("tty")
        } else if self.pod_token.is_some_and(|wanted| wanted != user.has_pod_token()) {
            Some("podToken")
        } else if !argv.starts_with(&self.command_prefix) {
            Some("commandPrefix")
        } else if !self.pod_selector.matches(labels) {
            Some("podSelector")
        } else if !any(&self.owner_kinds, |kind| kind == owner_kind(pod).unwrap_or("None")) {
            Some("ownerKinds")
        } else if self.namespace_selector.is_empty() {
            None
        } else {
            let labels = it.namespace.ok_or(NamespaceNeeded)?;
            (!self.namespace_selector.matches(labels)).then_some("namespaceSelector")
        };
        Ok(missed)
    }

    /// Tools use port-forward and proxy all the time, so a rule applies to them only if it names them.
    fn covers_operation(&self, operation: Operation) -> bool {
        if self.operations.is_empty() { operation.enters() } else { self.operations.contains(&operation) }
    }
}

fn any<T>(list: &[T], found: impl FnMut(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(found)
}

#[cfg(test)]
mod tests;
