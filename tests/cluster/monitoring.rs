//! What Prometheus makes of it: manifests/components/monitoring as kustomize renders it, Debian's Prometheus on a
//! loopback port, the metrics of the replicas and of the API server.
//!
//! `PRISTINE_DASHBOARD_MINUTES=N` then goes on with execs for so long, and draws docs/dashboard.svg.

use std::{fmt::Write as _, path::Path, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use serial_test::parallel;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{
    common::{https, name_of, setting},
    kubectl::{Namespace, attempt, client, deadline, is_ready, run, uid_of},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The objects of the component.
async fn component() -> Vec<Value> {
    let text = run(&["kustomize", &format!("{ROOT}/manifests/components/monitoring")]).await;
    text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

/// The pods that the PodMonitor selects.
async fn monitored(monitor: &Value) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(client().await, monitor["metadata"]["namespace"].as_str().unwrap());
    let labels = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect();
    let mut found = pods.list(&ListParams::default().labels(&labels.join(","))).await.unwrap().items;
    // Those of an earlier rollout still drain.
    found.retain(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod));
    found
}

fn address(pod: &Pod) -> &str {
    pod.status.as_ref().unwrap().pod_ip.as_deref().unwrap()
}

fn port(pod: &Pod, name: &str) -> i32 {
    let containers = &pod.spec.as_ref().unwrap().containers;
    let mut ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports.find(|port| port.name.as_deref() == Some(name)).unwrap().container_port
}

/// What is asked of Prometheus in a URL.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        write!(all, "%{byte:02X}").unwrap();
        all
    })
}

struct Prometheus {
    address: String,
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn start(objects: &[Value], pods: &[Pod]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let text = std::fs::read_to_string(setting("KUBECONFIG").unwrap()).unwrap();
        let kubeconfig: Value = serde_saphyr::from_str(&text).unwrap();
        let (cluster, user) = (&kubeconfig["clusters"][0]["cluster"], &kubeconfig["users"][0]["user"]);
        for (file, data) in [
            ("ca.crt", &cluster["certificate-authority-data"]),
            ("client.crt", &user["client-certificate-data"]),
            ("client.key", &user["client-key-data"]),
        ] {
            write(file, &STANDARD.decode(data.as_str().unwrap()).unwrap());
        }
        let endpoint = &object(objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0];
        let targets: Vec<Value> = pods
            .iter()
            .map(|pod| {
                let target = format!("{}:{}", address(pod), port(pod, endpoint["port"].as_str().unwrap()));
                json!({ "targets": [target], "labels": { "pod": name_of(pod) } })
            })
            .collect();
        let server = cluster["server"].as_str().unwrap().strip_prefix("https://").unwrap();
        // JSON is YAML, too. The API server tells some megabytes each time.
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                { "job_name": "pristine", "metrics_path": endpoint["path"], "static_configs": targets },
                {
                    "job_name": "apiserver", "scheme": "https", "scrape_interval": "5s", "scrape_timeout": "5s",
                    "tls_config": { "ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key" },
                    "static_configs": [{ "targets": [server] }],
                },
            ],
        });
        write("prometheus.yaml", config.to_string().as_bytes());
        write("rules.yaml", object(objects, "PrometheusRule")["spec"].to_string().as_bytes());

        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus, which hack/test installs: {error}"));
        let this = Self { address, _process: process, _folder: folder };
        settled(60, || this.targets_down(pods.len() + 1)).await;
        this
    }

    /// `data` of the answer, or what is wrong with the question.
    async fn ask(&self, path: &str) -> Result<Value, String> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            // Of HTTP/1.0: the answer has no chunks, and ends with the connection.
            stream.write_all(format!("GET /api/v1/{path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let text = exchange.await.map_err(|error| error.to_string())?;
        let (_, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
        let answer: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    /// The numbers that an expression has now.
    async fn query(&self, expression: &str) -> Result<Vec<f64>, String> {
        let data = self.ask(&format!("query?query={}", encoded(expression))).await?;
        let values = data["result"].as_array().unwrap().iter().map(|series| series["value"][1].as_str().unwrap());
        Ok(values.map(|value| value.parse().unwrap()).collect())
    }

    async fn targets_down(&self, expected: usize) -> Vec<String> {
        let targets = match self.ask("targets?state=active").await {
            Ok(data) => data["activeTargets"].as_array().unwrap().clone(),
            Err(error) => return vec![error],
        };
        if targets.len() != expected {
            return vec![format!("{} targets of {expected}", targets.len())];
        }
        let down = targets.iter().filter(|target| target["health"] != "up");
        down.map(|target| format!("{} is not up: {}", target["scrapeUrl"], target["lastError"])).collect()
    }

    async fn rules_not_evaluated(&self, expected: usize) -> Vec<String> {
        let data = self.ask("rules").await.unwrap();
        let groups = data["groups"].as_array().unwrap();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        if rules.len() != expected {
            return vec![format!("{} rules of {expected}", rules.len())];
        }
        let ill = rules.iter().filter(|rule| rule["health"] != "ok");
        ill.map(|rule| format!("{}: {} {}", rule["name"], rule["health"], rule["lastError"])).collect()
    }

    /// Those of the expressions that have no data: no series, or none with a number.
    async fn without_data(&self, expressions: &[String]) -> Vec<String> {
        let mut missing = Vec::new();
        for expression in expressions {
            match self.query(expression).await {
                Ok(values) if values.iter().any(|value| value.is_finite()) => {}
                Ok(values) => missing.push(format!("no data ({values:?}): {expression}")),
                Err(error) => missing.push(format!("{error}: {expression}")),
            }
        }
        missing
    }
}

/// Looks until nothing is wrong; the error is what still is.
async fn settled<F: Future<Output = Vec<String>>>(seconds: u64, mut look: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let wrong = look().await;
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "after {seconds} s:\n{}", wrong.join("\n"));
        sleep(Duration::from_millis(500)).await;
    }
}

