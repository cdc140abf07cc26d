//! Rules that the API server can decide alone, as `matchConditions` of our webhook entries: whom the first rules exempt
//! by user or group is let through also when every replica is dead. Pure.

use serde_json::json;

use super::{Match, Policy, Rule, Verdict};

/// The name of the condition.
pub const NAME: &str = "not-exempt";

/// The CEL expression that is true for what must be reviewed; none if every interaction must be.
///
/// Only the rules before the first one that does something else, or asks for more than the user: what comes later is
/// decided by a rule that the API server cannot know.
#[must_use]
pub fn expression(policy: &Policy) -> Option<String> {
    let leading = policy.rules.iter().take_while(|rule| is_by_user_alone(rule));
    let exempt: Vec<String> = leading.map(|rule| is_of(&rule.matches)).collect();
    (!exempt.is_empty()).then(|| format!("!({})", exempt.join(" || ")))
}

fn is_by_user_alone(rule: &Rule) -> bool {
    let Match { users, groups, .. } = &rule.matches;
    let rest = Match { users: Vec::new(), groups: Vec::new(), ..rule.matches.clone() };
    rule.action == Verdict::Exempt && rest == Match::default() && !(users.is_empty() && groups.is_empty())
}

fn is_of(matches: &Match) -> String {
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

/// The strategic merge PATCH of the webhook configuration that puts the condition into the entries that fail closed, or
/// takes it out.
#[must_use]
pub fn patch(policy: &Policy) -> serde_json::Value {
    let condition = match expression(policy) {
        Some(expression) => json!({ "name": NAME, "expression": expression }),
        None => json!({ "name": NAME, "$patch": "delete" }),
    };
    let entry = |name: &str| json!({ "name": name, "matchConditions": [condition] });
    json!({ "webhooks": [entry("exec.pods.pristine"), entry("debug.pods.pristine")] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Disposition;

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
        let second = r#"((request.userInfo.username in ["c"]) && (has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in ["g"])))"#;
        assert_eq!(text.unwrap(), format!("!({first} || {second})"));
    }

    #[test]
    fn what_asks_for_more_than_the_user_is_left_to_us() {
        for matches in
            [json!({}), json!({"users": ["a"], "containers": ["c"]}), json!({"users": ["a"], "operations": ["exec"]})]
        {
            assert_eq!(expression(&policy(&[(matches, Verdict::Exempt)])), None);
        }
        assert_eq!(expression(&policy(&[(json!({"users": ["a"]}), Verdict::Mark(Disposition::Record))])), None);
        let without = patch(&policy(&[]));
        assert_eq!(without["webhooks"][0]["matchConditions"][0]["$patch"], "delete");
    }
}
