//! `hack/demo --current-context` runs on a cluster that others may use.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use crate::root;

/// Runs the demo with a kubectl that has these objects and ends the demo at its first change; the calls, and what the demo
/// said.
fn demo(objects: &str, annotation: &str) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let (calls, kubectl) = (folder.path().join("calls"), folder.path().join("kubectl"));
    let script = format!(
        r#"#!/bin/sh
echo "$*" >>'{}'
case "$*" in
'config current-context') echo production ;;
*jsonpath=*annotations*) printf %s '{annotation}' ;;
'get --ignore-not-found -o name '*) printf %s '{objects}' ;;
*) exit 1 ;;
esac
"#,
        calls.display()
    );
    fs::write(&kubectl, script).unwrap();
    // The demo builds the plugin before it installs: a `cargo` that fails ends it there.
    fs::write(folder.path().join("cargo"), "#!/bin/sh\nexit 1\n").unwrap();
    for name in ["kubectl", "cargo"] {
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    #[allow(clippy::disallowed_methods, reason = "the path of the shell")]
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(root().join("hack/demo"))
        .arg("--current-context")
        .env("PATH", format!("{}:{path}", folder.path().display()))
        // cargo-auditable would run this cargo, and not the one above.
        .env_remove("CARGO")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (fs::read_to_string(calls).unwrap().lines().map(str::to_owned).collect(), said)
}

#[test]
fn the_demo_refuses_a_cluster_in_which_pristine_is_installed_and_changes_nothing() {
    for objects in ["namespace/pristine-system", "validatingwebhookconfiguration.admissionregistration.k8s.io/pristine"]
    {
        let (calls, said) = demo(objects, "");
        assert!(said.contains("Pristine is installed") && said.contains("Nothing was changed"), "{said}");
        assert!(calls.iter().all(|call| call.starts_with("get ") || call.starts_with("config ")), "{calls:?}");
    }
    for (objects, annotation) in [("", ""), ("namespace/pristine-system", "installed")] {
        let (_, said) = demo(objects, annotation);
        assert!(!said.contains("Pristine is installed"), "an empty cluster, and one of the demo: {said}");
    }
}
