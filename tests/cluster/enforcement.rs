//! The webhook configuration is weakened, deleted and restored: each replica reports it within seconds.

use std::{panic::AssertUnwindSafe, process::Stdio};

use futures_util::FutureExt as _;
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{Api, api::ListParams};
use serde_json::Value;
use serial_test::serial;
use tokio::io::AsyncWriteExt as _;

use crate::{
    common::{SYSTEM, eventually, name_of},
    kubectl::{Namespace, client, is_marked, kubectl, run, serves},
    stage::{Stage, shown},
};

const OBJECT: [&str; 2] = ["validatingwebhookconfiguration", "pristine"];

/// `pristine_enforcement_intact` of each replica that serves; none of a replica that does not know it.
async fn intact() -> Vec<Option<u8>> {
    let pods: Api<Pod> = Api::namespaced(client().await, SYSTEM);
    let ours = ListParams::default().labels("app.kubernetes.io/component=webhook");
    let mut found = Vec::new();
    for pod in pods.list(&ours).await.unwrap().items.iter().filter(|pod| serves(pod)) {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{}:8080/proxy/metrics", name_of(pod));
        let text = run(&["get", "--raw", &path]).await;
        let line = text.lines().find(|line| line.starts_with("pristine_enforcement_intact"));
        found.push(line.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()));
    }
    found
}

async fn becomes(value: u8) {
    eventually(&format!("pristine_enforcement_intact {value} of both replicas"), 5, async || {
        (intact().await == [Some(value), Some(value)]).then_some(())
    })
    .await;
}

/// Waits for an Event with this reason about this kind of object, which was not there before.
async fn event(reason: &str, kind: &str, before: &[String]) {
    let events: Api<Event> = Api::all(client().await);
    eventually(&format!("the Event {reason} about the {kind}"), 10, async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let about = |event: &Event| event.regarding.as_ref().and_then(|about| about.kind.as_deref()) == Some(kind);
        let is_new = |event: &Event| !before.contains(event.metadata.uid.as_ref().unwrap());
        all.iter().any(|it| it.reason.as_deref() == Some(reason) && about(it) && is_new(it)).then_some(())
    })
    .await;
}

/// The UIDs of all Events.
async fn events() -> Vec<String> {
    let all: Api<Event> = Api::all(client().await);
    all.list(&ListParams::default()).await.unwrap().items.into_iter().filter_map(|event| event.metadata.uid).collect()
}

async fn set_failure_policy(word: &str) {
    let patch = format!(r#"{{"webhooks":[{{"name":"debug.pods.pristine","failurePolicy":"{word}"}}]}}"#);
    run(&["patch", OBJECT[0], OBJECT[1], "--type=strategic", "-p", &patch]).await;
}

/// The configuration, as it can be created again.
async fn saved() -> Value {
    let text = run(&["get", OBJECT[0], OBJECT[1], "-o", "json"]).await;
    let mut object: Value = serde_json::from_str(&text).unwrap();
    let metadata = object["metadata"].as_object_mut().unwrap();
    for key in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"] {
        metadata.remove(key);
    }
    object
}

async fn create(object: &Value) {
    let mut child = kubectl(&["create", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_weakened_or_deleted_configuration_is_reported_by_every_replica() {
    let stage = Stage::new("t-mark-").await;
    let configuration = "ValidatingWebhookConfiguration";
    becomes(1).await;

    let before = events().await;
    set_failure_policy("Ignore").await;
    becomes(0).await;
    event("EnforcementWeakened", configuration, &before).await;
    let doctor = shown(&stage.pristine("doctor").await);
    set_failure_policy("Fail").await;
    becomes(1).await;
    event("EnforcementRestored", configuration, &before).await;
    let named = "webhook configuration: debug.pods.pristine: failurePolicy is Ignore, not Fail";
    assert!(doctor.contains(named) && doctor.contains("install.yaml") && doctor.contains("\nexit 1"), "{doctor}");

    let (object, before) = (saved().await, events().await);
    run(&["delete", OBJECT[0], OBJECT[1]]).await;
    // It is created again whatever was found: all other tests need it.
    let report = async {
        becomes(0).await;
        event("EnforcementWeakened", "Pod", &before).await;
    };
    let reported = AssertUnwindSafe(report).catch_unwind().await;
    create(&object).await;
    reported.unwrap();
    becomes(1).await;
    marks(&stage.ns).await;
}

/// Execs are marked again.
async fn marks(ns: &Namespace) {
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&["exec", &name, "--", "true"]).await;
    assert!(is_marked(&ns.pod(&name).await));
}
