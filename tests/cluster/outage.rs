//! Requests that are no reviews, replicas that are killed, and none at all: what exec and evictions then do.

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    core::v1::{Event, Pod},
};
use kube::{Api, api::ListParams};
use serial_test::{parallel, serial};

use crate::{
    common::{SYSTEM, eventually, https, name_of},
    kubectl::{Namespace, client, deadline, is_marked, record, run, uid_of},
    lifecycle::settled,
};

pub async fn replicas() -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(client().await, SYSTEM);
    let selector = ListParams::default().labels("app.kubernetes.io/component=webhook");
    let mut found = pods.list(&selector).await.unwrap().items;
    // Those of an earlier rollout still drain.
    found.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    found
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn invalid_requests_do_not_restart_a_replica() {
    let before = replicas().await;
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client().await);
    let mut entries = configurations.get("pristine").await.unwrap().webhooks.unwrap();
    let path = &entries.remove(0).client_config.service.unwrap().path.unwrap();
    for pod in &before {
        let address = format!("{}:10250", pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap()).parse().unwrap();
        let post = async |body: &[u8]| {
            let mut connection = https::connect(address, &[]).await.unwrap();
            connection.post_to(path, body).await.unwrap().status
        };
        for body in [&b""[..], b"hello", b"{}", &[0xff; 1000]] {
            assert_eq!(post(body).await, 400);
        }
        assert_eq!(post(&vec![b'x'; 3 * 1024 * 1024 + 1]).await, 413);
        assert_eq!(post(b"still there?").await, 400);
    }
    let restarts = |pods: &[Pod]| {
        pods.iter()
            .map(|pod| pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].restart_count)
            .collect::<Vec<_>>()
    };
    assert_eq!(restarts(&before), restarts(&replicas().await));
}

const BREAK_GLASS: [&str; 3] = ["exec", "--as=pristine:break-glass", "--as-group=pristine:break-glass"];

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn break_glass_is_marked_while_a_replica_runs() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&[&BREAK_GLASS[..], &[&name, "--", "true"]].concat()).await;
    assert_eq!(record(&ns.pod(&name).await)["first"]["user"]["name"], "pristine:break-glass");
    let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually("the warning", 5, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        all.into_iter()
            .find(|event| (event.reason.as_deref(), event.type_.as_deref()) == (Some("BreakGlass"), Some("Warning")))
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn without_replicas_only_break_glass_and_exempt_users_can_exec() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    // Whom the API server itself exempts is let through without us.
    let rules = std::env::temp_dir().join(&ns.name);
    let text = "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Record}\nrules: [{name: r, match: {users: [velero]}, action: Exempt}]\n";
    std::fs::write(&rules, text).unwrap();
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_pristine"))
        .args(["match-conditions", rules.to_str().unwrap()])
        .output()
        .unwrap();
    let conditions = String::from_utf8(printed.stdout).unwrap();
    let patch = ["patch", "validatingwebhookconfiguration", "pristine", "--type=strategic", "--patch"];
    run(&[&patch[..], &[&conditions]].concat()).await;
    run(&["-n", SYSTEM, "scale", "deployment/pristine", "--replicas=0"]).await;
    // Until they are gone, they answer.
    run(&["-n", SYSTEM, "wait", "--for=delete", "--timeout=60s", "pod", "-l", "app.kubernetes.io/component=webhook"])
        .await;
    let closed = ns.attempt(&["exec", &name, "--", "true"]).await;
    let opened = ns.attempt(&[&BREAK_GLASS[..], &[&name, "--", "echo", "in"]].concat()).await;
    let velero = ["exec", "--as=velero", "--as-group=system:masters", &name, "--", "echo", "in"];
    let exempted = ns.attempt(&velero).await;
    let none = r#"{"metadata":{"annotations":{"pristine/accepted-deviations":null}},"webhooks":[{"name":"exec.pods.pristine","matchConditions":[{"name":"not-exempt","$patch":"delete"}]},{"name":"debug.pods.pristine","matchConditions":[{"name":"not-exempt","$patch":"delete"}]}]}"#;
    run(&[&patch[..], &[none]].concat()).await;
    run(&["-n", SYSTEM, "scale", "deployment/pristine", "--replicas=2"]).await;
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=60s"]).await;
    let error = String::from_utf8_lossy(&closed.stderr);
    assert!(!closed.status.success() && error.contains("failed calling webhook"), "{error}");
    for let_in in [opened, exempted] {
        assert_eq!(String::from_utf8_lossy(&let_in.stdout), "in\n", "{}", String::from_utf8_lossy(&let_in.stderr));
    }
    assert!(!is_marked(&ns.pod(&name).await));
}

/// The process of every replica: the pid comes from the kubelet's cgroup of the pod.
pub fn pids_of(replicas: &[Pod]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let is_ours = replicas.iter().any(|pod| read("cgroup").contains(uid_of(pod)));
        if is_ours && read("comm").trim() == "pristine" {
            found.push(pid);
        }
    }
    assert_eq!(found.len(), replicas.len(), "one process a replica");
    found
}

/// Kills the process of every replica, and only those.
pub async fn kill_nine(replicas: &[Pod]) {
    for pid in pids_of(replicas) {
        let status = tokio::process::Command::new("kill").args(["-9", &pid.to_string()]).status().await.unwrap();
        assert!(status.success());
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_pod_is_evicted_on_time_after_every_replica_was_killed() {
    // New ones: the kubelet waits for 10 s before it restarts a container that another test has killed before.
    run(&["-n", SYSTEM, "rollout", "restart", "deployment/pristine"]).await;
    settled().await;
    let ns = Namespace::new("t-kill-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&["exec", &name, "--", "true"]).await;
    let pod = ns.pod(&name).await;
    kill_nine(&replicas().await).await;
    let late = ns.evicted(&name, uid_of(&pod), deadline(&pod)).await;
    assert!((0.0..2.0).contains(&late), "evicted {late} s after the deadline");
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=60s"]).await;
}
