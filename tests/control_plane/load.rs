//! Execs through an API server all the time, and what the API server counts of them.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{common::eventually, replicas};

/// Workers that never rest, on each API server.
const STEADY: usize = 2;
/// Workers that ask all at once and then fall silent, so that as many connections are idle for two seconds: a server
/// that closes those meets the next request. No more than the idle connections that an API server keeps (25).
const BURST: usize = 20;
/// Pods `p0`, `p1` and so on: 8 for the workers that never rest, and one for each of the others.
pub const PODS: usize = 8 + BURST;

/// Execs through one API server until told to stop.
#[derive(Default)]
pub struct Load {
    pub stop: AtomicBool,
    pub pause: AtomicBool,
    pub busy: AtomicUsize,
    pub admitted: AtomicUsize,
    pub failures: Mutex<Vec<String>>,
}

impl Load {
    /// Starts all workers.
    pub fn start(self: &Arc<Self>, client: &Client) -> Vec<tokio::task::JoinHandle<()>> {
        let born = Instant::now();
        let steady = (0..STEADY).map(|worker| tokio::spawn(self.clone().steady(client.clone(), worker)));
        let bursts = (0..BURST).map(|worker| tokio::spawn(self.clone().bursts(client.clone(), worker, born)));
        steady.chain(bursts).collect()
    }

    async fn steady(self: Arc<Self>, client: Client, worker: usize) {
        let mut round = 0_usize;
        while !self.stop.load(Ordering::Relaxed) {
            round += 1;
            // A new command each time: a mark to write.
            self.exec(&client, round % 8, &format!("{worker}-{round}")).await;
            sleep(Duration::from_millis(40)).await;
        }
    }

    /// The silence between two bursts, less the few tens of milliseconds until the last of one is answered, is close to
    /// 2 s on either side.
    async fn bursts(self: Arc<Self>, client: Client, worker: usize, born: Instant) {
        let mut next = born;
        for round in 0_u64.. {
            next += Duration::from_millis(2_003 + round * 17 % 61);
            sleep_until(next).await;
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.exec(&client, 8 + worker, "burst").await;
        }
    }

    async fn exec(&self, client: &Client, pod: usize, word: &str) {
        if self.pause.load(Ordering::Relaxed) {
            return;
        }
        self.busy.fetch_add(1, Ordering::Relaxed);
        let answer = exec(client, pod, word).await;
        self.busy.fetch_sub(1, Ordering::Relaxed);
        match answer {
            Ok(()) => drop(self.admitted.fetch_add(1, Ordering::Relaxed)),
            Err(other) => self.failures.lock().unwrap().push(format!("{} {other}", crate::common::now())),
        }
    }
}

/// Execs through both API servers for so long; how many were admitted, and the failures.
pub async fn execs(time: Duration) -> (usize, Vec<String>) {
    let clients = [replicas::client(1).await, replicas::client(2).await];
    let loads = [Arc::new(Load::default()), Arc::new(Load::default())];
    let workers: Vec<_> = loads.iter().zip(&clients).flat_map(|(load, client)| load.start(client)).collect();
    sleep(time).await;
    loads.iter().for_each(|load| load.stop.store(true, Ordering::Relaxed));
    for worker in workers {
        worker.await.unwrap();
    }
    let failures = loads.iter().flat_map(|load| load.failures.lock().unwrap().clone()).collect();
    (loads.iter().map(|load| load.admitted.load(Ordering::Relaxed)).sum(), failures)
}

/// One exec, and what the API server said if it was not admitted.
pub async fn exec(client: &Client, pod: usize, word: &str) -> Result<(), String> {
    let path = format!("/api/v1/namespaces/load/pods/p{pod}/exec?command=echo&command={word}");
    match client.request_text(http::Request::post(path).body(vec![]).unwrap()).await {
        // Admitted: only then does the API server look for the node, which does not exist.
        Err(kube::Error::Api(status)) if status.message.contains("\"nowhere\" not found") => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        other => Err(format!("{other:?}")),
    }
}

/// The pods of the load.
pub async fn pods(client: &Client) {
    more_pods(client, 0..PODS, &json!({})).await;
}

/// Pods with these numbers and labels.
pub async fn more_pods(client: &Client, numbers: Range<usize>, labels: &Value) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "load"}});
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    let _ = namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await;
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), "load");
    let account = json!({"metadata": {"name": "default"}});
    let _ = accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client.clone(), "load");
    for n in numbers {
        let pod = json!({
            "metadata": {"name": format!("p{n}"), "labels": labels},
            "spec": {"nodeName": "nowhere", "containers": [{"name": "app", "image": "none"}]},
        });
        let _ = pods.delete(&format!("p{n}"), &DeleteParams::default().grace_period(0)).await;
        eventually("the pod", 10, || async {
            pods.create(&PostParams::default(), &serde_json::from_value(pod.clone()).unwrap()).await.ok()
        })
        .await;
    }
}

/// Sum of an API server's counter over the label sets that contain all of these.
async fn counter(client: &Client, name: &str, labels: &[&str]) -> f64 {
    let text = client.request_text(http::Request::get("/metrics").body(vec![]).unwrap()).await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    lines
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

pub async fn rejections(client: &Client) -> f64 {
    let labels = ["error_type=\"calling_webhook_error\"", "pods.pristine"];
    counter(client, "apiserver_admission_webhook_rejection_count", &labels).await
}

pub async fn calls(client: &Client) -> f64 {
    counter(client, "apiserver_admission_webhook_request_total", &["exec.pods.pristine"]).await
}

pub async fn fail_open(client: &Client) -> f64 {
    counter(client, "apiserver_admission_webhook_fail_open_count", &["pods.pristine"]).await
}
