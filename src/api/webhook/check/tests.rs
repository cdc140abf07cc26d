use serde_json::{Value, json};

use super::*;

const EXEC: &str = "exec.pods.pristine";
const DEBUG: &str = "debug.pods.pristine";

fn shipped() -> Value {
    serde_saphyr::from_str(include_str!("../../../../manifests/base/webhook.yaml")).unwrap()
}

/// What is weak after these changes, each of one place in the object.
fn found(changes: &[(&str, Value)]) -> Vec<Weakness> {
    let mut live = shipped();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match live.pointer_mut(parent).unwrap() {
            Value::Array(items) if key == "-" => items.push(value.clone()),
            Value::Array(items) if value.is_null() => drop(items.remove(key.parse().unwrap())),
            Value::Object(fields) if value.is_null() => drop(fields.remove(key).unwrap()),
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value.clone(),
            parent => parent[key.replace("~1", "/")] = value.clone(),
        }
    }
    check(Some(&serde_json::from_value(live).unwrap()), "pristine", "pristine-system")
}

fn only(mut found: Vec<Weakness>) -> (String, &'static str) {
    assert_eq!(found.len(), 1, "{found:?}");
    let one = found.remove(0);
    assert!(!one.is_accepted, "{one}");
    (one.to_string(), one.field)
}

#[test]
fn the_shipped_configuration_has_no_weakness() {
    assert_eq!(found(&[]), []);
    assert_eq!(entries(), 4);
}

#[test]
fn a_configuration_that_does_not_exist_is_a_weakness() {
    let text = "the ValidatingWebhookConfiguration does not exist: no interaction is recorded";
    assert_eq!(only(check(None, "pristine", "pristine-system")), (text.to_owned(), "metadata"));
}

#[test]
#[allow(clippy::too_many_lines, reason = "the table has a row for each weakness")]
fn each_weakness_is_reported_in_words() {
    let selector = json!({ "matchLabels": { "a": "b" } });
    let outside = "requests that it excludes are not recorded";
    let condition = |name: &str| json!({ "name": name, "expression": "false" });
    let exec = |what: &str| format!("{EXEC}: {what}");
    let silent = |what: &str| format!("{EXEC}: no rule covers CONNECT of {what}: these requests are not recorded");
    let debug =
        || format!("{DEBUG}: no rule covers UPDATE of pods/ephemeralcontainers: these requests are not recorded");
    for (pointer, value, field, text) in [
        (
            "/webhooks/1",
            Value::Null,
            "webhooks",
            format!("{DEBUG}: the entry is missing: its requests are not recorded"),
        ),
        (
            "/webhooks/0/clientConfig",
            json!({ "url": "https://attacker.example/" }),
            "clientConfig",
            exec("the entry calls a URL, not the Service pristine-system/pristine"),
        ),
        (
            "/webhooks/0/clientConfig/service/name",
            json!("other"),
            "clientConfig",
            exec("the entry calls the Service pristine-system/other, not pristine-system/pristine"),
        ),
        (
            "/webhooks/0/clientConfig/service/namespace",
            json!("default"),
            "clientConfig",
            exec("the entry calls the Service default/pristine, not pristine-system/pristine"),
        ),
        (
            "/webhooks/0/clientConfig/service/port",
            json!(8443),
            "clientConfig",
            exec("the entry calls port 8443 of the Service, not 443"),
        ),
        (
            "/webhooks/0/admissionReviewVersions",
            json!(["v1beta1"]),
            "admissionReviewVersions",
            exec("admissionReviewVersions has no v1: Pristine cannot read the reviews"),
        ),
        (
            "/webhooks/1/failurePolicy",
            json!("Ignore"),
            "failurePolicy",
            format!("{DEBUG}: failurePolicy is Ignore, not Fail: requests are not recorded while no replica answers"),
        ),
        (
            "/webhooks/2/failurePolicy",
            json!("Fail"),
            "failurePolicy",
            format!("{BREAK_GLASS}: failurePolicy is Fail, not Ignore: break-glass is denied while no replica answers"),
        ),
        ("/webhooks/0/rules/0/resources/1", Value::Null, "rules", silent("pods/attach")),
        // The API server excludes subresources from `*`.
        ("/webhooks/0/rules/0/resources", json!(["*", "pods/exec"]), "rules", silent("pods/attach")),
        ("/webhooks/1/rules/0/operations", json!(["CREATE"]), "rules", debug()),
        ("/webhooks/1/rules/0/apiGroups", json!(["apps"]), "rules", debug()),
        ("/webhooks/1/rules/0/apiVersions", json!(["v2"]), "rules", debug()),
        ("/webhooks/1/rules/0/scope", json!("Cluster"), "rules", debug()),
        ("/webhooks/1/rules", Value::Null, "rules", debug()),
        (
            "/webhooks/0/namespaceSelector",
            selector.clone(),
            "namespaceSelector",
            exec("a namespaceSelector is set: requests in the namespaces that it excludes are not recorded"),
        ),
        (
            "/webhooks/0/objectSelector",
            selector,
            "objectSelector",
            exec("an objectSelector is set: the object of an exec has no labels, so no exec is recorded"),
        ),
        (
            "/webhooks/0/matchConditions/-",
            condition("never"),
            "matchConditions",
            exec(&format!("the matchCondition never is not shipped: {outside}")),
        ),
        (
            "/webhooks/0/matchConditions/0",
            condition("not-break-glass"),
            "matchConditions",
            exec(&format!("the matchCondition not-break-glass is not as shipped: {outside}")),
        ),
        (
            "/webhooks/0/matchConditions/0",
            Value::Null,
            "matchConditions",
            exec("the matchCondition not-break-glass is missing: break-glass is denied while no replica answers"),
        ),
        (
            "/webhooks/2/matchConditions",
            Value::Null,
            "matchConditions",
            format!("{BREAK_GLASS}: the matchCondition break-glass is missing: the entry is called for every request"),
        ),
        (
            "/webhooks/0/timeoutSeconds",
            json!(4),
            "timeoutSeconds",
            exec("timeoutSeconds is 4, not 5: no time is left for handing over"),
        ),
    ] {
        assert_eq!(only(found(&[(pointer, value)])), (text, field), "{pointer}");
    }
}

