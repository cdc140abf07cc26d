//! Rules that the API server can evaluate itself, as `matchConditions` of the webhook entries: users and groups that
//! the first rules exempt are admitted even while no replica runs. Pure.

use serde_json::json;

use super::{Match, Policy, Rule, Verdict};
use crate::api::webhook::check::ACCEPTED;

/// The name of the condition.
pub const NAME: &str = "not-exempt";

/// The CEL expression that is true for interactions that Pristine must review; none if it must review all.
///
/// It covers only the rules before the first rule with another action, or with a field other than user and group. The
/// API server cannot evaluate that rule, so it cannot evaluate the rules after it either.
#[must_use]
pub fn expression(policy: &Policy) -> Option<String> {
    let leading = policy.rules.iter().take_while(|rule| exempts_by_user_alone(rule));
    let exempt: Vec<String> = leading.map(|rule| condition(&rule.matches)).collect();
    (!exempt.is_empty()).then(|| format!("!({})", exempt.join(" || ")))
}

fn exempts_by_user_alone(rule: &Rule) -> bool {
    let Match { users, groups, .. } = &rule.matches;
    let rest = Match { users: Vec::new(), groups: Vec::new(), ..rule.matches.clone() };
    rule.action == Verdict::Exempt && rest == Match::default() && !(users.is_empty() && groups.is_empty())
}

fn condition(matches: &Match) -> String {
    // A JSON string is a CEL string.
    let list = |names: &[String]| json!(names).to_string();
    let users = Some(&matches.users).filter(|users| !users.is_empty());
    let users = users.map(|users| format!("request.userInfo.username in {}", list(users)));
    let groups = Some(&matches.groups).filter(|groups| !groups.is_empty());
    let groups = groups.map(|groups| {
        format!("has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in {})", list(groups))
    });
    let both: Vec<String> = users.into_iter().chain(groups).map(|part| format!("({part})")).collect();
    format!("({})", both.join(" && "))
}

/// The strategic merge patch of the webhook configuration that adds the condition to the entries that fail closed, or
/// removes it. It also says that the deviation is on purpose; a patch cannot keep other words in that annotation.
#[must_use]
pub fn patch(policy: &Policy) -> serde_json::Value {
    let (condition, accepted) = match expression(policy) {
        Some(expression) => (json!({ "name": NAME, "expression": expression }), Some("matchConditions")),
        None => (json!({ "name": NAME, "$patch": "delete" }), None),
    };
    let entry = |name: &str| json!({ "name": name, "matchConditions": [condition] });
    let metadata = json!({ "annotations": { ACCEPTED: accepted } });
    json!({ "metadata": metadata, "webhooks": [entry("exec.pods.pristine"), entry("debug.pods.pristine")] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::webhook::check::check, mark::Disposition};

    fn policy(rules: &[(serde_json::Value, Verdict)]) -> Policy {
        let rules = rules.iter().enumerate().map(|(n, (matches, action))| Rule {
            name: n.to_string(),
            matches: serde_json::from_value(matches.clone()).unwrap(),
            action: action.clone(),
        });
        Policy { default: Verdict::Mark(Disposition::Record), rules: rules.collect() }
    }

    #[test]
    fn the_first_rules_that_exempt_by_user_or_group_alone_become_one_condition() {
        let text = expression(&policy(&[
            (json!({"users": ["system:serviceaccount:velero:velero", "a\"b"]}), Verdict::Exempt),
            (json!({"users": ["c"], "groups": ["g"]}), Verdict::Exempt),
            (json!({"namespaces": ["x"]}), Verdict::Mark(Disposition::Record)),
            (json!({"users": ["late"]}), Verdict::Exempt),
        ]));
        let first = r#"((request.userInfo.username in ["system:serviceaccount:velero:velero","a\"b"]))"#;
        let groups = r#"has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in ["g"])"#;
        let second = format!(r#"((request.userInfo.username in ["c"]) && ({groups}))"#);
        assert_eq!(text.unwrap(), format!("!({first} || {second})"));
    }

    #[test]
    fn rules_with_other_fields_are_not_in_the_condition() {
        for matches in
            [json!({}), json!({"users": ["a"], "containers": ["c"]}), json!({"users": ["a"], "operations": ["exec"]})]
        {
            assert_eq!(expression(&policy(&[(matches, Verdict::Exempt)])), None);
        }
        for (field, value) in [
            ("tty", json!(false)),
            ("podToken", json!(true)),
            ("podSelector", json!({"matchExpressions": [{"key": "k", "operator": "Exists"}]})),
            ("namespaceSelector", json!({"matchLabels": {"k": "v"}})),
        ] {
            assert_eq!(
                expression(&policy(&[(json!({"users": ["a"], field: value}), Verdict::Exempt)])),
                None,
                "{field}"
            );
        }
        assert_eq!(expression(&policy(&[(json!({"users": ["a"]}), Verdict::Mark(Disposition::Record))])), None);
        let without = patch(&policy(&[]));
        assert_eq!(without["webhooks"][0]["matchConditions"][0]["$patch"], "delete");
        assert_eq!(without["metadata"], json!({ "annotations": { "pristine/accepted-deviations": null } }));
    }

    #[test]
    fn the_configuration_with_the_patch_has_only_accepted_deviations() {
        let text = include_str!("../../../manifests/base/webhook.yaml");
        let mut live: serde_json::Value = serde_saphyr::from_str(text).unwrap();
        let patch = patch(&policy(&[(json!({"users": ["velero"]}), Verdict::Exempt)]));
        live["metadata"]["annotations"] = patch["metadata"]["annotations"].clone();
        for n in 0..2 {
            let condition = patch["webhooks"][n]["matchConditions"][0].clone();
            live["webhooks"][n]["matchConditions"].as_array_mut().unwrap().push(condition);
        }
        let found = check(Some(&serde_json::from_value(live).unwrap()), "pristine", "pristine-system");
        let accepted: Vec<_> = found.iter().filter(|it| it.is_accepted).map(|it| it.entry.unwrap()).collect();
        assert_eq!((accepted, found.len()), (vec!["exec.pods.pristine", "debug.pods.pristine"], 2));
    }
}
