//! What `kubectl pristine doctor` says about the configuration: which rules are in force, and which of them have not decided.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use super::{
    Finding::{self, Broken, Fine, Note},
    unknown,
};
use crate::{
    config::{self, policy::Rule},
    plugin::{connection::Connection, format::duration},
};

/// Rules that are listed by name.
const MAX_LISTED: usize = 10;

/// The finding about the rules in force, and those that the user wrote.
pub(super) async fn configuration(connection: &Connection) -> (Finding, Vec<Rule>) {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    match connection.call("get configmaps", api.get_opt("pristine")).await {
        Ok(found) => in_force(found, &connection.pristine),
        Err(failure) => (unknown(&failure), Vec::new()),
    }
}

/// The same, from the ConfigMap, which the replicas read too.
fn in_force(map: Option<ConfigMap>, namespace: &str) -> (Finding, Vec<Rule>) {
    let is_there = map.is_some();
    let map = map.unwrap_or_default();
    let binary = map.binary_data.into_iter().flatten().map(|(key, _)| key);
    let mut data = map.data.unwrap_or_default();
    let (text, others) = (data.remove("pristine.yaml"), data.into_keys().chain(binary).collect::<Vec<_>>());
    let edit = format!("kubectl -n {namespace} edit configmap pristine");
    let (name, from) = match (&text, others.as_slice(), is_there) {
        (Some(_), ..) => ("pristine.yaml", "in the ConfigMap pristine"),
        (None, [], false) => ("the built-in configuration", "built in, because there is no ConfigMap pristine"),
        (None, [], true) => ("the built-in configuration", "built in, because the ConfigMap pristine is empty"),
        (None, others, true) => {
            let keys = others.join(", ");
            let what =
                format!("the ConfigMap pristine has no key pristine.yaml, but {keys}: its rules are not in force");
            return (Broken(what, edit), Vec::new());
        }
        (None, _, false) => unreachable!("keys are of a ConfigMap"),
    };
    match config::parse(name, text.as_deref().unwrap_or(config::BUILT_IN)) {
        Ok(read) => {
            let rules = read.policy.rules;
            (
                Fine(format!("{} rules and a default, {from}", rules.len())),
                config::own(&rules).into_iter().cloned().collect(),
            )
        }
        Err(error) => (Broken(format!("{error}; the previous configuration is in force"), edit), Vec::new()),
    }
}

/// Rules that have not decided on a replica, with the time since which they are in force.
type Undecided = BTreeMap<String, Timestamp>;

