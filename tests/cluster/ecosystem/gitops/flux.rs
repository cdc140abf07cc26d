//! Flux keeps Pristine: its own kustomize-controller, with the manifests of docs/gitops.md.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use serial_test::serial;
use tokio::time::{Instant, sleep_until};

use self::controller::Flux;
use super::{
    Repository, SHORT_LIVES, base, chart, live_shortly, reinstall,
    watch::{Version, Watch, certificates},
    watched,
};
use crate::{
    common::SYSTEM,
    kubectl::{attempt, run},
    lifecycle::{self, Users, left, rules, settled},
    stage::{Stage, shown},
};

mod controller;

const MANAGER: &str = "kustomize-controller";

/// With Flux, which is removed whatever happens.
async fn with_flux(test: impl AsyncFnOnce(&mut Flux, &str)) {
    lifecycle::installed().await;
    let rules = rules().await;
    let mut flux = Flux::start(Repository::new(&base(), &rules)).await;
    let tried = AssertUnwindSafe(test(&mut flux, &rules)).catch_unwind().await;
    if tried.is_err() {
        println!("{}", flux.log());
    }
    flux.remove().await;
    reinstall(&rules).await;
    tried.unwrap();
}

/// The longest test here: for ten minutes, certificates that live for seconds, and an upgrade in the middle.
#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn flux_fights_no_rotation_and_neither_adoption_nor_an_upgrade_fails_an_exec() {
    with_flux(async |flux, rules| {
        let watch = Watch::start(&flux.repository.rendered().await).await;
        let users = Users::start().await;
        let begun = Instant::now();
        flux.publish().await;
        // Restarts, if kubectl has restarted it before: Flux removes the annotation of that, and nothing else.
        let template = |version: &Version| version.value["spec"]["template"]["spec"].clone();
        let templates: Vec<_> = watch.versions("Deployment/pristine", begun).iter().map(template).collect();
        assert!(templates.windows(2).all(|pair| pair[0] == pair[1]), "what kubectl had installed is adopted as it is");
        assert_eq!(lifecycle::rules().await, rules, "the rules, too");

        flux.repository.flags(SHORT_LIVES);
        flux.publish().await;
        live_shortly().await;
        let (start, length) = (Instant::now(), watched(600));
        sleep_until(start + length / 2).await;
        flux.quiet(start);
        let quiet_half = watch.written_by(MANAGER, start);

        // The upgrade: the manifest comes from the chart now, if there is one, with another flag, and the webhook
        // configuration changes too.
        let upgraded = Instant::now();
        if let Some(chart) = chart().await {
            flux.repository.write("install.yaml", &chart);
        }
        flux.repository.flags(&["--log-format=text"]);
        let annotation = "{op: add, path: /metadata/annotations/example.com~1team, value: platform}";
        flux.repository.patch("ValidatingWebhookConfiguration", &[annotation.to_owned()]);
        flux.publish().await;
        settled().await;
        let after = Instant::now();
        assert!(watch.changed(upgraded).contains(&"Deployment/pristine".to_owned()), "{:?}", watch.changed(upgraded));
        assert!(
            watch.written_by(MANAGER, upgraded).contains(&"ValidatingWebhookConfiguration/pristine".to_owned()),
            "{:?}",
            watch.written_by(MANAGER, upgraded)
        );
        sleep_until(start + length).await;
        let reconciliations = flux.quiet(after);
        let tally = users.end(&format!("{} s with Flux", length.as_secs())).await;

        assert!(quiet_half.is_empty(), "Flux wrote {quiet_half:?}");
        let by_flux = watch.written_by(MANAGER, after);
        assert!(by_flux.is_empty(), "Flux wrote {by_flux:?}");
        let changed = watch.changed(after);
        assert_eq!(changed, ["ValidatingWebhookConfiguration/pristine"], "only what Pristine itself renews");
        let seen = certificates(&watch.versions("ValidatingWebhookConfiguration/pristine", start));
        println!(
            "TOTALS: {} CAs, {} secret paths, {reconciliations} quiet reconciliations",
            seen.authorities, seen.paths
        );
        assert!(seen.broken.is_empty(), "{:?}", seen.broken.first());
        assert!(seen.authorities >= 3 && seen.paths >= 4, "two rotations, three renewals");
        assert!(flux.not_ready().is_empty(), "{:?}", flux.not_ready());
        tally.none_failed();
    })
    .await;
}

async fn suspension() -> Value {
    let map = run(&["-n", SYSTEM, "get", "configmap", "pristine-suspend", "-o", "json"]).await;
    serde_json::from_str::<Value>(&map).unwrap()["data"].clone()
}

/// What kubectl writes has a field manager that begins with `kubectl`, and Flux reverts all of it, also what its manifest
/// does not contain. A suspension of evictions is written like that in an incident.
#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn flux_reverts_edits_but_no_suspension_and_its_prune_opens_exec_first() {
    with_flux(async |flux, _| {
        flux.publish().await;
        let stage = Stage::new("t-record-").await;
        let said = shown(&stage.pristine("suspend --reason INC-42 --until 1h").await);
        assert!(said.starts_with("evictions suspended until "), "{said}");
        flux.reconciled(2).await;
        assert_eq!(suspension().await["reason"], "INC-42", "of the plugin");
        // As in the runbook, without the plugin.
        let patch = json!({"data": {"reason": "INC-43"}}).to_string();
        run(&["-n", SYSTEM, "patch", "configmap", "pristine-suspend", "--type=merge", "-p", &patch]).await;
        flux.reconciled(2).await;
        assert_eq!(suspension().await["reason"], "INC-43", "of the runbook");
        run(&["-n", SYSTEM, "patch", "configmap", "pristine-suspend", "--type=merge", "-p", r#"{"data":null}"#]).await;

        let object = ["get", "validatingwebhookconfiguration", "pristine", "-o", "json"];
        let entry = async || -> Value { serde_json::from_str::<Value>(&run(&object).await).unwrap()["webhooks"][0].clone() };
        let before = entry().await;
        let open = r#"{"webhooks":[{"name":"exec.pods.pristine","failurePolicy":"Ignore","matchConditions":[{"name":"not-exempt-1","expression":"true"}]}]}"#;
        run(&["patch", "validatingwebhookconfiguration", "pristine", "--type=strategic", "-p", open]).await;
        run(&["-n", SYSTEM, "scale", "deployment/pristine", "--replicas=3"]).await;
        run(&["annotate", "namespace", SYSTEM, "pristine/self-healing=off"]).await;
        flux.reconciled(2).await;
        let after = entry().await;
        println!("TOTALS: after edits: {} {}", after["failurePolicy"], after["matchConditions"]);
        assert_eq!(after, before, "failurePolicy and conditions are those of the repository, caBundle and path are kept");
        let replicas = run(&["-n", SYSTEM, "get", "deployment", "pristine", "-o", "jsonpath={.spec.replicas}"]).await;
        let namespace = run(&["get", "namespace", SYSTEM, "-o", "jsonpath={.metadata.annotations}"]).await;
        assert_eq!(replicas, "2");
        assert!(!namespace.contains("self-healing"), "{namespace}");
        settled().await;

        let users = Users::start().await;
        run(&["-n", "flux-system", "delete", "kustomization.kustomize.toolkit.fluxcd.io", "pristine", "--timeout=120s"]).await;
        let gone = ["wait", "--for=delete", "namespace", SYSTEM, "--timeout=120s"];
        attempt(&gone).await;
        let left = left().await;
        let tally = users.end("prune by Flux").await;
        assert!(left.is_empty(), "{left:?}");
        tally.none_failed_for_long();
    })
    .await;
}
