//! Pristine processes behind a Service, and the two API servers that call them.
#![allow(clippy::expect_used, reason = "what hack/test sets")]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::common::{SYSTEM, setting};

/// A kubeconfig of `hack/cluster up --control-plane-only --api-servers 2`.
pub fn kubeconfig(server: usize) -> String {
    setting(&format!("PRISTINE_KUBECONFIG_{server}")).expect("run by hack/test or hack/soak")
}

pub async fn config(server: usize) -> Config {
    let file = Kubeconfig::read_from(kubeconfig(server)).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    config
}

pub async fn client(server: usize) -> Client {
    Client::try_from(config(server).await).unwrap()
}

/// The state directory of the cluster.
pub fn cluster() -> PathBuf {
    Path::new(&kubeconfig(1)).parent().unwrap().to_owned()
}

/// The pid that `hack/cluster` recorded of `etcd`, `kube-apiserver` or `kube-apiserver-2`.
pub fn pid_of(component: &str) -> u32 {
    let text = std::fs::read_to_string(cluster().join(format!("run/{component}.pid"))).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}

/// Three processes behind the Service.
pub struct Replicas {
    client: Client,
    pub address: String,
    processes: Vec<Child>,
    folder: tempfile::TempDir,
    /// How they reach the API server: one for each, or one for all.
    kubeconfigs: Vec<String>,
    /// What they are started with.
    arguments: &'static [&'static str],
    /// The program that starts them, with its arguments.
    by: Vec<String>,
    /// They have `address` to themselves, and listen where they do in a cluster.
    is_alone: bool,
    /// How far the clock of each is off, in the words of faketime(1), if it is; in a file that may change.
    clocks: Vec<Option<&'static str>>,
}

/// Lives of seconds, so that a test sees many of them.
pub const SHORT_LIVES: &[&str] =
    &["--ca-lifetime=30s", "--serving-lifetime=5s", "--hold=1s", "--secret-path-lifetime=10s"];

const OF_SERVICE: &str = "kubernetes.io/service-name=pristine";

pub fn webhook_port(n: usize) -> usize {
    18_250 + n
}

