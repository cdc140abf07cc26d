//! Very many execs at once.

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    common::figures,
    load::{exec, more_pods},
    replicas::{Replicas, client, kubeconfig},
};

/// Execs, each into a pod of its own.
const COUNT: usize = 200;
/// The number of the first of these pods: the load has those below.
const FIRST: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn two_hundred_execs_at_once_into_as_many_pods_are_all_admitted_and_recorded() {
    let clients = [client(1).await, client(2).await];
    more_pods(&clients[0], FIRST..FIRST + COUNT, &json!({"burst": "true"})).await;
    let replicas = Replicas::start_through(vec![kubeconfig(1), kubeconfig(2)], &[]).await;
    for client in &clients {
        exec(client, FIRST, "first").await.unwrap();
        // Connections for all of them, because a user's handshake with the API server is not what is measured.
        let ready = || client.request_text(http::Request::get("/readyz").body(vec![]).unwrap());
        for answer in join_all((0..COUNT / 2).map(|_| ready())).await {
            answer.unwrap();
        }
    }
    let execs: Vec<_> = (0..COUNT)
        .map(|n| {
            let client = clients[n % 2].clone();
            tokio::spawn(async move {
                let start = Instant::now();
                (exec(&client, FIRST + n, "at-once").await, start.elapsed())
            })
        })
        .collect();
    let (mut times, mut refused) = (Vec::new(), Vec::new());
    for one in execs {
        let (answer, time) = one.await.unwrap();
        times.push(time);
        refused.extend(answer.err());
    }
    println!("TOTALS: at once into {COUNT} pods: {}, {} refused", figures(times), refused.len());
    assert!(refused.is_empty(), "{} refused: {refused:?}", refused.len());
    let pods: Api<Pod> = Api::namespaced(clients[0].clone(), "load");
    let marked = pods.list(&ListParams::default().labels("burst=true,pristine/interacted")).await.unwrap().items;
    assert_eq!(marked.len(), COUNT, "marked pods");
    replicas.end().await;
}
