//! The eviction of every kind of pod, within budgets, at the pace of its owner, and as its users ask; on a real node.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{Event, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, api::ListParams};
use pristine::api::pods::{self, Pods};
use serial_test::parallel;
use tokio::time::sleep;

use crate::{
    common::{audit, eventually, name_of, now, setting},
    kubectl::{IMAGE, Namespace, apply, condition, deadline, is_marked, is_ready, reason, record, run, uid_of},
};

async fn condition_message(ns: &Namespace, pod: &str, reason: &str) -> String {
    eventually(&format!("the condition {reason}"), 30, || async {
        let (found, message) = condition(&ns.pod(pod).await);
        (found == reason).then_some(message)
    })
    .await
}

async fn event(ns: &Namespace, reason: &str) -> String {
    let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually(&format!("the event {reason}"), 30, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        all.into_iter()
            .find(|event| event.reason.as_deref() == Some(reason))
            .map(|event| event.message.unwrap_or_default())
    })
    .await
}

/// Waits for the eviction, which may be so many seconds after the deadline and not before it.
async fn is_evicted_within(ns: &Namespace, pod: &Pod, seconds: f64) {
    let late = ns.evicted(name_of(pod), uid_of(pod), deadline(pod)).await;
    assert!((0.0..seconds).contains(&late), "{}: {late} s after its deadline", name_of(pod));
}

/// Marks the pod by an exec.
async fn exec_into(ns: &Namespace, name: &str) -> Pod {
    ns.run(&["exec", name, "--", "true"]).await;
    let pod = ns.pod(name).await;
    assert!(is_marked(&pod));
    pod
}

fn budget(allowed: u32, more: &str) -> String {
    format!(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {{name: web}}\nspec: {{maxUnavailable: {allowed}, selector: {{matchLabels: {{app: web}}}}{more}}}\n"
    )
}

/// Applies the budget, and waits until its controller has counted: before, the API server refuses for want of that.
async fn budgeted(ns: &Namespace, allowed: u32, more: &str) {
    apply(&ns.name, &budget(allowed, more)).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually("the budget's count", 30, async || {
        let found = budgets.get("web").await.unwrap();
        let status = found.status.filter(|status| status.observed_generation == found.metadata.generation)?;
        (status.expected_pods > 0 && (status.disruptions_allowed > 0) == (allowed > 0)).then_some(())
    })
    .await;
}

/// The eviction requests for this pod: when, and the code.
fn eviction_requests(ns: &Namespace, pod: &str) -> Vec<(Timestamp, u64)> {
    audit::evictions(&setting("KUBECONFIG").unwrap(), &ns.name).remove(pod).unwrap_or_default()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_eviction_blocked_by_a_budget_is_retried_with_backoff_until_it_succeeds() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 2).await[0]).to_owned();
    budgeted(&ns, 0, "").await;
    let pod = exec_into(&ns, &name).await;
    let message = condition_message(&ns, &name, "EvictionBlocked").await;
    assert!(message.contains("disruption budget"), "{message}");
    event(&ns, "EvictionBlocked").await;
    assert!(now() >= deadline(&pod) && ns.pod(&name).await.metadata.deletion_timestamp.is_none());
    // After 2, 4, 8 and 16 s, each a quarter more or less.
    sleep(Duration::from_secs(20)).await;
    let refused = eviction_requests(&ns, &name);
    assert!((3..=6).contains(&refused.len()) && refused.iter().all(|(_, code)| *code == 429), "{refused:?}");
    budgeted(&ns, 1, "").await;
    ns.terminates(&name, 45).await;
    let ready = ns.ready(2).await;
    assert!(ready.iter().all(|pod| !is_marked(pod)));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_unready_pod_is_blocked_by_a_budget_unless_it_always_allows_unhealthy_pods() {
    let ns = Namespace::new("t-fast-").await;
    let yaml = format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: app, image: {IMAGE}, readinessProbe: {{periodSeconds: 1, exec: {{command: [test, -f, /tmp/ready]}}}}}}
"
    );
    apply(&ns.name, &yaml).await;
    budgeted(&ns, 0, "").await;
    let name = eventually("a running pod", 60, || async {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap();
        let running = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        pods.into_iter().find(running).map(|pod| name_of(&pod).to_owned())
    })
    .await;
    exec_into(&ns, &name).await;
    condition_message(&ns, &name, "EvictionBlocked").await;
    apply(&ns.name, &budget(0, ", unhealthyPodEvictionPolicy: AlwaysAllow")).await;
    ns.terminates(&name, 45).await;
}

fn every_kind() -> String {
    // A Job is not done because its pod was message to end.
    let forever = "sh, -c, 'trap \"exit 1\" TERM; while :; do sleep 0.2; done'";
    let deaf = "sh, -c, 'trap : TERM; while :; do sleep 0.2; done'";
    format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: daemon}}
