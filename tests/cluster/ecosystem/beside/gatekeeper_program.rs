//! Gatekeeper, with the manifests of its release: the program runs on this machine, and its Service leads there.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
};

use super::{apply_all, documents, kubeconfig_of, source};
use crate::{
    common::{eventually, setting},
    kubectl::{attempt, run},
};

const NAMESPACE: &str = "gatekeeper-system";
/// The webhook's port, as in its manifests.
const PORT: u16 = 8443;
/// Not its default: other programs of a cluster use it.
const HEALTH: &str = "127.0.0.1:19099";
const CONFIGURATIONS: [&str; 2] = [
    "validatingwebhookconfiguration/gatekeeper-validating-webhook-configuration",
    "mutatingwebhookconfiguration/gatekeeper-mutating-webhook-configuration",
];

/// The running program. Its webhook configurations are removed with it, so that no test leaves a cluster that admits
/// nothing.
pub struct Gatekeeper {
    program: Child,
    folder: tempfile::TempDir,
}

impl Drop for Gatekeeper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            println!("the log of Gatekeeper, latest first:\n{}", last.join("\n"));
        }
        // The API server does not ask webhooks about these.
        let kubectl = |words: &[&str]| drop(std::process::Command::new("kubectl").args(words).output());
        kubectl(&[&["delete", "--ignore-not-found"][..], &CONFIGURATIONS].concat());
        // A stopped program does not end before it runs again.
        self.signal("CONT");
        let _ = self.program.start_kill();
        kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"]);
    }
}

