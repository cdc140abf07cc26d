//! Execs while API servers are restarted and while etcd stands still: some fail, and none because of Pristine.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::{Client, Config};
use tokio::{
    process::Command,
    sync::watch,
    time::{Instant, interval, sleep, timeout},
};

use crate::{
    common::eventually,
    forward::{forward_from, kubeconfig_through},
    load::{PODS, exec, pods},
    replicas::{Replicas, cluster, config, pid_of, send_signal},
};

/// Between two execs, which take turns at the API servers.
const PACE: Duration = Duration::from_millis(100);
/// How long etcd stands still: less than the API servers' timeout for a review.
const STILL: Duration = Duration::from_secs(3);
/// How long an API server may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(3);
/// Until every exec is answered that was sent.
const LAST: Duration = Duration::from_secs(6);

struct Answer {
    sent: Instant,
    server: usize,
    result: Result<(), String>,
}

/// Ten execs a second until told to stop, each on a connection of its own: one that is kept open would hide restarts.
struct Execs {
    answers: Arc<Mutex<Vec<Answer>>>,
    stop: Arc<AtomicBool>,
}

impl Execs {
    fn start(configs: [Config; 2]) -> Self {
        let this = Self { answers: Arc::default(), stop: Arc::default() };
        let (answers, stop) = (this.answers.clone(), this.stop.clone());
        tokio::spawn(async move {
            let mut pace = interval(PACE);
            for count in 0_usize.. {
                pace.tick().await;
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (config, server, answers) = (configs[count % 2].clone(), count % 2 + 1, answers.clone());
                tokio::spawn(async move {
                    let sent = Instant::now();
                    let client = Client::try_from(config).unwrap();
                    // A new command each time: a mark to write.
                    let result = exec(&client, count % PODS, &format!("{count}-{}", rand::random::<u32>())).await;
                    answers.lock().unwrap().push(Answer { sent, server, result });
                });
            }
        });
        this
    }

    /// The answers so far.
    fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock().unwrap())
    }

    async fn end(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        sleep(LAST).await;
        self.take()
    }
}

/// The kind that there must be none of.
const OURS: &str = "names Pristine";

/// The kind of a refusal.
fn kind(error: &str) -> &'static str {
    let text = error.to_lowercase();
    let kinds = [
        ("failed calling webhook", OURS),
        ("pristine", OURS),
        ("connection refused", "connection refused"),
        ("connection reset", "connection broken"),
        ("connection closed", "connection broken"),
        ("connection error", "connection broken"),
        ("eof", "connection broken"),
        ("etcdserver", "etcd"),
        ("timed out", "timeout"),
        ("timeout", "timeout"),
        ("forbidden", "no permissions known yet"),
        ("unauthorized", "no credentials known yet"),
        ("shutting down", "shutting down"),
    ];
    kinds.iter().find(|(words, _)| text.contains(words)).map_or("other", |(_, kind)| kind)
}

/// Whether the text has the secret path in it.
fn shows_path(text: &str) -> bool {
    text.split("/review/").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_hexdigit()))
}

/// Prints what became of the execs. Returns the refusals that name Pristine or show the secret path.
fn judge(what: &str, answers: Vec<Answer>) -> Vec<String> {
    let mut kinds: BTreeMap<(usize, &str), (usize, String)> = BTreeMap::new();
    let (count, mut admitted, mut ours) = (answers.len(), 0, Vec::new());
    for Answer { server, result, .. } in answers {
        let Err(error) = result else {
            admitted += 1;
            continue;
        };
        if kind(&error) == OURS || shows_path(&error) {
            ours.push(error.clone());
        }
        kinds.entry((server, kind(&error))).or_insert((0, error)).0 += 1;
    }
    println!("TOTALS: {what}: {admitted} of {count} execs admitted");
    for ((server, kind), (count, example)) in &kinds {
        println!("  API server {server}: {count} times {kind}: {example}");
    }
    ours
}

pub fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Starts the API server again that has ended.
pub async fn start_again() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/hack/cluster");
    let name = cluster().file_name().unwrap().to_str().unwrap().to_owned();
    let mut command = Command::new(script);
    command.args(["up", "--control-plane-only", "--name", &name]).stdin(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().await.unwrap().success(), "hack/cluster up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn no_refusal_names_pristine_while_api_servers_are_restarted_and_etcd_stands_still() {
    let configs = [config(1).await, config(2).await];
    pods(&Client::try_from(configs[0].clone()).unwrap()).await;
    let (_never, is_cut) = watch::channel(false);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut kubeconfigs = Vec::new();
    for folder in &folders {
        kubeconfigs.push(kubeconfig_through(forward_from("127.0.0.1:0", &[1, 2], is_cut.clone()).await, folder));
    }
    let replicas = Replicas::start_through(kubeconfigs, &[]).await;
    let execs = Execs::start(configs);
    sleep(Duration::from_secs(3)).await;
    let before = execs.take();
    assert!(before.iter().all(|answer| answer.result.is_ok()), "undisturbed");

    let mut all = Vec::new();
    for (server, signal) in [(1, "TERM"), (2, "TERM"), (1, "KILL"), (2, "KILL"), (1, "TERM")] {
        let component = if server == 1 { "kube-apiserver".to_owned() } else { format!("kube-apiserver-{server}") };
        let pid = pid_of(&component);
        send_signal(pid, signal);
        let is_gone = async || (!is_running(pid)).then_some(());
        // One that is terminated waits for its watches for a minute.
        if signal == "TERM" && timeout(PATIENCE, eventually("its end", 60, is_gone)).await.is_err() {
            send_signal(pid, "KILL");
        }
        eventually("the end of the API server", 10, is_gone).await;
        sleep(Duration::from_secs(1)).await;
        start_again().await;
        assert_ne!(pid_of(&component), pid);
        sleep(Duration::from_secs(3)).await;
        all.push((format!("API server {server} restarted after SIG{signal}"), execs.take()));
    }
    let etcd = pid_of("etcd");
    send_signal(etcd, "STOP");
    sleep(STILL).await;
    send_signal(etcd, "CONT");
    sleep(LAST).await;
    all.push(("etcd stood still for 3 s".to_owned(), execs.take()));
    let last = Instant::now();
    sleep(Duration::from_secs(3)).await;
    let after = execs.end().await;

    let refused: Vec<_> =
        after.iter().filter(|answer| answer.sent > last).filter_map(|a| a.result.as_ref().err()).collect();
    assert!(refused.is_empty(), "afterwards: {refused:?}");
    replicas.end().await;
    let ours: Vec<_> = all.into_iter().flat_map(|(what, answers)| judge(&what, answers)).collect();
    assert!(ours.is_empty(), "{} refusals name Pristine or show the secret path: {ours:#?}", ours.len());
}
