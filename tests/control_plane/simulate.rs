//! `pristine simulate` says of each request what the webhook decided about it. Admission comes before the kubelet, so no
//! node is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};

use crate::{
    common::{audit, eventually},
    replicas::{Replicas, client, get, kubeconfig},
};

const RULES: &str = "rules:
- {name: record, match: {namespaces: [agree-record-*]}, action: Record}
- {name: exempt, match: {namespaces: [agree-exempt-*]}, action: Exempt}
- {name: deny, match: {namespaces: [agree-deny-*]}, action: Deny, message: not here}
- {name: ports, match: {namespaces: [agree-rules-*], operations: [port-forward]}, action: Deny}
- {name: commands, match: {namespaces: [agree-rules-*], commandPrefix: [id]}, action: Evict, ttl: 1h}
- {name: databases, match: {podSelector: {matchLabels: {tier: db}}}, action: Exempt}
- {name: machines, match: {podToken: true, tty: false}, action: Record}
";

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn path(file: &tempfile::NamedTempFile) -> String {
    file.path().to_str().unwrap().to_owned()
}

/// What kubectl prints, whether or not it succeeds.
fn kubectl(arguments: &[&str]) -> String {
    let mut command = Command::new("kubectl");
    let output = command.args(arguments).env("KUBECONFIG", kubeconfig(1)).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace with a pod for each request: of a StatefulSet, but for `bare`.
async fn stage(client: &Client, prefix: &str) -> String {
    let name = format!("{prefix}{:08x}", rand::random::<u32>());
    let post = PostParams::default();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = json!({"metadata": {"name": name}});
    namespaces.create(&post, &serde_json::from_value(namespace).unwrap()).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    let account = json!({"metadata": {"name": "default"}});
    accounts.create(&post, &serde_json::from_value(account).unwrap()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &name);
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]);
    for (pod, owners, tier) in [
        ("web-0", &owner, "web"),
        ("web-1", &owner, "web"),
        ("web-2", &owner, "web"),
        ("web-3", &owner, "web"),
        ("web-4", &owner, "web"),
        ("web-5", &owner, "web"),
        ("web-6", &owner, "db"),
        ("bare", &Value::Null, "web"),
    ] {
        let pod = json!({
            "metadata": {"name": pod, "labels": {"tier": tier}, "ownerReferences": owners},
            "spec": {"nodeName": "nowhere", "containers": [{"name": "app", "image": "none"}]},
        });
        eventually("the pod", 10, async || {
            pods.create(&post, &serde_json::from_value(pod.clone()).unwrap()).await.ok()
        })
        .await;
    }
    name
}

/// Sends a request of each kind in this namespace, each with a pod of its own; how many they are.
fn requests(namespace: &str) -> usize {
    let subject = format!("--serviceaccount={namespace}:default");
    kubectl(&["-n", namespace, "create", "rolebinding", "all", "--clusterrole=cluster-admin", &subject]);
    let mut config: Value =
        serde_json::from_str(&kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])).unwrap();
    config["users"][0]["user"] = json!({});
    let without = file(&config.to_string());
    let bound = ["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name=bare"];
    let token = format!("--token={}", kubectl(&[&["-n", namespace][..], &bound].concat()).trim());
    let config = format!("--kubeconfig={}", path(&without));
    let (alice, machine) = (["--as=alice", "--as-group=system:masters"], [config.as_str(), token.as_str()]);
    let all = [
        ("web-0", alice, "exec?command=id&stdout=true"),
        ("web-1", alice, "exec?command=sh&stdin=true&stdout=true&tty=true&container=app"),
        ("web-2", alice, "attach?stdout=true"),
        ("web-3", alice, "portforward?ports=80"),
        ("web-4", machine, "exec?command=true&stdout=true"),
        ("web-5", machine, "exec?command=true&stdin=true&stdout=true&tty=true"),
        ("web-6", alice, "exec?command=sh&stdout=true"),
        ("bare", alice, "exec?command=sh&stdout=true"),
    ];
    for (pod, by, request) in all {
        // A POST is reviewed, and then fails because it is no upgrade.
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/{request}");
        kubectl(&[&by[..], &["create", "--raw", &path, "-f", "/dev/null"]].concat());
    }
    all.len()
}

