//! The Security Profiles Operator prepends `env SPO_EXEC_REQUEST_UID=<id>` to the command of every exec. Its module cannot
//! be built here, so a MutatingAdmissionPolicy does the same.

use serial_test::serial;

use crate::{
    common::{eventually, name_of, skip},
    components::configure,
    kubectl::{Namespace, acts, apply, record, run},
};

const ID: &str = "5a7b0c3e-spo";

/// In this namespace only.
fn policy(namespace: &str) -> String {
    format!(
        r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{name: prepends-env}}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {{apiGroups: [""], apiVersions: [v1], operations: [CONNECT], resources: [pods/exec]}}
  matchConditions:
  - {{name: here, expression: "request.namespace == '{namespace}'"}}
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: >-
        [JSONPatch{{op: 'add', path: '/command/0', value: 'SPO_EXEC_REQUEST_UID={ID}'}},
        JSONPatch{{op: 'add', path: '/command/0', value: 'env'}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{name: prepends-env}}
spec: {{policyName: prepends-env}}
"#
    )
}

/// Removes the policy in any case: it would change the execs of other tests.
struct Policy;

impl Drop for Policy {
    fn drop(&mut self) {
        let words = ["delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", "prepends-env"];
        let _ = std::process::Command::new("kubectl").args(words).output();
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn rules_and_record_have_the_command_that_the_user_typed_although_a_policy_prepends_env() {
    let kinds = run(&["get", "--raw", "/apis/admissionregistration.k8s.io/v1"]).await;
    if !kinds.contains("mutatingadmissionpolicies") {
        return skip("no MutatingAdmissionPolicy prepends to a command: they are served as v1 since Kubernetes 1.36");
    }
    let rule = "rules:\n- {name: no-passwords, match: {namespaces: [t-prefix-*], commandPrefix: [cat, /etc/passwd]}, action: Deny, message: not this file}\n";
    let before = configure(|text| text.replacen("rules:\n", rule, 1)).await;
    let ns = Namespace::new("t-prefix-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let _policy = Policy;
    apply(&ns.name, &policy(&ns.name)).await;
    // What runs has the words in front.
    let print = ["exec", &name, "--", "sh", "-c", "echo $SPO_EXEC_REQUEST_UID"];
    eventually("the policy is in force", 30, async || {
        let output = ns.attempt(&print).await;
        (String::from_utf8_lossy(&output.stdout).trim() == ID).then_some(())
    })
    .await;
    let denied = ns.attempt(&["exec", &name, "--", "cat", "/etc/passwd"]).await;
    let why = String::from_utf8_lossy(&denied.stderr);
    assert!(!denied.status.success() && why.contains(r#"rule "no-passwords": not this file"#), "{why}");
    // A user who types the words gains nothing: they are part of the command, and the id is the operator's.
    ns.run(&["exec", &name, "--", "env", "SPO_EXEC_REQUEST_UID=mine", "true"]).await;
    let pod = ns.pod(&name).await;
    let acts = acts(&pod);
    assert_eq!(acts.last().unwrap(), "exec env SPO_EXEC_REQUEST_UID=mine true", "{acts:?}");
    assert!(acts.iter().any(|act| act == "exec sh -c echo $SPO_EXEC_REQUEST_UID"), "{acts:?}");
    let recent = &record(&pod)["recent"];
    let last = recent.as_array().unwrap().last().unwrap();
    assert_eq!(last["user"]["extra"]["spo-exec-request-uid"], serde_json::json!([ID]), "{last}");
    configure(|_| before).await;
}
