use super::*;

const HEAD: &str = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\n";

fn error(body: &str) -> String {
    parse("pristine.yaml", &format!("{HEAD}{body}")).unwrap_err().to_string()
}

#[test]
fn a_configuration_with_rules_is_parsed() {
    let policy = parse(
        "f",
        &format!(
            "{HEAD}default: {{action: Evict, ttl: 1h30m}}
rules:
- name: backups
  match: {{namespaces: [prod-*], users: [\"system:serviceaccount:velero:velero\"], operations: [exec]}}
  action: Exempt
- name: databases
  match: {{podSelector: {{matchLabels: {{tier: db}}}}}}
  action: Deny
  message: use the read replica
"
        ),
    )
    .unwrap();
    assert_eq!(policy.policy.default, Verdict::Mark(Disposition::Evict(Duration::from_secs(5400))));
    assert_eq!(policy.policy.rules[1].action, Verdict::Deny { message: "use the read replica".into() });
    assert_eq!(policy.policy.rules.len(), 2);
}

#[test]
fn errors_name_file_line_field_and_remedy() {
    let ttl = |value: &str| error(&format!("default: {{action: Evict, ttl: {value}}}\n"));
    let rule = |text: &str| error(&format!("default: {{action: Record}}\nrules:\n- name: a\n  {text}\n"));
    for (found, expected) in [
        (
            error("default: {action: Record}\nrulez: []\n"),
            "4:1: unknown field `rulez`, expected one of apiVersion, kind, default, rules, eviction",
        ),
        (error("rules: []\n"), "3:1: missing field `default`"),
        (
            error("default: {action: Kill}\n"),
            "3:19: unknown variant `Kill`, expected one of Exempt, Record, Evict, Deny",
        ),
        (error("default: {action: Evict}\n"), "3:10: action Evict needs a ttl, for example `ttl: 10m`"),
        (error("default: {action: Record, ttl: 1m}\n"), "3:10: action Record takes no ttl; only Evict does"),
        (error("default: [\n"), "3:10: expected mapping start"),
        (
            rule("match: {operations: [exec, report]}\n  action: Deny"),
            "5:3: rule \"a\": a report cannot be denied, because it says what has happened; use Evict or Record",
        ),
        (
            error("default: {action: Record}\neviction: {surge: true, surge: true}\n"),
            "4:25: duplicate mapping key `surge` is not allowed here",
        ),
        (ttl("-5m"), "3:31: duration \"-5m\" is negative"),
        (
            ttl("99999999999999999999h"),
            "3:31: duration \"99999999999999999999h\" is out of range, or not a duration such as 10m or 1h30m",
        ),
        (
            ttl("9999999h"),
            "3:31: duration \"9999999h\" is too long; the longest is 8784h; use `action: Record` to never evict",
        ),
        (
            ttl("10"),
            "3:31: duration \"10\" is not a duration such as 10m or 1h30m: missing a unit: \
             expected one of 'ns', 'us', 'µs', 'ms', 's', 'm', or 'h'",
        ),
        (
            ttl("1d"),
            "3:31: duration \"1d\" is not a duration such as 10m or 1h30m: invalid unit: \
             expected one of 'ns', 'us', 'µs', 'ms', 's', 'm', or 'h'",
        ),
        (
            rule("match: {namespaces: [Prod-*]}\n  action: Record"),
            "6:24: namespace pattern \"Prod-*\": 'P' is not allowed in a namespace name; \
             use lower-case letters, digits, `-`, `.`, `*` and `?`",
        ),
        (
            rule("match: {operation: [exec]}\n  action: Record"),
            "6:11: unknown field `operation`, expected one of namespaces, users, groups, operations, containers, \
             interactive, tty, podToken, commandPrefix, podSelector, ownerKinds, namespaceSelector",
        ),
        (rule("match: {tty: sometimes}\n  action: Record"), "6:16: invalid boolean"),
        (
            rule("match: {podSelector: {matchLabels: {tier: a b}}}\n  action: Record"),
            "6:45: label value \"a b\" is invalid: use at most 63 letters, digits, `-`, `_` and `.`, beginning and ending \
             with a letter or a digit",
        ),
        (
            rule("match: {namespaceSelector: {matchLabels: {-x: a}}}\n  action: Record"),
            "6:45: label key \"-x\" is invalid: use at most 63 letters, digits, `-`, `_` and `.`, beginning and ending \
             with a letter or a digit; before it, a DNS name and `/` are allowed",
        ),
        (
            rule(
                "match: {podSelector: {matchExpressions: [{key: tier, operator: in, values: [a]}]}}\n  action: Record",
            ),
            "6:66: unknown variant `in`, expected one of In, NotIn, Exists, DoesNotExist",
        ),
        (
            rule("match: {podSelector: {matchExpressions: [{key: tier, operator: In}]}}\n  action: Record"),
            "6:44: label \"tier\": operator In needs values",
        ),
        (
            rule(
                "match: {namespaceSelector: {matchExpressions: [{key: t, operator: Exists, values: [a]}]}}\n  action: Record",
            ),
            "6:50: label \"t\": operator Exists takes no values; only In and NotIn do",
        ),
        (rule("action: Record\n- name: a\n  action: Record"), " rules[1].name: an earlier rule has the name \"a\""),
        (rule("action: Deny\n  ttl: 1m"), "5:3: rule \"a\": action Deny takes no ttl; only Evict does"),
    ] {
        assert_eq!(found, format!("pristine.yaml:{expected}"));
    }
}

#[test]
fn another_kind_or_version_is_rejected() {
    let found =
        parse("f", "apiVersion: pristine/v2\nkind: PristineConfiguration\ndefault: {action: Record}\n").unwrap_err();
    assert_eq!(found.to_string(), "f:1:13: apiVersion \"pristine/v2\" is not supported; use pristine/v1alpha1");
}

proptest::proptest! {
    #[test]
    fn no_text_causes_a_panic(text in proptest::prelude::any::<String>(), digits in "[0-9.]{0,80}(h|m|s|ms|ns)") {
        let _ = parse("f", &text);
        let _ = parse("f", &format!("{HEAD}default: {{action: Evict, ttl: {text}}}"));
        let _ = parse_ttl(&text);
        let _ = parse_ttl(&digits);
    }
}
