//! Rules for the users that are machines: without one, a controller that execs into its own pods would have all of them
//! evicted, again and again. Pure.
//!
//! A machine never asked for a terminal, and either came with the token of a pod or did the same many times. This is a
//! guess, and the comment above each rule says what it rests on. A person who impersonates a ServiceAccount is another
//! user than the programs that come with the token of a pod.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::json;

use super::summary::{Key, Row};
use crate::{
    config,
    mark::{Operation, SERVICE_ACCOUNT},
};

/// Interactions of a user without the token of a pod after which a rule is suggested.
const MANY: u64 = 20;

/// What a user did that would, or may, have evicted pods.
#[derive(Default)]
struct User<'a> {
    count: u64,
    evictions_at_most: u64,
    with_tty: u64,
    without_tty: u64,
    namespaces: BTreeSet<&'a str>,
    operations: BTreeSet<Operation>,
}

/// The rules in YAML, each with a comment that says why. Empty if there are none.
#[must_use]
pub fn rules(rows: &BTreeMap<Key, Row>) -> String {
    // Those with a token first: the rules without `podToken` are wider.
    let mut users: BTreeMap<(&str, Reverse<bool>), User<'_>> = BTreeMap::new();
    for (key, row) in rows {
        let user = users.entry((&key.user, Reverse(key.has_pod_token))).or_default();
        // A person who also works without a terminal is no machine.
        user.with_tty += row.with_tty;
        if row.evictions_at_most == 0 {
            continue;
        }
        user.count += row.count;
        user.evictions_at_most += row.evictions_at_most;
        user.without_tty += row.without_tty;
        user.namespaces.insert(&key.namespace);
        user.operations.insert(key.operation);
    }
    let mut text = String::new();
    let mut names = BTreeSet::new();
    for ((name, Reverse(has_token)), user) in users {
        // Cloud Logging does not say it, and people have no other sign.
        let is_tty_known = user.without_tty == user.count;
        let is_machine = has_token || (user.count >= MANY && (is_tty_known || name.starts_with(SERVICE_ACCOUNT)));
        if user.evictions_at_most == 0 || user.with_tty > 0 || !is_machine {
            continue;
        }
        let token = if has_token { " with the token of a pod" } else { "" };
        let tty = if is_tty_known { "never with a terminal" } else { "terminals are not all in the log" };
        let _ = writeln!(
            text,
            "# {}{token}, {tty}, {}",
            times("interaction", "interactions", user.count),
            times("eviction at most", "evictions at most", user.evictions_at_most)
        );
        // JSON is YAML, and quotes what a user chose.
        let mut matches = json!({
            "users": [name], "namespaces": user.namespaces,
            "operations": user.operations.iter().map(|it| it.as_str()).collect::<Vec<_>>(),
        });
        if has_token {
            matches["podToken"] = json!(true);
        }
        if is_tty_known {
            matches["tty"] = json!(false);
        }
        let (rule, matches) = (unique(name, &mut names), escaped(&matches.to_string()));
        let _ = writeln!(text, "- name: {rule}\n  match: {matches}\n  action: Record");
    }
    text
}

