//! The eviction of every kind of pod, within budgets, at the pace of its owner, and as its users ask; on a real node.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a test says so by its name")]

mod common;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{
    cluster::{IMAGE, Namespace, annotation, apply, deadline, is_marked, name_of, now, run, uid_of, until},
    replicas::setting,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::{Api, api::ListParams};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

/// Reason and message of our condition.
fn condition(pod: &Pod) -> (String, String) {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ours = conditions.into_iter().find(|condition| condition.type_ == "pristine/Pristine");
    ours.map(|ours| (ours.reason.clone().unwrap_or_default(), ours.message.clone().unwrap_or_default()))
        .unwrap_or_default()
}

async fn says(ns: &Namespace, pod: &str, reason: &str) -> String {
    until(&format!("the condition {reason}"), 30, || async {
        let (found, message) = condition(&ns.pod(pod).await);
        (found == reason).then_some(message)
    })
    .await
}

async fn event(ns: &Namespace, reason: &str) -> String {
    let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
    until(&format!("the event {reason}"), 30, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        all.into_iter()
            .find(|event| event.reason.as_deref() == Some(reason))
            .map(|event| event.message.unwrap_or_default())
    })
    .await
}

async fn goes(ns: &Namespace, pod: &Pod) -> f64 {
    ns.evicted(name_of(pod), uid_of(pod), deadline(pod)).await
}

