//! A real cluster, as `kubectl` and the API see it.

use std::process::{Output, Stdio};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use pristine::mark;
pub use pristine::mark::is_ready;
use serde_json::Value;
use tokio::process::Command;

use crate::common::{eventually, now};

/// The image of `hack/cluster`.
pub const IMAGE: &str = "localhost/pristine/busybox:1";

pub async fn client() -> Client {
    let mut config = kube::Config::infer().await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub fn kubectl(arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs kubectl to its end, successful or not.
pub async fn attempt(arguments: &[&str]) -> Output {
    kubectl(arguments).output().await.unwrap()
}

/// Runs kubectl to its successful end, and gives what it printed.
pub async fn run(arguments: &[&str]) -> String {
    let output = attempt(arguments).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "kubectl {arguments:?}: {err}{out}");
    out.into_owned()
}

pub async fn apply(namespace: &str, yaml: &str) {
    use tokio::io::AsyncWriteExt as _;
    let mut child = kubectl(&["apply", "-n", namespace, "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(yaml.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A namespace of a test, deleted with it.
pub struct Namespace {
    pub name: String,
    pub client: Client,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", "--wait=false", &self.name];
        let _ = std::process::Command::new("kubectl").args(arguments).output();
    }
}

impl Namespace {
    /// The rules that `hack/test` installs go by the prefix: `t-fast-` is evicted after 5 s, `t-kill-` after
    /// 10 s, and everything else after 10 min.
    pub async fn new(prefix: &str) -> Self {
        let name = format!("{prefix}{:08x}", rand::random::<u32>());
        run(&["create", "namespace", &name]).await;
        let client = client().await;
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), &name);
        eventually("the default ServiceAccount", 20, || async { accounts.get_opt("default").await.unwrap() }).await;
        Self { name, client }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// kubectl in this namespace.
    pub async fn run(&self, arguments: &[&str]) -> String {
        run(&[&["-n", &self.name], arguments].concat()).await
    }

    pub async fn attempt(&self, arguments: &[&str]) -> Output {
        attempt(&[&["-n", &self.name], arguments].concat()).await
    }

    /// A Deployment or StatefulSet named `web` whose container `app` prints a line now and then; its pods, Ready.
    pub async fn workload(&self, kind: &str, replicas: usize) -> Vec<Pod> {
        apply(
            &self.name,
            &format!(
                "apiVersion: apps/v1
kind: {kind}
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  {service}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: {IMAGE}
        command: [sh, -c, 'trap exit TERM; while :; do echo tick; sleep 0.2; done']
",
                service = if kind == "StatefulSet" { "serviceName: web" } else { "" }
            ),
        )
        .await;
        self.ready(replicas).await
    }

    /// Waits until so many pods are Ready and not terminating.
    pub async fn ready(&self, count: usize) -> Vec<Pod> {
        eventually("ready pods", 60, || async {
            let mut pods = self.pods().list(&ListParams::default()).await.unwrap().items;
            pods.retain(serves);
            (pods.len() == count).then_some(pods)
        })
        .await
    }

    pub async fn pod(&self, name: &str) -> Pod {
        self.pods().get(name).await.unwrap()
    }

    /// Waits until the pod of this name terminates or is gone.
    pub async fn terminates(&self, name: &str, seconds: u64) {
        eventually("the eviction", seconds, async || {
            let found = self.pods().get_opt(name).await.unwrap();
            found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()).then_some(())
        })
        .await;
    }

    /// Waits until the pod of this UID terminates; how long after its deadline that was.
    pub async fn evicted(&self, name: &str, uid: &str, deadline: Timestamp) -> f64 {
        let wait = u64::try_from(deadline.duration_since(now()).as_secs().max(0)).unwrap() + 30;
        eventually("the eviction", wait, || async {
            let pod = self.pods().get_opt(name).await.unwrap();
            let there = pod.is_some_and(|pod| uid_of(&pod) == uid && pod.metadata.deletion_timestamp.is_none());
            (!there).then_some(())
        })
        .await;
        now().duration_since(deadline).as_secs_f64()
    }
}

/// Ready, and not about to go.
pub fn serves(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && is_ready(pod)
}

/// Reason and message of our condition.
pub fn condition(pod: &Pod) -> (String, String) {
    let ours = mark::status::condition(pod, "pristine/Pristine");
    ours.map(|ours| (ours.reason.clone().unwrap_or_default(), ours.message.clone().unwrap_or_default()))
        .unwrap_or_default()
}

pub fn reason(pod: &Pod) -> String {
    condition(pod).0
}

pub fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap()
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn is_marked(pod: &Pod) -> bool {
    pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("pristine/interacted"))
}

/// The record, or null.
pub fn record(pod: &Pod) -> Value {
    annotation(pod, "pristine/interactions").map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

/// Every recorded interaction, as `operation command…`.
pub fn acts(pod: &Pod) -> Vec<String> {
    let record = record(pod);
    let recent = record["recent"].as_array().cloned().unwrap_or_default();
    let all = record.get("first").cloned().into_iter().chain(recent);
    all.map(|act| {
        let words = act["command"].as_array().into_iter().flatten().filter_map(Value::as_str);
        [act["operation"].as_str().unwrap()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
    })
    .collect()
}

pub fn deadline(pod: &Pod) -> Timestamp {
    annotation(pod, "pristine/evict-at").unwrap().parse().unwrap()
}
