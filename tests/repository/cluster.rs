//! The version of Kubernetes that `hack/cluster` runs, without building one.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use crate::root;

/// What `hack/cluster` says with these arguments before it fails: where a cluster of 1.31.0 runs, no program is built, and Go
/// cannot reach the module proxy.
fn fails(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path().join("state/cluster/control-plane");
    fs::create_dir_all(&cluster).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let state =
        "mode=control-plane\nindex=1\netcd_port=1\netcd_peer_port=2\napi_ports=(3)\nkubernetes_version=v1.31.0\n";
    fs::write(cluster.join("cluster"), format!("{state}cluster_boot={boot}")).unwrap();
    let go = folder.path().join("path/go");
    fs::create_dir(go.parent().unwrap()).unwrap();
    fs::write(&go, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
    #[allow(clippy::disallowed_methods, reason = "the path of the shell")]
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(root().join("hack/cluster"))
        .args(arguments)
        .env("PATH", format!("{}:{path}", go.parent().unwrap().display()))
        .env("PRISTINE_STATE", folder.path().join("state"))
        .env("PRISTINE_CACHE", folder.path().join("cache"))
        .env_remove("KUBEBUILDER_ASSETS")
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_cluster_keeps_the_version_that_it_was_created_with() {
    let said = fails(&["up", "--control-plane-only", "--kubernetes", "1.30.14"]);
    assert!(said.contains("already exists with Kubernetes v1.31.0, not with v1.30.14"), "{said}");
    assert!(said.contains("hack/cluster down --name control-plane"), "{said}");
    let said = fails(&["up", "--control-plane-only"]);
    assert!(said.contains("k8s.io/kubernetes@v1.31.0"), "the programs to build are those of the cluster: {said}");
    let said = fails(&["up", "--control-plane-only", "--name", "other", "--kubernetes", "v1.32.13"]);
    assert!(said.contains("k8s.io/kubernetes@v1.32.13"), "the version belongs to one cluster: {said}");
}

#[test]
fn a_version_is_one_of_kubernetes_since_1_30() {
    for (version, why) in [("1.29.15", "1.30 or newer"), ("latest", "not a version"), ("v2.0.0", "not a version")] {
        let said = fails(&["build", "--control-plane-only", "--kubernetes", version]);
        assert!(said.contains(why), "{version}: {said}");
    }
    let said = fails(&["build", "--control-plane-only", "--kubernetes", "1.33"]);
    assert!(said.contains("the module proxy has no Kubernetes 1.33"), "{said}");
}
