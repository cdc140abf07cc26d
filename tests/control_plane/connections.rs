//! What execs meet when one of several replicas is lost, by how the API servers' connections to it end. Measures, and
//! has nothing to pass: `hack/bench connections`.
//!
//! In each round another replica is lost. Execs begin at a steady rate and do not wait for each other: otherwise one that
//! hangs for 5 s would hide those that a user would have tried meanwhile.
#![allow(clippy::cast_precision_loss, reason = "shares of some hundred execs")]

use std::{net::SocketAddr, process::Command, time::Duration};

use kube::Client;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, sleep},
};

use crate::{
    common::{eventually, setting},
    forward::{forward, kubeconfig_through},
    load::{PODS, calls, exec, pods},
    replicas::{Replicas, client, webhook_port},
};

/// What is compared: a name, and what replicas are started with. Keep-alive was the other one, until these figures.
const MODES: [(&str, &[&str]); 1] = [("close", &[])];

/// Until both API servers have heard that an endpoint is out.
const HEARD: Duration = Duration::from_millis(300);
/// After the endpoint is out.
const AFTER: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Fault {
    Kill,
    Suspend,
    Isolate,
    LoseNode,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Kill, Self::Suspend, Self::Isolate, Self::LoseNode];

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Suspend => "suspended",
            Self::Isolate => "isolated",
            Self::LoseNode => "node lost",
        }
    }

    /// How long the endpoint stays: after a kill as long as kubelet and controller take. The others take 30 to 50 s in a
    /// cluster, and need not be shown for as long.
    fn endpoint_stays(self, pace: Duration) -> Duration {
        if matches!(self, Self::Kill) { Duration::from_secs(2) } else { Duration::from_secs(10).max(pace * 10) }
    }

    /// Until what it returns is dropped.
    fn strike(self, replicas: &Replicas, n: usize, way: SocketAddr) -> Vec<Dropping> {
        let way = way.port().to_string();
        let port = webhook_port(n).to_string();
        match self {
            Self::Kill => replicas.signal(n, "KILL"),
            Self::Suspend => replicas.signal(n, "STOP"),
            Self::Isolate => return vec![Dropping::packets("127.0.0.1", "--dport", &way)],
            Self::LoseNode => {
                return vec![
                    Dropping::packets(&replicas.address, "--dport", &port),
                    Dropping::packets(&replicas.address, "--sport", &port),
                    Dropping::packets("127.0.0.1", "--dport", &way),
                ];
            }
        }
        Vec::new()
    }
}

/// A rule that drops packets, and goes when this does. `hack/bench` removes by the comment what a kill leaves.
struct Dropping(Vec<String>);

impl Dropping {
    fn packets(address: &str, direction: &str, port: &str) -> Self {
        // Both ends are on this machine, so the address stands for either.
        let side = if direction == "--dport" { "--destination" } else { "--source" };
        let rule = [side, address, "--protocol", "tcp", direction, port];
        let comment = ["--match", "comment", "--comment", "pristine-bench-connections", "--jump", "DROP"];
        let this = Self(rule.into_iter().chain(comment).map(str::to_owned).collect());
        assert!(this.iptables("--insert"), "iptables: needs root");
        this
    }

    fn iptables(&self, action: &str) -> bool {
        Command::new("iptables").args(["--wait", action, "INPUT"]).args(&self.0).status().unwrap().success()
    }
}

impl Drop for Dropping {
    fn drop(&mut self) {
        self.iptables("--delete");
    }
}

struct Exec {
    begun: Instant,
    took: Duration,
    result: Result<(), String>,
}

/// Execs through one API server until told to stop.
fn generate(client: Client, server: usize, pace: Duration, mut stop: watch::Receiver<bool>) -> JoinHandle<Vec<Exec>> {
    tokio::spawn(async move {
        let (mut execs, mut pace, mut count) = (JoinSet::new(), interval(pace), server * PODS / 2);
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                _ = pace.tick() => {}
            }
            count += 1;
            let (client, pod) = (client.clone(), count % PODS);
            execs.spawn(async move {
                let begun = Instant::now();
                // A new command each time: a mark to write.
                let result = exec(&client, pod, &format!("{server}-{count}-{}", rand::random::<u32>())).await;
                Exec { begun, took: begun.elapsed(), result }
            });
        }
        execs.join_all().await
    })
}

/// What is counted of one fault, over all rounds.
#[derive(Default)]
struct Cell {
    /// Refused before the fault: the rest means nothing unless this is 0.
    refused_before: usize,
    execs: usize,
    /// How long each waited that was refused while the endpoint was there.
    refused: Vec<Duration>,
    refused_after: usize,
    admitted: Vec<Duration>,
    words: Option<String>,
}

