//! Gatekeeper with a webhook on everything, and what it makes of Pristine's writes: a mark is an UPDATE of `pods/status`, an
//! eviction is a CREATE of `pods/eviction`, a check of a permission is a CREATE of `subjectaccessreviews`.

use std::time::Duration;

use serde_json::{Value, json};
use serial_test::serial;
use tokio::time::{Instant, sleep};

use super::gatekeeper_program::Gatekeeper;
use crate::{
    common::{SYSTEM, audit, eventually, name_of, setting},
    kubectl::{Namespace, acts, condition, is_marked, run},
};

/// As `enableConnectOperations`, and fails closed: every request of every kind, with subresources. Without what a node needs
/// to stay Ready, as Gatekeeper's documentation advises.
fn everything(webhook: &mut Value) {
    webhook["rules"] = json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}]);
    webhook["failurePolicy"] = json!("Fail");
    let expressions = webhook["namespaceSelector"]["matchExpressions"].as_array_mut().unwrap();
    let names = ["kube-system", "kube-node-lease"];
    expressions.push(json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": names}));
}

/// The same, and with the exception that docs/coexistence.md recommends.
fn everything_but_pristine(webhook: &mut Value) {
    everything(webhook);
    let expression = "request.userInfo.username != 'system:serviceaccount:pristine-system:pristine'";
    webhook["matchConditions"] = json!([{"name": "not-pristine", "expression": expression}]);
}

