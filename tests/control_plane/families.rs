//! A replica on a host that has no IPv4 address. The mirror, without IPv6, is in `tests/cluster/families.rs`.

use std::process::Command;

use tokio::sync::watch;

use crate::{
    common::eventually,
    forward::{forward_from, kubeconfig_through},
    load::{calls, exec, pods},
    replicas::{Replicas, client, get_from},
};

const NAME: &str = "pristine-v6";
/// The ends of the link between the machine and the namespace.
const OURS: &str = "fd70:7269:7374::1";
const THEIRS: &str = "fd70:7269:7374::2";

/// A network namespace with an IPv6 address and no IPv4 address, until it is dropped.
struct OnlyIpv6;

impl OnlyIpv6 {
    fn new() -> Self {
        // What a run that was killed left behind.
        let _ = Command::new("ip").args(["netns", "delete", NAME]).output();
        let this = Self;
        for words in [
            format!("netns add {NAME}"),
            format!("link add {NAME} type veth peer name eth0 netns {NAME}"),
            format!("-6 address add {OURS}/64 dev {NAME} nodad"),
            format!("link set {NAME} up"),
            format!("-n {NAME} -6 address add {THEIRS}/64 dev eth0 nodad"),
            format!("-n {NAME} link set eth0 up"),
            format!("-n {NAME} link set lo up"),
            // The kernel has added it.
            format!("-n {NAME} address delete 127.0.0.1/8 dev lo"),
        ] {
            ip(&words);
        }
        assert_eq!(ip(&format!("-n {NAME} -4 -o address")), "");
        this
    }
}

impl Drop for OnlyIpv6 {
    fn drop(&mut self) {
        ip(&format!("netns delete {NAME}"));
    }
}

/// `ip` with these words, and what it prints.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn a_replica_without_ipv4_is_ready_and_admits_execs() {
    let host = OnlyIpv6::new();
    let (_never, is_cut) = watch::channel(false);
    let folder = tempfile::tempdir().unwrap();
    let way = forward_from(&format!("[{OURS}]:0"), &[1], is_cut).await;
    let by = ["ip", "netns", "exec", NAME];
    let replicas = Replicas::start_one_at_address(&by, THEIRS, kubeconfig_through(way, &folder)).await;
    eventually("ready", 30, || async {
        get_from(THEIRS, 8080, "/readyz").await.filter(|text| text.starts_with("HTTP/1.1 200 ")).map(drop)
    })
    .await;
    replicas.slice(0, true).await;
    for client in [client(1).await, client(2).await] {
        pods(&client).await;
        eventually("the endpoint is known", 10, || async { exec(&client, 0, "first").await.ok() }).await;
        let before = calls(&client).await;
        for n in 0..10 {
            exec(&client, n, "only-ipv6").await.unwrap();
        }
        assert!(calls(&client).await >= before + 10.0, "reviewed");
    }
    replicas.end().await;
    drop(host);
}