impl Replicas {
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, "").await
    }

    /// With these lines more in their configuration.
    pub async fn start_with(count: usize, rules: &str) -> Self {
        let mut this = Self::prepare(kubeconfig(1), rules).await;
        this.launch(count).await;
        this
    }

    /// One for each kubeconfig, which live as long as they do in a cluster.
    pub async fn start_through(kubeconfigs: Vec<String>, arguments: &'static [&'static str]) -> Self {
        let mut this = Self::prepare(kubeconfig(1), "").await;
        let count = kubeconfigs.len();
        (this.kubeconfigs, this.arguments) = (kubeconfigs, arguments);
        this.launch(count).await;
        this
    }

    /// One behind the Service that this program starts, with these lines more in its configuration. It lives as long as it
    /// does in a cluster.
    pub async fn start_one_by(by: &[&str], rules: &str) -> Self {
        let mut this = Self::prepare(kubeconfig(1), rules).await;
        (this.by, this.arguments) = (by.iter().map(|word| (*word).to_owned()).collect(), &[]);
        this.launch(1).await;
        this
    }

    /// One that nobody calls yet, and that this program starts where it has this address to itself.
    pub async fn start_one_at_address(by: &[&str], address: &str, kubeconfig: String) -> Self {
        let mut this = Self::prepare(kubeconfig, "").await;
        (this.by, this.arguments) = (by.iter().map(|word| (*word).to_owned()).collect(), &[]);
        (this.address, this.is_alone) = (address.to_owned(), true);
        let process = this.spawn(0);
        this.processes.push(process);
        this
    }

    async fn launch(&mut self, count: usize) {
        for n in 0..count {
            let process = self.spawn(n);
            self.processes.push(process);
            self.put_into_service(n).await;
        }
    }

    /// Takes all out of the Service and ends them.
    pub async fn end(mut self) {
        for n in 0..self.processes.len() {
            self.slice(n, false).await;
            self.processes[n].kill().await.unwrap();
        }
    }

    /// One that nobody calls, with this kubeconfig; it may never be ready.
    pub async fn start_one(kubeconfig: String) -> Self {
        let mut this = Self::prepare(kubeconfig, "").await;
        let process = this.spawn(0);
        this.processes.push(process);
        this
    }

    /// One that nobody calls, and whose wall clock is off by this.
    pub async fn start_one_at(clock: &'static str) -> Self {
        let mut this = Self::prepare(kubeconfig(1), "").await;
        this.clocks = vec![Some(clock)];
        let process = this.spawn(0);
        this.processes.push(process);
        this
    }

    async fn prepare(kubeconfig: String, more: &str) -> Self {
        let address = setting("PRISTINE_HOST_ADDRESS").expect("an address that is not loopback");
        let client = client(1).await;
        let folder = tempfile::tempdir().unwrap();
        let rules = format!(
            "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {{action: Evict, ttl: 8784h}}\n{more}"
        );
        std::fs::write(folder.path().join("pristine.yaml"), rules).unwrap();
        let kubeconfigs = vec![kubeconfig];
        let this = Self {
            client,
            address,
            processes: Vec::new(),
            folder,
            kubeconfigs,
            arguments: SHORT_LIVES,
            by: Vec::new(),
            is_alone: false,
            clocks: Vec::new(),
        };
        this.objects().await;
        this
    }

    fn spawn(&self, n: usize) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log(n)).unwrap();
        let words = [&self.by[..], &[env!("CARGO_BIN_EXE_pristine").to_owned()]].concat();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if let Some(clock) = self.clocks.get(n).copied().flatten() {
            self.set_clock(n, clock);
            // The wall clock alone: no machine sets the monotonic one.
            let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
            command.env("LD_PRELOAD", library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME_TIMESTAMP_FILE", self.clock_file(n)).env("FAKETIME_NO_CACHE", "1");
        }
        command
            .args(["serve", "--log-format=text"])
            .args(self.arguments)
            .arg(format!("--config={}", self.folder.path().join("pristine.yaml").display()))
            .args(if self.is_alone { Vec::new() } else { self.listen(n) })
            .arg(format!("--pod-name=replica-{n}"))
            .env("KUBECONFIG", &self.kubeconfigs[n % self.kubeconfigs.len()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn listen(&self, n: usize) -> Vec<String> {
        vec![format!("--listen={}:{}", self.address, webhook_port(n)), format!("--probes=127.0.0.1:{}", 18_080 + n)]
    }

    fn clock_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("clock-{n}"))
    }

    /// Sets the clock of one that was started with a clock of its own.
    pub fn set_clock(&self, n: usize, clock: &str) {
        std::fs::write(self.clock_file(n), clock).unwrap();
    }

    /// One for each clock, behind the Service, which live as long as they do in a cluster.
    pub async fn start_with_clocks(clocks: Vec<Option<&'static str>>) -> Self {
        let mut this = Self::prepare(kubeconfig(1), "").await;
        let count = clocks.len();
        (this.clocks, this.arguments) = (clocks, &[]);
        this.launch(count).await;
        this
    }

    pub fn log(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("replica-{n}.log"))
    }

    /// What install.yaml makes, but for the Deployment, which nobody would run here.
    async fn objects(&self) {
        let kubectl = |arguments: &[&str]| {
            let mut command = Command::new("kubectl");
            command.args(arguments).env("KUBECONFIG", kubeconfig(1)).stdout(Stdio::null());
            command
        };
        // As new: a caBundle without a Secret would make the first replica wait for others that know the CA.
        let _ = kubectl(&["delete", "--ignore-not-found", "validatingwebhookconfiguration/pristine"]).status().await;
        // Those of a test that failed.
        let slices = ["delete", "endpointslices,endpoints", "-n", SYSTEM, "-l", OF_SERVICE];
        let _ = kubectl(&slices).status().await;
        for file in ["namespace.yaml", "webhook.yaml", "suspend.yaml"] {
            let path = format!("{}/manifests/base/{file}", env!("CARGO_MANIFEST_DIR"));
            assert!(kubectl(&["apply", "-f", &path]).status().await.unwrap().success());
        }
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "pristine"},
            "spec": {"ports": [{"name": "webhook", "port": 443, "targetPort": "webhook"}]},
        });
        let services: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(self.client.clone(), SYSTEM);
        let _ = services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM);
        let _ = secrets.delete("pristine-ca", &DeleteParams::default()).await;
    }

    /// One EndpointSlice a replica, because each has a port of its own on the one address.
    pub async fn slice(&self, n: usize, ready: bool) {
        let family = if self.address.contains(':') { "IPv6" } else { "IPv4" };
        // A slice cannot change its family.
        let name = format!("pristine-{}-{n}", family.to_lowercase());
        let port = if self.is_alone { 10_250 } else { webhook_port(n) };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "pristine"}},
            "ports": [{"name": "webhook", "port": port, "protocol": "TCP"}],
            "endpoints": if ready { json!([{"addresses": [self.address], "conditions": {"ready": true}}]) } else { json!([]) },
        });
        let slices: Api<k8s_openapi::api::discovery::v1::EndpointSlice> = Api::namespaced(self.client.clone(), SYSTEM);
        let params = PatchParams::apply("test").force();
        slices.patch(&name, &params, &Patch::Apply(slice)).await.unwrap();
        // The same as Endpoints, which API servers before 1.34 read instead. In a cluster with a node, controllers write both.
        let mut subsets = Vec::new();
        for slice in slices.list(&ListParams::default().labels(OF_SERVICE)).await.unwrap().items {
            for endpoint in slice.endpoints {
                let addresses: Vec<_> = endpoint.addresses.iter().map(|ip| json!({"ip": ip})).collect();
                subsets.push(json!({"addresses": addresses, "ports": slice.ports}));
            }
        }
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints", "subsets": subsets,
            "metadata": {"name": "pristine", "labels": {"kubernetes.io/service-name": "pristine"}},
        });
        let all: Api<k8s_openapi::api::core::v1::Endpoints> = Api::namespaced(self.client.clone(), SYSTEM);
        all.patch("pristine", &params, &Patch::Apply(endpoints)).await.unwrap();
    }

    async fn put_into_service(&self, n: usize) {
        if setting("PRISTINE_CONTROL").is_some() {
            // A negative control may never be ready; what it loses is to be counted all the same.
            tokio::time::sleep(Duration::from_secs(3)).await;
        } else {
            let wait = async {
                while readyz(n).await != Some(200) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            if tokio::time::timeout(Duration::from_secs(30), wait).await.is_err() {
                let log = std::fs::read_to_string(self.log(n)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(40).collect();
                panic!("replica {n} is not ready within 30 s: {:?}\n{}", ready_text(n).await, last.join("\n"));
            }
        }
        self.slice(n, true).await;
    }

    /// Until nobody calls it any more.
    async fn take_out_of_service(&self, n: usize) {
        self.slice(n, false).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }

    pub fn signal(&self, n: usize, signal: &str) {
        send_signal(self.processes[n].id().unwrap(), signal);
    }

    /// Resident memory of this replica in MiB: now, and at most since it started.
    pub fn memory(&self, n: usize) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.processes[n].id().unwrap())).unwrap();
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB")).unwrap();
            line.trim().parse::<u64>().unwrap() / 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// What this replica has logged with these words.
    pub fn logged(&self, n: usize, words: &str) -> usize {
        let log = std::fs::read_to_string(self.log(n)).unwrap_or_default();
        log.lines().filter(|line| line.contains(words)).count()
    }

    pub async fn kill_and_start(&mut self, n: usize) {
        self.take_out_of_service(n).await;
        self.signal(n, "KILL");
        self.start_again(n).await;
    }

    /// One that was killed.
    pub async fn start_again(&mut self, n: usize) {
        let _ = self.processes[n].wait().await;
        self.processes[n] = self.spawn(n);
        self.put_into_service(n).await;
    }

    pub async fn suspend(&self, n: usize, time: Duration) {
        self.take_out_of_service(n).await;
        self.signal(n, "STOP");
        tokio::time::sleep(time).await;
        self.signal(n, "CONT");
        // A probe's period: by then it has looked around.
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.put_into_service(n).await;
    }
}

pub fn send_signal(pid: u32, signal: &str) {
    let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

pub async fn readyz(n: usize) -> Option<u16> {
    ready_text(n).await?.split(' ').nth(1)?.parse().ok()
}

/// The whole answer of /readyz.
pub async fn ready_text(n: usize) -> Option<String> {
    get(n, "/readyz").await
}

/// What the plain port answers, with its head.
pub async fn get(n: usize, path: &str) -> Option<String> {
    get_from("127.0.0.1", u16::try_from(18_080 + n).unwrap(), path).await
}

/// The same of a replica at this address.
pub async fn get_from(host: &str, port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect((host, port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    Some(text)
}