/// JSON without the characters that a terminal obeys, that hide others, or that are line breaks in YAML.
fn escaped(json: &str) -> String {
    let is_bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    json.chars().map(|c| if is_bad(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect()
}

/// The number of something, with its name.
pub(super) fn times(one: &str, many: &str, count: u64) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A name for the rule of this user.
fn unique(user: &str, names: &mut BTreeSet<String>) -> String {
    let short = user.strip_prefix(SERVICE_ACCOUNT).unwrap_or(user).to_lowercase();
    let plain: String = short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(50).collect();
    let base = format!("machine-{}", plain.trim_matches('-'));
    let numbered = (2..).map(|n| format!("{base}-{n}"));
    let free = std::iter::once(base.clone()).chain(numbered).find(|name| !names.contains(name)).unwrap_or(base);
    names.insert(free.clone());
    free
}

/// The configuration with these rules before its own, if it has its rules in a block and all names differ.
#[must_use]
pub fn configuration(text: &str, rules: &str) -> Option<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter().position(|line| line.trim_end() == "rules:") {
        Some(at) => {
            let indent = lines.get(at + 1..).unwrap_or_default().iter().find_map(|line| {
                let rest = line.trim_start();
                rest.starts_with("- ").then(|| line.len() - rest.len())
            });
            let indented: Vec<String> =
                rules.lines().map(|line| format!("{}{line}", " ".repeat(indent.unwrap_or(0)))).collect();
            let mut all: Vec<&str> = lines.drain(..=at).collect();
            all.extend(indented.iter().map(String::as_str));
            all.append(&mut lines);
            checked(all.join("\n") + "\n")
        }
        None => checked(format!("{}\nrules:\n{rules}", text.trim_end())),
    }
}

fn checked(text: String) -> Option<String> {
    config::parse("", &text).ok().map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::simulate::summary::{Effect, Outcome},
        config::policy::overlap,
    };

    /// Of each user: interactions, evictions at most, interactions with a terminal, whether with the token of a pod.
    fn rows(users: &[(&str, u64, u64, u64, bool)]) -> BTreeMap<Key, Row> {
        let rows = users.iter().map(|(user, count, evictions_at_most, with_tty, has_pod_token)| {
            let effect =
                Effect { outcome: Outcome::WouldEvict, actions: vec!["evict"], depends_on: vec![], rules: vec![] };
            let (user, namespace, workload) = ((*user).to_owned(), "data".to_owned(), "db".to_owned());
            let has_pod_token = *has_pod_token;
            let key = Key { user, has_pod_token, namespace, workload, operation: Operation::Exec, effect };
            let (count, with_tty, evictions_at_most) = (*count, *with_tty, *evictions_at_most);
            let row = Row { count, evictions_at_most, with_tty, without_tty: count - with_tty, ..Row::default() };
            (key, row)
        });
        rows.collect()
    }

    const OPERATOR: &str = "system:serviceaccount:data:operator";

    #[test]
    fn a_rule_is_suggested_for_a_machine_and_never_for_a_person() {
        for (count, evictions, with_tty, has_pod_token, expected) in [
            (1, 1, 0, true, true),
            (1, 1, 0, false, false),
            (MANY, 1, 0, false, true),
            (MANY - 1, 1, 0, false, false),
            (MANY, 1, 1, true, false),
            (MANY, 0, 0, true, false),
        ] {
            let found = rules(&rows(&[(OPERATOR, count, evictions, with_tty, has_pod_token)]));
            assert_eq!(!found.is_empty(), expected, "{count} {evictions} {with_tty} {has_pod_token}");
        }
    }

    #[test]
    fn a_person_who_impersonates_the_account_of_a_machine_does_not_hide_the_machine() {
        let found = rules(&rows(&[(OPERATOR, 7, 3, 0, true), (OPERATOR, 2, 1, 2, false)]));
        assert!(found.starts_with("# 7 interactions with the token of a pod, never") && found.contains("podToken"));
        assert_eq!(found.lines().count(), 4, "{found}");
    }

    #[test]
    fn without_terminals_in_the_log_only_a_service_account_is_a_machine_by_its_number() {
        for (user, expected) in [(OPERATOR, true), ("alice", false)] {
            let mut rows = rows(&[(user, MANY, 1, 0, false)]);
            rows.values_mut().for_each(|row| row.without_tty = 0);
            let found = rules(&rows);
            assert_eq!(!found.is_empty(), expected, "{user}");
            assert!(!found.contains("never with a terminal") && !found.contains("tty"), "{found}");
        }
    }

    #[test]
    fn no_suggested_rule_hides_another() {
        let suggested = rules(&rows(&[(OPERATOR, MANY, 1, 0, true), (OPERATOR, MANY, 1, 0, false)]));
        let text = configuration(config::BUILT_IN, &suggested).unwrap();
        let rules = config::parse("f", &text).unwrap().policy.rules;
        assert_eq!((rules.len(), overlap::dead(&rules)), (4, vec![]), "{text}");
    }

    #[test]
    fn a_suggested_rule_says_what_it_rests_on() {
        let expected = "# 7 interactions with the token of a pod, never with a terminal, 3 evictions at most
- name: machine-data-operator
  match: {\"namespaces\":[\"data\"],\"operations\":[\"exec\"],\"podToken\":true,\"tty\":false,\"users\":[\"system:serviceaccount:data:operator\"]}
  action: Record
";
        assert_eq!(rules(&rows(&[(OPERATOR, 7, 3, 0, true)])), expected);
    }

    #[test]
    fn a_terminal_obeys_nothing_in_the_name_of_a_user() {
        let name = "\u{9b}2J\u{7f}\u{202e}\u{2028}\u{85}\u{feff}\u{1b}é😀";
        let suggested = rules(&rows(&[(name, 7, 3, 0, true)]));
        assert!(
            suggested.chars().all(|c| c == '\n' || !c.is_control()) && !suggested.contains('\u{202e}'),
            "{suggested}"
        );
        let found = config::parse("f", &configuration(config::BUILT_IN, &suggested).unwrap()).unwrap().policy.rules;
        assert_eq!(found[0].matches.users, [name]);
    }

    #[test]
    fn suggested_rules_of_any_user_names_are_a_valid_configuration_before_the_others() {
        let long = "x".repeat(300);
        let users = [OPERATOR, "system:serviceaccount:data-operator", "a: b\n#\"'", "é", long.as_str()];
        let users: Vec<_> = users.into_iter().map(|user| (user, 7, 3, 0, true)).collect();
        let suggested = rules(&rows(&users));
        let head = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: 10m}\n";
        for own in
            ["", "rules:\n- {name: own, action: Record}\n", "rules:\n  # own\n  - name: own\n    action: Record\n"]
        {
            let text = configuration(&format!("{head}{own}"), &suggested).unwrap();
            let found = config::parse("f", &text).unwrap().policy.rules;
            assert_eq!(found.len(), 5 + usize::from(!own.is_empty()), "{text}");
            let mut names: Vec<_> = found.iter().map(|rule| rule.matches.users.first().cloned()).collect();
            assert_eq!(names.pop().unwrap().is_none(), !own.is_empty(), "the own rules are the last");
        }
        assert_eq!(configuration(&format!("{head}rules: [{{name: own, action: Record}}]\n"), &suggested), None);
    }
}
