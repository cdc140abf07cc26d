//! The latency that Pristine adds to one exec: the same request to the same API server, alternately in a namespace with
//! review and in one without. `hack/bench admission` runs it on a cluster with Pristine installed.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "prints figures, or fails")]

use std::time::Duration;

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

const ROUNDS: usize = 200;
const OFF: &str = "pristine-bench-off";
const ON: &str = "pristine-bench-on";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let client = Client::try_default().await.expect("needs a cluster, see hack/bench");
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let entries =
        configurations.get("pristine").await.expect("needs Pristine installed, see hack/bench").webhooks.unwrap();
    let select = |selector: serde_json::Value| {
        let entries: Vec<_> = entries.iter().map(|e| json!({"name": e.name, "namespaceSelector": selector})).collect();
        Patch::Strategic(json!({ "webhooks": entries }))
    };
    let leave_out =
        json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [OFF]}]});
    configurations.patch("pristine", &PatchParams::default(), &select(leave_out)).await.unwrap();
    for namespace in [ON, OFF] {
        prepare(&client, namespace).await;
    }
    // By now the API server uses the new selector, because starting the pods took longer.
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS + 20 {
        for (n, namespace) in [ON, OFF].into_iter().enumerate() {
            let took = exec(&client, namespace, round).await;
            // Not the first ones, which open connections.
            if round >= 20 {
                times[n].push(took);
            }
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), ON);
    let marked = pods.get("bench").await.unwrap().metadata.annotations.unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(&marked["pristine/interactions"]).unwrap();
    assert_eq!(record["total"], ROUNDS + 20, "every request must be marked");
    configurations
        .patch("pristine", &PatchParams::default(), &select(json!({"matchExpressions": null})))
        .await
        .unwrap();
    let namespaces: Api<Namespace> = Api::all(client);
    for namespace in [ON, OFF] {
        let _ = namespaces.delete(namespace, &DeleteParams::default()).await;
    }
    let [with, without] = times.map(figures);
    println!("one exec request, {ROUNDS} of each            median      p99");
    println!("  reviewed and marked by Pristine    {:8.1?} {:8.1?}", with.0, with.1);
    println!("  without review                     {:8.1?} {:8.1?}", without.0, without.1);
    println!(
        "  added                              {:8.1?} {:8.1?}",
        with.0.saturating_sub(without.0),
        with.1.saturating_sub(without.1)
    );
}

fn figures(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

async fn prepare(client: &Client, namespace: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
    namespaces.create(&PostParams::default(), &object).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "bench"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "app", "image": "localhost/pristine/busybox:1"}]},
    }))
    .unwrap();
    for attempt in 0.. {
        match pods.create(&PostParams::default(), &pod).await {
            Ok(_) => break,
            // The controller manager creates the namespace's ServiceAccount a moment later.
            Err(error) => assert!(attempt < 50, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for _ in 0..300 {
        let status = pods.get("bench").await.unwrap().status.unwrap_or_default();
        if status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the pod did not become Ready");
}

/// Sends an exec that the API server admits and then rejects, because the request is not upgraded to a stream: all of the
/// admission, without a session.
async fn exec(client: &Client, namespace: &str, round: usize) -> Duration {
    let path = format!("/api/v1/namespaces/{namespace}/pods/bench/exec?stdout=true&command=echo&command={round}");
    let request = http::Request::post(path).body(Vec::new()).unwrap();
    let start = Instant::now();
    let answer = client.request_text(request).await;
    let took = start.elapsed();
    match answer {
        Err(kube::Error::Api(status)) if status.message.contains("Upgrade") || status.message.contains("upgrade") => {
            took
        }
        other => panic!("{other:?}"),
    }
}