#[test]
fn what_is_broader_or_means_the_same_is_no_weakness() {
    for (pointer, value) in [
        ("/webhooks/0/rules/0/resources", json!(["pods/*"])),
        ("/webhooks/0/rules/0/resources", json!(["*/*"])),
        ("/webhooks/0/rules/0/resources", json!(["*/exec", "*/attach", "secrets"])),
        ("/webhooks/0/rules/0/operations", json!(["*"])),
        ("/webhooks/0/rules/0/apiGroups", json!(["*"])),
        ("/webhooks/0/rules/0/apiVersions", json!(["*"])),
        ("/webhooks/0/rules/0/scope", json!("*")),
        ("/webhooks/0/rules/0/scope", Value::Null),
        (
            "/webhooks/0/rules",
            json!([
                { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/attach"] },
                { "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"] },
            ]),
        ),
        ("/webhooks/0/namespaceSelector", json!({})),
        ("/webhooks/0/objectSelector", json!({})),
        ("/webhooks/0/failurePolicy", Value::Null),
        // Port-forward and proxy are then denied while no replica answers: that is stricter.
        ("/webhooks/3/failurePolicy", json!("Fail")),
        ("/webhooks/0/timeoutSeconds", json!(30)),
        ("/webhooks/0/timeoutSeconds", Value::Null),
        ("/webhooks/0/clientConfig/service/port", Value::Null),
        ("/webhooks/0/clientConfig/service/path", json!("/review/secret")),
        ("/webhooks/0/clientConfig/caBundle", json!("YQ==")),
        (
            "/webhooks/-",
            json!({ "name": "other", "clientConfig": {}, "admissionReviewVersions": [], "sideEffects": "None" }),
        ),
    ] {
        assert_eq!(found(&[(pointer, value.clone())]), [], "{pointer} {value}");
    }
}

#[test]
fn the_entries_must_call_the_service_of_this_installation() {
    let live = serde_json::from_value(shipped()).unwrap();
    assert_eq!(check(Some(&live), "pristine", "elsewhere").len(), 4);
}

#[test]
fn only_listed_fields_that_may_deviate_are_accepted() {
    let with = |accepted: &str| {
        let found = found(&[
            ("/metadata/annotations/pristine~1accepted-deviations", json!(accepted)),
            ("/webhooks/0/failurePolicy", json!("Ignore")),
            ("/webhooks/0/timeoutSeconds", json!(1)),
            ("/webhooks/0/objectSelector", json!({ "matchLabels": { "a": "b" } })),
        ]);
        assert_eq!(found.len(), 3, "{found:?}");
        found.into_iter().filter(|it| it.is_accepted).map(|it| it.field).collect::<Vec<_>>()
    };
    assert_eq!(with(""), [""; 0]);
    assert_eq!(with("failurePolicy"), ["failurePolicy"]);
    assert_eq!(with(" timeoutSeconds ,failurePolicy,"), ["failurePolicy", "timeoutSeconds"]);
    assert_eq!(with("objectSelector,webhooks,clientConfig,*,failure"), [""; 0]);
}
