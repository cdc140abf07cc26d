//! What comes after the install, while people exec all the time: applying it again, rolling it, taking it away.
//!
//! `hack/test` runs these in a process of their own, after all others and one by one. Each leaves Pristine installed, with
//! the rules that it found.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Pod},
};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use serial_test::serial;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    common::{SYSTEM, eventually, name_of},
    kubectl::{self, Namespace, attempt, client, is_marked, run, uid_of},
};

mod surges;

pub const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/install.yaml");
/// More would take the two cores from what they are to observe.
const USERS: usize = 2;
/// A user's rest between two execs; each takes about as long by itself.
const REST: Duration = Duration::from_millis(100);

struct Exec {
    start: Instant,
    /// What kubectl said, if it failed.
    error: Option<String>,
}

/// Users who exec, one time after the other, each in a pod of their own.
pub struct Users {
    ns: Namespace,
    stop: Arc<AtomicBool>,
    all: Vec<JoinHandle<Vec<Exec>>>,
}

/// What became of their execs.
pub struct Tally {
    execs: usize,
    pub failures: Vec<String>,
    /// The longest that one user had no success, from the start of the first failure to the start of the next success.
    pub outage: Duration,
}

impl Users {
    pub async fn start() -> Self {
        installed().await;
        Self::start_anyway().await
    }

    /// Whether or not Pristine is installed.
    pub async fn start_anyway() -> Self {
        // Recorded only: no eviction ends an exec.
        let ns = Namespace::new("t-record-").await;
        ns.workload("StatefulSet", USERS).await;
        let stop = Arc::new(AtomicBool::new(false));
        let user = |n: usize| tokio::spawn(execs(ns.name.clone(), format!("web-{n}"), stop.clone()));
        let all: Vec<_> = (0..USERS).map(user).collect();
        // All is well before.
        sleep(Duration::from_secs(3)).await;
        Self { ns, stop, all }
    }

    pub async fn end(self, what: &str) -> Tally {
        // All is well again.
        sleep(Duration::from_secs(3)).await;
        self.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally { execs: 0, failures: Vec::new(), outage: Duration::ZERO };
        for user in self.all {
            tally.add(&user.await.unwrap());
        }
        for n in 0..USERS {
            assert!(is_marked(&self.ns.pod(&format!("web-{n}")).await), "Pristine was asked");
        }
        println!(
            "TOTALS: {what}: {} execs, {} failed, for {:.1} s at the longest",
            tally.execs,
            tally.failures.len(),
            tally.outage.as_secs_f64()
        );
        tally
    }
}

async fn execs(namespace: String, pod: String, stop: Arc<AtomicBool>) -> Vec<Exec> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let output = attempt(&["-n", &namespace, "exec", &pod, "--", "true"]).await;
        let error = (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned());
        all.push(Exec { start, error });
        sleep(REST).await;
    }
    all
}

impl Tally {
    /// The execs of one user, in their order.
    fn add(&mut self, execs: &[Exec]) {
        self.execs += execs.len();
        let mut failing: Option<Instant> = None;
        for exec in execs {
            let since = *failing.get_or_insert(exec.start);
            self.outage = self.outage.max(exec.start - since);
            match &exec.error {
                Some(error) => self.failures.push(error.clone()),
                None => failing = None,
            }
        }
        if let Some(since) = failing {
            self.outage = self.outage.max(since.elapsed());
        }
    }

    pub fn none_failed(&self) {
        assert!(self.failures.is_empty(), "{} of {} failed: {:?}", self.failures.len(), self.execs, self.failures);
        assert!(self.execs > 50, "only {} execs", self.execs);
    }

    /// As long as an uninstall may interrupt them.
    pub fn none_failed_for_long(&self) {
        assert!(self.outage < Duration::from_secs(2), "for {:?}: {:?}", self.outage, self.failures);
        assert!(self.execs > 50, "only {} execs", self.execs);
    }
}

async fn rolled_out() {
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=120s"]).await;
}

/// A test before may have failed half way.
pub async fn installed() {
    let status = ["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=90s"];
    if !attempt(&status).await.status.success() {
        run(&["apply", "-f", MANIFEST]).await;
    }
    settled().await;
}

