//! The component self-healing: a deleted webhook configuration comes back, and none is left behind by an uninstallation.
//!
//! `hack/test` runs these in a process of their own, like those of `lifecycle`. Each leaves Pristine installed without the
//! component. `PRISTINE_HEALS` and `PRISTINE_UNINSTALLS` say how often each is repeated.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Pod};
use kube::{Api, api::ListParams};
use rand::seq::SliceRandom as _;
use serde_json::{Value, json};
use serial_test::serial;
use tokio::time::{Instant, sleep};

use crate::{
    common::{SYSTEM, eventually, setting},
    components::{apply_all, render},
    kubectl::{Namespace, acts, attempt, client, run},
    lifecycle,
};

const OBJECT: &str = "validatingwebhookconfiguration/pristine";

/// Installs the component.
pub async fn install() {
    apply_all(&render(Some("self-healing")).await, &[]).await;
}

/// Removes the component. First switched off: a replica that created the configuration in the last ten minutes takes the
/// loss of its permissions for an uninstallation.
pub async fn uninstall() {
    run(&["annotate", "--overwrite", "namespace", SYSTEM, "pristine/self-healing=off"]).await;
    sleep(Duration::from_secs(2)).await;
    apply_all(&render(None).await, &[]).await;
    run(&["delete", "--ignore-not-found", "clusterrolebinding,clusterrole", "pristine:self-healing"]).await;
    run(&["-n", SYSTEM, "delete", "--ignore-not-found", "rolebinding,role", "pristine:self-healing"]).await;
    run(&["annotate", "namespace", SYSTEM, "pristine/self-healing-"]).await;
}

fn times(name: &str, default: u32) -> u32 {
    setting(name).map_or(default, |text| text.parse().unwrap())
}

/// The configuration, if it exists.
async fn live() -> Option<ValidatingWebhookConfiguration> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client().await);
    api.get_opt("pristine").await.unwrap()
}

async fn configuration_is_back(seconds: u64) -> ValidatingWebhookConfiguration {
    eventually("the configuration is back", seconds, live).await
}