impl Gatekeeper {
    /// Installs and starts it, with a change of the webhook that reviews.
    pub async fn start(change: impl Fn(&mut Value)) -> Self {
        eventually("an earlier namespace is gone", 120, async || {
            (!attempt(&["get", "namespace", NAMESPACE]).await.status.success()).then_some(())
        })
        .await;
        let module = source("hack/tools/gatekeeper", "github.com/open-policy-agent/gatekeeper/v3").await;
        let manifest = std::fs::read_to_string(module.join("deploy/gatekeeper.yaml")).unwrap();
        let (mut kinds, mut others, mut webhooks) = (Vec::new(), Vec::new(), Vec::new());
        for mut object in documents(&manifest) {
            match object["kind"].as_str().unwrap() {
                "CustomResourceDefinition" | "Namespace" => kinds.push(object),
                // The program is no pod here.
                "Deployment" | "PodDisruptionBudget" => {}
                "Service" => {
                    drop(object["spec"].as_object_mut().unwrap().remove("selector"));
                    others.push(object);
                }
                "ValidatingWebhookConfiguration" => {
                    change(&mut object["webhooks"][0]);
                    webhooks.push(object);
                }
                "MutatingWebhookConfiguration" => webhooks.push(object),
                _ => others.push(object),
            }
        }
        others.push(endpoints().await);
        apply_all(kinds).await;
        run(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "-l", "gatekeeper.sh/system=yes"]).await;
        apply_all(others).await;
        // Nothing listens yet, and the second entry of one of them fails closed.
        let folder = tempfile::tempdir().unwrap();
        let certificates = folder.path().join("certs");
        std::fs::create_dir(&certificates).unwrap();
        let program = Command::new(setting("PRISTINE_GATEKEEPER").expect("built by hack/test ecosystem"))
            // As in its Deployments.
            .args([&format!("--port={PORT}"), "--logtostderr", "--exempt-namespace=gatekeeper-system"])
            .args(["--operation=webhook", "--operation=mutation-webhook", "--operation=status", "--operation=generate"])
            .args(["--operation=mutation-status", "--disable-opa-builtin={http.send}"])
            // Because it is no pod.
            .args(["--debug-use-fake-pod", &format!("--health-addr={HEALTH}"), "--prometheus-port=19098"])
            .arg(format!(
                "--kubeconfig={}",
                kubeconfig_of(NAMESPACE, "gatekeeper-admin", folder.path()).await.display()
            ))
            .arg(format!("--cert-dir={}", certificates.display()))
            .envs([("POD_NAMESPACE", NAMESPACE), ("NAMESPACE", NAMESPACE), ("CONTAINER_NAME", "manager")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let this = Self { program, folder };
        apply_all(webhooks).await;
        this.mount().await;
        this.ready().await;
        this
    }

    /// Its Secret as files, as a kubelet mounts it.
    async fn mount(&self) {
        let secret = eventually("its certificate", 60, async || {
            let output =
                attempt(&["-n", NAMESPACE, "get", "secret", "gatekeeper-webhook-server-cert", "-o", "json"]).await;
            let secret: Value = serde_json::from_slice(&output.stdout).ok()?;
            secret["data"].get("tls.crt").is_some().then(|| secret["data"].clone())
        })
        .await;
        // The certificate last: it waits for that.
        for name in ["ca.crt", "ca.key", "tls.key", "tls.crt"] {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.decode(secret[name].as_str().unwrap()).unwrap();
            std::fs::write(self.folder.path().join("certs").join(name), bytes).unwrap();
        }
    }

    async fn ready(&self) {
        eventually("Gatekeeper is ready", 120, async || {
            let mut stream = TcpStream::connect(HEALTH).await.ok()?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.ok()?;
            let bundle = run(&["get", CONFIGURATIONS[0], "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"]).await;
            (text.contains(" 200 ") && bundle.len() > 100).then_some(())
        })
        .await;
        println!("TOTALS: Gatekeeper is ready");
    }

    /// Denies with this rule in Rego: the body of a violation, without `msg`. Until it is in force.
    pub async fn deny(&self, kind: &str, rule: &str, message: &str) {
        let name = kind.to_lowercase();
        let rego = format!("package {name}\nviolation[{{\"msg\": msg}}] {{\n{rule}\nmsg := \"{message}\"\n}}");
        apply_all(vec![json!({
            "apiVersion": "templates.gatekeeper.sh/v1", "kind": "ConstraintTemplate", "metadata": {"name": name},
            "spec": {
                "crd": {"spec": {"names": {"kind": kind}}},
                "targets": [{"target": "admission.k8s.gatekeeper.sh", "rego": rego}],
            },
        })])
        .await;
        let crd = format!("crd/{name}.constraints.gatekeeper.sh");
        eventually("the kind of the constraint", 60, async || {
            let waited = attempt(&["wait", "--for=condition=Established", "--timeout=5s", &crd]).await;
            waited.status.success().then_some(())
        })
        .await;
        apply_all(vec![json!({
            "apiVersion": "constraints.gatekeeper.sh/v1beta1", "kind": kind, "metadata": {"name": name},
        })])
        .await;
    }

    pub async fn allow(&self, kind: &str) {
        run(&["delete", "constrainttemplate", &kind.to_lowercase()]).await;
    }

    /// Stops it as it stands, so that its connections hang; or lets it run again.
    pub fn signal(&self, name: &str) {
        let Some(pid) = self.program.id() else { return };
        let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Kills it. Its webhook configurations stay.
    pub async fn die(&mut self) {
        self.program.kill().await.unwrap();
    }

    /// What an administrator does when a cluster admits nothing any more.
    pub async fn remove_webhooks(&self) {
        run(&[&["delete", "--ignore-not-found"][..], &CONFIGURATIONS].concat()).await;
    }

    /// Removes what it installed.
    pub async fn remove(self) {
        self.remove_webhooks().await;
        drop(self);
        run(&["delete", "crd", "-l", "gatekeeper.sh/system=yes", "--wait=false"]).await;
        run(&["delete", "clusterrole,clusterrolebinding", "-l", "gatekeeper.sh/system=yes"]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Of its Service: this machine, at the address of the API server.
async fn endpoints() -> Value {
    let query = "jsonpath={.items[0].endpoints[0].addresses[0]}";
    let slices = ["-n", "default", "get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", query];
    let address = run(&slices).await;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "gatekeeper-webhook-service", "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "gatekeeper-webhook-service"},
        },
        "endpoints": [{"addresses": [address]}],
        "ports": [{"name": "https-webhook-server", "port": PORT, "protocol": "TCP"}],
    })
}
