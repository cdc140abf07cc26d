//! The manifest agrees with the code: versions, paths, numbers that stand in two places.

use serde_json::Value;

use crate::read;

fn objects() -> Vec<Value> {
    let text = read("manifests/install.yaml");
    text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

fn object(kind: &str) -> Value {
    objects().into_iter().find(|object| object["kind"] == kind).unwrap()
}

#[test]
fn the_image_tag_is_the_version_of_the_crate() {
    let deployment = object("Deployment");
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap();
    assert!(image.ends_with(concat!(":v", env!("CARGO_PKG_VERSION"))), "{image}");
}

#[test]
fn the_shipped_configuration_is_valid() {
    let text = object("ConfigMap")["data"]["pristine.yaml"].as_str().unwrap().to_owned();
    pristine::config::parse("install.yaml", &text).unwrap();
}

#[test]
fn every_webhook_entry_has_its_failure_policy_and_no_object_selector() {
    let configuration = object("ValidatingWebhookConfiguration");
    for entry in configuration["webhooks"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        assert_eq!(entry["clientConfig"]["caBundle"], Value::Null, "{name}: an apply would put it back each time");
        assert_eq!(entry["objectSelector"], Value::Null, "{name}: it would silently switch exec off");
        assert_eq!(entry["sideEffects"], "NoneOnDryRun", "{name}");
        let opens = name.starts_with("break-glass") || name.starts_with("connect");
        assert_eq!(entry["failurePolicy"], if opens { "Ignore" } else { "Fail" }, "{name}");
        if name.starts_with("connect") {
            continue;
        }
        let conditions = entry["matchConditions"].as_array().unwrap();
        assert!(conditions[0]["expression"].as_str().unwrap().contains("has(request.userInfo.groups) && "), "{name}");
    }
}

#[test]
fn the_webhook_configuration_is_deleted_before_the_deployment() {
    let kinds: Vec<_> = objects().iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect();
    let at = |kind: &str| kinds.iter().position(|found| found == kind).unwrap();
    assert!(at("ValidatingWebhookConfiguration") < at("Namespace"));
    assert!(at("Namespace") < at("Deployment"));
}

#[test]
fn the_grace_period_is_longer_than_the_drain() {
    let grace = object("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    // --drain, 5 s for the last answers, and something for the lease to be released.
    assert!(grace > 25 + 5 + 2, "{grace}");
}

#[test]
fn the_service_account_can_write_only_the_status_and_the_eviction_of_a_pod() {
    for object in
        objects().iter().filter(|object| object["metadata"]["name"] == "pristine" && object["kind"] == "ClusterRole")
    {
        for rule in object["rules"].as_array().unwrap() {
            let resources: Vec<_> = rule["resources"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
            let verbs: Vec<_> = rule["verbs"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
            if resources.contains(&"pods") {
                assert_eq!(verbs, ["get", "list", "watch"]);
            }
            assert!(!resources.contains(&"secrets") && !verbs.contains(&"*"), "{rule}");
        }
    }
}