/// Deletes the configuration, and waits until execs are recorded again; how long that took.
async fn heal(ns: &Namespace, round: u32, namespace_uid: &str) -> Duration {
    run(&["delete", OBJECT]).await;
    let start = Instant::now();
    let created = configuration_is_back(30).await;
    let owners = created.metadata.owner_references.unwrap_or_default();
    let owner = [("Namespace", SYSTEM, namespace_uid)];
    assert_eq!(owners.iter().map(|it| (&*it.kind, &*it.name, &*it.uid)).collect::<Vec<_>>(), owner);
    let entries = created.webhooks.unwrap_or_default();
    assert!(entries.len() == 4 && entries.iter().all(|entry| entry.client_config.ca_bundle.is_some()), "{entries:?}");
    let word = format!("{round}");
    eventually("an exec is recorded", 15, async || {
        ns.run(&["exec", "web-0", "--", "echo", &word]).await;
        acts(&ns.pod("web-0").await).contains(&format!("exec echo {word}")).then_some(())
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    start.elapsed()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_deleted_configuration_is_back_within_half_a_minute_and_execs_are_recorded() {
    lifecycle::installed().await;
    install().await;
    let tried = AssertUnwindSafe(async {
        let ns = Namespace::new("t-record-").await;
        ns.workload("StatefulSet", 1).await;
        let uid = run(&["get", "namespace", SYSTEM, "-o", "jsonpath={.metadata.uid}"]).await;
        let mut longest = Duration::ZERO;
        let rounds = times("PRISTINE_HEALS", 2);
        for round in 0..rounds {
            longest = longest.max(heal(&ns, round, &uid).await);
        }
        println!("TOTALS: {rounds} healed, the slowest in {:.1} s", longest.as_secs_f64());
        let warnings = ["get", "events", "-A", "--field-selector", "reason=WebhookConfigurationRestored", "-o", "name"];
        eventually("the Event", 10, async || (!run(&warnings).await.is_empty()).then_some(())).await;

        // The documented way to keep it away.
        run(&["annotate", "namespace", SYSTEM, "pristine/self-healing=off"]).await;
        run(&["delete", OBJECT]).await;
        sleep(Duration::from_secs(16)).await;
        assert!(live().await.is_none(), "switched off");
        run(&["annotate", "namespace", SYSTEM, "pristine/self-healing-"]).await;
        configuration_is_back(70).await;
    });
    let tried = tried.catch_unwind().await;
    uninstall().await;
    tried.unwrap();
}

/// Waits until no replica is left that could create a configuration. `is_short` ends the drain early: a replica creates a
/// configuration at most 15 s after the deletion.
async fn replicas_are_gone(is_short: bool) {
    if is_short {
        sleep(Duration::from_secs(17)).await;
        attempt(&["-n", SYSTEM, "delete", "pods", "--all", "--grace-period=1", "--wait=false"]).await;
    }
    let pods: Api<Pod> = Api::namespaced(client().await, SYSTEM);
    eventually("the replicas are gone", 90, async || {
        pods.list(&ListParams::default()).await.unwrap().items.is_empty().then_some(())
    })
    .await;
}

/// Installs with these rules from the start, so that no replica has to be restarted for them.
async fn install_with(rules: &Value, component: Option<&str>) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
    let mut map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pristine", "namespace": SYSTEM}});
    map["data"] = rules["data"].clone();
    // One document: kubectl 1.30 reads no `---` after JSON.
    let both = json!({"apiVersion": "v1", "kind": "List", "items": [namespace, map]});
    apply_all(&both.to_string(), &[]).await;
    apply_all(&render(component).await, &[]).await;
    lifecycle::settled().await;
}

/// Uninstalls in this way, as often as `PRISTINE_UNINSTALLS` says, and looks whether a configuration is left behind.
async fn uninstalls(what: &str, mut way: impl AsyncFnMut(u32)) {
    lifecycle::installed().await;
    let rules: Value = serde_json::from_str(&lifecycle::rules().await).unwrap();
    let tried = AssertUnwindSafe(async {
        let ns = Namespace::new("t-mark-").await;
        ns.workload("StatefulSet", 1).await;
        let rounds = times("PRISTINE_UNINSTALLS", 1);
        for round in 0..rounds {
            install_with(&rules, Some("self-healing")).await;
            way(round).await;
            replicas_are_gone(rounds == 1).await;
            sleep(Duration::from_secs(2)).await;
            assert!(live().await.is_none(), "round {round}: left behind, and no replica is left to answer");
            ns.run(&["exec", "web-0", "--", "true"]).await;
            attempt(&["delete", "namespace", "--timeout=90s", SYSTEM]).await;
        }
        println!("TOTALS: {rounds} times uninstalled by {what}, nothing left behind");
    });
    let tried = tried.catch_unwind().await;
    attempt(&["delete", "--ignore-not-found", OBJECT]).await;
    attempt(&["delete", "namespace", "--timeout=90s", SYSTEM]).await;
    run(&["delete", "--ignore-not-found", "clusterrolebinding,clusterrole", "pristine:self-healing"]).await;
    install_with(&rules, None).await;
    tried.unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn kubectl_delete_leaves_no_configuration_behind() {
    let manifest = render(Some("self-healing")).await;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), manifest).unwrap();
    uninstalls("kubectl delete -f", async |_| {
        run(&["delete", "--wait=false", "-f", file.path().to_str().unwrap()]).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn deleting_the_namespace_leaves_no_configuration_behind() {
    uninstalls("deleting the namespace", async |_| {
        run(&["delete", "namespace", "--wait=false", SYSTEM]).await;
    })
    .await;
}

/// Every object of the installation but the namespace, as kubectl names it.
async fn objects() -> Vec<String> {
    let rendered = render(Some("self-healing")).await;
    let objects = rendered.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    let others = objects.filter(|object| object["kind"] != "Namespace");
    others.map(|it| format!("{}/{}", it["kind"].as_str().unwrap(), it["metadata"]["name"].as_str().unwrap())).collect()
}

async fn delete(objects: &[String]) {
    for object in objects {
        run(&["-n", SYSTEM, "delete", "--ignore-not-found", "--wait=false", object]).await;
    }
}

/// Helm deletes the configuration first, the Deployment later, and never the namespace. Here the replicas have their
/// permissions until they have drained, which is the worst order.
#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn the_order_of_helm_leaves_no_configuration_behind() {
    let words = |words: [&str; 4]| words.map(str::to_owned);
    uninstalls("Helm's order", async |_| {
        delete(&[OBJECT.to_owned()]).await;
        sleep(Duration::from_secs(1)).await;
        delete(&words([
            "service/pristine",
            "deployment/pristine",
            "configmap/pristine",
            "poddisruptionbudget/pristine",
        ]))
        .await;
    })
    .await;
}

/// Argo CD deletes the objects of one wave in any order, the waves in reverse order, and the namespace last or never. Waves
/// that take long are the worst case: the configuration is created again before the rest is deleted.
#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn the_order_of_argo_cd_leaves_no_configuration_behind() {
    uninstalls("Argo CD's order", async |round| {
        let mut objects = objects().await;
        objects.shuffle(&mut rand::rng());
        if round % 2 == 0 {
            delete(&[OBJECT.to_owned()]).await;
            configuration_is_back(30).await;
            let mut workload = ["Deployment/pristine", "Service/pristine"].map(str::to_owned);
            workload.shuffle(&mut rand::rng());
            delete(&workload).await;
            sleep(Duration::from_secs(3)).await;
        }
        println!("round {round}: {objects:?}");
        delete(&objects).await;
        if round % 4 > 1 {
            run(&["delete", "namespace", "--wait=false", SYSTEM]).await;
        }
    })
    .await;
}