/// The expressions of the dashboard that Grafana would send.
fn dashboard(objects: &[Value]) -> Vec<String> {
    let text = object(objects, "ConfigMap")["data"]["pristine.json"].as_str().unwrap();
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter(|panel| panel["type"] != "row").flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().replace("$__rate_interval", "5m")).collect()
}

/// The series of ours whose increase an alert looks at.
fn increases(rules: &[&Value]) -> Vec<String> {
    let expressions = rules.iter().map(|rule| rule["expr"].as_str().unwrap());
    let selectors = expressions.flat_map(|text| text.split("increase(").skip(1)).map(|rest| rest.split('[').next());
    selectors.flatten().filter(|selector| selector.starts_with("pristine_")).map(str::to_owned).collect()
}

/// One of everything that the dashboard shows.
async fn live(ns: &Namespace, pods: &[Pod]) {
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&["exec", &name, "--", "true"]).await;
    let pod = ns.pod(&name).await;
    // As docs/runbook.md has it, to see whether the API server reaches and believes us: refused, and by us.
    let nowhere = "/api/v1/namespaces/default/pods/absent/exec?command=id";
    let output = attempt(&["create", "--raw", nowhere, "-f", "/dev/null"]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    let refused = r#"admission webhook "exec.pods.pristine" denied the request: pods "absent" not found"#;
    assert!(!output.status.success() && error.contains(refused), "{error}");
    let webhook = format!("{}:{}", address(&pods[0]), port(&pods[0], "webhook"));
    // A stranger, who does not know the path; and one who says nothing.
    let mut stranger = https::connect(webhook.parse().unwrap(), &[]).await.unwrap();
    assert_eq!(stranger.post(b"{}").await.unwrap().status, 503);
    drop(TcpStream::connect(&webhook).await.unwrap());
    ns.evicted(&name, uid_of(&pod), deadline(&pod)).await;
}

/// Goes on for so long, for a picture with something in it.
async fn draw(prometheus: &Prometheus, ns: &Namespace, minutes: &str) {
    let end = Instant::now() + Duration::from_secs(60 * minutes.parse::<u64>().unwrap());
    ns.workload("Deployment", 3).await;
    while Instant::now() < end {
        for pod in ns.pods().list(&ListParams::default()).await.unwrap().items.iter().filter(|pod| is_ready(pod)) {
            // It may be gone by now.
            drop(ns.attempt(&["exec", name_of(pod), "--", "true"]).await);
        }
        sleep(Duration::from_secs(4)).await;
    }
    let url = format!("http://{}", prometheus.address);
    let script = Path::new(ROOT).join("hack/update-dashboard-picture");
    let drawn = Command::new(script).args(["--minutes", minutes, "--rate-interval", "30s", &url]).status().await;
    assert!(drawn.unwrap().success());
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn prometheus_loads_every_rule_and_has_data_for_every_dashboard_panel() {
    let objects = component().await;
    let pods = monitored(object(&objects, "PodMonitor")).await;
    assert_eq!(pods.len(), 2, "the replicas of install.yaml");
    let prometheus = Prometheus::start(&objects, &pods).await;
    let ns = Namespace::new("t-fast-").await;
    live(&ns, &pods).await;

    let expressions = dashboard(&objects);
    settled(60, || prometheus.without_data(&expressions)).await;

    let groups = object(&objects, "PrometheusRule")["spec"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    settled(30, || prometheus.rules_not_evaluated(rules.len())).await;
    // increase() does not see the first of a series, so that those which alerts look at have to be there before.
    let series = increases(&rules);
    settled(10, || prometheus.without_data(&series)).await;
    // All is well here.
    let firing = prometheus.query(r#"ALERTS{alertstate="firing", severity="critical"}"#).await.unwrap();
    assert!(firing.is_empty(), "{}", prometheus.ask("alerts").await.unwrap());
    println!(
        "TOTALS: {} targets, {} expressions of the dashboard, {} rules",
        pods.len() + 1,
        expressions.len(),
        rules.len()
    );

    if let Some(minutes) = setting("PRISTINE_DASHBOARD_MINUTES") {
        draw(&prometheus, &ns, &minutes).await;
    }
}