impl Cell {
    fn add(&mut self, exec: Exec, fault: Instant, out: Instant) {
        if exec.begun < fault {
            // One under way at the fault is neither here nor there.
            self.refused_before += usize::from(exec.result.is_err() && exec.begun + exec.took < fault);
            return;
        }
        let there = exec.begun < out + HEARD;
        self.execs += usize::from(there);
        match exec.result {
            Ok(()) => self.admitted.push(exec.took),
            Err(words) => {
                if there {
                    self.refused.push(exec.took);
                } else {
                    self.refused_after += 1;
                }
                self.words.get_or_insert(words);
            }
        }
    }

    fn row(&mut self) -> String {
        let share = 100.0 * self.refused.len() as f64 / self.execs as f64;
        let (median, worst) = median_and_worst(&mut self.admitted);
        let (refused_after, _) = median_and_worst(&mut self.refused);
        format!(
            "{} of {} | {share:.0} % | {} | {} | {median} | {worst}",
            self.refused.len(),
            self.execs,
            refused_after,
            self.refused_after
        )
    }
}

fn median_and_worst(times: &mut [Duration]) -> (String, String) {
    times.sort();
    let text = |time: Option<&Duration>| match time {
        None => "–".to_owned(),
        Some(time) if *time < Duration::from_secs(1) => format!("{} ms", time.as_millis()),
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
    };
    (text(times.get(times.len() / 2)), text(times.last()))
}

/// What is measured of each cell.
struct Plan {
    clients: [Client; 2],
    /// Between two execs through the same API server.
    pace: Duration,
}

/// `lost` is the number of the replica that is lost, of `count`.
async fn measure(plan: &Plan, fault: Fault, lost: usize, count: usize, mode: &'static [&'static str], cell: &mut Cell) {
    let Plan { clients, pace } = plan;
    let (_never, is_cut) = watch::channel(false);
    let (mut ways, mut folders, mut kubeconfigs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let (way, folder) = (forward(is_cut.clone()).await, tempfile::tempdir().unwrap());
        kubeconfigs.push(kubeconfig_through(way, &folder));
        ways.push(way);
        folders.push(folder);
    }
    let replicas = Replicas::start_through(kubeconfigs, mode).await;
    for client in clients {
        let before = calls(client).await;
        eventually("a reviewed exec", 10, || async {
            (exec(client, 0, "true").await.is_ok() && calls(client).await > before).then_some(())
        })
        .await;
    }

    let (stop, stopped) = watch::channel(false);
    let load: Vec<_> =
        clients.iter().enumerate().map(|(n, client)| generate(client.clone(), n, *pace, stopped.clone())).collect();
    // So that API servers have the connections that they would have.
    sleep(Duration::from_secs(3).max(*pace * 3)).await;
    let struck = Instant::now();
    let dropping = fault.strike(&replicas, lost, ways[lost]);
    sleep(fault.endpoint_stays(*pace)).await;
    replicas.slice(lost, false).await;
    let out = Instant::now();
    sleep(AFTER).await;
    stop.send_replace(true);
    for load in load {
        for exec in load.await.unwrap() {
            cell.add(exec, struck, out);
        }
    }
    drop(dropping);
    replicas.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: hack/bench connections"]
async fn one_of_several_replicas_is_lost() {
    let rounds: usize = setting("PRISTINE_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let pace = Duration::from_secs_f64(setting("PRISTINE_PACE").map_or(0.1, |text| text.parse().unwrap()));
    let wanted = |name: &str, value: &str| setting(name).is_none_or(|wanted| wanted.split(',').any(|one| one == value));
    let plan = Plan { clients: [client(1).await, client(2).await], pace };
    pods(&plan.clients[0]).await;
    let mut table = Vec::new();
    for fault in Fault::ALL.into_iter().filter(|fault| wanted("PRISTINE_FAULTS", fault.name())) {
        for count in [2, 3].into_iter().filter(|count: &usize| wanted("PRISTINE_REPLICAS", &count.to_string())) {
            for (name, mode) in MODES {
                let mut cell = Cell::default();
                for round in 0..rounds {
                    measure(&plan, fault, round % count, count, mode, &mut cell).await;
                }
                let row = format!("| {} | {count} | {name} | {} |", fault.name(), cell.row());
                println!("{row}");
                if cell.refused_before > 0 {
                    println!("  {} execs were refused before the fault: this row means nothing", cell.refused_before);
                }
                if let Some(words) = cell.words {
                    println!("  a refusal: {words}");
                }
                table.push(row);
            }
        }
    }
    println!(
        "\nTOTALS: each row {rounds} times, an exec every {pace:?} through each API server, feature gates {}",
        setting("PRISTINE_FEATURE_GATES").unwrap_or_default()
    );
    println!(
        "| the replica is | of | connections | refused while its endpoint is there | share | after (median) \
         | refused once it is out | admitted after (median) | at worst |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    println!("{}", table.join("\n"));
}
