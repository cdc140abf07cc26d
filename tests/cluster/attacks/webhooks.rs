//! What an attacker with Pristine's own token can do to its webhook configuration. Every request is a dry run: had the policy
//! let one pass, the next exec of every other test would pay for it.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{Client, core::Status};
use serde_json::{Value, json};
use serial_test::parallel;

use crate::kubectl::client;

const ACCOUNT: &str = "system:serviceaccount:pristine-system:pristine";

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