/// Until what was rolled out serves, and what it replaces has drained; the replicas.
pub async fn settled() -> Vec<Pod> {
    rolled_out().await;
    let pods: Api<Pod> = Api::namespaced(client().await, SYSTEM);
    let selector = ListParams::default().labels("app.kubernetes.io/component=webhook");
    eventually("the old replicas gone", 90, || async {
        let found = pods.list(&selector).await.unwrap().items;
        (found.len() == 2).then_some(found)
    })
    .await
}

/// The ConfigMap with the rules in force.
pub async fn rules() -> String {
    let map = run(&["-n", SYSTEM, "get", "configmap", "pristine", "-o", "json"]).await;
    let map: Value = serde_json::from_str(&map).unwrap();
    let metadata = json!({"name": "pristine", "namespace": SYSTEM});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": map["data"]}).to_string()
}

/// Installs, with these rules instead of the built-in ones.
pub async fn install(rules: &str) {
    run(&["apply", "-f", MANIFEST]).await;
    rolled_out().await;
    kubectl::apply(SYSTEM, rules).await;
    run(&["-n", SYSTEM, "rollout", "restart", "deployment/pristine"]).await;
    settled().await;
}

pub async fn an_exec_is_marked() {
    let ns = Namespace::new("t-mark-").await;
    ns.workload("StatefulSet", 1).await;
    ns.run(&["exec", "web-0", "--", "true"]).await;
    assert!(is_marked(&ns.pod("web-0").await));
}

