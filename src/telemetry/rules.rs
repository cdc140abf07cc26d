//! How often each rule in force has decided. A rule that never decides may name the wrong user or namespace, and nothing
//! else shows that.
//!
//! The label has the names of the rules, so the configuration alone determines the number of series.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// The rule's name where no rule matches.
const DEFAULT: &str = "default";

/// Label of the metrics about rules.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct RuleLabel {
    rule: String,
}

/// The decisions of each rule in force, and of the default.
#[derive(Default)]
pub struct Rules {
    decisions: Family<RuleLabel, Counter>,
    last: Family<RuleLabel, Gauge<f64, AtomicU64>>,
    in_force: Mutex<BTreeMap<String, InForce>>,
}

struct InForce {
    since: Timestamp,
    has_decided: bool,
}

impl Rules {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Interactions that this rule decided, as the replica's audit log lists them; from 0 when the rule is \
                    loaded or changed";
        registry.register("rule_decisions", help, self.decisions.clone());
        let help = "When this rule decided last, in seconds since 1970; no value before its first decision";
        registry.register_with_unit("rule_last_decision_timestamp", help, Unit::Seconds, self.last.clone());
    }

    /// Counts for these rules from now on, and no longer for others. The counts of rules that are unchanged go on; all
    /// others begin at zero.
    pub fn load<'a>(&self, rules: impl IntoIterator<Item = (&'a str, IsUnchanged)>, now: Timestamp) {
        let mut in_force = self.lock();
        let mut before = std::mem::take(&mut *in_force);
        for (name, IsUnchanged(is_unchanged)) in rules.into_iter().chain([(DEFAULT, IsUnchanged(true))]) {
            let known = before.remove(name).filter(|_| is_unchanged);
            if known.is_none() {
                self.remove(name);
            }
            drop(self.decisions.get_or_create(&label(name)));
            in_force.insert(name.to_owned(), known.unwrap_or(InForce { since: now, has_decided: false }));
        }
        before.keys().for_each(|name| self.remove(name));
    }

    /// Counts a decision. A rule that is no longer in force is not counted, so that its series do not come back.
    pub fn decided(&self, rule: &str, at: Timestamp) {
        let mut in_force = self.lock();
        let Some(known) = in_force.get_mut(rule) else { return };
        known.has_decided = true;
        self.decisions.get_or_create(&label(rule)).inc();
        self.last.get_or_create(&label(rule)).set(at.as_duration().as_secs_f64());
    }

    /// The rules in force that have not decided yet, with the time since which they are in force.
    #[must_use]
    pub fn undecided(&self) -> BTreeMap<String, Timestamp> {
        let in_force = self.lock();
        let undecided = in_force.iter().filter(|(name, known)| !known.has_decided && *name != DEFAULT);
        undecided.map(|(name, known)| (name.clone(), known.since)).collect()
    }

    fn remove(&self, name: &str) {
        self.decisions.remove(&label(name));
        self.last.remove(&label(name));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, InForce>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a rule was in force before, word for word.
#[derive(Clone, Copy, Debug)]
pub struct IsUnchanged(pub bool);

fn label(rule: &str) -> RuleLabel {
    RuleLabel { rule: rule.to_owned() }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::Metrics;

    use super::*;

    const NEW: IsUnchanged = IsUnchanged(false);
    const SAME: IsUnchanged = IsUnchanged(true);

    /// The series of rules, sorted.
    fn series(metrics: &Metrics) -> Vec<String> {
        let text = metrics.render();
        let mut lines: Vec<_> =
            text.lines().filter(|line| line.starts_with("pristine_rule_")).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    fn decisions(rule: &str, count: u32) -> String {
        format!("pristine_rule_decisions_total{{rule=\"{rule}\"}} {count}")
    }

    #[test]
    fn every_rule_is_at_zero_until_it_decides() {
        let metrics = Metrics::default();
        let [start, later] = [100, 200].map(|second| Timestamp::from_second(second).unwrap());
        metrics.rules.load([("a", NEW), ("b", NEW)], start);
        assert_eq!(series(&metrics), [decisions("a", 0), decisions("b", 0), decisions("default", 0)]);
        assert_eq!(metrics.rules.undecided(), [("a".to_owned(), start), ("b".to_owned(), start)].into());
        metrics.rules.decided("a", later);
        metrics.rules.decided("a", later);
        metrics.rules.decided("default", later);
        let last = |rule| format!("pristine_rule_last_decision_timestamp_seconds{{rule=\"{rule}\"}} 200.0");
        let expected = [decisions("a", 2), decisions("b", 0), decisions("default", 1), last("a"), last("default")];
        assert_eq!(series(&metrics), expected);
        assert_eq!(metrics.rules.undecided(), [("b".to_owned(), start)].into());
    }

    #[test]
    fn a_reload_keeps_the_counts_of_unchanged_rules_alone() {
        let metrics = Metrics::default();
        let [start, later] = [100, 200].map(|second| Timestamp::from_second(second).unwrap());
        metrics.rules.load([("same", NEW), ("changed", NEW), ("gone", NEW), ("idle", NEW)], start);
        for rule in ["same", "changed", "gone", "default"] {
            metrics.rules.decided(rule, start);
        }
        metrics.rules.load([("new", NEW), ("idle", SAME), ("same", SAME), ("changed", NEW)], later);
        // Of a review that began before the reload.
        metrics.rules.decided("gone", later);
        let last = |rule| format!("pristine_rule_last_decision_timestamp_seconds{{rule=\"{rule}\"}} 100.0");
        let counts = [("changed", 0), ("default", 1), ("idle", 0), ("new", 0), ("same", 1)];
        let mut expected = counts.map(|(rule, count)| decisions(rule, count)).to_vec();
        expected.extend([last("default"), last("same")]);
        assert_eq!(series(&metrics), expected);
        let undecided = [("changed", later), ("idle", start), ("new", later)];
        assert_eq!(metrics.rules.undecided(), undecided.map(|(rule, since)| (rule.to_owned(), since)).into());
    }

    #[test]
    fn any_name_of_a_rule_is_a_valid_label() {
        let metrics = Metrics::default();
        metrics.rules.load([("say \"hi\"\n\\", NEW)], Timestamp::UNIX_EPOCH);
        let expected = r#"pristine_rule_decisions_total{rule="say \"hi\"\n\\"} 0"#;
        assert!(series(&metrics).contains(&expected.to_owned()), "{:?}", series(&metrics));
    }
}