/// Whether an exec was admitted, and what its user read.
async fn exec(ns: &Namespace, pod: &str, word: &str) -> Result<(), String> {
    let output = ns.attempt(&["exec", pod, "--", "echo", word]).await;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn gatekeeper_on_everything_admits_a_marked_exec_and_a_pod_of_which_it_denies_the_exec_is_marked_too() {
    let gatekeeper = Gatekeeper::start(everything).await;
    let ns = Namespace::new("t-mark-").await;
    let pods = ns.workload("Deployment", 2).await;
    let [admitted, denied] = [name_of(&pods[0]), name_of(&pods[1])];
    exec(&ns, admitted, "hello").await.unwrap();
    assert_eq!(acts(&ns.pod(admitted).await), ["exec echo hello"]);
    let rule = format!("input.review.operation == \"CONNECT\"\ninput.review.name == \"{denied}\"");
    gatekeeper.deny("NoExec", &rule, "no exec here").await;
    let why = eventually("Gatekeeper denies", 60, async || exec(&ns, denied, "denied").await.err()).await;
    assert!(
        why.contains("admission webhook \"validation.gatekeeper.sh\" denied the request: [noexec] no exec here"),
        "{why}"
    );
    // Both webhooks are asked at the same time, so the mark was written before the denial was known.
    let pod = eventually("the mark", 5, async || Some(ns.pod(denied).await).filter(is_marked)).await;
    assert!(acts(&pod).contains(&"exec echo denied".to_owned()), "{:?}", acts(&pod));
    exec(&ns, admitted, "again").await.unwrap();
    gatekeeper.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn an_eviction_that_gatekeeper_denies_is_retried_and_the_condition_names_gatekeeper() {
    let gatekeeper = Gatekeeper::start(everything).await;
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 2).await[0]).to_owned();
    let rule = format!("input.review.kind.kind == \"Eviction\"\ninput.review.namespace == \"{}\"", ns.name);
    gatekeeper.deny("NoEviction", &rule, "no eviction here").await;
    let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", ns.name);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": ns.name},
        "deleteOptions": {"dryRun": ["All"]},
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), eviction.to_string()).unwrap();
    let file = file.path().display().to_string();
    let dry = ["create", "--raw", &path, "-f", &file];
    eventually("the denial is in force", 60, async || (!ns.attempt(&dry).await.status.success()).then_some(())).await;
    exec(&ns, &name, "hello").await.unwrap();
    let message = eventually("the condition", 40, async || {
        let (reason, message) = condition(&ns.pod(&name).await);
        (reason == "EvictionBlocked").then_some(message)
    })
    .await;
    assert!(message.contains("validation.gatekeeper.sh") && message.contains("no eviction here"), "{message}");
    println!("TOTALS: the condition of a pod whose eviction Gatekeeper denies: {message}");
    gatekeeper.allow("NoEviction").await;
    ns.terminates(&name, 90).await;
    let codes: Vec<u64> =
        audit::evictions(&setting("KUBECONFIG").unwrap(), &ns.name)[&name].iter().map(|one| one.1).collect();
    println!("TOTALS: the answers to its eviction requests: {codes:?}");
    assert!(codes.contains(&403) && codes.last() == Some(&201), "{codes:?}");
    gatekeeper.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn while_gatekeeper_is_down_and_fails_closed_the_denial_of_an_exec_names_it_and_the_ca_bundle_is_restored() {
    let mut gatekeeper = Gatekeeper::start(|webhook| {
        everything(webhook);
        // Else its own call fails sooner than Pristine's write.
        webhook["rules"][0]["operations"] = json!(["CREATE", "UPDATE", "DELETE"]);
    })
    .await;
    let ns = Namespace::new("t-fast-").await;
    let pods = ns.workload("Deployment", 2).await;
    let name = name_of(&pods[0]);
    exec(&ns, name, "before").await.unwrap();
    gatekeeper.die().await;
    let start = Instant::now();
    let why = exec(&ns, name_of(&pods[1]), "down").await.unwrap_err();
    println!("TOTALS: with Gatekeeper down and Fail, after {:.1?}: {why}", start.elapsed());
    assert!(why.contains("pristine could not record") && why.contains("validation.gatekeeper.sh"), "{why}");
    assert!(!is_marked(&ns.pod(name_of(&pods[1])).await));
    // Break-glass is admitted, and nothing is written.
    let glass = ["exec", "--as=pristine:break-glass", "--as-group=pristine:break-glass", name, "--", "true"];
    ns.run(&glass).await;
    // The API server asks no webhook about webhook configurations.
    let bundle =
        ["get", "validatingwebhookconfiguration", "pristine", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"];
    let before = run(&bundle).await;
    let empty = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    run(&["patch", "validatingwebhookconfiguration", "pristine", "--type=json", "-p", empty]).await;
    eventually("the caBundle", 90, async || (run(&bundle).await == before).then_some(())).await;
    // A marked pod whose deadline passes stays, and is evicted as soon as an eviction is admitted.
    sleep(Duration::from_secs(8)).await;
    assert!(ns.pod(name).await.metadata.deletion_timestamp.is_none());
    gatekeeper.remove_webhooks().await;
    let start = Instant::now();
    ns.terminates(name, 120).await;
    println!("TOTALS: evicted {:.1?} after Gatekeeper's webhook was removed", start.elapsed());
    exec(&ns, name_of(&pods[1]), "after").await.unwrap();
    gatekeeper.remove().await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn an_exec_is_admitted_while_gatekeeper_hangs_as_shipped_and_on_everything_but_pristine() {
    let ns = Namespace::new("t-mark-").await;
    let pods = ns.workload("Deployment", 1).await;
    let name = name_of(&pods[0]);
    let shipped = |_: &mut Value| ();
    let exempting: fn(&mut Value) = |webhook| {
        everything_but_pristine(webhook);
        // Its own answer is not what is tried here.
        webhook["rules"][0]["operations"] = json!(["CREATE", "UPDATE", "DELETE"]);
        webhook["timeoutSeconds"] = json!(10);
    };
    for (how, change) in [("as shipped", shipped as fn(&mut Value)), ("exempting Pristine", exempting)] {
        let gatekeeper = Gatekeeper::start(change).await;
        exec(&ns, name, "before").await.unwrap();
        gatekeeper.signal("STOP");
        let start = Instant::now();
        let answer = exec(&ns, name, "hangs").await;
        println!("TOTALS: Gatekeeper hangs, {how}: after {:.1?}: {answer:?}", start.elapsed());
        let version = run(&["version", "-o", "json"]).await;
        let version: Value = serde_json::from_str(&version).unwrap();
        let minor: u32 = version["serverVersion"]["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap();
        // Before 1.37, webhooks review SubjectAccessReviews, too.
        assert!(answer.is_ok() || (minor < 37 && how == "as shipped"), "{answer:?}");
        gatekeeper.signal("CONT");
        gatekeeper.remove().await;
    }
    let replicas =
        run(&["-n", SYSTEM, "get", "deployment", "pristine", "-o", "jsonpath={.status.readyReplicas}"]).await;
    assert_eq!(replicas, "2");
}
