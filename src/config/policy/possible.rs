//! The decisions that are possible about an interaction of which not everything is known, for example from a line of an
//! audit log, which has no labels and no owner of the pod, and no labels of its namespace. Pure.
//!
//! A rule with a field that is not known may match or not: it decides in one of the possible cases, and the rules after
//! it in the others. A rule of which a known field does not match never decides.

use super::{Attributes, Decision, Match, NamespaceNeeded, Policy};
use crate::mark::{before_quarantine, is_recreated};

/// What is not known about an interaction. That the labels of the namespace are not known, [`Attributes::namespace`] says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one field of a rule, and all combinations occur")]
pub struct Unknown {
    /// The groups of the user.
    pub groups: bool,
    /// The container.
    pub container: bool,
    /// Whether it has a terminal or standard input.
    pub streams: bool,
    /// Whether the user authenticated with the token of a pod.
    pub pod_token: bool,
    /// The command.
    pub command: bool,
    /// The pod, except its namespace and its name.
    pub pod: bool,
}

/// The possible decisions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Possible {
    /// In the order of the rules, without repetitions. Never empty.
    pub decisions: Vec<Decision>,
    /// What the choice between them depends on: `groups`, `container`, `streams`, `pod token`, `command`, `labels`, `owner`,
    /// `labels of the namespace`.
    pub depends_on: Vec<&'static str>,
}

impl Match {
    /// These fields without those whose value is not known, and what they depend on.
    fn known(&self, unknown: Unknown) -> (Self, Vec<&'static str>) {
        // Named one by one: a new field does not compile until it is added here.
        let Self {
            namespaces,
            users,
            groups,
            operations,
            containers,
            interactive,
            tty,
            pod_token,
            command_prefix,
            pod_selector,
            owner_kinds,
            namespace_selector,
        } = self.clone();
        let mut needed = Vec::new();
        let mut known = Self { namespaces, users, operations, namespace_selector, ..Self::default() };
        keep(unknown.groups, "groups", groups, &mut known.groups, &mut needed);
        keep(unknown.container, "container", containers, &mut known.containers, &mut needed);
        keep(unknown.streams, "streams", interactive, &mut known.interactive, &mut needed);
        keep(unknown.streams, "streams", tty, &mut known.tty, &mut needed);
        keep(unknown.pod_token, "pod token", pod_token, &mut known.pod_token, &mut needed);
        keep(unknown.command, "command", command_prefix, &mut known.command_prefix, &mut needed);
        keep(unknown.pod, "labels", pod_selector, &mut known.pod_selector, &mut needed);
        keep(unknown.pod, "owner", owner_kinds, &mut known.owner_kinds, &mut needed);
        (known, needed)
    }
}

/// Puts the field into `known`, or its name into `needed` if it has a value and that cannot be compared.
fn keep<T: Default + PartialEq>(
    is_unknown: bool,
    name: &'static str,
    field: T,
    known: &mut T,
    needed: &mut Vec<&'static str>,
) {
    if !is_unknown {
        *known = field;
    } else if field != T::default() {
        needed.push(name);
    }
}

impl Policy {
    /// As [`decide`](Self::decide), with every decision that is possible. What is not known of `it` may have any value
    /// there.
    #[must_use]
    pub fn possible(&self, it: Attributes<'_>, unknown: Unknown) -> Possible {
        let pod = &*before_quarantine(it.pod);
        let (it, operation) = (Attributes { pod, ..it }, it.interaction.operation);
        let mut found = Possible { decisions: Vec::new(), depends_on: Vec::new() };
        for rule in &self.rules {
            if !rule.decides(operation) {
                continue;
            }
            let (known, mut needed) = rule.matches.known(unknown);
            match known.misses(it) {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(NamespaceNeeded) => needed.push("labels of the namespace"),
            }
            found.add(self.decision(Some(rule), operation, true));
            if needed.is_empty() {
                return found.settled();
            }
            needed.into_iter().for_each(|name| found.need(name));
        }
        let owned: &[bool] = if unknown.pod { &[true, false] } else { &[is_recreated(pod)] };
        let defaults = owned.iter().map(|owned| self.decision(None, operation, *owned));
        let mut defaults: Vec<Decision> = defaults.collect();
        defaults.dedup();
        if defaults.len() > 1 {
            found.need("owner");
        }
        defaults.into_iter().for_each(|decision| found.add(decision));
        found.settled()
    }
}