/// What is in the cluster, and in no namespace, by our names.
pub async fn left() -> Vec<String> {
    let kinds = "validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,flowschemas,namespaces";
    let names = run(&["get", kinds, "-o", "name"]).await;
    let is_ours = |line: &&str| {
        let name = line.rsplit('/').next().unwrap();
        // Not of the manifest: hack/cluster's way from the API server to the kubelet, and the namespace of hack/demo.
        let is_other = ["pristine:kubelet-api-admin", "pristine-demo"].contains(&name);
        (name.starts_with("pristine") || name.ends_with(".pristine")) && !is_other
    };
    names.lines().filter(is_ours).map(str::to_owned).collect()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn an_uninstall_removes_everything_and_interrupts_exec_for_less_than_two_seconds() {
    let users = Users::start().await;
    let rules = rules().await;
    assert!(left().await.len() > 10, "what is looked for is there before");
    // Waits until the namespace is gone.
    let deleted = attempt(&["delete", "--timeout=180s", "-f", MANIFEST]).await;
    let left = left().await;
    let tally = users.end("delete -f install.yaml").await;
    // Installed again before anything is found wrong, for the tests after this one.
    install(&rules).await;
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    assert!(left.is_empty(), "{left:?}");
    tally.none_failed_for_long();
    an_exec_is_marked().await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn deleting_the_namespace_interrupts_exec_for_less_than_two_seconds() {
    let users = Users::start().await;
    let rules = rules().await;
    run(&["delete", "namespace", "--timeout=180s", SYSTEM]).await;
    let left = left().await;
    let tally = users.end("delete namespace").await;
    install(&rules).await;
    assert!(!left.iter().any(|name| name.starts_with("validatingwebhookconfiguration")), "{left:?}");
    tally.none_failed_for_long();
    an_exec_is_marked().await;
}

async fn apply(manifest: &Path, how: &[&str]) {
    run(&[&["apply", "-f", manifest.to_str().unwrap()][..], how].concat()).await;
}

/// The caBundle of each entry that has a path of ours, too.
async fn trusted(api: &Api<ValidatingWebhookConfiguration>) -> Vec<ByteString> {
    let entries = api.get("pristine").await.unwrap().webhooks.unwrap_or_default();
    let whole = entries.into_iter().map(|entry| entry.client_config).filter(|config| {
        let path = config.service.as_ref().and_then(|service| service.path.as_deref());
        path.is_some_and(|path| path.starts_with("/review/"))
    });
    whole.filter_map(|config| config.ca_bundle).collect()
}

/// Looks at the caBundle and the path of each entry, ten times a second.
pub struct BundleWatch {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<Vec<ByteString>>)>,
}

impl BundleWatch {
    pub async fn start() -> Self {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(client().await);
        let before = trusted(&api).await;
        assert!(before.len() == 4 && before.iter().all(|bundle| !bundle.0.is_empty()), "{before:?}");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut count, mut wrong) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let found = trusted(&api).await;
                count += 1;
                if found != before {
                    wrong.push(found);
                }
                sleep(Duration::from_millis(20)).await;
            }
            (count, wrong)
        });
        Self { stop, task }
    }

    pub async fn always_the_same(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, wrong) = self.task.await.unwrap();
        assert!(wrong.is_empty() && count > 100, "{} of {count} looks: {:?}", wrong.len(), wrong.first());
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn applying_the_manifest_again_fails_no_exec_and_keeps_the_ca_bundle() {
    let users = Users::start().await;
    let (manifest, rules) = (Path::new(MANIFEST), rules().await);
    let watch = BundleWatch::start().await;
    let server_side = ["--server-side", "--force-conflicts"];
    for _ in 0..5 {
        apply(manifest, &[]).await;
    }
    for _ in 0..5 {
        apply(manifest, &server_side).await;
    }
    // What a GitOps controller does all day.
    let start = Instant::now();
    for round in 0..10 {
        sleep_until(start + Duration::from_secs(2) * round).await;
        apply(manifest, &[&server_side[..], &["--field-manager=argocd-controller"]].concat()).await;
    }
    rolled_out().await;
    let rules_after = self::rules().await;
    let tally = users.end("20 applies").await;
    assert_eq!(rules_after, rules, "the rules of the user");
    watch.always_the_same().await;
    tally.none_failed();
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn without_its_config_map_the_built_in_rules_are_in_force() {
    let (rules, ns) = (rules().await, Namespace::new("t-exempt-").await);
    let names = ns.workload("Deployment", 2).await;
    let (first, second) = (name_of(&names[0]), name_of(&names[1]));
    ns.run(&["exec", first, "--", "true"]).await;
    assert!(!is_marked(&ns.pod(first).await), "the rules of the tests exempt it");
    run(&["-n", SYSTEM, "delete", "configmap", "pristine"]).await;
    // The kubelet notices within a minute.
    eventually("the built-in rules", 120, || async {
        ns.run(&["exec", second, "--", "true"]).await;
        is_marked(&ns.pod(second).await).then_some(())
    })
    .await;
    let events = run(&["-n", SYSTEM, "events", "--types=Warning"]).await;
    let restarted = attempt(&["-n", SYSTEM, "rollout", "restart", "deployment/pristine"]).await;
    settled().await;
    let log = run(&["-n", SYSTEM, "logs", "deployment/pristine"]).await;
    install(&rules).await;
    assert!(events.contains("ConfigurationDeleted"), "{events}");
    assert!(restarted.status.success() && log.contains("the built-in configuration"), "{log}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn rolling_updates_fail_no_exec() {
    let users = Users::start().await;
    let before = settled().await;
    for change in [&["rollout", "restart"][..], &["rollout", "restart"], &["set", "env"]] {
        let more: &[&str] = if change[0] == "set" { &["UNRELATED=yes"] } else { &[] };
        run(&[&["-n", SYSTEM][..], change, &["deployment/pristine"], more].concat()).await;
        rolled_out().await;
    }
    run(&["-n", SYSTEM, "set", "env", "deployment/pristine", "UNRELATED-"]).await;
    // The last connections are closed when the old replicas have drained.
    let after = settled().await;
    let tally = users.end("4 rolling updates").await;
    assert!(after.iter().all(|pod| before.iter().all(|old| uid_of(old) != uid_of(pod))), "all replaced");
    tally.none_failed();
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn deleting_the_namespace_removes_the_webhook_configuration_within_two_seconds() {
    installed().await;
    let rules = rules().await;
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    run(&["delete", "namespace", SYSTEM, "--wait=false"]).await;
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client().await);
    // The namespace itself takes as long as its pods take to drain.
    eventually("no webhook configuration", 2, || async {
        configurations.get_opt("pristine").await.unwrap().is_none().then_some(())
    })
    .await;
    ns.run(&["exec", &name, "--", "true"]).await;
    run(&["wait", "--for=delete", "--timeout=90s", "namespace", SYSTEM]).await;
    install(&rules).await;
}
