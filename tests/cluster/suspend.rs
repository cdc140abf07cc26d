//! The switch that stops all evictions, as an operator uses it in an incident.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use futures_util::FutureExt as _;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::Api;
use serial_test::serial;
use tokio::time::{Instant, sleep};

use crate::{
    common::{SYSTEM, eventually, name_of},
    kubectl::{client, reason, run, uid_of},
    outage::{kill_nine, replicas},
    stage::{Stage, shown},
};

/// The switch as shipped.
const SWITCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/base/suspend.yaml");

async fn leader() -> String {
    let leases: Api<Lease> = Api::namespaced(client().await, SYSTEM);
    leases.get("pristine").await.unwrap().spec.unwrap().holder_identity.unwrap_or_default()
}

/// The pods that still run, of these.
async fn left(stage: &Stage, pods: &[Pod]) -> usize {
    let live = stage.ns.pods().list(&kube::api::ListParams::default()).await.unwrap().items;
    let is_left =
        |pod: &&Pod| live.iter().any(|live| uid_of(live) == uid_of(pod) && live.metadata.deletion_timestamp.is_none());
    pods.iter().filter(is_left).count()
}

/// No pod is evicted while evictions are suspended: not by the next leader, and not when the ConfigMap is deleted.
#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn no_pod_is_evicted_while_evictions_are_suspended_and_all_are_afterwards() {
    let stage = Stage::new("t-fast-").await;
    let tried = AssertUnwindSafe(suspends(&stage)).catch_unwind().await;
    // The other tests need evictions.
    run(&["apply", "-f", SWITCH]).await;
    stage.pristine("resume").await;
    if let Err(panic) = tried {
        resume_unwind(panic);
    }
}

async fn suspends(stage: &Stage) {
    let pods = stage.ns.workload("Deployment", 3).await;
    let refused = shown(&stage.pristine("suspend --reason INC-42").await);
    assert!(refused.contains("--until") && refused.contains("exit 1"), "{refused}");

    let said = shown(&stage.pristine("suspend --reason INC-42 --until 1h").await);
    assert!(said.starts_with("evictions suspended until ") && !said.contains("exit"), "{said}");
    sleep(Duration::from_secs(5)).await;
    for pod in &pods {
        stage.ns.run(&["exec", name_of(pod), "--", "true"]).await;
    }
    // Their TTL is 5 s.
    eventually("each pod says that evictions are suspended", 20, || async {
        let live = stage.ns.pods().list(&kube::api::ListParams::default()).await.unwrap().items;
        live.iter().all(|pod| reason(pod) == "Suspended").then_some(())
    })
    .await;
    let seen = shown(&stage.pristine("get").await);
    assert!(seen.matches("Suspended   evictions are suspended until ").count() == 3, "{seen}");
    let doctor = shown(&stage.pristine("doctor").await);
    assert!(doctor.contains("no pod is evicted: suspended until"), "{doctor}");

    let before = leader().await;
    run(&["-n", SYSTEM, "delete", "configmap", "pristine-suspend"]).await;
    let all = replicas().await;
    let leads: Vec<Pod> = all.into_iter().filter(|pod| name_of(pod) == before).collect();
    kill_nine(&leads).await;
    run(&["-n", SYSTEM, "delete", "pod", &before, "--grace-period=0", "--force"]).await;
    let start = Instant::now();
    eventually("another replica leads", 40, || async {
        let now = leader().await;
        (!now.is_empty() && now != before).then_some(())
    })
    .await;
    while start.elapsed() < Duration::from_secs(30) {
        assert_eq!(left(stage, &pods).await, 3);
        sleep(Duration::from_millis(500)).await;
    }

    run(&["apply", "-f", SWITCH]).await;
    let said = shown(&stage.pristine("resume").await);
    assert!(said.starts_with("evictions resumed") && !said.contains("exit"), "{said}");
    let resumed = Instant::now();
    let mut most = 0;
    let mut known = 3;
    while known > 0 {
        let now = left(stage, &pods).await;
        most = most.max(known - now);
        known = now;
        assert!(resumed.elapsed() < Duration::from_secs(60), "{known} are left");
        sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(most, 1, "the due pods of one workload are evicted one after the other");
    println!("TOTALS: 3 due pods evicted within {:?} of the command", resumed.elapsed());
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=60s"]).await;
}
