//! Strangers who hold connections open, in front of a replica that may open few files.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::json;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    common::eventually,
    load::{exec, execs, more_pods, pods},
    replicas::{Replicas, client, readyz, webhook_port},
};

/// Connections that the strangers hold to each port.
const CONNECTIONS: usize = 2_000;
/// The numbers of the pods that are evicted begin here: the load has those below.
const FIRST: usize = 2_000;
/// From the exec to the eviction.
const TTL: Duration = Duration::from_secs(3);
/// Not before its time, and not much later: the leader is a single replica on a busy machine.
const LATEST: Duration = Duration::from_secs(10);

const RULES: &str = "rules:
- {name: soon, match: {podSelector: {matchLabels: {soon: \"true\"}}}, action: Evict, ttl: 3s}
";

/// Opens the connections one after the other, and holds them.
fn strangers(address: SocketAddr) -> JoinHandle<Vec<TcpStream>> {
    tokio::spawn(async move {
        let mut held = Vec::new();
        while held.len() < CONNECTIONS {
            let connection = timeout(Duration::from_secs(10), TcpStream::connect(address)).await;
            held.push(connection.expect("the kernel accepts the connection").unwrap());
        }
        held
    })
}

/// How many of them the replica has not closed.
fn open(held: &[TcpStream]) -> usize {
    let is_open = |stream: &&TcpStream| {
        let read = stream.try_read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    held.iter().filter(is_open).count()
}

/// An exec into this pod, and how long after its deadline the pod was evicted.
async fn evicted(client: &Client, n: usize) -> Duration {
    exec(client, n, "soon").await.unwrap();
    let due = Instant::now() + TTL;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "load");
    eventually("the eviction", 40, || async {
        pods.get(&format!("p{n}")).await.unwrap().metadata.deletion_timestamp.map(drop)
    })
    .await;
    Instant::now().saturating_duration_since(due)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn execs_and_evictions_go_on_while_strangers_hold_2000_connections_to_each_port_and_files_are_few() {
    let files = pristine::server::listen::raise_file_limit();
    assert!(files > 2 * CONNECTIONS + 200, "the test itself needs more than {files} files");
    let client = client(1).await;
    pods(&client).await;
    more_pods(&client, FIRST..FIRST + 3, &json!({"soon": "true"})).await;
    let replicas = Replicas::start_one_by(&["prlimit", "--nofile=256"], RULES).await;
    // Until the Lease of an earlier test is over, it does not evict.
    evicted(&client, FIRST).await;

    let webhook = format!("{}:{}", replicas.address, webhook_port(0)).parse().unwrap();
    let opening = [strangers(webhook), strangers("127.0.0.1:18080".parse().unwrap())];
    let mut held = Vec::new();
    for one in opening {
        held.push(one.await.unwrap());
    }

    // Some were closed at once, because there are not as many places; the others are closed after 10 s.
    let left: Vec<usize> = held.iter().map(|held| open(held)).collect();
    assert!(left.iter().all(|left| *left > 0), "the strangers were gone: {left:?}");
    let (late, (admitted, failures)) = tokio::join!(evicted(&client, FIRST + 1), execs(Duration::from_secs(8)));
    println!(
        "TOTALS: while strangers hold {left:?} of {CONNECTIONS} connections to each port: {admitted} execs admitted, {} \
         failed, a pod evicted {late:.1?} after its deadline",
        failures.len()
    );
    assert!(failures.is_empty() && admitted > 100, "{failures:?}");
    assert!(late < LATEST, "{late:?}");
    assert_eq!(timeout(Duration::from_secs(1), readyz(0)).await, Ok(Some(200)), "as the kubelet probes");
    println!("TOTALS: {} times out of files", replicas.logged(0, "cannot accept a connection"));
    drop(held);
    sleep(Duration::from_secs(1)).await;
    assert!(evicted(&client, FIRST + 2).await < LATEST);
    replicas.end().await;
}
