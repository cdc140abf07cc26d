//! What an attacker with Pristine's own token can do to its webhook configuration. Every request is a dry run: had the policy
//! let one pass, the next exec of every other test would pay for it.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{Client, core::Status};
use serde_json::{Value, json};
use serial_test::{parallel, serial};

use crate::{common::eventually, kubectl::client, self_healing};

const ACCOUNT: &str = "system:serviceaccount:pristine-system:pristine";

/// The annotations that Pristine writes.
const KEYS: [&str; 2] = ["pristine/generation", "pristine/path-renewed-at"];

/// A JSON patch of the webhook configuration `pristine`, sent as Pristine's own account.
async fn patch(client: &Client, patch: Value) -> Result<ValidatingWebhookConfiguration, Box<Status>> {
    let uri = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/pristine?dryRun=All";
    let request = http::Request::patch(uri)
        .header("Impersonate-User", ACCOUNT)
        .header("Content-Type", "application/json-patch+json")
        .body(serde_json::to_vec(&patch).unwrap())
        .unwrap();
    match client.request(request).await {
        Ok(changed) => Ok(changed),
        Err(kube::Error::Api(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

fn add(path: &str, value: Value) -> Value {
    json!([{ "op": "add", "path": path, "value": value }])
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_stolen_service_account_token_can_change_only_the_ca_bundle_and_the_path() {
    let client = client().await;
    let condition = json!([{ "name": "never", "expression": "false" }]);
    let owner = json!([{ "apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": "u" }]);
    let selector = json!({ "matchLabels": { "a": "b" } });
    let attempts = [
        add("/webhooks/0/rules/0/resources", json!(["secrets"])),
        add("/webhooks/0/rules/0/operations", json!(["*"])),
        add("/webhooks/0/rules/0/apiGroups", json!(["*"])),
        add("/webhooks/0/clientConfig", json!({ "url": "https://attacker.example/" })),
        add("/webhooks/0/clientConfig/service/name", json!("other")),
        add("/webhooks/0/clientConfig/service/namespace", json!("default")),
        add("/webhooks/0/clientConfig/service/port", json!(8443)),
        add("/webhooks/0/failurePolicy", json!("Ignore")),
        add("/webhooks/0/timeoutSeconds", json!(30)),
        add("/webhooks/0/sideEffects", json!("None")),
        add("/webhooks/0/matchPolicy", json!("Exact")),
        add("/webhooks/0/namespaceSelector", selector.clone()),
        add("/webhooks/0/objectSelector", selector),
        add("/webhooks/0/matchConditions", condition),
        add("/webhooks/0/name", json!("other.pods.pristine")),
        json!([{ "op": "remove", "path": "/webhooks/0" }]),
        json!([{ "op": "remove", "path": "/webhooks" }]),
        json!([{ "op": "copy", "from": "/webhooks/0", "path": "/webhooks/-" },
               { "op": "replace", "path": "/webhooks/4/name", "value": "more.pods.pristine" }]),
        add("/metadata/labels/app.kubernetes.io~1name", json!("other")),
        add("/metadata/annotations/admissions.enforcer~1disabled", json!("false")),
        add("/metadata/annotations/foreign", json!("x")),
        add("/metadata/finalizers", json!(["example.com/stay"])),
        add("/metadata/ownerReferences", owner),
    ];
    for attempt in attempts {
        match patch(&client, attempt.clone()).await {
            Ok(_) => panic!("passed: {attempt}"),
            Err(status) => {
                let text = &status.message;
                assert!(status.code == 403 && text.contains("self.webhooks.pristine"), "{attempt}: {status:?}");
            }
        }
    }
    for own in [
        add("/webhooks/0/clientConfig/caBundle", json!("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t")),
        add("/webhooks/0/clientConfig/service/path", json!("/review/other")),
        add("/metadata/annotations/pristine~1generation", json!("9")),
        add("/metadata/annotations/pristine~1path-renewed-at", json!("2026-01-01T00:00:00Z")),
    ] {
        // A caBundle that is no certificate is refused by the API server, and not by the policy.
        if let Err(status) = patch(&client, own.clone()).await {
            assert!(!status.message.contains("self.webhooks.pristine"), "{own}: {status:?}");
            assert_ne!(status.code, 403, "{own}: {status:?}");
        }
    }
}

/// Creates this webhook configuration as Pristine's own account.
async fn create(client: &Client, object: &Value) -> Box<Status> {
    let uri = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations?dryRun=All";
    let request = http::Request::post(uri)
        .header("Impersonate-User", ACCOUNT)
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(object).unwrap())
        .unwrap();
    match client.request::<ValidatingWebhookConfiguration>(request).await {
        Ok(created) => panic!("there was none before: {created:?}"),
        Err(kube::Error::Api(status)) => status,
        Err(other) => panic!("{other}"),
    }
}

/// The shipped configuration as a replica creates it again.
fn restored() -> Value {
    let mut object: Value = serde_saphyr::from_str(include_str!("../../../manifests/base/webhook.yaml")).unwrap();
    let owner = json!([{ "apiVersion": "v1", "kind": "Namespace", "name": "pristine-system", "uid": "u" }]);
    object["metadata"]["ownerReferences"] = owner;
    for key in KEYS {
        object["metadata"]["annotations"][key] = json!("x");
    }
    for entry in object["webhooks"].as_array_mut().unwrap() {
        entry["clientConfig"]["service"]["path"] = json!("/review/x");
    }
    object
}

/// Places in the object, and what an attacker puts there: `null` removes.
fn deviations() -> Vec<(&'static str, Value)> {
    let selector = json!({ "matchLabels": { "a": "b" } });
    let never = json!({ "name": "never", "expression": "false" });
    let namespace = |name: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "name": name, "uid": "u" });
    let mut extra = restored()["webhooks"][0].clone();
    extra["name"] = json!("more.pods.pristine");
    let with = |key: &str, value: bool| {
        let mut owner = namespace("pristine-system");
        owner[key] = json!(value);
        json!([owner])
    };
    // API servers drop a second reference with the same UID.
    let mut other_uid = namespace("pristine-system");
    other_uid["uid"] = json!("v");
    let only = json!([restored()["webhooks"][0]]);
    vec![
        ("/webhooks", only),
        ("/webhooks", json!([])),
        ("/webhooks", Value::Null),
        ("/webhooks/3", Value::Null),
        ("/webhooks/4", extra),
        ("/webhooks/0/name", json!("other.pods.pristine")),
        ("/webhooks/0/rules/0/resources", json!(["secrets"])),
        ("/webhooks/0/rules/0/resources", json!(["pods/exec"])),
        ("/webhooks/0/rules/0/operations", json!(["*"])),
        ("/webhooks/0/rules/0/apiGroups", json!(["*"])),
        ("/webhooks/0/rules/0/apiVersions", json!(["*"])),
        ("/webhooks/0/rules/0/scope", json!("*")),
        (
            "/webhooks/0/rules/1",
            json!({ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"] }),
        ),
        ("/webhooks/0/failurePolicy", json!("Ignore")),
        ("/webhooks/2/failurePolicy", json!("Fail")),
        ("/webhooks/3/failurePolicy", Value::Null),
        ("/webhooks/0/timeoutSeconds", json!(30)),
        ("/webhooks/0/timeoutSeconds", json!(1)),
        ("/webhooks/0/matchPolicy", json!("Exact")),
        ("/webhooks/0/sideEffects", json!("None")),
        ("/webhooks/0/admissionReviewVersions", json!(["v1", "v1beta1"])),
        ("/webhooks/0/matchConditions", Value::Null),
        ("/webhooks/1/matchConditions", json!([])),
        ("/webhooks/0/matchConditions/0/expression", json!("false")),
        ("/webhooks/0/matchConditions/1", never.clone()),
        ("/webhooks/3/matchConditions", json!([never])),
        ("/webhooks/0/namespaceSelector", selector.clone()),
        ("/webhooks/0/objectSelector", selector),
        ("/webhooks/0/clientConfig", json!({ "url": "https://attacker.example/" })),
        ("/webhooks/0/clientConfig/service/name", json!("other")),
        ("/webhooks/0/clientConfig/service/namespace", json!("default")),
        ("/webhooks/0/clientConfig/service/port", json!(8443)),
        ("/metadata/name", json!("other")),
        ("/metadata/generateName", json!("pristine")),
        ("/metadata/finalizers", json!(["example.com/stay"])),
        ("/metadata/labels/app.kubernetes.io~1name", json!("other")),
        ("/metadata/labels", Value::Null),
        ("/metadata/labels/more", json!("x")),
        ("/metadata/annotations/foreign", json!("x")),
        ("/metadata/annotations/pristine~1accepted-deviations", json!("failurePolicy")),
        ("/metadata/annotations/admissions.enforcer~1disabled", json!("false")),
        ("/metadata/annotations", Value::Null),
        ("/metadata/ownerReferences", Value::Null),
        ("/metadata/ownerReferences", json!([namespace("default")])),
        ("/metadata/ownerReferences/1", other_uid),
        ("/metadata/ownerReferences", with("controller", true)),
        ("/metadata/ownerReferences", with("controller", false)),
        ("/metadata/ownerReferences", with("blockOwnerDeletion", true)),
    ]
}

fn deviate(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Array(items) => match key.parse::<usize>().unwrap() {
            at if value.is_null() => drop(items.remove(at)),
            at if at == items.len() => items.push(value),
            at => items[at] = value,
        },
        Value::Object(fields) if value.is_null() => drop(fields.remove(key).unwrap()),
        parent => parent[key.replace("~1", "/")] = value,
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn with_self_healing_a_stolen_token_can_create_only_the_shipped_configuration() {
    let client = client().await;
    // As shipped, RBAC refuses it, and the policy would.
    let status = create(&client, &restored()).await;
    assert!(status.code == 403 && status.message.contains("cannot create resource"), "{status:?}");

    self_healing::install().await;
    let tried = AssertUnwindSafe(async {
        // Admission comes first: what passes fails only because it exists. A new policy is in force after a moment.
        eventually("the shipped configuration passes", 20, async || {
            let status = create(&client, &restored()).await;
            (status.code == 409 && status.reason == "AlreadyExists").then_some(())
        })
        .await;
        for (pointer, value) in deviations() {
            let mut object = restored();
            deviate(&mut object, pointer, value.clone());
            let status = create(&client, &object).await;
            let text = &status.message;
            let is_refused = status.code == 403 && text.contains("self.webhooks.pristine");
            assert!(is_refused && !text.contains("failed expression"), "{pointer} {value}: {status:?}");
        }
    });
    let tried = tried.catch_unwind().await;
    self_healing::uninstall().await;
    tried.unwrap();
}
