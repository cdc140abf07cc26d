//! A real Helm installs, upgrades, rolls back, adopts and uninstalls Pristine while people exec.
//!
//! Each test leaves Pristine as `kubectl apply` installs it, with the rules that it found. What the chart renders is
//! compared in `tests/repository/chart.rs`.

use std::{
    fs,
    process::{Output, Stdio},
    time::Duration,
};

use serial_test::serial;
use tokio::{process::Command, time::sleep};

use crate::{
    common::{SYSTEM, eventually, name_of, setting},
    kubectl::{Namespace, attempt, run, uid_of},
    lifecycle::{BundleWatch, MANIFEST, Users, an_exec_is_marked, install, left, rules, settled},
};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/chart");
/// What a first install needs besides the chart. Helm waits until the replicas are Ready.
const NEW: [&str; 2] = ["--create-namespace", "--wait"];

/// Helm with these words for the release `pristine`, successful or not.
async fn attempt_helm(verb: &str, more: &[&str]) -> Output {
    let program = setting("PRISTINE_HELM").expect("hack/test ecosystem sets PRISTINE_HELM");
    let chart: &[&str] = if ["install", "upgrade"].contains(&verb) { &[CHART] } else { &[] };
    let words = [&[verb, "pristine"][..], chart, &["--namespace", SYSTEM, "--timeout", "120s"], more].concat();
    Command::new(program).args(words).stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

async fn helm(verb: &str, more: &[&str]) -> String {
    let output = attempt_helm(verb, more).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "helm {verb} {more:?}: {err}{out}");
    out.into_owned()
}

/// Values with rules that deny exec in `t-deny-*` with this message.
struct Values {
    folder: tempfile::TempDir,
}

