//! Uninstalling while a pod is in a surge: its label is put back before the permission for that is gone.

use super::*;
use crate::{
    components::render,
    surge::{budget, in_surge, single, switch_on},
};

/// Begins a surge, uninstalls, and installs again without the component.
async fn uninstalls(how: &str, uninstall: impl AsyncFnOnce()) {
    installed().await;
    let rules = rules().await;
    switch_on().await;
    let ns = Namespace::new("t-fast-").await;
    // Longer than all this takes.
    let pod = single(&ns, 40, "").await;
    budget(&ns).await;
    ns.run(&["exec", name_of(&pod), "--", "true"]).await;
    let before = in_surge(&ns, &pod).await;
    uninstall().await;
    sleep(Duration::from_secs(3)).await;
    let after = ns.pod(name_of(&pod)).await;
    run(&["wait", "--for=delete", "--timeout=120s", &format!("namespace/{SYSTEM}")]).await;
    for (kind, name) in [
        ("clusterrolebinding,clusterrole", "pristine:surge"),
        ("validatingadmissionpolicybinding,validatingadmissionpolicy", "surge.pods.pristine"),
    ] {
        run(&["delete", "--ignore-not-found", kind, name]).await;
    }
    install(&rules).await;
    let labels = after.metadata.labels.as_ref().unwrap();
    assert!(labels.contains_key("pod-template-hash") && !labels.contains_key("pristine/surge"), "{how}: {labels:?}");
    assert_eq!(after.metadata.owner_references, before.metadata.owner_references, "{how}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn an_uninstall_ends_a_surge() {
    let manifest = render(Some("surge")).await;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), manifest).unwrap();
    uninstalls("kubectl delete -f", async || {
        run(&["delete", "--wait=false", "-f", file.path().to_str().unwrap()]).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn deleting_the_namespace_ends_a_surge() {
    uninstalls("kubectl delete namespace", async || {
        run(&["delete", "namespace", "--wait=false", SYSTEM]).await;
    })
    .await;
}
