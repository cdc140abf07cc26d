//! Replicas whose clocks are wrong, behind one Service.

use std::time::Duration;

use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret};
use kube::{Api, Client};

use crate::{
    common::{SYSTEM, setting},
    load::{execs, pods},
    replicas::{Replicas, client},
};

async fn secret(client: &Client) -> Secret {
    Api::namespaced(client.clone(), SYSTEM).get("pristine-ca").await.unwrap()
}

/// Counts the writes of the entries.
async fn generation(client: &Client) -> i64 {
    let all: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    all.get("pristine").await.unwrap().metadata.generation.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn replicas_whose_clocks_differ_refuse_nothing_and_do_not_write_against_each_other() {
    let client = client(1).await;
    pods(&client).await;
    let seconds = setting("PRISTINE_CLOCK_SECONDS").map_or(40, |text| text.parse().unwrap());
    // Not a whole year: the API server's own certificate has expired for such a clock.
    for ahead in ["+20m", "+300d"] {
        let replicas = Replicas::start_with_clocks(vec![None, Some(ahead)]).await;
        let (ca, written) = (secret(&client).await, generation(&client).await);
        let (admitted, failures) = execs(Duration::from_secs(seconds)).await;
        let writes = generation(&client).await - written;
        println!(
            "TOTALS: one of two clocks {ahead}: {admitted} execs in {seconds} s, {} failed, {writes} writes",
            failures.len()
        );
        assert!(failures.is_empty() && admitted > 100, "{failures:?}");
        assert!(writes <= 1, "{writes} writes of the configuration");
        assert_eq!(secret(&client).await.data, ca.data, "the CA");
        replicas.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_replica_that_was_started_two_hours_ahead_serves_a_valid_certificate_when_its_clock_is_set_back() {
    let client = client(1).await;
    pods(&client).await;
    let replicas = Replicas::start_with_clocks(vec![None, Some("+2h")]).await;
    let (admitted, failures) = execs(Duration::from_secs(5)).await;
    assert!(failures.is_empty() && admitted > 10, "{failures:?}");
    replicas.set_clock(1, "+0");
    let (admitted, failures) = execs(Duration::from_secs(15)).await;
    println!("TOTALS: a clock that was set back by 2 h: {admitted} execs, {} failed", failures.len());
    assert!(failures.is_empty() && admitted > 30, "{failures:?}");
    replicas.end().await;
}
