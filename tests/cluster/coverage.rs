//! Every way into a pod × every action × both protocols, on a real cluster: the answer, the mark, the Event, the line in
//! the audit log, and the API server's own audit log.

use std::{process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::Value;
use serial_test::parallel;
use tokio::io::AsyncReadExt as _;

use crate::{
    common::{SYSTEM, audit, eventually, name_of, setting, skip},
    kubectl::{IMAGE, Namespace, annotation, attempt, kubectl, record, run},
};

/// How stock kubectl asks, and the variable that must be `false` for it to ask over SPDY and not WebSocket.
const WAYS: [(&str, &str, Option<&str>); 8] = [
    ("exec", "websocket", None),
    ("exec", "spdy", Some("KUBECTL_REMOTE_COMMAND_WEBSOCKETS")),
    ("attach", "websocket", None),
    ("attach", "spdy", Some("KUBECTL_REMOTE_COMMAND_WEBSOCKETS")),
    ("debug", "patch", None),
    ("port-forward", "websocket", None),
    ("port-forward", "spdy", Some("KUBECTL_PORT_FORWARD_WEBSOCKETS")),
    ("proxy", "http", None),
];

/// What it prints first, or everything if it ends without a word on stdout.
async fn first_words(ns: &Namespace, pod: &str, way: &str, user: &str, variable: Option<&str>) -> String {
    let (account, group) = (format!("--as={user}"), "--as-group=system:masters");
    let image = format!("--image={IMAGE}");
    let raw = format!("/api/v1/namespaces/{}/pods/{pod}:9/proxy/", ns.name);
    let container = format!("--container={user}");
    let arguments: Vec<&str> = match way {
        "exec" => vec!["exec", pod, "--", "echo", "in"],
        "attach" => vec!["attach", pod],
        "debug" => vec!["debug", pod, &image, &container, "-i", "--", "echo", "in"],
        "port-forward" => vec!["port-forward", pod, ":9"],
        _ => vec!["get", "--raw", &raw],
    };
    let mut command = kubectl(&[&["-n", &ns.name, &account, group], &arguments[..]].concat());
    let mut child = command.envs(variable.map(|name| (name, "false"))).stdin(Stdio::piped()).spawn().unwrap();
    let mut words = vec![0; 4096];
    let mut out = child.stdout.take().unwrap();
    let read = tokio::time::timeout(Duration::from_secs(30), out.read(&mut words)).await.expect("an answer").unwrap();
    if read > 0 {
        return String::from_utf8_lossy(&words[..read]).into_owned();
    }
    String::from_utf8_lossy(&child.wait_with_output().await.unwrap().stderr).into_owned()
}

/// The lines of the audit log about this user's requests to these pods.
fn audited(namespace: &str, user: &str) -> Vec<Value> {
    let mut lines = audit::requests(&setting("KUBECONFIG").unwrap(), namespace);
    lines.retain(|line| line["impersonatedUser"]["username"] == user);
    lines
}

/// The lines of the replicas' logs about this user and namespace, or nothing when a replica that still drains after an
/// earlier test is gone by the time that kubectl asks for its log.
async fn audit_log(namespace: &str, user: &str) -> Option<Vec<Value>> {
    let output = attempt(&[
        "-n",
        SYSTEM,
        "logs",
        "-l",
        "app.kubernetes.io/component=webhook",
        "--tail=-1",
        "--max-log-requests=9",
    ])
    .await;
    if !output.status.success() {
        return None;
    }
    let logs = String::from_utf8(output.stdout).unwrap();
    let lines =
        logs.lines().filter(|line| line.contains(user)).filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Some(lines.filter(|line| line["interaction"]["user"]["name"] == user && line["namespace"] == namespace).collect())
}

async fn table(action: &str) {
    let ns = Namespace::new(&format!("t-{action}-")).await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    for (way, protocol, variable) in WAYS {
        let user = format!("{way}-{protocol}-{action}");
        let enters = ["exec", "attach", "debug"].contains(&way);
        // Rules speak of ports only where they name them; the one of the namespace that denies does.
        let decision = match action {
            "deny" => "denied",
            "exempt" if enters => "exempt",
            _ => "marked",
        };
        let words = first_words(&ns, &name, way, &user, variable).await;
        let denied = words.contains("not here");
        assert_eq!(denied, decision == "denied", "{user}: {words}");
        match way {
            _ if denied => assert!(words.contains("denied the request: rule \"deny"), "{user}: {words}"),
            "exec" => assert_eq!(words, "in\n", "{user}"),
            "port-forward" => assert!(words.starts_with("Forwarding from"), "{user}: {words}"),
            // Nothing listens there.
            "proxy" => assert!(words.contains("connection refused"), "{user}: {words}"),
            _ => {}
        }

        let pod = ns.pod(&name).await;
        let mark = record(&pod);
        let acts: Vec<&Value> = std::iter::once(&mark["first"])
            .chain(mark["recent"].as_array().into_iter().flatten())
            .filter(|act| act["user"]["name"] == user.as_str())
            .collect();
        assert_eq!(!acts.is_empty(), decision == "marked", "{user}: {mark}");
        assert!(acts.first().is_none_or(|act| act["operation"] == way), "{user}: {mark}");

        eventually(&format!("{user} in the audit log"), 10, || async {
            let lines = audit_log(&ns.name, &user).await?;
            // kubectl debug also attaches to what it has added.
            let line = lines.iter().find(|line| line["interaction"]["operation"] == way)?;
            assert_eq!(line["decision"], decision, "{user}");
            Some(())
        })
        .await;
        eventually(&format!("{user} in the audit log"), 10, || async {
            let key = |kind: &str| format!("{kind}.pods.pristine/decision");
            let entry = if way == "debug" {
                key("debug")
            } else if enters {
                key("exec")
            } else {
                key("connect")
            };
            let lines = audited(&ns.name, &user);
            // A denied debug has no audit annotation of an update that was tried again.
            let line = lines.iter().find(|line| line["annotations"][&entry] == decision)?;
            if way != "debug" {
                let witness = line["annotations"]["audit.pods.pristine/interaction"].as_str().unwrap_or_default();
                assert!(witness.contains(&format!("{}/{name}", ns.name)), "{user}: {line}");
            }
            Some(())
        })
        .await;
        if decision == "marked" {
            let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
            eventually(&format!("{user} in two Events"), 10, || async {
                let all = events.list(&ListParams::default()).await.unwrap().items;
                let told = |kind: &str| {
                    all.iter().any(|event| {
                        event.involved_object.kind.as_deref() == Some(kind)
                            && event.reason.as_deref() == Some("PodInteraction")
                            && event.message.as_deref().is_some_and(|note| note.contains(&user))
                    })
                };
                (told("Pod") && told("ReplicaSet")).then_some(())
            })
            .await;
        }
    }
    let evicts = annotation(&ns.pod(&name).await, "pristine/evict-at").is_some();
    assert_eq!(evicts, action == "mark", "only the action Evict sets a deadline");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_evict_rule_applies_to_every_operation_and_protocol() {
    table("mark").await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_record_rule_applies_to_every_operation_and_protocol() {
    table("record").await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_exempt_rule_applies_to_every_operation_and_protocol() {
    table("exempt").await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_deny_rule_applies_to_every_operation_and_protocol() {
    table("deny").await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_reason_in_the_users_extra_fields_is_recorded() {
    if !run(&["options"]).await.contains("--as-user-extra") {
        return skip("this kubectl has no --as-user-extra");
    }
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let group = "--as-group=system:masters";
    ns.run(&["exec", "--as=alice@example.com", group, "--as-user-extra=reason=INC-7", &name, "--", "true"]).await;
    assert_eq!(record(&ns.pod(&name).await)["first"]["user"]["extra"]["reason"][0], "INC-7");
}
