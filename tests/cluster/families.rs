//! Replicas on a node whose kernel has no IPv6 (`ipv6.disable=1`), as a seccomp profile can show it to them. The mirror,
//! without IPv4, is in `tests/control_plane/families.rs`: the pods of a cluster with IPv4 addresses cannot do without it.

use std::{
    fs,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
};

use futures_util::FutureExt as _;
use serde_json::json;
use serial_test::serial;

use crate::{
    common::{SYSTEM, eventually, name_of, skip},
    kubectl::{Namespace, deadline, is_marked, run, uid_of},
    outage::{pids_of, replicas},
};

/// `socket(AF_INET6, …)` fails with EAFNOSUPPORT, as it does where the kernel has no IPv6.
const WITHOUT_IPV6: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO",
    "errnoRet": 97, "args": [{"index": 0, "value": 10, "op": "SCMP_CMP_EQ"}]}]}"#;
const PROFILE: &str = "without-ipv6.json";

/// Where the kubelet of this cluster looks for profiles.
fn profiles() -> PathBuf {
    let root = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let arguments = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let is_kubelet = arguments.split('\0').next()?.ends_with("/kubelet");
        arguments
            .split('\0')
            .filter(|_| is_kubelet)
            .find_map(|word| word.strip_prefix("--root-dir=").map(PathBuf::from))
    });
    root.expect("a kubelet with --root-dir").join("seccomp")
}

/// Gives the replicas this profile, and waits until they run with it and no others do.
async fn roll_out(profile: serde_json::Value) {
    let patch = json!({"spec": {"template": {"spec": {"securityContext": {"seccompProfile": profile}}}}}).to_string();
    run(&["-n", SYSTEM, "patch", "deployment", "pristine", "-p", &patch]).await;
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=120s"]).await;
}

/// Whether a socket of this process's network listens on this port, by `/proc/PID/net/tcp` or `tcp6`.
fn listens(pid: u32, table: &str, port: u16) -> bool {
    let rows = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
    rows.lines().any(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        columns.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}"))) && columns.get(3) == Some(&"0A")
    })
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn replicas_without_ipv6_are_ready_mark_and_evict() {
    let addresses = replicas().await.into_iter().flat_map(|pod| pod.status.unwrap().pod_ips.unwrap_or_default());
    if addresses.into_iter().all(|address| address.ip.contains(':')) {
        return skip("the pods have no IPv4 address");
    }
    let folder = profiles();
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(PROFILE), WITHOUT_IPV6).unwrap();
    let tried = AssertUnwindSafe(marks_and_evicts()).catch_unwind().await;
    roll_out(json!({"type": "RuntimeDefault", "localhostProfile": null})).await;
    fs::remove_file(folder.join(PROFILE)).unwrap();
    if let Err(panic) = tried {
        resume_unwind(panic);
    }
}

async fn marks_and_evicts() {
    let with = replicas().await;
    assert!(pids_of(&with).into_iter().all(|pid| listens(pid, "tcp6", 10250)), "with IPv6 they listen on [::]");
    roll_out(json!({"type": "Localhost", "localhostProfile": PROFILE})).await;
    eventually("two replicas, of which none had IPv6", 60, || async {
        let now = replicas().await;
        let are_new = now.len() == 2 && now.iter().all(|pod| with.iter().all(|old| uid_of(old) != uid_of(pod)));
        are_new.then_some(())
    })
    .await;
    for pid in pids_of(&replicas().await) {
        for port in [10250, 8080] {
            assert!(listens(pid, "tcp", port) && !listens(pid, "tcp6", port), "port {port}");
        }
    }
    let ns = Namespace::new("t-fast-").await;
    let pods = ns.workload("Deployment", 1).await;
    let (name, uid) = (name_of(&pods[0]), uid_of(&pods[0]));
    ns.run(&["exec", name, "--", "true"]).await;
    let marked = ns.pod(name).await;
    assert!(is_marked(&marked));
    let late = ns.evicted(name, uid, deadline(&marked)).await;
    assert!((0.0..5.0).contains(&late), "evicted {late} s after the deadline");
}
