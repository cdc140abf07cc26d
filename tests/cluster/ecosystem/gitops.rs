//! Controllers that keep the cluster as a repository says: Flux, Argo CD, `kubectl apply --prune`.
//!
//! The manifests in docs/gitops.md are the ones that are applied here, so that the page cannot promise anything else. Each
//! test finds Pristine installed by kubectl, as an administrator who moves to GitOps has it, and leaves it like that.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{
    common::{SYSTEM, setting},
    kubectl::{attempt, run},
    lifecycle,
};

mod argo;
mod flux;
mod prune;
mod watch;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/install.yaml");
const PAGE: &str = include_str!("../../../docs/gitops.md");
/// A CA is replaced every 80 s, and the path every 30 s: what takes years and days otherwise.
const SHORT_LIVES: &[&str] = &["--ca-lifetime=2m", "--serving-lifetime=20s", "--hold=2s", "--secret-path-lifetime=30s"];

/// The block of docs/gitops.md that begins with this file name in a comment.
fn documented(name: &str) -> String {
    let start = PAGE.split("```yaml\n").find_map(|block| block.strip_prefix(&format!("# {name}\n")));
    let block = start.unwrap_or_else(|| panic!("docs/gitops.md has no block `# {name}`"));
    block.split("```").next().unwrap().to_owned()
}

/// How long a test watches; the variable is for shorter runs while a test is written.
fn watched(default: u64) -> Duration {
    Duration::from_secs(setting("PRISTINE_GITOPS_SECONDS").map_or(default, |text| text.parse().unwrap()))
}

/// The manifest of a release.
fn base() -> String {
    fs::read_to_string(MANIFEST).unwrap()
}

/// What the chart makes of its default values, once there is a chart.
async fn chart() -> Option<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/chart");
    if !Path::new(folder).exists() {
        return None;
    }
    let words = ["template", "pristine", folder, "--namespace", SYSTEM];
    let output = tokio::process::Command::new(program("PRISTINE_HELM")).args(words).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Waits until the flags of [`SHORT_LIVES`] are rolled out, and has the first CA replaced: its lifetime is older than they.
async fn live_shortly() {
    lifecycle::settled().await;
    run(&["-n", SYSTEM, "annotate", "secret", "pristine-ca", "pristine/rotate=short lives"]).await;
}

/// The folder of Pristine in a repository: the kustomization of the page, the manifest beside it, and the rules.
struct Repository {
    folder: tempfile::TempDir,
    patches: String,
}

impl Repository {
    /// With this manifest, and the rules in this ConfigMap.
    fn new(manifest: &str, rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules: Value = serde_json::from_str(rules).unwrap();
        fs::create_dir(folder.path().join("pristine")).unwrap();
        let repository = Self { folder, patches: "patches:\n".to_owned() };
        repository.write("install.yaml", manifest);
        repository.write("kustomization.yaml", &documented("kustomization.yaml"));
        repository.write("pristine.yaml", rules["data"]["pristine.yaml"].as_str().unwrap());
        repository
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pristine")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path().join(file), text).unwrap();
    }

    /// Adds a patch to the kustomization.
    fn patch(&mut self, kind: &str, operations: &[String]) {
        writeln!(self.patches, "- target: {{kind: {kind}, name: pristine}}\n  patch: |").unwrap();
        for operation in operations {
            writeln!(self.patches, "    - {operation}").unwrap();
        }
        self.write("kustomization.yaml", &format!("{}{}", documented("kustomization.yaml"), self.patches));
    }

    /// Adds flags to the Deployment.
    fn flags(&mut self, flags: &[&str]) {
        let add = |flag: &&str| format!("{{op: add, path: /spec/template/spec/containers/0/args/-, value: {flag}}}");
        self.patch("Deployment", &flags.iter().map(add).collect::<Vec<_>>());
    }

    /// What kustomize makes of it.
    async fn rendered(&self) -> String {
        run(&["kustomize", self.path().to_str().unwrap()]).await
    }
}

/// Removes Pristine with everything that another program has written to its objects, and installs it again.
async fn reinstall(rules: &str) {
    attempt(&["delete", "--ignore-not-found", "--timeout=180s", "-f", MANIFEST]).await;
    lifecycle::install(rules).await;
}

/// An environment variable of `hack/test ecosystem` with the path of a program.
fn program(variable: &str) -> PathBuf {
    let path = setting(variable).unwrap_or_else(|| panic!("{variable} is not set: run this by hack/test ecosystem"));
    assert!(Path::new(&path).exists(), "{variable}: {path} does not exist");
    path.into()
}