/// What the webhook wrote about the request into the API server's audit log: the action, and the rule.
fn decided(record: &Value) -> Option<(&'static str, String)> {
    let annotations = record["annotations"].as_object()?;
    let of_webhook = |key: &str| annotations.iter().find(|(name, _)| name.ends_with(&format!(".pods.pristine/{key}")));
    let action = match (of_webhook("decision")?.1.as_str()?, of_webhook("evict-at")) {
        ("marked", Some(_)) => "evict",
        ("marked", None) => "record",
        ("exempt", _) => "exempt",
        ("denied", _) => "deny",
        _ => return None,
    };
    Some((action, of_webhook("rule")?.1.as_str()?.to_owned()))
}

/// How often each rule has decided, as the replica counts it.
async fn counted() -> BTreeMap<String, usize> {
    let metrics = get(0, "/metrics").await.unwrap();
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("pristine_rule_decisions_total{rule=\""));
    let pairs = lines.filter_map(|line| line.split_once("\"} "));
    pairs.map(|(rule, count)| (rule.to_owned(), count.parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test"]
async fn simulate_agrees_with_the_webhook_about_each_request_in_the_audit_log() {
    let client = client(1).await;
    let replicas = Replicas::start_with(1, RULES).await;
    let default = "default: {action: Evict, ttl: 8784h}";
    let config = file(&format!("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\n{default}\n{RULES}"));
    let (mut agreed, mut sent, mut kinds) = (0, 0, BTreeSet::new());
    let rules = ["record", "exempt", "deny", "ports", "commands", "databases", "machines", "default"];
    let mut decisions: BTreeMap<String, usize> = rules.map(|rule| (rule.to_owned(), 0)).into();
    assert_eq!(counted().await, decisions, "every rule is at zero before it decides");
    for prefix in ["agree-default-", "agree-record-", "agree-exempt-", "agree-deny-", "agree-rules-"] {
        let namespace = stage(&client, prefix).await;
        let pods = file(&kubectl(&["get", "pods", "-n", &namespace, "-o", "json"]));
        let count = requests(&namespace);
        sent += count;
        let records = eventually("the audit log", 20, async || {
            let mut found = audit::requests(&kubeconfig(1), &namespace);
            found.retain(|record| decided(record).is_some() && record["stage"] == "ResponseComplete");
            (found.len() >= count).then_some(found)
        })
        .await;
        for mut record in records {
            let (action, rule) = decided(&record).unwrap();
            // As it would be without Pristine, and with a client that upgrades the connection.
            record["responseStatus"]["code"] = json!(101);
            let log = file(&format!("{record}\n"));
            let mut command = Command::new(env!("CARGO_BIN_EXE_pristine"));
            command.args(["simulate", "-o", "json", "--audit-log", &path(&log)]);
            let output = command.args(["--config", &path(&config), "--pods", &path(&pods)]).output().unwrap();
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            let rows = said["interactions"].as_array().unwrap();
            assert_eq!(rows.len(), 1, "{record}: {said}");
            assert_eq!(
                (&rows[0]["actions"], &rows[0]["rules"]),
                (&json!([action]), &json!([rule])),
                "{record}: {said}"
            );
            agreed += 1;
            *decisions.entry(rule.clone()).or_default() += 1;
            kinds.insert((action, rule));
        }
    }
    println!("TOTALS: simulate and the webhook agree about {agreed} requests: {kinds:?}");
    assert_eq!(agreed, sent);
    assert_eq!(counted().await, decisions);
    let actions: BTreeSet<&str> = kinds.iter().map(|(action, _)| *action).collect();
    assert_eq!(actions, ["deny", "evict", "exempt", "record"].into());
    replicas.end().await;
}