/// Marks the pod by an exec.
async fn touch(ns: &Namespace, name: &str) -> Pod {
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

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_budget_that_allows_none_is_waited_for_and_then_it_goes_at_once() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 2).await[0]).to_owned();
    apply(&ns.name, &budget(0, "")).await;
    // Until the budget's controller has counted, the API server says 429 for want of that, too.
    sleep(Duration::from_secs(2)).await;
    let pod = touch(&ns, &name).await;
    let message = says(&ns, &name, "EvictionBlocked").await;
    assert!(message.contains("disruption budget"), "{message}");
    event(&ns, "EvictionBlocked").await;
    assert!(now() >= deadline(&pod) && ns.pod(&name).await.metadata.deletion_timestamp.is_none());
    apply(&ns.name, &budget(1, "")).await;
    until("the eviction", 45, || async {
        let pods = ns.pods().get_opt(&name).await.unwrap();
        pods.is_none_or(|found| found.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
    let ready = ns.ready(2).await;
    assert!(ready.iter().all(|pod| !is_marked(pod)));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn an_unready_pod_is_held_by_a_budget_that_counts_it_and_not_by_one_that_does_not() {
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
    apply(&ns.name, &budget(0, "")).await;
    let name = until("a running pod", 60, || async {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap();
        let running = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        pods.into_iter().find(running).map(|pod| name_of(&pod).to_owned())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    touch(&ns, &name).await;
    says(&ns, &name, "EvictionBlocked").await;
    apply(&ns.name, &budget(0, ", unhealthyPodEvictionPolicy: AlwaysAllow")).await;
    until("the eviction", 45, || async {
        let found = ns.pods().get_opt(&name).await.unwrap();
        found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_pod_of_a_daemon_set_a_job_and_a_bare_one_go_when_a_rule_says_so() {
    let ns = Namespace::new("t-fast-").await;
    // A Job is not done because its pod was told to end.
    let forever = "sh, -c, 'trap \"exit 1\" TERM; while :; do sleep 0.2; done'";
    let yaml = format!(
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
spec: {{terminationGracePeriodSeconds: 3600, containers: [{{name: app, image: {IMAGE}}}]}}
"
    );
    apply(&ns.name, &yaml).await;
    ns.run(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/brief"]).await;
    let brief = touch(&ns, "brief").await;
    let mut touched = Vec::new();
    for pod in ns.ready(6).await.iter().filter(|pod| name_of(pod) != "brief") {
        touched.push(touch(&ns, name_of(pod)).await);
    }
    for pod in &touched {
        let late = goes(&ns, pod).await;
        assert!((0.0..4.0).contains(&late), "{}: {late} s", name_of(pod));
    }
    // What has ended runs nothing that could differ: it stays, for its logs.
    let finished = ns.pod("brief").await;
    assert!(now() > deadline(&brief));
    assert_eq!((uid_of(&finished), finished.metadata.deletion_timestamp.is_none()), (uid_of(&brief), true));
    // The grace period of an hour was cut to what the configuration allows.
    let patient = ns.pods().get_opt("patient").await.unwrap();
    assert!(patient.is_none_or(|pod| pod.metadata.deletion_grace_period_seconds == Some(5)));
    // The finalizer is its owner's business: terminating, and asked for once.
    let stuck = ns.pod("stuck").await;
    assert!(stuck.metadata.deletion_timestamp.is_some());
    ns.run(&["patch", "pod", "stuck", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).await;
    // The DaemonSet and the Job have made their pods anew.
    until("replacements", 60, || async {
        let pods = ns.pods().list(&ListParams::default().labels("app in (daemon, job)")).await.unwrap().items;
        let fresh = pods.iter().filter(|pod| !is_marked(pod) && pod.metadata.deletion_timestamp.is_none()).count();
        (fresh == 2).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_static_pod_is_never_evicted_and_says_why() {
    let ns = Namespace::new("t-fast-").await;
    let folder = Path::new(&setting("KUBECONFIG").unwrap()).parent().unwrap().join("static-pods");
    let file = folder.join(format!("{}.yaml", ns.name));
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: static, namespace: {}}}\nspec: {{containers: [{{name: app, image: {IMAGE}}}]}}\n",
        ns.name
    );
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(&file, pod).unwrap();
    let mirror = ns.ready(1).await.remove(0);
    let touched = touch(&ns, name_of(&mirror)).await;
    let message = says(&ns, name_of(&mirror), "NotEvictable").await;
    event(&ns, "NotEvictable").await;
    let later = ns.pod(name_of(&mirror)).await;
    std::fs::remove_file(&file).unwrap();
    assert!(message.contains("static pod"), "{message}");
    assert_eq!((uid_of(&later), is_marked(&later)), (uid_of(&touched), true));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn users_put_an_eviction_off_and_take_that_back_within_the_longest_extension() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let who = run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    let by = format!("pristine/extended-by={who}");
    let annotate = async |key: &str| {
        ns.run(&["annotate", "--overwrite", "pod", &name, key, &by]).await;
    };
    let pod = touch(&ns, &name).await;
    let (uid, own) = (uid_of(&pod).to_owned(), deadline(&pod));

    annotate("pristine/extend-to=tomorrow").await;
    let ignored = event(&ns, "ExtensionIgnored").await;
    assert!(ignored.contains("\"tomorrow\" is ignored"), "{ignored}");
    let until_then = Timestamp::from_second(own.as_second() + 5).unwrap();
    annotate(&format!("pristine/extend-to={until_then}")).await;
    let message = says(&ns, &name, "Extended").await;
    assert!(message.ends_with(&format!("extended by {who:?} until {until_then}")), "{message}");
    event(&ns, "EvictionSoon").await;
    annotate("pristine/hold=looking at it").await;
    let held = says_containing(&ns, &name, "held by").await;
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

async fn says_containing(ns: &Namespace, pod: &str, words: &str) -> String {
    until(words, 10, || async {
        let (_, message) = condition(&ns.pod(pod).await);
        message.contains(words).then_some(message)
    })
    .await
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_hold_ends_with_the_longest_extension() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let who = run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    let pod = touch(&ns, &name).await;
    ns.run(&["annotate", "pod", &name, "pristine/hold=for ever", &format!("pristine/extended-by={who}")]).await;
    let first: Timestamp = common::cluster::record(&pod)["first"]["at"].as_str().unwrap().parse().unwrap();
    let latest = first.checked_add(SignedDuration::from_secs(20)).unwrap();
    let late = ns.evicted(&name, uid_of(&pod), latest).await;
    assert!((-1.0..3.0).contains(&late), "{late} s after the longest extension");
}

/// A Deployment whose pods answer until their endpoint is gone.
async fn website(ns: &Namespace, replicas: usize) -> String {
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
      terminationGracePeriodSeconds: 4
      containers:
      - name: app
        image: {IMAGE}
        command: [sh, -c, 'echo fine > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        readinessProbe: {{periodSeconds: 1, tcpSocket: {{port: 8080}}}}
        lifecycle: {{preStop: {{sleep: {{seconds: 3}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
    );
    apply(&ns.name, &yaml).await;
    ns.ready(replicas).await;
    let services: Api<Service> = Api::namespaced(ns.client.clone(), &ns.name);
    let address = format!("{}:80", services.get("web").await.unwrap().spec.unwrap().cluster_ip.unwrap());
    until("the Service answering", 20, || async { polled(&address).await.then_some(()) }).await;
    address
}

async fn polled(address: &str) -> bool {
    let answer = async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text.contains("fine"))
    };
    timeout(Duration::from_secs(2), answer).await.ok().flatten().unwrap_or(false)
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn alone_a_loop_of_execs_over_all_replicas_is_no_outage_even_without_a_budget() {
    const REPLICAS: usize = 5;
    let ns = Namespace::new("t-paced-").await;
    let address = website(&ns, REPLICAS).await;
    let touched: Vec<String> = ns.ready(REPLICAS).await.iter().map(|pod| name_of(pod).to_owned()).collect();
    for name in &touched {
        ns.run(&["exec", name, "--", "true"]).await;
    }
    let (stop, polls, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let poller = tokio::spawn({
        let (stop, polls, failed) = (stop.clone(), polls.clone(), failed.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                polls.fetch_add(1, Ordering::Relaxed);
                failed.fetch_add(usize::from(!polled(&address).await), Ordering::Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let (start, mut fewest, mut queued) = (Instant::now(), REPLICAS, false);
    loop {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap().items;
        let serving =
            pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && common::cluster::is_ready(pod));
        fewest = fewest.min(serving.count());
        queued |= pods.iter().any(|pod| condition(pod).0 == "EvictionQueued");
        let left = pods.iter().filter(|pod| touched.iter().any(|name| name == name_of(pod))).count();
        if left == 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{left} left");
        sleep(Duration::from_millis(100)).await;
    }
    ns.ready(REPLICAS).await;
    stop.store(true, Ordering::Relaxed);
    poller.await.unwrap();
    let (polls, failed) = (polls.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    println!(
        "TOTALS: {REPLICAS} pods replaced in {:.0?} without a budget, never fewer than {fewest} Ready, {failed} of {polls} polls failed",
        start.elapsed()
    );
    assert_eq!(failed, 0);
    assert!(fewest >= REPLICAS - 1 && queued && polls > 100, "{fewest} {queued} {polls}");
    assert!(annotation(&ns.ready(REPLICAS).await[0], "pristine/interactions").is_none());
}
