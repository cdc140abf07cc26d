//! Rotation under load, for real: two kube-apiservers on one etcd, three Pristine processes, certificates that live for
//! seconds, and exec reviews flowing through both API servers all the time, while replicas are killed and suspended and
//! an API server's view lags. Not one admission may fail.
//!
//! `hack/test` runs it for 5 generations of CAs, `hack/soak` for 20 or as many as asked. Before a replica is
//! killed or suspended it is taken out of the Service, as kubelet and the endpoints controller do for a pod that goes;
//! what is proven is that the certificates lose nothing, not that a process can answer after SIGKILL.
#![allow(clippy::float_cmp, reason = "counters of Prometheus are floats that hold whole numbers")]
#![allow(clippy::too_many_lines, reason = "a story is told in one piece")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    common::{SYSTEM, eventually, https, setting},
    forward::{forward, kubeconfig_through, with_kubeconfig},
    load::{Load, calls, fail_open, pods, rejections},
    replicas::{Replicas, client, pid_of, ready_text, readyz, send_signal, webhook_port},
};

async fn active(client: &Client) -> Option<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let data = secrets.get_opt("pristine-ca").await.unwrap()?.data?;
    String::from_utf8(data.get("active.crt")?.0.clone()).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn no_admission_fails_while_cas_are_renewed_under_load() {
    let wanted: usize = setting("PRISTINE_GENERATIONS").map_or(5, |text| text.parse().unwrap());
    // A negative control has to go on to its end, for what it loses to be counted.
    let is_control = setting("PRISTINE_CONTROL").is_some();
    let clients = [client(1).await, client(2).await];
    pods(&clients[0]).await;
    let mut replicas = Replicas::start(3).await;
    let mut before = Vec::new();
    for client in &clients {
        before.push((rejections(client).await, fail_open(client).await, calls(client).await));
    }

    let loads = [Arc::new(Load::default()), Arc::new(Load::default())];
    let workers: Vec<_> = loads.iter().zip(&clients).flat_map(|(load, client)| load.start(client)).collect();
    let second = pid_of("kube-apiserver-2");

    let start = Instant::now();
    let mut generations = BTreeSet::from_iter(active(&clients[0]).await);
    let mut serials = BTreeSet::new();
    let (mut kills, mut suspensions, mut lags, mut deletions, mut round) = (0, 0, 0, 0, 0);
    while generations.len() <= wanted {
        if start.elapsed() > Duration::from_secs(60 + 40 * wanted as u64) {
            assert!(is_control, "{} generations only", generations.len().saturating_sub(1));
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        generations.extend(active(&clients[0]).await);
        for n in 0..3 {
            let address: SocketAddr = format!("{}:{}", replicas.address, webhook_port(n)).parse().unwrap();
            if let Ok(connection) = https::connect(address, &[]).await {
                serials.insert(connection.peer_certificate());
            }
        }
        round += 1;
        let n = round / 4 % 3;
        match round % 12 {
            2 => {
                replicas.kill_and_start(n).await;
                kills += 1;
            }
            6 => {
                // Longer than a serving certificate lives.
                replicas.suspend(n, Duration::from_secs(6)).await;
                suspensions += 1;
            }
            10 => {
                // It hears of nothing for longer than the hold; what it was asked before that is answered first, because
                // a call that is under way while its caller stands still would only time out.
                loads[1].pause.store(true, Ordering::Relaxed);
                eventually("quiet", 10, || async { (loads[1].busy.load(Ordering::Relaxed) == 0).then_some(()) }).await;
                send_signal(second, "STOP");
                tokio::time::sleep(Duration::from_secs(5)).await;
                send_signal(second, "CONT");
                loads[1].pause.store(false, Ordering::Relaxed);
                lags += 1;
            }
            0 => {
                // Somebody deletes the Secret. The replicas have it in memory.
                let secrets: Api<Secret> = Api::namespaced(clients[0].clone(), SYSTEM);
                let deleted = secrets.delete("pristine-ca", &DeleteParams::default()).await;
                assert!(deleted.is_ok() || is_control, "{deleted:?}");
                deletions += 1;
                if !is_control {
                    eventually("the Secret put back", 20, || async { secrets.get_opt("pristine-ca").await.unwrap() })
                        .await;
                }
            }
            _ => {}
        }
    }
    for load in &loads {
        load.stop.store(true, Ordering::Relaxed);
    }
    for worker in workers {
        worker.await.unwrap();
    }

    let mut failures = BTreeMap::new();
    let mut reviews = 0.0;
    for (n, client) in clients.iter().enumerate() {
        let now = (rejections(client).await, fail_open(client).await);
        reviews += calls(client).await - before[n].2;
        let client_side = loads[n].failures.lock().unwrap();
        failures.insert(n + 1, (now.0 - before[n].0, now.1 - before[n].1, client_side.len()));
    }
    let admitted: usize = loads.iter().map(|load| load.admitted.load(Ordering::Relaxed)).sum();
    println!(
        "TOTALS: {} new CAs in {:.0} s, {} serving certificates seen, {admitted} execs admitted ({reviews} calls of the webhook), \
         {kills} replicas killed, {suspensions} suspended for longer than a certificate lives, {lags} times an API server stood still, {deletions} Secrets deleted; \
         failures by API server (calling_webhook_error, fail open, client side): {failures:?}",
        generations.len().saturating_sub(1),
        start.elapsed().as_secs_f64(),
        serials.len(),
    );
    let failed: f64 = failures
        .values()
        .map(|(rejected, open, client)| rejected + open + f64::from(u32::try_from(*client).unwrap()))
        .sum();
    if failed > 0.0 {
        for (n, load) in loads.iter().enumerate() {
            for failure in load.failures.lock().unwrap().iter().take(100) {
                println!("FAILED through API server {}: {failure}", n + 1);
            }
        }
        for n in 0..3 {
            println!(
                "--- replica {n}\n{}",
                std::fs::read_to_string(replicas.log(n))
                    .unwrap_or_default()
                    .lines()
                    .rev()
                    .take(60)
                    .collect::<Vec<_>>()
                    .join("\n")
            );
        }
    }
    assert_eq!(failed, 0.0, "failed admissions");
    assert!(admitted > 100 * wanted, "the load was too thin to say anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn every_change_of_the_secret_or_the_ca_bundle_is_repaired() {
    let client = client(1).await;
    let replicas = Replicas::start(2).await;
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let bundle = async || {
        configurations
            .get("pristine")
            .await
            .unwrap()
            .webhooks
            .unwrap()
            .remove(0)
            .client_config
            .ca_bundle
            .unwrap_or_default()
            .0
    };

    // caBundle emptied, or made somebody else's: 50 times.
    let mut times = Vec::new();
    for n in 0..50 {
        let foreign = if n % 2 == 0 { Value::Null } else { json!("Z2FyYmFnZQ==") };
        let patch = json!({"webhooks": [{"name": "exec.pods.pristine", "clientConfig": {"caBundle": foreign}}]});
        let start = Instant::now();
        configurations.patch("pristine", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
        while !bundle().await.starts_with(b"-----BEGIN CERTIFICATE") {
            assert!(start.elapsed() < Duration::from_secs(10), "not repaired");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    times.sort();
    println!("TOTALS: 50 repairs of caBundle: median {:.0?}, p99 {:.0?}", times[25], times[49]);

    // The Secret deleted, garbled, and put back as it was: the same CA, or a later one that followed by the rules.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let before = secrets.get("pristine-ca").await.unwrap();
    let generation = |secret: &Secret| -> u64 {
        let state: Value = secret
            .data
            .as_ref()
            .and_then(|data| serde_json::from_slice(&data.get("state.json")?.0).ok())
            .unwrap_or_default();
        state["generation"].as_u64().unwrap_or(0)
    };
    let trusted = async |was: &Secret| {
        let ours = &was.data.as_ref().unwrap()["active.crt"].0;
        bundle().await.windows(ours.len()).any(|window| window == ours.as_slice())
    };
    for damage in ["deleted", "garbled", "restored"] {
        let last = secrets.get("pristine-ca").await.unwrap();
        match damage {
            "deleted" => drop(secrets.delete("pristine-ca", &DeleteParams::default()).await.unwrap()),
            "garbled" => {
                let patch = json!({"stringData": {"state.json": "{", "active.key": "x"}});
                secrets.patch("pristine-ca", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            }
            _ => {
                let patch = json!({"data": before.data});
                secrets.patch("pristine-ca", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
            }
        }
        let repaired = eventually("the Secret put back", 20, || async {
            secrets.get_opt("pristine-ca").await.unwrap().filter(|secret| generation(secret) > generation(&last))
        })
        .await;
        assert!(trusted(&repaired).await, "{damage}: what signs is trusted");
        if damage == "deleted" {
            assert_eq!(repaired.data.as_ref().unwrap()["active.crt"], last.data.unwrap()["active.crt"], "the same CA");
        }
    }

    // A new CA on demand, by the same steps.
    let last = active(&client).await;
    let patch = json!({"metadata": {"annotations": {"pristine/rotate": "a drill"}}});
    secrets.patch("pristine-ca", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    eventually("a new CA", 60, || async { (active(&client).await != last).then_some(()) }).await;
    drop(replicas);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_valid_certificate_is_served_while_the_api_server_is_unreachable() {
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    let address = forward(is_cut).await;
    let folder = tempfile::tempdir().unwrap();
    let replicas = Replicas::start_one(kubeconfig_through(address, &folder)).await;
    eventually("ready", 30, || async { (readyz(0).await == Some(200)).then_some(()) }).await;
    cut.send_replace(true);
    // Four times as long as a serving certificate lives, and less than the CA.
    let (start, mut seen) = (Instant::now(), BTreeSet::new());
    let target: SocketAddr = format!("{}:{}", replicas.address, webhook_port(0)).parse().unwrap();
    while start.elapsed() < Duration::from_secs(15) {
        let leaf = https::connect(target, &[]).await.unwrap().peer_certificate();
        let leaf = pristine::certs::Certificate::from_der(leaf.into()).unwrap();
        assert!(leaf.is_valid(crate::common::now()), "{leaf:?} after {:?}", start.elapsed());
        seen.insert(leaf.serial);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("TOTALS: {} certificates served in 15 s without an API server, each valid", seen.len());
    assert!(seen.len() >= 3, "{seen:?}");
    // Back again, it goes on by the rules.
    cut.send_replace(false);
    let before = active(&client(1).await).await;
    eventually("the next CA", 60, || async { (active(&client(1).await).await != before).then_some(()) }).await;
    assert_eq!(readyz(0).await, Some(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_missing_permission_is_named_on_readyz() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = with_kubeconfig(&folder, |text| {
        let (before, after) = text.rsplit_once("  user:\n").unwrap();
        format!("{before}  user:\n    as: eve\n{after}")
    });
    let replicas = Replicas::start_one(kubeconfig).await;
    let missing = "cannot get resource \"validatingwebhookconfigurations\" in API group";
    eventually("the reason on /readyz", 20, || async {
        ready_text(0).await.filter(|text| text.contains(" 503 ") && text.contains(missing))
    })
    .await;
    let log = std::fs::read_to_string(replicas.log(0)).unwrap();
    assert!(log.contains(missing), "{log}");
}
