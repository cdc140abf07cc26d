use k8s_openapi::ByteString;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::*;

fn names() -> Names {
    let [configuration, service, namespace] = ["pristine", "pristine", "pristine-system"].map(str::to_owned);
    Names { configuration, service, namespace }
}
const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Value {
    serde_saphyr::from_str(include_str!("../../../../manifests/components/self-healing/policy.yaml")).unwrap()
}

/// What is read of an installation with the component that nothing is wrong with, as an API server completes it.
fn facts() -> Value {
    let mut policy = policy();
    let constraints = &mut policy["spec"]["matchConstraints"];
    constraints["matchPolicy"] = json!("Equivalent");
    constraints["namespaceSelector"] = json!({});
    constraints["objectSelector"] = json!({});
    json!({
        "namespace": { "metadata": { "uid": "n" } },
        "deployment": { "metadata": {}, "spec": { "replicas": 2, "selector": {}, "template": {} } },
        "service": { "metadata": {} },
        "pod": { "metadata": {} },
        "policy": policy,
        "binding": { "metadata": {}, "spec": { "policyName": "self.webhooks.pristine", "validationActions": ["Deny"] } },
    })
}

fn read(facts: &Value) -> Facts {
    fn part<T: serde::de::DeserializeOwned>(facts: &Value, name: &str) -> Option<T> {
        facts.get(name).map(|value| serde_json::from_value(value.clone()).unwrap())
    }
    Facts {
        namespace: part(facts, "namespace"),
        deployment: part(facts, "deployment"),
        service: part(facts, "service"),
        pod: part(facts, "pod"),
        policy: part(facts, "policy"),
        binding: part(facts, "binding"),
    }
}

/// What is against it after this change; `null` removes.
fn after(pointer: &str, value: Value) -> Option<&'static str> {
    let mut facts = facts();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match facts.pointer_mut(parent).unwrap() {
        Value::Object(fields) if value.is_null() => drop(fields.remove(key).unwrap()),
        parent => parent[key.replace("~1", "/")] = value,
    }
    obstacle(&read(&facts))
}

#[test]
fn nothing_is_against_it_while_everything_is_as_shipped() {
    assert_eq!(obstacle(&read(&facts())), None);
    assert_eq!(after("/namespace/metadata/annotations", json!({ SWITCH: "on" })), None);
    assert_eq!(after("/deployment/spec/replicas", json!(1)), None);
    assert_eq!(after("/deployment/spec/replicas", Value::Null), None, "the default of the API server is 1");
}

#[test]
fn the_configuration_must_be_gone_for_ten_seconds_and_a_random_time() {
    assert_eq!(wait(Duration::ZERO, Duration::ZERO, false), Some(10 * SECOND));
    assert_eq!(wait(9 * SECOND, 2 * SECOND, false), Some(3 * SECOND));
    assert_eq!(wait(12 * SECOND, 2 * SECOND, false), Some(Duration::ZERO));
    assert!(HOLD + SPREAD <= 20 * SECOND, "back within half a minute");
}

#[test]
fn a_replica_that_is_stopping_never_creates_it() {
    assert_eq!(wait(3600 * SECOND, Duration::ZERO, true), None);
}

#[test]
fn the_annotation_on_the_namespace_switches_it_off() {
    let why = Some("the annotation pristine/self-healing of our namespace switches it off");
    for word in ["off", "Off", "false", ""] {
        assert_eq!(after("/namespace/metadata/annotations", json!({ SWITCH: word })), why, "{word}");
    }
}

