//! The kustomize-controller as a process, and in place of source-controller an HTTP server with the archive of a
//! repository: a GitRepository is an object whose status has the address and the digest of such an archive.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::super::{Repository, documented, program};
use crate::{
    common::{eventually, now},
    components::apply_all,
    kubectl::{attempt, run},
};

const KINDS: [(&str, &str); 3] =
    [("GitRepository", "gitrepositories"), ("OCIRepository", "ocirepositories"), ("Bucket", "buckets")];
/// How often Flux compares, instead of every ten minutes.
const INTERVAL: Duration = Duration::from_secs(5);

type Archives = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What the controller did in a reconciliation: the objects that it did not leave as they were.
struct Reconciliation {
    at: Instant,
    changed: BTreeMap<String, String>,
}

pub struct Flux {
    pub repository: Repository,
    controller: Child,
    log: tempfile::NamedTempFile,
    archives: Archives,
    address: String,
    tasks: Vec<JoinHandle<()>>,
    done: Arc<Mutex<Vec<Reconciliation>>>,
    not_ready: Arc<Mutex<Vec<String>>>,
}

/// A kind of source-controller, of which the controller reads only what is in the status. Its module has no manifests.
fn source_kind((kind, plural): (&str, &str)) -> String {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = json!({"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema}});
    let names = json!({"kind": kind, "plural": plural, "singular": kind.to_lowercase()});
    let group = "source.toolkit.fluxcd.io";
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}})
    .to_string()
}

/// The kinds of Flux.
async fn kinds() -> String {
    // In the module that the controller was built from.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/tools/kustomize-controller");
    let list = ["list", "-m", "-f", "{{.Dir}}", "github.com/fluxcd/kustomize-controller"];
    let go = Command::new("go")
        .args(list)
        .current_dir(folder)
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=mod")
        .output()
        .await;
    let go = go.unwrap();
    assert!(go.status.success(), "{}", String::from_utf8_lossy(&go.stderr));
    let module = String::from_utf8(go.stdout).unwrap();
    let file = "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml";
    let own = fs::read_to_string(Path::new(module.trim()).join(file)).unwrap();
    KINDS.into_iter().map(source_kind).fold(own, |all, kind| format!("{all}\n---\n{kind}"))
}

impl Flux {
    /// Installs the kinds and runs the controller. Nothing is reconciled before [`Flux::publish`].
    pub async fn start(repository: Repository) -> Self {
        attempt(&["create", "namespace", "flux-system"]).await;
        apply_all(&kinds().await, &["--server-side"]).await;
        run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).await;
        let archives = Archives::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(serve(listener, archives.clone()));
        let log = tempfile::NamedTempFile::new().unwrap();
        let controller = Command::new(program("PRISTINE_KUSTOMIZE_CONTROLLER"))
            .args(["--metrics-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0", "--log-encoding=json"])
            .env("RUNTIME_NAMESPACE", "flux-system")
            .stdin(Stdio::null())
            .stdout(log.reopen().unwrap())
            .stderr(log.reopen().unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (done, not_ready) = (Arc::default(), Arc::default());
        let reader = tokio::spawn(read(log.path().to_owned(), Arc::clone(&done)));
        let flux = documented("flux.yaml");
        let quick = flux.replace("interval: 10m", &format!("interval: {}s", INTERVAL.as_secs()));
        assert_ne!(quick, flux, "the interval of docs/gitops.md");
        apply_all(&quick, &[]).await;
        let asker = tokio::spawn(ask(Arc::clone(&not_ready)));
        Self { repository, controller, log, archives, address, tasks: vec![server, reader, asker], done, not_ready }
    }

    /// Pushes what is in the repository, and waits until Flux has applied it and everything is healthy.
    pub async fn publish(&self) {
        let folder = self.repository.folder.path().to_str().unwrap();
        // The same files are the same revision.
        let words = ["-C", folder, "--sort=name", "--mtime=@0", "-cz", "pristine"];
        let output = Command::new("tar").args(words).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let digest = ring::digest::digest(&ring::digest::SHA256, &output.stdout);
        let digest = digest.as_ref().iter().fold(String::new(), |all, byte| format!("{all}{byte:02x}"));
        let (path, revision) = (format!("{digest}.tar.gz"), format!("main@sha1:{}", &digest[..40]));
        self.archives.lock().unwrap().insert(path.clone(), output.stdout.clone());
        let artifact = json!({"path": path, "url": format!("http://{}/{path}", self.address), "revision": revision,
            "digest": format!("sha256:{digest}"), "lastUpdateTime": format!("{:.0}", now()), "size": output.stdout.len()});
        let status = json!({"status": {"artifact": artifact}}).to_string();
        let words = ["patch", "gitrepository", "platform", "--subresource=status", "--type=merge", "-p", &status];
        run(&[&["-n", "flux-system"], &words[..]].concat()).await;
        eventually("Flux applies the revision", 180, async || {
            let object = kustomization().await;
            let is_applied = object["status"]["lastAppliedRevision"] == revision && readiness(&object) == Some("True");
            is_applied.then_some(())
        })
        .await;
    }