impl Values {
    fn denying(message: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let values = format!(
            "configuration:
  apiVersion: pristine/v1alpha1
  kind: PristineConfiguration
  default: {{action: Record}}
  rules:
  - {{name: deny, match: {{namespaces: [\"t-deny-*\"]}}, action: Deny, message: {message}}}
"
        );
        fs::write(folder.path().join("values.yaml"), values).unwrap();
        Self { folder }
    }

    fn file(&self) -> String {
        self.folder.path().join("values.yaml").to_str().unwrap().to_owned()
    }
}

/// A pod in `t-deny-*`, to see which rules are in force.
struct Probe(Namespace);

impl Probe {
    async fn new() -> Self {
        let ns = Namespace::new("t-deny-").await;
        ns.workload("StatefulSet", 1).await;
        Self(ns)
    }

    /// Each replica that the rollout has replaced may still answer for as long as it drains.
    async fn is_denied_with(&self, message: &str) {
        eventually(message, 40, async || {
            let output = self.0.attempt(&["exec", "web-0", "--", "true"]).await;
            String::from_utf8_lossy(&output.stderr).contains(message).then_some(())
        })
        .await;
    }
}

/// Until no trace is left of what `kubectl apply` installed.
async fn uninstall_by_kubectl() {
    run(&["delete", "--ignore-not-found", "--timeout=180s", "-f", MANIFEST]).await;
    assert!(left().await.is_empty());
}

/// The two commands of docs/uninstall.md; what is left after each.
async fn uninstall_by_helm() -> [Vec<String>; 2] {
    helm("uninstall", &[]).await;
    let after_helm = left().await;
    run(&["delete", "namespace", "--timeout=180s", SYSTEM]).await;
    [after_helm, left().await]
}

fn assert_all_gone([after_helm, after_namespace]: [Vec<String>; 2]) {
    assert_eq!(after_helm, ["namespace/pristine-system"]);
    assert!(after_namespace.is_empty(), "{after_namespace:?}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test ecosystem"]
#[serial]
async fn no_exec_fails_while_helm_installs_upgrades_rolls_back_and_uninstalls() {
    let rules = rules().await;
    uninstall_by_kubectl().await;
    let probe = Probe::new().await;
    let users = Users::start_anyway().await;

    // Open until the first replica is Ready, then closed.
    helm("install", &[&NEW[..], &["--set", "components.failOpen=true"]].concat()).await;
    let watch = BundleWatch::start().await;
    helm("upgrade", &["--wait", "--set", "components.failOpen=false"]).await;
    let policies = ["-o", "jsonpath={.webhooks[*].failurePolicy}"];
    let policies = run(&[&["get", "validatingwebhookconfiguration", "pristine"][..], &policies].concat()).await;
    assert_eq!(policies, "Fail Fail Ignore Ignore");

    let (first, second) = (Values::denying("first"), Values::denying("second"));
    helm("upgrade", &["--wait", "--values", &first.file()]).await;
    probe.is_denied_with("first").await;
    helm("upgrade", &["--wait", "--values", &second.file()]).await;
    probe.is_denied_with("second").await;
    helm("rollback", &["--wait"]).await;
    probe.is_denied_with("first").await;

    // Helm waits in vain, and rolls back.
    let bad = ["--rollback-on-failure", "--timeout", "15s", "--set", "image.tag=absent", "--reuse-values"];
    let failed = attempt_helm("upgrade", &bad).await;
    assert!(!failed.status.success(), "an image that does not exist");
    probe.is_denied_with("first").await;
    settled().await;
    watch.always_the_same().await;

    let gone = uninstall_by_helm().await;
    let open = probe.0.attempt(&["exec", "web-0", "--", "true"]).await;
    let tally = users.end("install, 4 upgrades, 2 rollbacks and uninstall by Helm").await;
    install(&rules).await;
    assert_all_gone(gone);
    assert!(open.status.success(), "{}", String::from_utf8_lossy(&open.stderr));
    tally.none_failed();
    an_exec_is_marked().await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test ecosystem"]
#[serial]
async fn helm_adopts_what_kubectl_installed_and_fails_no_exec() {
    let users = Users::start().await;
    let before = settled().await;
    let (rules, watch) = (rules().await, BundleWatch::start().await);

    let refused = attempt_helm("install", &["--wait"]).await;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("cannot be imported into the current release"), "{why}");

    // The API server has completed what kubectl applied, and Helm takes that for a conflict.
    helm("install", &["--wait", "--take-ownership", "--force-conflicts"]).await;
    assert_eq!(self::rules().await, rules, "the rules of the user");
    helm("upgrade", &["--wait"]).await;
    let after = settled().await;
    let uids = |pods: &[k8s_openapi::api::core::v1::Pod]| -> Vec<String> {
        let mut uids: Vec<_> = pods.iter().map(|pod| format!("{} {}", name_of(pod), uid_of(pod))).collect();
        uids.sort();
        uids
    };
    let rules_after = self::rules().await;
    watch.always_the_same().await;

    let gone = uninstall_by_helm().await;
    let tally = users.end("adoption, upgrade and uninstall by Helm").await;
    install(&rules).await;
    assert_eq!(uids(&after), uids(&before), "no replica is restarted");
    assert_eq!(rules_after, rules, "the rules of the user");
    assert_all_gone(gone);
    tally.none_failed();
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test ecosystem"]
#[serial]
async fn a_plain_install_by_helm_interrupts_exec_for_seconds() {
    let rules = rules().await;
    uninstall_by_kubectl().await;
    let users = Users::start_anyway().await;
    helm("install", &NEW).await;
    let tally = users.end("install by Helm").await;
    let gone = uninstall_by_helm().await;
    install(&rules).await;
    assert_all_gone(gone);
    assert!(tally.outage < Duration::from_secs(10), "{:?}", tally.outage);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test ecosystem"]
#[serial]
async fn self_healing_and_helm_leave_nothing_behind() {
    let rules = rules().await;
    uninstall_by_kubectl().await;
    helm("install", &[&NEW[..], &["--set", "components.selfHealing=true"]].concat()).await;
    let users = Users::start().await;
    // What a replica creates has no annotations of Helm. An upgrade succeeds all the same.
    let delete = ["delete", "validatingwebhookconfiguration", "pristine"];
    let get = ["get", "validatingwebhookconfiguration", "pristine"];
    run(&delete).await;
    eventually("the configuration again", 60, async || attempt(&get).await.status.success().then_some(())).await;
    helm("upgrade", &["--wait", "--reuse-values", "--set", "replicas=3"]).await;
    run(&delete).await;
    eventually("the configuration again", 60, async || attempt(&get).await.status.success().then_some(())).await;

    run(&["annotate", "namespace", SYSTEM, "pristine/self-healing=off"]).await;
    run(&delete).await;
    helm("uninstall", &[]).await;
    // A replica would heal after 10 s, and drains for up to 30.
    sleep(Duration::from_secs(40)).await;
    let after_helm = left().await;
    run(&["delete", "namespace", "--timeout=180s", SYSTEM]).await;
    let gone = [after_helm, left().await];
    let tally = users.end("two healings, upgrade and uninstall by Helm").await;
    install(&rules).await;
    assert_all_gone(gone);
    // A created configuration has no caBundle until a replica has written it.
    assert!(tally.outage < Duration::from_secs(2), "{:?}", tally.outage);
}
