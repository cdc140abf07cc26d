//! A program of the cluster that enters every new pod of a workload with the token of its own pod, as operators do.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{Api, api::ListParams};
use serial_test::parallel;
use tokio::time::{Instant, sleep};

use crate::{
    common::{SYSTEM, audit, eventually, name_of, now, setting},
    kubectl::{IMAGE, Namespace, condition, deadline, is_marked, record, serves, uid_of},
    rules::without_credentials,
    stage::{Stage, shown},
};

/// A ServiceAccount that may exec, and the token of a pod of it.
struct Operator {
    account: String,
    token: Vec<String>,
    _config: tempfile::NamedTempFile,
}

impl Operator {
    async fn new(ns: &Namespace) -> Self {
        let account = format!("system:serviceaccount:{}:operator", ns.name);
        ns.run(&["create", "serviceaccount", "operator"]).await;
        let subject = format!("--serviceaccount={}:operator", ns.name);
        ns.run(&["create", "rolebinding", "edit", "--clusterrole=edit", &subject]).await;
        let spec = r#"{"spec": {"serviceAccountName": "operator"}}"#;
        let image = format!("--image={IMAGE}");
        ns.run(&["run", "operator", &image, "--overrides", spec, "--", "sleep", "1000"]).await;
        ns.run(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/operator"]).await;
        let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        let token = ns.run(&["exec", "operator", "--", "cat", path]).await;
        let config = without_credentials().await;
        let token = vec![format!("--kubeconfig={}", config.path().display()), format!("--token={}", token.trim())];
        Self { account, token, _config: config }
    }

    async fn enter(&self, ns: &Namespace, pod: &str) {
        exec(ns, &self.token, pod).await;
    }
}

/// An exec with these flags. A POST is reviewed, and then fails because it is no upgrade.
async fn exec(ns: &Namespace, flags: &[String], pod: &str) {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/exec?command=true&stdout=true", ns.name);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    ns.attempt(&[&flags[..], &["create", "--raw", &path, "-f", "/dev/null"]].concat()).await;
}

/// The accepted evictions of pods of the workload `web`.
fn evictions(ns: &Namespace) -> usize {
    let all = audit::evictions(&setting("KUBECONFIG").unwrap(), &ns.name);
    let of_web = all.iter().filter(|(pod, _)| pod.starts_with("web"));
    of_web.flat_map(|(_, requests)| requests).filter(|(_, code)| *code == 201).count()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn with_the_shipped_rules_an_operator_has_no_pod_evicted_and_people_as_its_account_have() {
    let ns = Namespace::new("t-operator-").await;
    let operator = Operator::new(&ns).await;
    let mut pods = ns.workload("StatefulSet", 3).await;
    pods.retain(|pod| name_of(pod).starts_with("web-"));
    for _ in 0..3 {
        for pod in &pods {
            operator.enter(&ns, name_of(pod)).await;
        }
        // The TTL of this namespace is 5 s.
        sleep(Duration::from_secs(6)).await;
    }
    for pod in &pods {
        let later = ns.pod(name_of(pod)).await;
        assert_eq!((uid_of(&later), is_marked(&later)), (uid_of(pod), true));
        assert_eq!(record(&later)["first"]["rule"], "operators");
    }
    assert_eq!(evictions(&ns), 0);

    let created = ns.run(&["create", "token", "operator"]).await;
    let created = vec![operator.token[0].clone(), format!("--token={}", created.trim())];
    for (flags, name) in [(vec![format!("--as={}", operator.account)], "web-0"), (created, "web-1")] {
        exec(&ns, &flags, name).await;
        let pod = ns.pod(name).await;
        let late = ns.evicted(name, uid_of(&pod), deadline(&pod)).await;
        assert!(late < 10.0, "{late}");
    }
    assert_eq!(evictions(&ns), 2);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_loop_of_a_machine_ends_after_three_evictions_and_is_reported() {
    let stage = Stage::new("t-loop-").await;
    let ns = &stage.ns;
    let operator = Operator::new(ns).await;
    ns.workload("Deployment", 1).await;
    let mut seen = BTreeSet::new();
    let last = eventually("the end of the loop", 120, async || {
        let pods = ns.pods().list(&ListParams::default().labels("app=web")).await.unwrap().items;
        for pod in pods.iter().filter(|pod| serves(pod) && !is_marked(pod)) {
            operator.enter(ns, name_of(pod)).await;
            seen.insert(uid_of(pod).to_owned());
        }
        pods.into_iter().find(|pod| condition(pod).0 == "EvictionLoop")
    })
    .await;
    assert_eq!((seen.len(), evictions(ns)), (4, 3), "three pods are evicted, the fourth is recorded");
    let message = condition(&last).1;
    assert!(message.contains("eviction loop: Deployment web was evicted 3 times in a row"), "{message}");
    assert!(message.contains("podToken: true, tty: false}, action: Record}"), "{message}");

    // The operator continues, and no pod is evicted any more.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        operator.enter(ns, name_of(&last)).await;
        sleep(Duration::from_secs(1)).await;
    }
    let later = ns.pod(name_of(&last)).await;
    assert_eq!((uid_of(&later), later.metadata.deletion_timestamp.is_none()), (uid_of(&last), true));
    assert_eq!(evictions(ns), 3);

    let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let warned: BTreeSet<_> = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some("EvictionLoop") && event.type_.as_deref() == Some("Warning"))
        .filter_map(|event| event.regarding.as_ref()?.kind.clone())
        .collect();
    assert_eq!(warned, ["Deployment".to_owned(), "Pod".to_owned()].into());
    let maps: Api<ConfigMap> = Api::namespaced(ns.client.clone(), SYSTEM);
    eventually("the stored loop", 10, || async {
        let data = maps.get("pristine-loops").await.unwrap().data.unwrap_or_default();
        data.get("loops.json")?.contains(&ns.name).then_some(())
    })
    .await;
    let doctor = shown(&stage.pristine("doctor").await);
    let expected = format!("in namespace {}: eviction loop: Deployment web", ns.name);
    assert!(doctor.contains(&expected) && doctor.contains("to record it always, add the rule"), "{doctor}");
    // Each exec has a deadline for about a second.
    eventually("get shows the loop", 4, async || {
        let got = shown(&stage.pristine("get -o wide").await);
        (got.contains("Recorded") && got.contains("eviction loop")).then_some(())
    })
    .await;

    // A person of the same account is not spared.
    exec(ns, &[format!("--as={}", operator.account)], name_of(&last)).await;
    ns.evicted(name_of(&last), uid_of(&last), now()).await;
    assert_eq!(evictions(ns), 4);
}