    /// Waits for so many more reconciliations.
    pub async fn reconciled(&self, more: usize) {
        let before = self.done.lock().unwrap().len();
        let is_enough = async || (self.done.lock().unwrap().len() >= before + more).then_some(());
        eventually("Flux reconciles", 60, is_enough).await;
    }

    /// Flux has reconciled since then, and has left everything as it was; how often.
    pub fn quiet(&self, since: Instant) -> usize {
        let done = self.done.lock().unwrap();
        // The one that was under way then may have written.
        let later: Vec<_> = done.iter().filter(|it| it.at >= since).skip(1).collect();
        let changed: Vec<_> = later.iter().map(|it| &it.changed).filter(|changed| !changed.is_empty()).collect();
        // Flux reads an object, and then compares it with a dry run of its apply: what Pristine writes in between looks like
        // a difference, and the apply that follows writes nothing. The watch says what Flux has written.
        let is_renewed = |name: &str| name == "ValidatingWebhookConfiguration/pristine";
        let (raced, changed): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|changed| changed.iter().all(|(name, _)| is_renewed(name)));
        assert!(changed.is_empty(), "{} of {}: {changed:?}", changed.len(), later.len());
        println!("TOTALS: in {} of {} reconciliations Flux read while Pristine wrote", raced.len(), later.len());
        let expected = since.elapsed().as_secs() / INTERVAL.as_secs() / 3;
        assert!(u64::try_from(later.len()).unwrap() >= expected.max(2), "only {} reconciliations", later.len());
        later.len()
    }

    /// What was wrong whenever the Kustomization was not ready.
    pub fn not_ready(&self) -> Vec<String> {
        self.not_ready.lock().unwrap().clone()
    }

    /// The end of what the controller logged.
    pub fn log(&self) -> String {
        let all = fs::read_to_string(self.log.path()).unwrap();
        all.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    /// Ends the controller, and removes its kinds without what it has applied.
    pub async fn remove(mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.controller.kill().await.unwrap();
        let none = r#"{"metadata":{"finalizers":null}}"#;
        attempt(&["-n", "flux-system", "patch", KUSTOMIZATION, "pristine", "--type=merge", "-p", none]).await;
        let plurals = KINDS.map(|(_, plural)| format!("{plural}.source.toolkit.fluxcd.io"));
        let own = "kustomizations.kustomize.toolkit.fluxcd.io";
        run(&["delete", "--ignore-not-found", "--timeout=60s", "crd", own, &plurals[0], &plurals[1], &plurals[2]])
            .await;
        run(&["delete", "namespace", "flux-system", "--timeout=60s"]).await;
    }
}

const KUSTOMIZATION: &str = "kustomization.kustomize.toolkit.fluxcd.io";

async fn kustomization() -> Value {
    let output = attempt(&["-n", "flux-system", "get", KUSTOMIZATION, "pristine", "-o", "json"]).await;
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn readiness(object: &Value) -> Option<&str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Ready")?["status"].as_str()
}

/// Asks the Kustomization once a second.
async fn ask(not_ready: Arc<Mutex<Vec<String>>>) {
    loop {
        let object = kustomization().await;
        // Unknown while a revision is rolled out.
        if readiness(&object) == Some("False") && object["status"]["lastAttemptedRevision"].is_string() {
            not_ready.lock().unwrap().push(object["status"]["conditions"].to_string());
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Reads what the controller logs of its reconciliations.
async fn read(log: std::path::PathBuf, done: Arc<Mutex<Vec<Reconciliation>>>) {
    let mut lines = 0;
    loop {
        let text = fs::read_to_string(&log).unwrap();
        let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for line in complete.lines().skip(lines) {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            if line["msg"] == "server-side apply completed" {
                let output = line["output"].as_object().cloned().unwrap_or_default();
                assert!(output.len() > 10, "{line}");
                let all = output.into_iter().map(|(object, action)| (object, action.as_str().unwrap().to_owned()));
                let changed = all.filter(|(_, action)| action != "unchanged").collect();
                done.lock().unwrap().push(Reconciliation { at: Instant::now(), changed });
            }
        }
        lines = complete.lines().count();
        sleep(Duration::from_millis(200)).await;
    }
}

/// Serves the archives by their names.
async fn serve(listener: TcpListener, archives: Archives) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let archives = archives.clone();
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let path =
                String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or("").trim_start_matches('/').to_owned();
            let body = archives.lock().unwrap().get(&path).cloned();
            let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
            let body = body.unwrap_or_default();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        });
    }
}
