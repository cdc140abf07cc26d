//! Pods of one owner go one after the other, so that it goes on serving; on a real node.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serial_test::{parallel, serial};

use crate::{
    common::{eventually, name_of, now},
    kubectl::{IMAGE, Namespace, annotation, apply, deadline, reason, serves, uid_of},
    poller::{Polled, Poller},
};

/// Slower to start than to stop, so that taking them all at once leaves nobody to answer.
pub async fn website(ns: &Namespace, replicas: usize) {
    let yaml = format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 3
      containers:
      - name: app
        image: {IMAGE}
        command: [sh, -c, 'sleep 4; echo fine > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        readinessProbe: {{periodSeconds: 1, tcpSocket: {{port: 8080}}}}
        lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
    );
    apply(&ns.name, &yaml).await;
    ns.ready(replicas).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn an_exec_into_every_replica_causes_no_outage_without_a_budget() {
    const REPLICAS: usize = 5;
    let ns = Namespace::new("t-paced-").await;
    website(&ns, REPLICAS).await;
    let poller = Poller::start(&ns, "fine\n").await;
    let marked: Vec<String> = ns.ready(REPLICAS).await.iter().map(|pod| name_of(pod).to_owned()).collect();
    for name in &marked {
        ns.run(&["exec", name, "--", "true"]).await;
    }
    let (mut fewest, mut queued) = (REPLICAS, false);
    eventually("all replaced", 180, async || {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        let serving = pods.iter().filter(|pod| serves(pod)).count();
        fewest = fewest.min(serving);
        queued |= pods.iter().any(|pod| reason(pod) == "EvictionQueued");
        let left = pods.iter().filter(|pod| marked.iter().any(|name| name == name_of(pod))).count();
        (left == 0 && serving == REPLICAS).then_some(())
    })
    .await;
    let Polled { polls, failed, elapsed } = poller.stop().await;
    println!(
        "TOTALS: {REPLICAS} pods replaced in {elapsed:.0?} without a budget, never fewer than {fewest} Ready, {} of {polls} polls failed",
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(fewest >= REPLICAS - 1 && queued, "{fewest} Ready, {queued}");
    // Two cores have more to do than to poll; half of the polls would show any outage all the same.
    assert!(u128::try_from(polls).unwrap() > elapsed.as_millis() / 100, "{polls} in {elapsed:?}");
    assert!(annotation(&ns.ready(REPLICAS).await[0], "pristine/interactions").is_none());
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn stateful_set_pods_are_evicted_one_at_a_time_even_while_another_is_deleted() {
    let ns = Namespace::new("t-fast-").await;
    let yaml = format!(
        "apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  replicas: 3
  podManagementPolicy: Parallel
  serviceName: web
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers: [{{name: app, image: {IMAGE}, lifecycle: {{preStop: {{sleep: {{seconds: 8}}}}}}}}]
"
    );
    apply(&ns.name, &yaml).await;
    let members: Vec<Pod> = ns.ready(3).await;
    for name in ["web-0", "web-1"] {
        ns.run(&["exec", name, "--", "true"]).await;
    }
    // As `kubectl drain` would. At the deadline of the others it still runs, is Ready, and its StatefulSet counts it.
    ns.run(&["delete", "pod", "web-2", "--wait=false"]).await;
    let mut fewest = 3;
    eventually("all replaced", 120, async || {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        let serving: Vec<&Pod> = pods.iter().filter(|pod| serves(pod)).collect();
        fewest = fewest.min(serving.len());
        let fresh = serving.iter().filter(|pod| members.iter().all(|old| uid_of(old) != uid_of(pod))).count();
        (fresh == 3).then_some(())
    })
    .await;
    assert_eq!(fewest, 2);
}

/// A node that no kubelet runs, so it is never Ready; deleted in any case.
struct AbsentNode(String);

impl AbsentNode {
    async fn new() -> Self {
        let name = format!("absent-{:08x}", rand::random::<u32>());
        apply("default", &format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")).await;
        Self(name)
    }
}

impl Drop for AbsentNode {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kubectl").args(["delete", "node", "--wait=false", &self.0]).output();
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_node_that_is_not_ready_delays_no_eviction_of_a_daemon_set() {
    let ns = Namespace::new("t-fast-").await;
    let _node = AbsentNode::new().await;
    let yaml = format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: agent}}
spec:
  selector: {{matchLabels: {{app: agent}}}}
  template:
    metadata: {{labels: {{app: agent}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{{operator: Exists}}]
      containers: [{{name: app, image: {IMAGE}, command: [sh, -c, 'trap exit TERM; while :; do sleep 0.2; done']}}]
"
    );
    apply(&ns.name, &yaml).await;
    let wanted = ["get", "daemonset", "agent", "-o", "jsonpath={.status.desiredNumberScheduled} {.status.numberReady}"];
    eventually("one of two Ready", 60, || async { (ns.run(&wanted).await == "2 1").then_some(()) }).await;
    // A leader that has just been elected waits for a young pod that is not Ready: it may replace one that the last leader
    // evicted. Then each eviction is due at once.
    for (round, longest) in [("first", 330), ("second", 10), ("third", 10)] {
        let pod = ns.ready(1).await.remove(0);
        ns.run(&["exec", name_of(&pod), "--", "true"]).await;
        let due = deadline(&ns.pod(name_of(&pod)).await);
        eventually(&format!("the {round} eviction"), longest + 15, || async {
            let found = ns.pods().get_opt(name_of(&pod)).await.unwrap();
            found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()).then_some(())
        })
        .await;
        let late = now().duration_since(due).as_secs_f64();
        println!(
            "TOTALS: the {round} eviction of a DaemonSet with a node that is not Ready: {late:.1} s after its deadline"
        );
        eventually("the replacement", 60, async || (!ns.ready(1).await.is_empty()).then_some(())).await;
    }
}
