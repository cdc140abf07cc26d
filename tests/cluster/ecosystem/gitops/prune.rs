//! `kubectl apply --prune` in a loop, as kube-applier runs it, by the command in docs/gitops.md.

use std::{panic::AssertUnwindSafe, process::Output};

use futures_util::FutureExt as _;
use serial_test::serial;
use tokio::{process::Command, time::Instant};

use super::{
    PAGE, Repository, SHORT_LIVES, base, live_shortly, reinstall,
    watch::{Watch, certificates},
    watched,
};
use crate::{
    common::SYSTEM,
    kubectl::{attempt, run},
    lifecycle::{self, Users, rules},
};

/// Runs the command of the page beside the folder `pristine`.
async fn apply(repository: &Repository) -> String {
    let command = PAGE.split("```sh\n").find_map(|block| block.strip_prefix("# apply --prune\n"));
    let command = command.expect("docs/gitops.md has a block `# apply --prune`").split("```").next().unwrap();
    let output =
        Command::new("sh").args(["-ec", command]).current_dir(repository.folder.path()).output().await.unwrap();
    said(&output)
}

fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}{out}");
    out.into_owned()
}

/// What it did to objects, other than to leave them as they were. `configured` can be a patch without effect: kubectl sends
/// one for each list that the API server completes with defaults, and the API server then writes nothing.
fn changes(said: &str) -> Vec<&str> {
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() > 20, "{said}");
    lines.into_iter().filter(|line| !line.ends_with(" unchanged") && !line.ends_with(" configured")).collect()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn apply_with_prune_in_a_loop_changes_nothing_and_prunes_what_the_repository_no_longer_has() {
    lifecycle::installed().await;
    let rules = rules().await;
    let mut repository = Repository::new(&base(), &rules);
    let tried = AssertUnwindSafe(loops(&mut repository)).catch_unwind().await;
    reinstall(&rules).await;
    tried.unwrap();
}

async fn loops(repository: &mut Repository) {
    let watch = Watch::start(&repository.rendered().await).await;
    let users = Users::start().await;
    repository.flags(SHORT_LIVES);
    println!("ADOPTED: {:?}", changes(&apply(repository).await));
    live_shortly().await;
    let (start, mut applies) = (Instant::now(), 0);
    while start.elapsed() < watched(100) {
        let said = apply(repository).await;
        assert_eq!(changes(&said), Vec::<&str>::new(), "apply {applies}");
        applies += 1;
    }
    let seen = certificates(&watch.versions("ValidatingWebhookConfiguration/pristine", start));
    assert_eq!(watch.changed(start), ["ValidatingWebhookConfiguration/pristine"], "only what Pristine itself renews");
    println!("TOTALS: {applies} applies, {} CAs, {} secret paths", seen.authorities, seen.paths);
    assert!(seen.broken.is_empty(), "{:?}", seen.broken.first());
    assert!(seen.authorities >= 2 && seen.paths >= 3 && applies >= 10, "a rotation, two renewals");

    // What the repository no longer has is pruned, the rules too, and nothing that Pristine itself has created.
    let of_pristine = ["-n", SYSTEM, "get", "secret/pristine-ca", "lease/pristine", "-o", "name"];
    run(&of_pristine).await;
    let rest = base();
    let rest: Vec<_> = rest.split("\n---\n").filter(|object| !object.contains("kind: FlowSchema")).collect();
    repository.write("install.yaml", &rest.join("\n---\n"));
    repository.write("kustomization.yaml", "resources: [install.yaml]\n");
    let said = apply(repository).await;
    println!("PRUNED: {:?}", changes(&said));
    let pruned: Vec<_> = said.lines().filter(|line| line.ends_with(" pruned")).collect();
    assert_eq!(pruned, ["configmap/pristine pruned", "flowschema.flowcontrol.apiserver.k8s.io/pristine pruned"]);
    run(&of_pristine).await;
    assert!(!attempt(&["get", "flowschema", "pristine"]).await.status.success());
    users.end(&format!("{applies} applies with --prune")).await.none_failed();
}