spec:
  selector: {{matchLabels: {{app: daemon}}}}
  template:
    metadata: {{labels: {{app: daemon}}}}
    spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {IMAGE}}}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: job}}
spec:
  backoffLimit: 3
  template:
    metadata: {{labels: {{app: job}}}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers: [{{name: app, image: {IMAGE}, command: [{forever}]}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: bare}}
spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {IMAGE}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: brief}}
spec:
  restartPolicy: Never
  containers: [{{name: app, image: {IMAGE}, command: [sh, -c, 'sleep 3']}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: stuck, finalizers: [example.com/stay]}}
spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {IMAGE}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: patient}}
spec: {{terminationGracePeriodSeconds: 3600, containers: [{{name: app, image: {IMAGE}, command: [{deaf}]}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: leaving}}
spec: {{terminationGracePeriodSeconds: 90, containers: [{{name: app, image: {IMAGE}, command: [{deaf}]}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: pending}}
spec: {{schedulerName: nobody, containers: [{{name: app, image: {IMAGE}}}]}}
"
    )
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn pods_of_every_kind_are_evicted_once_by_a_rule() {
    let ns = Namespace::new("t-fast-").await;
    let yaml = every_kind();
    apply(&ns.name, &yaml).await;
    ns.run(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/brief"]).await;
    let brief = exec_into(&ns, "brief").await;
    let others = eventually("the others", 60, async || {
        let mut pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        pods.retain(|pod| is_ready(pod) && !["brief", "leaving"].contains(&name_of(pod)));
        (pods.len() == 5).then_some(pods)
    })
    .await;
    // Somebody else deleted it, and it takes its time.
    let leaving = exec_into(&ns, "leaving").await;
    ns.run(&["delete", "pod", "leaving", "--wait=false"]).await;
    let until_then = ns.pod("leaving").await.metadata.deletion_timestamp;
    // It never ran, but somebody put a container into it.
    ns.run(&["debug", "pending", &format!("--image={IMAGE}"), "--attach=false", "--", "true"]).await;
    let mut marked = vec![ns.pod("pending").await];
    for pod in &others {
        marked.push(exec_into(&ns, name_of(pod)).await);
    }
    for pod in &marked {
        is_evicted_within(&ns, pod, 4.0).await;
        if name_of(pod) == "patient" {
            // An hour was cut to what the configuration allows; it does not listen, so it is still there.
            assert_eq!(ns.pod("patient").await.metadata.deletion_grace_period_seconds, Some(5));
        }
    }
    // What has ended runs nothing that could differ: it stays, for its logs.
    let finished = ns.pod("brief").await;
    assert!(now() > deadline(&brief));
    assert_eq!((uid_of(&finished), finished.metadata.deletion_timestamp.is_none()), (uid_of(&brief), true));
    assert_eq!(reason(&finished), "Finished");
    // The finalizer is its owner's business: terminating, and asked for once.
    let stuck = ns.pod("stuck").await;
    assert!(stuck.metadata.deletion_timestamp.is_some());
    for (pod, requests) in [("stuck", 1), ("patient", 1), ("pending", 1), ("brief", 0), ("leaving", 0)] {
        let asked = eviction_requests(&ns, pod);
        assert_eq!(asked.len(), requests, "{pod}: {asked:?}");
    }
    let left = ns.pod("leaving").await;
    assert!(now() > deadline(&leaving) && left.metadata.deletion_timestamp == until_then);
    let (reason, message) = condition(&left);
    assert!(reason == "Terminating" && message.contains("its grace period ends at"), "{reason} {message}");
    ns.run(&["patch", "pod", "stuck", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).await;
    // The DaemonSet and the Job have made their pods anew.
    eventually("replacements", 60, || async {
        let pods = ns.pods().list(&ListParams::default().labels("app in (daemon, job)")).await.unwrap().items;
        let fresh = pods.iter().filter(|pod| !is_marked(pod) && pod.metadata.deletion_timestamp.is_none()).count();
        (fresh == 2).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_eviction_with_a_wrong_uid_evicts_nothing() {
    let ns = Namespace::new("t-mark-").await;
    let pod = ns.workload("StatefulSet", 1).await.remove(0);
    let pods = Pods::new(ns.client.clone());
    for is_dry in [true, false] {
        let answer = pods.evict(&ns.name, "web-0", "of-its-predecessor", None, is_dry).await;
        assert!(matches!(answer, Err(pods::Error::Conflict)), "{answer:?}");
    }
    let later = ns.pod("web-0").await;
    assert_eq!((uid_of(&later), later.metadata.deletion_timestamp.is_none()), (uid_of(&pod), true));
    let dry = pods.evict(&ns.name, "web-0", uid_of(&pod), None, true).await;
    assert!(matches!(dry, Ok(pods::Outcome::Accepted)), "{dry:?}");
    assert!(ns.pod("web-0").await.metadata.deletion_timestamp.is_none(), "a dry run evicts nothing");
}

/// A file that is removed in any case.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_condition_of_a_stuck_pod_names_its_finalizers() {
    let ns = Namespace::new("t-fast-").await;
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: kept, finalizers: [example.com/stay]}}\nspec: {{terminationGracePeriodSeconds: 1, containers: [{{name: app, image: {IMAGE}}}]}}\n"
    );
    apply(&ns.name, &yaml).await;
    ns.ready(1).await;
    let kept = exec_into(&ns, "kept").await;
    is_evicted_within(&ns, &kept, 30.0).await;
    let message = condition_message(&ns, "kept", "Terminating").await;
    assert!(message.contains("its grace period ends at"), "{message}");
    let words = "its finalizers have not been removed: example.com/stay";
    eventually("what keeps it", 90, async || condition(&ns.pod("kept").await).1.contains(words).then_some(())).await;
    assert!(event(&ns, "TerminationStuck").await.contains(words));
    ns.run(&["patch", "pod", "kept", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).await;
    eventually("its end", 20, async || ns.pods().get_opt("kept").await.unwrap().is_none().then_some(())).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_static_pod_is_never_evicted_and_its_condition_says_why() {
    let ns = Namespace::new("t-fast-").await;
    let folder = Path::new(&setting("KUBECONFIG").unwrap()).parent().unwrap().join("static-pods");
    let file = folder.join(format!("{}.yaml", ns.name));
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: static, namespace: {}}}\nspec: {{containers: [{{name: app, image: {IMAGE}}}]}}\n",
        ns.name
    );
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&file, pod).unwrap();
    let _guard = Removed(file);
    let mirror = ns.ready(1).await.remove(0);
    let marked = exec_into(&ns, name_of(&mirror)).await;
    let message = condition_message(&ns, name_of(&mirror), "NotEvictable").await;
    event(&ns, "NotEvictable").await;
    sleep(Duration::from_secs(3)).await;
    let later = ns.pod(name_of(&mirror)).await;
    assert!(message.contains("static pod"), "{message}");
    assert_eq!(eviction_requests(&ns, name_of(&mirror)), []);
    assert_eq!((uid_of(&later), is_marked(&later)), (uid_of(&marked), true));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn users_can_extend_hold_and_release_up_to_the_maximum_extension() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let who = run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    let by = format!("pristine/extended-by={who}");
    let annotate = async |key: &str| {
        ns.run(&["annotate", "--overwrite", "pod", &name, key, &by]).await;
    };
    let pod = exec_into(&ns, &name).await;
    let (uid, own) = (uid_of(&pod).to_owned(), deadline(&pod));

    annotate("pristine/extend-to=tomorrow").await;
    let ignored = event(&ns, "ExtensionIgnored").await;
    assert!(ignored.contains("\"tomorrow\" is ignored"), "{ignored}");
    let until_then = Timestamp::from_second(own.as_second() + 5).unwrap();
    annotate(&format!("pristine/extend-to={until_then}")).await;
    let message = condition_message(&ns, &name, "Extended").await;
    assert!(message.ends_with(&format!("extended by {who} until {until_then}")), "{message}");
    event(&ns, "EvictionSoon").await;
    annotate("pristine/hold=looking at it").await;
    let held = condition_message_containing(&ns, &name, "held by").await;
    assert!(held.contains("looking at it"), "{held}");
    // Past both deadlines, and still there.
    let wait = until_then.duration_since(now()).max(SignedDuration::ZERO) + SignedDuration::from_secs(2);
    sleep(Duration::try_from(wait).unwrap()).await;
    let alive = ns.pod(&name).await;
    assert_eq!((uid_of(&alive), alive.metadata.deletion_timestamp.is_none()), (uid.as_str(), true));
    // Let go: both deadlines are over.
    ns.run(&["annotate", "pod", &name, "pristine/hold-"]).await;
    let late = ns.evicted(&name, &uid, now()).await;
    assert!(late < 4.0, "{late}");
}

async fn condition_message_containing(ns: &Namespace, pod: &str, words: &str) -> String {
    eventually(words, 10, || async {
        let (_, message) = condition(&ns.pod(pod).await);
        message.contains(words).then_some(message)
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_hold_ends_at_the_maximum_extension() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let who = run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    let pod = exec_into(&ns, &name).await;
    ns.run(&["annotate", "pod", &name, "pristine/hold=for ever", &format!("pristine/extended-by={who}")]).await;
    let first: Timestamp = record(&pod)["first"]["at"].as_str().unwrap().parse().unwrap();
    // In whole seconds, like every deadline.
    let latest = Timestamp::from_second(first.as_second() + 20).unwrap();
    let late = ns.evicted(&name, uid_of(&pod), latest).await;
    assert!((0.0..4.0).contains(&late), "{late} s after the longest extension");
}
