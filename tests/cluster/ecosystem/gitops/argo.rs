//! Argo CD keeps Pristine: its own diff, sync, self-heal and prune (hack/tools/gitops-engine), with the settings of the
//! Application in docs/gitops.md.

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use futures_util::FutureExt as _;
use serde_json::Value;
use serial_test::serial;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::{
    Repository, SHORT_LIVES, base, documented, live_shortly, program, reinstall,
    watch::{Watch, certificates},
    watched,
};
use crate::{
    common::{SYSTEM, eventually},
    kubectl::{attempt, run},
    lifecycle::{self, Users, left, rules},
};

const MANAGER: &str = "argocd-controller";
const CONFIGURATION: &str = "ValidatingWebhookConfiguration/pristine";

/// The application controller's loop over a folder.
struct Engine {
    process: Child,
    rounds: Arc<Mutex<Vec<Value>>>,
}

impl Engine {
    fn start(folder: &Path, flags: &[&str]) -> Self {
        let mut process = Command::new(program("PRISTINE_GITOPS_ENGINE"))
            .args(["--interval=2s", "--self-heal", "--prune"])
            .args(flags)
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let rounds: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = rounds.clone();
        tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                seen.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { process, rounds }
    }

    fn rounds(&self) -> Vec<Value> {
        self.rounds.lock().unwrap().clone()
    }

    /// Waits for so many more rounds; these.
    async fn more(&self, count: usize) -> Vec<Value> {
        let before = self.rounds().len();
        eventually("rounds", 120, async || (self.rounds().len() >= before + count).then_some(())).await;
        self.rounds()[before..].to_vec()
    }

    /// Waits until everything is in sync.
    async fn synced(&self) {
        eventually("in sync", 120, async || self.rounds().last().is_some_and(is_synced).then_some(())).await;
    }

    async fn end(mut self) {
        self.process.kill().await.unwrap();
    }
}

fn is_synced(round: &Value) -> bool {
    let is_empty = |key: &str| round[key].as_array().is_some_and(Vec::is_empty);
    is_empty("outOfSync") && is_empty("extra") && round["error"].is_null()
}

/// The rendered repository in a folder of its own, as Argo CD's repository server hands it to the controller.
async fn hand_over(repository: &Repository, folder: &Path) {
    std::fs::write(folder.join("all.yaml"), repository.rendered().await).unwrap();
}

/// The flags that the Application of docs/gitops.md stands for.
fn settings() -> Vec<&'static str> {
    let application: Value = serde_saphyr::from_str(&documented("argocd.yaml")).unwrap();
    let policy = &application["spec"]["syncPolicy"];
    assert_eq!(policy["automated"]["prune"], true);
    assert_eq!(policy["automated"]["selfHeal"], true);
    assert!(application["spec"]["ignoreDifferences"].is_null(), "none is needed");
    let options = policy["syncOptions"].as_array().unwrap();
    assert!(options.iter().all(|option| option == "ServerSideApply=true"), "{options:?}");
    vec!["--server-side"]
}

async fn restored(rules: &str, test: impl AsyncFnOnce()) {
    let tried = AssertUnwindSafe(test()).catch_unwind().await;
    reinstall(rules).await;
    tried.unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn argo_cd_finds_no_difference_through_rotations_and_its_syncs_fail_no_exec() {
    lifecycle::installed().await;
    let (rules, folder) = (rules().await, tempfile::tempdir().unwrap());
    restored(&rules, async || {
        let mut repository = Repository::new(&base(), &rules);
        hand_over(&repository, folder.path()).await;
        let watch = Watch::start(&repository.rendered().await).await;
        let users = Users::start().await;
        let (start, mut compared) = (Instant::now(), 0);
        repository.flags(SHORT_LIVES);
        for mode in [&settings()[..], &[], &["--server-side", "--server-side-diff"]] {
            let engine = Engine::start(folder.path(), mode);
            engine.synced().await;
            // The first time it is an upgrade.
            hand_over(&repository, folder.path()).await;
            engine.more(2).await;
            engine.synced().await;
            if compared == 0 {
                live_shortly().await;
            }
            let since = Instant::now();
            let before = engine.rounds().len();
            sleep(watched(150) / 3).await;
            let rounds = engine.rounds()[before..].to_vec();
            compared += rounds.len();
            let wrong: Vec<_> = rounds.iter().filter(|round| !is_synced(round)).collect();
            assert!(wrong.is_empty() && rounds.len() > 5, "{mode:?}: {} of {}: {wrong:?}", wrong.len(), rounds.len());
            assert_eq!(watch.written_by(MANAGER, since), Vec::<String>::new(), "{mode:?}");

            // Self-heal.
            let open = r#"{"webhooks":[{"name":"exec.pods.pristine","failurePolicy":"Ignore"}]}"#;
            run(&["patch", "validatingwebhookconfiguration", "pristine", "--type=strategic", "-p", open]).await;
            eventually("the failure policy of the repository", 30, async || {
                let path = "jsonpath={.webhooks[0].failurePolicy}";
                let policy = run(&["get", "validatingwebhookconfiguration", "pristine", "-o", path]).await;
                (policy == "Fail").then_some(())
            })
            .await;
            engine.end().await;
        }
        let seen = certificates(&watch.versions(CONFIGURATION, start));
        let tally = users.end("Argo CD, three ways").await;
        println!("TOTALS: {} CAs, {} secret paths, {compared} comparisons", seen.authorities, seen.paths);
        assert!(seen.broken.is_empty(), "{:?}", seen.broken.first());
        assert!(seen.authorities >= 2 && seen.paths >= 3, "a rotation, two renewals");
        tally.none_failed();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn argo_cd_with_replace_takes_the_ca_bundle_away_and_pristine_writes_it_again() {
    lifecycle::installed().await;
    let (rules, folder) = (rules().await, tempfile::tempdir().unwrap());
    restored(&rules, async || {
        let repository = Repository::new(&base(), &rules);
        hand_over(&repository, folder.path()).await;
        let watch = Watch::start(&repository.rendered().await).await;
        let users = Users::start().await;
        let start = Instant::now();
        let engine = Engine::start(folder.path(), &["--replace"]);
        for round in engine.more(6).await {
            println!("ROUND: {round}");
        }
        engine.end().await;
        let seen = certificates(&watch.versions(CONFIGURATION, start));
        let tally = users.end("Argo CD with Replace=true").await;
        println!("TOTALS: {} versions without caBundle or path", seen.broken.len());
        assert!(!seen.broken.is_empty(), "or the page is wrong");
        tally.none_failed_for_long();
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn argo_cd_prunes_everything_but_an_object_with_an_owner_which_goes_with_the_namespace() {
    lifecycle::installed().await;
    let (rules, folder) = (rules().await, tempfile::tempdir().unwrap());
    restored(&rules, async || {
        let repository = Repository::new(&base(), &rules);
        hand_over(&repository, folder.path()).await;
        let engine = Engine::start(folder.path(), &settings());
        engine.synced().await;
        let users = Users::start().await;
        std::fs::remove_file(folder.path().join("all.yaml")).unwrap();
        let rounds = engine.more(2).await;
        println!("ROUND: {}", rounds[0]);
        attempt(&["wait", "--for=delete", "namespace", SYSTEM, "--timeout=120s"]).await;
        eventually("nothing is left", 60, async || left().await.is_empty().then_some(())).await;
        engine.end().await;
        let tally = users.end("prune by Argo CD").await;
        tally.none_failed_for_long();
    })
    .await;
}
