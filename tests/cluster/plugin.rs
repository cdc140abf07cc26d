//! `kubectl pristine` as its users run it: through stock kubectl, on a real cluster. What it prints is compared whole, but
//! for what differs from one run to the next.

use std::{net::TcpListener, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use serial_test::parallel;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::{Instant, timeout},
};

use crate::{
    kubectl::{IMAGE, apply, deadline, run, uid_of},
    stage::{Stage, assert_output, mask, shown},
};

mod changes;
mod impersonation;
mod session;

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn get_lists_only_marked_pods_in_every_format() {
    let stage = Stage::with_pods("t-mark-", 2).await;
    assert_output(&stage.sees("get").await, "! No resources found in <NAMESPACE> namespace.\n");
    assert_output(&stage.sees("get -A -l nobody=here").await, "! No resources found\n");
    stage.exec_into("alice", &["true"]).await;
    stage.exec_into("bob", &["echo", "a b"]).await;
    // Other tests mark pods, too.
    stage.ns.run(&["label", "pod", "web-0", "web-1", &format!("test={}", stage.ns.name)]).await;
    let table = "
NAME   INTERACTIONS   BY   AGE   EVICTS-IN   STATE   REASON
web-0   2   alice +1   <AGE>   <AGE>   Marked
";
    assert_output(&stage.sees("get").await, table);
    assert_output(&stage.sees("get web-0").await, table);
    assert_output(&stage.sees("get --no-headers -l app=web").await, "web-0   2   alice +1   <AGE>   <AGE>   Marked\n");
    assert_output(&stage.sees("get -o name").await, "pod/web-0\n");
    let namespaced = stage.sees(&format!("get -A -l test={}", stage.ns.name)).await;
    assert_output(
        &namespaced,
        "
NAMESPACE   NAME   INTERACTIONS   BY   AGE   EVICTS-IN   STATE   REASON
<NAMESPACE>   web-0   2   alice +1   <AGE>   <AGE>   Marked
",
    );
    assert_output(
        &stage.sees("get -o wide").await,
        "
NAMESPACE   NODE   NAME   INTERACTIONS   BY   AGE   EVICTS-IN   STATE   REASON
<NAMESPACE>   node   web-0   2   alice +1   <AGE>   <AGE>   Marked
",
    );
    // One that is wrong does not keep the others back.
    assert_output(
        &stage.sees("get web-1 absent web-0 --no-headers").await,
        r#"
web-0   2   alice +1   <AGE>   <AGE>   Marked
! error: no interaction is recorded on pod "web-1" in namespace "<NAMESPACE>"
! Error from server (NotFound): pods "absent" not found
exit 1
"#,
    );
    assert_output(
        &stage.sees("get absent").await,
        "! Error from server (NotFound): pods \"absent\" not found\nexit 1\n",
    );
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn get_prints_json_and_yaml_with_absolute_times() {
    let stage = Stage::with_pods("t-mark-", 1).await;
    let none: Value = serde_json::from_slice(&stage.pristine("get -o json").await.stdout).unwrap();
    assert_eq!((none["kind"].as_str(), none["items"].as_array().unwrap().len()), (Some("MarkedPodList"), 0));
    stage.exec_into("alice", &["true"]).await;
    let text = String::from_utf8(stage.pristine("get -o json").await.stdout).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text, format!("{json:#}\n"));
    let user = r#"{"groups":["system:masters","system:authenticated"],"name":"alice"}"#;
    let first = format!(
        r#"{{"at":"<TIME>","command":["true"],"container":"app","operation":"exec","review":"<UID>","rule":"default","user":{user}}}"#
    );
    let metadata = r#"{"name":"web-0","namespace":"<NAMESPACE>","uid":"<UID>"}"#;
    let item = format!(
        r#"{{"evictAt":"<TIME>","first":{first},"interactions":1,"metadata":{metadata},"reason":"","recent":[],"state":"Marked"}}"#
    );
    let list = format!(r#"{{"apiVersion":"pristine/v1alpha1","items":[{item}],"kind":"MarkedPodList"}}"#);
    assert_output(&mask(&json.to_string().replace(&stage.ns.name, "<NAMESPACE>")), &list);
    let yaml = stage.pristine("get -o yaml").await;
    let yaml: Value = serde_saphyr::from_str(&String::from_utf8(yaml.stdout).unwrap()).unwrap();
    assert_eq!(json, yaml);
    let pod = stage.ns.pod("web-0").await;
    let item = &json["items"][0];
    assert_eq!(item["metadata"]["uid"], uid_of(&pod));
    let times = [&item["first"]["at"], &item["evictAt"]];
    let [first, evict_at]: [Timestamp; 2] = times.map(|at| at.as_str().unwrap().parse().unwrap());
    assert!(first < evict_at && evict_at == deadline(&pod), "{item}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_watch_prints_a_pod_again_after_another_interaction() {
    let stage = Stage::with_pods("t-mark-", 1).await;
    stage.exec_into("alice", &["true"]).await;
    let mut child = stage.kubectl(&["pristine", "get", "--watch", "-n", &stage.ns.name]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = timeout(Duration::from_secs(10), lines.next_line()).await.expect("a line in time");
        mask(&line.unwrap().expect("still watching"))
    };
    assert_output(&next().await, "NAME   INTERACTIONS   BY   AGE   EVICTS-IN   STATE   REASON");
    assert_output(&next().await, "web-0   1   alice   <AGE>   <AGE>   Marked");
    stage.exec_into("bob", &["true"]).await;
    assert_output(&next().await, "web-0   2   alice +1   <AGE>   <AGE>   Marked");
    assert!(child.try_wait().unwrap().is_none(), "until it is interrupted");
    child.kill().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn describe_shows_interactions_eviction_blockers_and_volumes_that_outlive_the_pod() {
    let stage = Stage::new("t-mark-").await;
    let yaml = format!(
        "apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{{name: logs, hostPath: {{path: /var/log}}}}, {{name: scratch, emptyDir: {{}}}}]
      containers: [{{name: app, image: {IMAGE}}}]
"
    );
    apply(&stage.ns.name, &yaml).await;
    stage.ns.ready(1).await;
    stage.budget().await;
    stage.exec_into("alice", &["true"]).await;
    stage.exec_into("bob", &["echo", "a b"]).await;
    let refused = stage.sees("describe web-0").await;
    let eviction = refused.lines().find(|line| line.starts_with("Eviction:")).unwrap();
    let why = "would be refused now (dry run): Cannot evict pod as it would violate the pod's disruption budget";
    assert!(eviction.contains(why) && eviction.contains("keep-all"), "{eviction}");
    stage.ns.run(&["delete", "pdb", "keep-all"]).await;
    let allowed = "Eviction:   nothing blocks it (dry run)";
    assert_output(&stage.sees("describe web-0").await, &refused.replace(eviction, allowed));
    assert_output(
        &refused.replace(eviction, allowed),
        r#"
Name:   web-0
Namespace:   <NAMESPACE>
UID:   <UID>
Node:   node
Controlled By:   StatefulSet/web
State:   Marked
Interactions:   2
First:   <TIME> (<AGE> ago)
Last:   <TIME> (<AGE> ago)
Evict At:   <TIME> (in <AGE>)
Eviction:   nothing blocks it (dry run)
Outlives Pod:   the eviction does not undo writes to these volumes
  logs   hostPath /var/log
Interactions:
  TIME   OPERATION   CONTAINER   STREAMS   RULE   USER   COMMAND
  <TIME>   exec   app   <none>   default   alice   true
  <TIME>   exec   app   <none>   default   bob   echo "a b"
"#,
    );
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn certs_and_version_cover_every_replica() {
    let stage = Stage::new("t-mark-").await;
    assert_output(
        &stage.sees_of_replicas("certs").await,
        "
CA   VALID-UNTIL   EXPIRES-IN   TRUSTED-BY   SIGNED-FOR
<SERIAL>   <TIME>   <AGE>   4 of 4 entries   2 of 2 replicas

REPLICA   CERTIFICATE   VALID-UNTIL   EXPIRES-IN   TRUSTED
<REPLICA>   <SERIAL>   <TIME>   <AGE>   yes
<REPLICA>   <SERIAL>   <TIME>   <AGE>   yes

caBundle is set and identical in all 4 webhook entries: yes
",
    );
    let versions = shown(&stage.pristine("version").await);
    assert_output(&mask(&versions), "Plugin:   <VERSION>\nPristine:   <VERSION>\nKubernetes:   <VERSION>\n");
    assert_eq!(versions.matches(concat!("v", env!("CARGO_PKG_VERSION"), "\n")).count(), 2, "{versions}");
}

/// What doctor says, without what depends on other tests: the loops that they made, which doctor knows for a day, and the
/// rules that they have not needed yet.
fn without_others(text: &str) -> String {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let is_idle = line.contains("rules: these have been in force without deciding once: ");
        if is_idle || line.contains("eviction loop: ") {
            let begin = if is_idle { "to check: " } else { "to fix: " };
            assert!(lines.next().is_some_and(|advice| advice.trim_start().starts_with(begin)), "{text}");
        } else {
            kept.push(line);
        }
    }
    kept.join("\n") + "\n"
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn doctor_checks_the_installation_and_names_who_can_bypass_it() {
    let stage = Stage::new("t-mark-").await;
    let doctor = stage.sees_of_replicas("doctor").await;
    let (version, rest) = doctor.split_once('\n').unwrap();
    assert!(version.starts_with("OK   Kubernetes: <VERSION>"), "{version}");
    // The warning is of hack/cluster's own making: with it, the API server reaches the kubelet.
    assert_output(
        &without_others(rest),
        "
OK   webhook configuration: 4 entries, as shipped
OK   replicas: 2 of 2 are Ready
NOTE   replicas: all Ready replicas are on node node, the only one that takes them; if that node fails, every exec is denied until a replica is Ready elsewhere, except for break-glass
         to check: kubectl get nodes; if there is another one, kubectl -n pristine-system rollout restart deployment/pristine
OK   certificates: caBundle trusts every replica until at least <TIME>; Pristine renews before that
OK   admission: the API server reaches the webhook and trusts its certificate (<N> ms, dry run)
OK   eviction: <REPLICA> is the leader and evicts due pods
OK   policies: marks are protected, and Pristine's ServiceAccount is restricted
OK   configuration: <N> rules and a default, in the ConfigMap pristine
WARNING  get/create nodes/proxy: User kube-apiserver-kubelet-client (clusterrolebinding/pristine:kubelet-api-admin) can exec through the kubelet's API, which bypasses admission webhooks and audit policies for execs
         to fix: kubectl apply -k manifests/components/nodes-proxy-guard, or grant nodes/metrics, nodes/stats and nodes/log instead
OK   RBAC: full access to the cluster: Group kubeadm:cluster-admins, Group system:masters
",
    );
    let name = &stage.ns.name;
    run(&["create", "clusterrole", name, "--verb=get", "--resource=nodes/proxy"]).await;
    run(&["create", "clusterrolebinding", name, &format!("--clusterrole={name}"), "--user=eve"]).await;
    let warned = shown(&stage.pristine("doctor").await);
    run(&["delete", "clusterrolebinding", name]).await;
    run(&["delete", "clusterrole", name]).await;
    let warning = format!("WARNING  get/create nodes/proxy: User eve (clusterrolebinding/{name}), User kube-apiserver");
    assert!(warned.contains(&warning) && !warned.contains("\nexit "), "{warned}");
    assert!(!shown(&stage.pristine("doctor").await).contains("eve ("));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn kubectl_completes_commands_and_marked_pods() {
    let stage = Stage::with_pods("t-mark-", 2).await;
    stage.exec_into("alice", &["true"]).await;
    let complete = async |words: &[&str]| {
        let output = stage.kubectl(&[&["__complete", "pristine"][..], words].concat()).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let ns = stage.ns.name.as_str();
    assert_eq!(complete(&["get", "-n", ns, ""]).await, "web-0\n:4\n");
    assert_eq!(complete(&["extend", "--namespace", ns, "--for", "1h", "we"]).await, "web-0\n:4\n");
    assert_eq!(complete(&["get", "-n", &ns[..ns.len() - 1]]).await, format!("{ns}\n:4\n"));
    let commands = complete(&[""]).await;
    let names: Vec<&str> = commands.lines().map(|line| line.split('\t').next().unwrap()).collect();
    let expected = "get describe exec extend hold release evict report summary log suspend resume certs doctor default-config version completion :4";
    assert_eq!(names.join(" "), expected);
    let script = stage.pristine("completion bash").await;
    assert!(script.status.success() && shown(&script).contains("kubectl-pristine"));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_typo_or_an_unreachable_api_server_is_one_error_within_seconds() {
    let stage = Stage::new("t-mark-").await;
    let usage = "Usage: kubectl pristine get [OPTIONS] [PODS]...";
    let tip = "  tip: to pass '--froo' as a value, use '-- --froo'";
    let expected = format!(
        "! error: unexpected argument '--froo' found\n!\n! {tip}\n!\n! {usage}\n!\n! For more information, try '--help'.\nexit 1\n"
    );
    assert_output(&stage.sees("get --froo").await, &expected);
    let unknown = shown(&stage.pristine("froo").await);
    assert!(unknown.starts_with("! error: unrecognized subcommand 'froo'\n") && unknown.ends_with("\nexit 1\n"));
    // The kernel accepts; nobody reads.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("https://{}", listener.local_addr().unwrap());
    let mut wrong = Vec::new();
    for (server, limit) in [("https://127.0.0.1:1", 5.0), (silent.as_str(), 4.0)] {
        for command in
            ["get", "get web-0", "describe web-0", "extend web-0 --for=1m", "evict web-0", "certs", "version", "doctor"]
        {
            let asked = Instant::now();
            let said = shown(&stage.pristine(&format!("{command} --server={server} --request-timeout=2s")).await);
            let time = asked.elapsed().as_secs_f64();
            let said = said.strip_prefix(concat!("Plugin:       v", env!("CARGO_PKG_VERSION"), "\n")).unwrap_or(&said);
            let is_one_error = said.starts_with("! error: cannot ") && said.lines().count() == 2;
            let is_ours = !said.contains("panicked") && !said.contains("stack");
            if !(is_one_error && is_ours && said.ends_with("\nexit 1\n") && time < limit) {
                wrong.push(format!("{command} ({server}), {time:.1} s:\n{said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