#[test]
fn nothing_is_created_while_a_part_is_missing_or_being_deleted() {
    for (part, why) in [
        ("namespace", "our namespace is being deleted"),
        ("deployment", "the Deployment is being deleted or does not exist"),
        ("service", "the Service is being deleted or does not exist"),
        ("pod", "this replica is being deleted"),
        ("policy", "the policy self.webhooks.pristine does not exist"),
        ("binding", "the binding of the policy self.webhooks.pristine does not exist"),
    ] {
        assert_eq!(after(&format!("/{part}"), Value::Null), Some(why));
        let since = json!("2026-01-01T00:00:00Z");
        assert_eq!(after(&format!("/{part}/metadata/deletionTimestamp"), since), Some(why), "{part} is being deleted");
    }
}

#[test]
fn nothing_is_created_while_the_deployment_is_scaled_to_zero() {
    assert_eq!(after("/deployment/spec/replicas", json!(0)), Some("the Deployment is scaled to 0"));
}

#[test]
fn nothing_is_created_while_the_policy_is_not_as_shipped() {
    let why = Some("the policy self.webhooks.pristine is not the one of the component self-healing");
    let selector = json!({ "matchLabels": { "a": "b" } });
    for (pointer, value) in [
        ("/policy/spec/failurePolicy", json!("Ignore")),
        ("/policy/spec/validations/0/expression", json!("true")),
        ("/policy/spec/validations/5/expression", json!("true")),
        ("/policy/spec/validations", json!([])),
        ("/policy/spec/variables/4/expression", json!("{}")),
        ("/policy/spec/matchConditions/0/expression", json!("false")),
        ("/policy/spec/matchConstraints/namespaceSelector", selector.clone()),
        ("/policy/spec/matchConstraints/objectSelector", selector),
        ("/policy/spec/matchConstraints/matchPolicy", json!("Exact")),
        ("/policy/spec/matchConstraints/resourceRules/0/operations", json!(["UPDATE"])),
        ("/policy/spec/matchConstraints/excludeResourceRules", json!([{ "resources": ["*"] }])),
        ("/policy/spec/paramKind", json!({ "apiVersion": "v1", "kind": "ConfigMap" })),
        ("/policy/spec", Value::Null),
    ] {
        assert_eq!(after(pointer, value), why, "{pointer}");
    }
}

#[test]
fn nothing_is_created_with_the_policy_of_the_base_which_allows_no_create() {
    let base = include_str!("../../../../manifests/base/webhook-guard.yaml").split("\n---\n").next().unwrap();
    let base: Value = serde_saphyr::from_str(base).unwrap();
    assert!(after("/policy", base).is_some());
}

#[test]
fn nothing_is_created_while_the_binding_is_not_as_shipped() {
    let why = Some("the binding of the policy self.webhooks.pristine is not as shipped");
    for (pointer, value) in [
        ("/binding/spec/validationActions", json!(["Audit"])),
        ("/binding/spec/validationActions", json!(["Deny", "Audit"])),
        ("/binding/spec/validationActions", json!([])),
        ("/binding/spec/policyName", json!("other")),
        ("/binding/spec/paramRef", json!({ "name": "a" })),
        ("/binding/spec/matchResources", json!({})),
        ("/binding/spec", Value::Null),
    ] {
        assert_eq!(after(pointer, value), why, "{pointer}");
    }
}

/// An upgrade changes the policy, and an operator restarts replicas.
#[test]
fn a_changed_policy_and_a_replica_that_is_deleted_are_no_signs_of_an_uninstallation() {
    let mut changed = facts();
    changed["policy"]["spec"]["failurePolicy"] = json!("Ignore");
    changed["binding"]["spec"]["validationActions"] = json!(["Audit"]);
    changed.as_object_mut().unwrap().remove("pod");
    let changed = read(&changed);
    assert_eq!(uninstalling(&changed), None);
    assert!(obstacle(&changed).is_some());
}

/// kustomize folds the lines of an expression in its own way.
#[test]
fn white_space_in_the_policy_makes_no_difference() {
    let expression = policy()["spec"]["validations"][5]["expression"].as_str().unwrap().to_owned();
    assert!(expression.contains(' '));
    assert_eq!(after("/policy/spec/validations/5/expression", json!(expression.replace(' ', "\n\n   "))), None);
    // A comment ends with its line, so white space would make a difference.
    assert!(!policy()["spec"].to_string().contains("//"), "a comment in CEL");
}

