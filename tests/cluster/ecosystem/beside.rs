//! Programs on the same cluster that also review, change or evict pods. Results are in docs/coexistence.md.

mod descheduler;
mod evictor;
mod gatekeeper;
mod gatekeeper_program;
mod prefix;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::kubectl::run;

/// The source of a Go module, where its manifests are: the version of the `go.mod` in this folder, or `module@version`.
pub async fn source(folder: &str, module: &str) -> PathBuf {
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", module]).current_dir(folder);
    let output = go.env("GOFLAGS", "-mod=readonly").env("GOWORK", "off").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    PathBuf::from(answer["Dir"].as_str().unwrap())
}

/// A kubeconfig of this ServiceAccount, in this folder: outside of a pod, a program has the permissions that its manifests
/// grant, and no others.
async fn kubeconfig_of(namespace: &str, account: &str, folder: &Path) -> PathBuf {
    let config = run(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]).await;
    let mut config: Value = serde_json::from_str(&config).unwrap();
    let token = run(&["-n", namespace, "create", "token", account, "--duration=2h"]).await;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let file = folder.join("kubeconfig");
    std::fs::write(&file, config.to_string()).unwrap();
    file
}

/// The documents of a manifest.
pub fn documents(yaml: &str) -> Vec<Value> {
    yaml.split("\n---")
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect()
}

/// Applies these objects at the server, because some are too long for an annotation.
pub async fn apply_all(objects: Vec<Value>) {
    use tokio::io::AsyncWriteExt as _;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let words = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let mut child = crate::kubectl::kubectl(&words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
