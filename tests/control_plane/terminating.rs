//! What leaders report of a marked pod that does not terminate: without a node, nothing confirms that its containers have
//! ended.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};

use crate::{
    common::{eventually, name_of},
    leadership::{in_seconds, leader, marked, namespace},
    replicas::{Replicas, client, get},
};

/// For how long the grace period of a pod has been over, as this replica reports it; at least `least` seconds.
async fn overdue(replica: usize, least: f64) -> Option<f64> {
    let metrics = get(replica, "/metrics").await?;
    let name = "pristine_eviction_overdue_seconds{state=\"terminating\"} ";
    let seconds: f64 = metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok())?;
    (seconds >= least).then_some(seconds)
}

/// Deletes what the tests before this evicted: leaders report those pods too.
async fn none_terminates(client: &Client) {
    let all: Api<Pod> = Api::all(client.clone());
    let now = DeleteParams::default().grace_period(0);
    for pod in all.list(&ListParams::default()).await.unwrap() {
        if pod.metadata.deletion_timestamp.is_some() {
            let pods: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
            pods.delete(name_of(&pod), &now).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_pod_that_does_not_terminate_is_reported_by_each_leader_until_it_is_gone() {
    let client = client(1).await;
    none_terminates(&client).await;
    let mut replicas = Replicas::start(2).await;
    let first = leader(&client).await;
    let namespace = namespace(&client).await;
    marked(&client, &namespace, "p", None, in_seconds(86_400)).await;
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    pods.delete("p", &DeleteParams::default().grace_period(1)).await.unwrap();
    eventually("the leader reports the pod", 20, || overdue(first, 3.0)).await;
    // A replica has no value until it looks at its queue for the first time, some seconds after its start.
    let other = eventually("the other replica's value", 20, || overdue(1 - first, 0.0)).await;
    assert!(other < 1.0, "the leader alone reports it: {other}");

    replicas.kill_and_start(first).await;
    // It may lead again.
    let found = eventually("the next leader reports the pod", 40, async || {
        let [one, other] = [overdue(0, 5.0).await, overdue(1, 5.0).await];
        one.map(|_| 0).or_else(|| other.map(|_| 1))
    })
    .await;
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("no pod is reported any more", 20, async || overdue(found, 0.0).await.filter(|seconds| *seconds == 0.0))
        .await;
    replicas.end().await;
}