/// A configuration that was live: the shipped entries with caBundle and path.
fn live() -> ValidatingWebhookConfiguration {
    let mut live = check::shipped().clone();
    live.metadata = ObjectMeta { uid: Some("old".to_owned()), resource_version: Some("7".to_owned()), ..live.metadata };
    let annotations = [("pristine/generation", "3"), ("pristine/path-renewed-at", "/p"), (check::ACCEPTED, "rules")];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    live.metadata.annotations.get_or_insert_default().extend(annotations);
    for entry in live.webhooks.iter_mut().flatten() {
        entry.client_config.ca_bundle = Some(ByteString(b"ca".to_vec()));
        entry.client_config.service.as_mut().unwrap().path = Some("/review/x".to_owned());
    }
    live
}

/// caBundle and path of an entry.
type Written = (Option<String>, Option<String>);

/// The restored configuration, which is the shipped one but for what Pristine writes, and that.
fn restore(last: &ValidatingWebhookConfiguration) -> (ValidatingWebhookConfiguration, Vec<Written>) {
    let new = restored(last, &names(), "n");
    let mut plain = new.clone();
    let written = plain.webhooks.iter_mut().flatten().map(|entry| {
        let bundle = entry.client_config.ca_bundle.take().map(|bundle| String::from_utf8(bundle.0).unwrap());
        (bundle, entry.client_config.service.as_mut().unwrap().path.take())
    });
    let written = written.collect();
    assert_eq!(plain.webhooks, check::shipped().webhooks);
    (new, written)
}

#[test]
fn a_restored_configuration_is_the_shipped_one_with_ca_bundle_and_path_of_the_last() {
    let mut last = live();
    let entries = last.webhooks.as_mut().unwrap();
    entries[0].failure_policy = Some("Ignore".to_owned());
    entries[1].namespace_selector = Some(serde_json::from_value(json!({ "matchLabels": { "a": "b" } })).unwrap());
    let (new, written) = restore(&last);
    let expected = (Some("ca".to_owned()), Some("/review/x".to_owned()));
    assert_eq!(written, vec![expected; 4]);
    let metadata = serde_json::to_value(&new.metadata).unwrap();
    assert_eq!(
        metadata,
        json!({
            "name": "pristine",
            "labels": { "app.kubernetes.io/name": "pristine" },
            "annotations": {
                "admissions.enforcer/disabled": "true",
                "pristine/generation": "3",
                "pristine/path-renewed-at": "/p",
            },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Namespace", "name": "pristine-system", "uid": "n" }],
        })
    );
}

#[test]
fn an_entry_that_was_missing_gets_the_ca_bundle_of_another() {
    let mut last = live();
    last.webhooks.as_mut().unwrap().truncate(1);
    let (_, written) = restore(&last);
    assert_eq!(written, vec![(Some("ca".to_owned()), Some("/review/x".to_owned())); 4]);
}

#[test]
fn nothing_is_taken_from_an_entry_that_calls_another_service() {
    let mut last = live();
    for entry in last.webhooks.iter_mut().flatten() {
        entry.client_config.service.as_mut().unwrap().namespace = "default".to_owned();
    }
    assert_eq!(restore(&last).1, vec![(None, None); 4]);
}

#[test]
fn a_restored_configuration_has_no_weakness() {
    assert_eq!(check::check(Some(&restored(&live(), &names(), "n")), "pristine", "pristine-system"), []);
}

#[test]
fn the_policy_allows_the_annotations_that_are_kept() {
    let [first, second] = KEPT;
    let keys = json!({ "name": "keys", "expression": format!("['{first}', '{second}']") });
    assert!(policy()["spec"]["variables"].as_array().unwrap().contains(&keys));
}