impl Possible {
    fn add(&mut self, decision: Decision) {
        if !self.decisions.contains(&decision) {
            self.decisions.push(decision);
        }
    }

    fn need(&mut self, name: &'static str) {
        if !self.depends_on.contains(&name) {
            self.depends_on.push(name);
        }
    }

    /// A choice between decisions with one verdict is one of the rule's name only, and depends on nothing that counts.
    fn settled(mut self) -> Self {
        if self.decisions.iter().all(|decision| decision.verdict == self.decisions[0].verdict) {
            self.depends_on.clear();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::policy::{Rule, Verdict},
        mark::{Disposition, Interaction, Operation, User},
    };
    use serde_json::{Value, json};

    const TTL: Duration = Duration::from_secs(60);
    const EVICT: Verdict = Verdict::Mark(Disposition::Evict(TTL));
    const RECORD: Verdict = Verdict::Mark(Disposition::Record);
    const NONE: Unknown =
        Unknown { groups: false, container: false, streams: false, pod_token: false, command: false, pod: false };
    const POD: Unknown = Unknown { pod: true, ..NONE };

    fn possible(default: Verdict, rules: &[(Value, Verdict)], unknown: Unknown) -> (Vec<String>, Vec<&'static str>) {
        possible_in(default, rules, unknown, true)
    }

    fn possible_in(
        default: Verdict,
        rules: &[(Value, Verdict)],
        unknown: Unknown,
        is_namespace_known: bool,
    ) -> (Vec<String>, Vec<&'static str>) {
        let rules = rules.iter().enumerate().map(|(n, (matches, action))| Rule {
            name: format!("r{n}"),
            matches: serde_json::from_value(matches.clone()).unwrap(),
            action: action.clone(),
        });
        let policy = Policy { default, rules: rules.collect() };
        let interaction = Interaction {
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            operation: Operation::Exec,
            container: "app".into(),
            command: vec!["id".into()],
            stdin: false,
            tty: false,
            user: User { name: "alice".into(), groups: vec!["sre".into()], ..User::default() },
            review: "r".into(),
            rule: String::new(),
        };
        let owner = json!([{"apiVersion": "v1", "kind": "StatefulSet", "name": "o", "uid": "o", "controller": true}]);
        let pod = json!({"metadata": {"namespace": "n", "labels": {"tier": "db"}, "ownerReferences": owner}});
        let (pod, labels) = (serde_json::from_value(pod).unwrap(), [("env".to_owned(), "prod".to_owned())].into());
        let (user, argv) = (&interaction.user, interaction.command.as_slice());
        let it = Attributes { interaction: &interaction, user, argv, pod: &pod, namespace: None };
        let it = Attributes { namespace: is_namespace_known.then_some(&labels), ..it };
        let found = policy.possible(it, unknown);
        if unknown == NONE && is_namespace_known {
            assert_eq!(found.decisions, [policy.decide(it).unwrap()]);
        }
        let shown = found.decisions.iter().map(|it| match &it.verdict {
            Verdict::Exempt => format!("{} exempts", it.rule),
            Verdict::Mark(Disposition::Evict(_)) => format!("{} evicts", it.rule),
            Verdict::Mark(_) => format!("{} records", it.rule),
            Verdict::Deny { .. } => format!("{} denies", it.rule),
        });
        (shown.collect(), found.depends_on)
    }

    #[test]
    fn each_unknown_field_leaves_its_rule_and_the_next_one_possible() {
        for (matches, unknown, on) in [
            (json!({"groups": ["x"]}), Unknown { groups: true, ..NONE }, "groups"),
            (json!({"containers": ["x"]}), Unknown { container: true, ..NONE }, "container"),
            (json!({"interactive": true}), Unknown { streams: true, ..NONE }, "streams"),
            (json!({"tty": true}), Unknown { streams: true, ..NONE }, "streams"),
            (json!({"podToken": true}), Unknown { pod_token: true, ..NONE }, "pod token"),
            (json!({"commandPrefix": ["x"]}), Unknown { command: true, ..NONE }, "command"),
            (json!({"podSelector": {"matchLabels": {"a": "b"}}}), POD, "labels"),
            (json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}), POD, "labels"),
            (json!({"ownerKinds": ["x"]}), POD, "owner"),
        ] {
            let rules = [(matches.clone(), Verdict::Exempt), (json!({}), EVICT)];
            let both = vec!["r0 exempts".to_owned(), "r1 evicts".to_owned()];
            assert_eq!(possible(RECORD, &rules, unknown), (both, vec![on]), "{matches}");
            assert_eq!(possible(RECORD, &rules, NONE), (vec!["r1 evicts".to_owned()], vec![]), "{matches}");
        }
    }

    #[test]
    fn without_the_labels_of_the_namespace_a_rule_that_matches_otherwise_and_the_next_one_are_possible() {
        let selects = |mut matches: Value| {
            matches["namespaceSelector"] = json!({"matchLabels": {"env": "test"}});
            [(matches, Verdict::Exempt), (json!({}), EVICT)]
        };
        let second = (vec!["r1 evicts".to_owned()], vec![]);
        let both = vec!["r0 exempts".to_owned(), "r1 evicts".to_owned()];
        assert_eq!(possible(RECORD, &selects(json!({})), NONE), second);
        let found = possible_in(RECORD, &selects(json!({})), NONE, false);
        assert_eq!(found, (both.clone(), vec!["labels of the namespace"]));
        assert_eq!(possible_in(RECORD, &selects(json!({"users": ["bob"]})), NONE, false), second);
        let found = possible_in(RECORD, &selects(json!({"ownerKinds": ["Job"]})), POD, false);
        assert_eq!(found, (both, vec!["owner", "labels of the namespace"]));
    }

    #[test]
    fn a_rule_of_which_a_known_field_does_not_match_never_decides() {
        let rules = [(json!({"users": ["bob"], "podSelector": {"matchLabels": {"a": "b"}}}), Verdict::Exempt)];
        assert_eq!(possible(RECORD, &rules, POD), (vec!["default records".to_owned()], vec![]));
    }

    #[test]
    fn a_rule_without_an_unknown_field_ends_the_possible_ones() {
        let rules = [(json!({"users": ["alice"]}), RECORD), (json!({"ownerKinds": ["Job"]}), EVICT)];
        assert_eq!(possible(EVICT, &rules, POD), (vec!["r0 records".to_owned()], vec![]));
    }

    #[test]
    fn the_default_depends_on_the_owner_only_if_it_evicts() {
        let either = (vec!["default evicts".to_owned(), "default records".to_owned()], vec!["owner"]);
        assert_eq!(possible(EVICT, &[], POD), either);
        assert_eq!(possible(EVICT, &[], NONE), (vec!["default evicts".to_owned()], vec![]));
        assert_eq!(possible(Verdict::Exempt, &[], POD), (vec!["default exempts".to_owned()], vec![]));
    }

    #[test]
    fn rules_with_one_verdict_depend_on_nothing() {
        let rules = [(json!({"ownerKinds": ["Job"]}), RECORD)];
        assert_eq!(
            possible(RECORD, &rules, POD),
            (vec!["r0 records".to_owned(), "default records".to_owned()], vec![])
        );
    }
}