/// Names those of the user's rules that have not decided on any replica. None if there are none, or if not every replica
/// says which rules have decided.
pub(super) fn idle<'a>(
    own: &[Rule],
    replicas: impl Iterator<Item = Option<&'a Undecided>>,
    now: Timestamp,
) -> Option<Finding> {
    let undecided: Vec<&Undecided> = replicas.collect::<Option<_>>()?;
    // Since when no replica has seen it decide: what an earlier replica saw is gone.
    let since = |rule: &Rule| undecided.iter().map(|rules| rules.get(&rule.name).copied()).max().flatten();
    let is_idle = |rule: &&Rule| undecided.iter().all(|rules| rules.contains_key(&rule.name));
    let mut idle = own.iter().filter(is_idle).filter_map(|rule| Some((rule, now.duration_since(since(rule)?))));
    let listed = idle.by_ref().take(MAX_LISTED).map(|(rule, time)| format!("{:?} for {}", rule.name, duration(time)));
    let mut listed = listed.collect::<Vec<_>>().join(", ");
    if listed.is_empty() {
        return None;
    }
    match idle.count() {
        0 => {}
        more => drop(write!(listed, " and {more} more")),
    }
    let advice = "pristine explain says why a rule does not match an interaction; kubectl pristine summary lists who execs \
                  where";
    Some(Note(format!("these have been in force without deciding once: {listed}"), advice.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_finding_says_whether_the_rules_in_force_are_built_in() {
        let rules = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Record}\n";
        let map = |data| serde_json::from_value(json!({ "data": data })).unwrap();
        let fine = |map| match in_force(map, "ns") {
            (Fine(text), _) => text,
            (Broken(text, _) | Finding::Warning(text, _) | Note(text, _), _) => panic!("{text}"),
        };
        assert_eq!(fine(None), "2 rules and a default, built in, because there is no ConfigMap pristine");
        let empty = "2 rules and a default, built in, because the ConfigMap pristine is empty";
        assert_eq!(fine(Some(map(json!({})))), empty);
        let written = map(json!({"pristine.yaml": rules, "notes": ""}));
        assert_eq!(fine(Some(written)), "0 rules and a default, in the ConfigMap pristine");
        let (Broken(text, fix), _) = in_force(Some(map(json!({"config.yaml": rules}))), "ns") else { panic!() };
        assert!(text.contains("has no key pristine.yaml, but config.yaml"), "{text}");
        assert_eq!(fix, "kubectl -n ns edit configmap pristine");
        let (Broken(text, _), _) = in_force(Some(map(json!({"pristine.yaml": "x"}))), "ns") else { panic!() };
        assert!(
            text.starts_with("pristine.yaml:1:1: ") && text.ends_with("the previous configuration is in force"),
            "{text}"
        );
    }

    fn undecided(names: &[&str], since: &str) -> Undecided {
        let since: Timestamp = since.parse().unwrap();
        names.iter().map(|name| ((*name).to_owned(), since)).collect()
    }

    /// The built-in rules, as users keep them, and two rules of a user.
    fn rules() -> Vec<Rule> {
        let more = "- {name: backups, match: {users: [velero]}, action: Exempt}\n- {name: eu, action: Record}\n";
        let map = json!({"data": {"pristine.yaml": format!("{}{more}", config::BUILT_IN)}});
        in_force(Some(serde_json::from_value(map).unwrap()), "ns").1
    }

    #[test]
    fn the_users_rules_that_decided_on_no_replica_are_named_with_the_time() {
        let now = "2026-01-05T00:00:00Z".parse().unwrap();
        let first = undecided(&["backups", "eu", "kube-system", "machines"], "2026-01-01T00:00:00Z");
        let second = |names: &[&str]| undecided(names, "2026-01-03T00:00:00Z");
        let said = |replicas: &[Option<&Undecided>]| match idle(&rules(), replicas.iter().copied(), now) {
            Some(Note(text, _)) => text,
            None => String::new(),
            Some(_) => panic!("no failure"),
        };
        let begin = "these have been in force without deciding once: ";
        // Not the built-in ones, and the time of the replica that knows least.
        let both = format!("{begin}\"backups\" for 2d, \"eu\" for 2d");
        assert_eq!(said(&[Some(&first), Some(&second(&["backups", "eu", "kube-system"]))]), both);
        // eu has decided on the other replica.
        assert_eq!(said(&[Some(&first), Some(&second(&["backups"]))]), format!("{begin}\"backups\" for 2d"));
        assert_eq!(said(&[Some(&first), Some(&second(&[]))]), "");
        assert_eq!(said(&[Some(&first), None]), "", "a replica of an earlier version");
        assert_eq!(said(&[]), "", "no replica");
    }

    #[test]
    fn many_idle_rules_are_counted() {
        let mut text = config::BUILT_IN.to_owned();
        for n in 0..12 {
            let _ = writeln!(text, "- {{name: r{n:02}, action: Record}}");
        }
        let rules = config::parse("test", &text).unwrap().policy.rules;
        let own: Vec<Rule> = config::own(&rules).into_iter().cloned().collect();
        let names: Vec<&str> = own.iter().map(|rule| rule.name.as_str()).collect();
        let undecided = undecided(&names, "2026-01-01T00:00:00Z");
        let found = idle(&own, [Some(&undecided)].into_iter(), "2026-01-01T00:01:00Z".parse().unwrap());
        let Some(Note(text, _)) = found else { panic!() };
        assert!(text.ends_with("\"r09\" for 60s and 2 more"), "{text}");
    }
}
