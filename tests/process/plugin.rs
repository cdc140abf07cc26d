//! `kubectl pristine`, as it is started, against a fake API server.

use std::{path::PathBuf, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use pristine::{
    clock::Clock,
    eviction::{Settings, plan::waiting},
    mark::{Disposition, Interaction, Mark, Operation, User},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    api_server::{USER, serve},
    fake::{Fake, merge, pod},
};

/// The programs have the real clock.
fn now() -> jiff::Timestamp {
    Clock::system().now()
}

/// A pod that bob has just entered.
pub fn marked(name: &str, evicts: bool) -> Value {
    let interaction = Interaction {
        at: now(),
        operation: Operation::Exec,
        container: "app".into(),
        command: vec!["sh".into()],
        stdin: false,
        tty: false,
        user: User { name: "bob".into(), ..User::default() },
        review: format!("review-{name}"),
        rule: "default".into(),
    };
    let uid = format!("uid-{name}");
    let ttl = if evicts { Disposition::Evict(Duration::from_secs(600)) } else { Disposition::Record };
    let mark = Mark::after(None, &uid, interaction, ttl).unwrap();
    let mut pod = pod("n", name, &uid);
    merge(&mut pod, &mark.patch("1", true));
    pod
}

pub struct Plugin {
    fake: Fake,
    pub kubeconfig: PathBuf,
    _folder: tempfile::TempDir,
}

impl Plugin {
    pub async fn with(pods: impl IntoIterator<Item = Value>) -> Self {
        let fake = Fake::with(pods);
        let address = serve(fake.clone()).await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("config");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { fake, kubeconfig, _folder: folder }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-pristine"));
        command.args(line.split(' ')).arg("--kubeconfig").arg(&self.kubeconfig).kill_on_drop(true);
        command
    }

    /// Whether it succeeded, and what it printed: standard output, then standard error.
    async fn run(&self, line: &str) -> (bool, String) {
        let output = self.command(line).output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// A leader that answers requests for extensions, from now on.
    fn lead(&self, max_extension: Duration) {
        let fake = self.fake.clone();
        tokio::spawn(async move {
            let settings = Settings { max_extension, ..Settings::default() };
            loop {
                for pod in fake.state().pods.values_mut() {
                    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
                    let Some(waiting) = waiting(&typed, &settings) else { continue };
                    let patch = waiting.status.patch("u", "1", now(), &waiting.message);
                    merge(&mut pod["metadata"]["annotations"], &patch["metadata"]["annotations"]);
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn annotation(&self, pod: &str, key: &str) -> Value {
        self.fake.pod(&format!("n/{pod}"))["metadata"]["annotations"][key].clone()
    }

    fn evicted(&self) -> usize {
        self.fake.count("/eviction")
    }
}

fn static_pod(name: &str) -> Value {
    let mut pod = marked(name, true);
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
    pod
}

#[tokio::test]
async fn a_static_pod_is_not_evicted_by_hand_and_has_no_deadline() {
    let plugin = Plugin::with([static_pod("static")]).await;
    for line in ["evict static", "evict static --dry-run=server", "evict static --dry-run=client"] {
        let (is_done, said) = plugin.run(line).await;
        assert!(!is_done && said.contains("pod/static not evicted: the kubelet runs this static pod"), "{said}");
    }
    let (_, said) = plugin.run("get --no-headers").await;
    assert!(said.contains("<none>") && said.contains("NotEvictable"), "{said}");
    let (_, said) = plugin.run("describe static").await;
    assert!(said.contains("Evict At:        <none>") && !said.contains("nothing blocks it"), "{said}");
    assert_eq!(plugin.evicted(), 0);
}

#[tokio::test]
async fn an_extension_that_no_replica_answers_is_written_and_said_to_take_effect_later() {
    let plugin = Plugin::with([marked("web-0", true), marked("web-1", true)]).await;
    // The answer to an earlier request, by a leader that is gone.
    let earlier = json!({"state": "Interacted", "cause": "the limit", "answers": "2026-01-01T00:00:00Z"}).to_string();
    plugin.fake.state().pods.get_mut("n/web-0").unwrap()["metadata"]["annotations"]["pristine/status"] = json!(earlier);
    let (extended, held) = tokio::join!(plugin.run("extend web-0 --for=30m"), plugin.run("hold web-1 --reason=look"));
    for (is_done, said) in [&extended, &held] {
        assert!(*is_done && said.contains("takes effect when a replica leads"), "{said}");
        assert!(!said.contains("not granted") && !said.contains("the limit"), "{said}");
    }
    assert_eq!(plugin.annotation("web-0", "pristine/extended-by"), USER);
    assert_eq!(plugin.annotation("web-1", "pristine/hold"), "look");
}

#[tokio::test]
async fn an_extension_that_a_replica_answers_is_confirmed_or_refused_with_the_reason() {
    let plugin = Plugin::with([marked("web-0", true), marked("web-1", true), marked("web-2", true)]).await;
    plugin.lead(Duration::from_secs(3600));
    let (is_done, said) = plugin.run("extend web-0 --for=30m --reason=INC-7;_heap_dump").await;
    assert!(is_done && said.starts_with("pod/web-0 extended until "), "{said}");
    let (_, said) = plugin.run("get web-0 --no-headers -o wide").await;
    assert!(said.contains("extended by alice: INC-7;_heap_dump"), "{said}");
    let (is_done, said) = plugin.run("extend web-1 --for=2h").await;
    assert!(is_done && said.contains("extended to the limit (eviction.maxExtension), until "), "{said}");
    let (is_done, said) = plugin.run("extend web-1 --for=2h").await;
    assert!(!is_done && said.contains("extension not granted") && said.contains("eviction.maxExtension"), "{said}");
    let (is_done, said) = plugin.run("hold web-2 --reason=look").await;
    assert!(is_done && said.starts_with("pod/web-2 held until "), "{said}");
}

fn labelled(mut pod: Value, app: &str) -> Value {
    pod["metadata"]["labels"]["app"] = json!(app);
    pod
}

#[tokio::test]
async fn a_selector_and_all_select_marked_pods_that_the_command_applies_to() {
    let unmarked = labelled(pod("n", "web-9", "uid-web-9"), "web");
    let pods = [
        labelled(marked("web-1", true), "web"),
        labelled(marked("web-0", true), "web"),
        labelled(marked("db-0", true), "db"),
        labelled(marked("job-0", false), "web"),
        labelled(static_pod("static"), "web"),
        unmarked,
    ];
    let plugin = Plugin::with(pods).await;
    plugin.lead(Duration::from_secs(36000));
    let (is_done, said) = plugin.run("evict -l app=web --dry-run=client").await;
    assert_eq!((is_done, said.as_str()), (true, "pod/web-0 evicted (dry run)\npod/web-1 evicted (dry run)\n"));
    let (is_done, said) = plugin.run("hold --all --reason=look").await;
    let held: Vec<&str> = said.lines().map(|line| line.split(" until").next().unwrap()).collect();
    assert_eq!((is_done, held), (true, vec!["pod/db-0 held", "pod/web-0 held", "pod/web-1 held"]), "{said}");
    let (is_done, said) = plugin.run("release -l app=db").await;
    assert!(is_done && said.starts_with("pod/db-0 released") && said.lines().count() == 1, "{said}");
    let (is_done, said) = plugin.run("release --all").await;
    assert!(is_done && said.lines().count() == 2, "only those that are held: {said}");
    let (is_done, said) = plugin.run("extend -l app=web --for=30m").await;
    assert!(is_done && said.lines().count() == 2 && said.contains("pod/web-1 extended until"), "{said}");
    let (is_done, said) = plugin.run("evict -l app=none").await;
    assert_eq!((is_done, said.as_str()), (true, "No resources found in n namespace.\n"));
    assert_eq!(plugin.evicted(), 0);
    let (is_done, said) = plugin.run("evict --all").await;
    assert!(is_done && plugin.evicted() == 3, "{said}");
    let mut left: Vec<String> = plugin.fake.state().pods.keys().cloned().collect();
    left.sort_unstable();
    assert_eq!(left, ["n/job-0", "n/static", "n/web-9"]);
}

#[tokio::test]
async fn names_a_selector_and_all_exclude_each_other_and_one_of_them_is_needed() {
    let plugin = Plugin::with([]).await;
    for line in ["evict", "evict web-0 --all", "evict --all -l app=web", "release web-0 -l app=web"] {
        let (is_done, said) = plugin.run(line).await;
        assert!(!is_done && said.contains("error:"), "{line}: {said}");
    }
}

#[tokio::test]
async fn a_watch_says_which_pods_are_gone() {
    let plugin = Plugin::with([marked("web-0", true), marked("web-1", true)]).await;
    let mut child = plugin.command("get -w --no-headers").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = timeout(Duration::from_secs(10), lines.next_line()).await.expect("a line in time");
        line.unwrap().expect("still watching")
    };
    for name in ["web-0", "web-1"] {
        let line = next().await;
        assert!(line.starts_with(name) && line.contains("Marked"), "{line}");
    }
    plugin.fake.state().pods.remove("n/web-1");
    let line = next().await;
    assert!(line.starts_with("web-1") && line.contains("<none>") && line.contains("Gone"), "{line}");
    child.kill().await.unwrap();
}

/// A line of a replica's audit log.
fn line(decision: &str, review: &str, user: &str, pod: &str, tty: bool) -> String {
    let extra = if user.starts_with("system:") {
        json!({"authentication.kubernetes.io/pod-name": ["operator-0"]})
    } else {
        json!({})
    };
    let interaction = json!({
        "at": now().to_string(), "operation": "exec", "container": "app", "command": ["sh"], "tty": tty,
        "user": {"name": user, "extra": extra}, "review": review, "rule": "default",
    });
    json!({"decision": decision, "namespace": "n", "pod": pod, "interaction": interaction}).to_string()
}

#[tokio::test]
async fn summary_says_from_marks_and_logs_what_simulate_says_from_an_audit_log() {
    let mut replica = pod("pristine-system", "pristine-1", "replica");
    replica["metadata"]["labels"] =
        json!({"app.kubernetes.io/name": "pristine", "app.kubernetes.io/component": "webhook"});
    let plugin = Plugin::with([marked("web-0", true), marked("web-1", true), replica]).await;
    let operator = "system:serviceaccount:n:operator";
    let log = [
        // web-0 has this one on it.
        line("marked", "review-web-0", "bob", "web-0", false),
        "{\"level\":\"INFO\",\"message\":\"the CA was renewed\"}".to_owned(),
        line("marked", "r2", "carol", "gone-0", true),
        line("denied", "r3", "mallory", "web-1", true),
        line("marked", "r4", operator, "db-0", false),
    ];
    plugin.fake.state().logs.insert("pristine-system/pristine-1".to_owned(), log.join("\n"));
    let (is_done, said) = plugin.run("summary -A -o json").await;
    let found: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{is_done}: {said}"));
    let rows: Vec<(&str, &str, u64, &str)> = found["interactions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap();
            (text("user"), text("workload"), row["count"].as_u64().unwrap(), text("decision"))
        })
        .collect();
    // The mark on the pod and the line in the log are of one review. Of a pod that is gone, the owner is not known.
    let mut expected =
        vec![("bob", "r", 2, "would-evict"), ("carol", "gone", 1, "depends"), (operator, "db", 1, "would-not-evict")];
    let mut sorted = rows.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "{found}");
    assert_eq!((&found["notAdmitted"], &found["onPods"]), (&json!(1), &json!(2)));
    let (is_done, said) = plugin.run("summary -A").await;
    assert!(is_done && said.contains("under the built-in configuration") && said.contains("WORKLOAD"), "{said}");
}
