//! Reports: which accounts may say that a user was in a pod past the API server, and what follows.

use std::{collections::HashMap, fs, path::Path, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use serial_test::parallel;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    common::{eventually, name_of, setting},
    kubectl::{IMAGE, Namespace, acts, apply, deadline, is_marked, record, run, uid_of},
    stage::{Stage, assert_output, shown},
};

/// A ServiceAccount that may patch pods, and with `reports` also report; the flag that makes kubectl be it.
async fn detector(ns: &Namespace, name: &str, reports: bool) -> String {
    let subject = format!("--serviceaccount={}:{name}", ns.name);
    ns.run(&["create", "serviceaccount", name]).await;
    ns.run(&["create", "rolebinding", &format!("{name}-edit"), "--clusterrole=edit", &subject]).await;
    if reports {
        ns.run(&["create", "rolebinding", &format!("{name}-report"), "--clusterrole=pristine:report", &subject]).await;
    }
    format!("--as=system:serviceaccount:{}:{name}", ns.name)
}

/// The notes of the Events of this reason about a pod.
async fn notes(ns: &Namespace, reason: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
    let found = events.list(&ListParams::default().fields(&format!("reason={reason}"))).await.unwrap();
    found.into_iter().filter_map(|event| event.message).collect()
}

fn has_request(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    let (labels, annotations) = (&pod.metadata.labels, &pod.metadata.annotations);
    labels.iter().flatten().any(|(key, _)| key == "pristine/reported")
        || annotations.iter().flatten().any(|(key, _)| key == "pristine/report")
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_reported_pod_is_marked_within_a_second_and_evicted_by_its_rule() {
    let ns = Namespace::new("t-fast-").await;
    let falco = detector(&ns, "falco", true).await;
    let before = ns.workload("Deployment", 1).await.remove(0);
    let name = name_of(&before);
    // What Falco Talon's two actions do: an annotation, and then a label.
    ns.run(&["annotate", "pod", name, &falco, "pristine/report=Terminal shell in container (sh, PASSWORD=hunter2)"])
        .await;
    let start = Instant::now();
    ns.run(&["label", "pod", name, &falco, "pristine/reported=falco"]).await;
    let pod = eventually("the mark", 5, async || Some(ns.pod(name).await).filter(is_marked)).await;
    println!("TOTALS: marked {:.2?} after kubectl label began", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!has_request(&pod), "{:?}", pod.metadata);
    let first = &record(&pod)["first"];
    assert_eq!(
        (&first["operation"], &first["user"]["name"], &first["rule"]),
        (&json!("report"), &json!("falco"), &json!("fast"))
    );
    assert_eq!(acts(&pod), ["report Terminal shell in container (sh, PASSWORD=•••)"]);
    eventually("the Event", 10, async || {
        let found = notes(&ns, "PodInteraction").await;
        found.into_iter().find(|note| note.starts_with("report by \"falco\": Terminal shell in container"))
    })
    .await;
    let late = ns.evicted(name, uid_of(&before), deadline(&pod)).await;
    assert!((0.0..10.0).contains(&late), "{late} s");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn what_falco_talon_sends_marks_the_pod() {
    let ns = Namespace::new("t-mark-").await;
    let talon = detector(&ns, "falco-talon", true).await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    // As `actionners/kubernetes/annotation` and `label`: an annotation of its own if there is none, "replace", and "remove".
    let text = "Falco: a shell was started in the container";
    let patches = [
        json!([{"op": "add", "path": "/metadata/annotations", "value": {"pod": "pod"}}]),
        json!([{"op": "replace", "path": "/metadata/annotations/pristine~1report", "value": text}]),
        json!([{"op": "remove", "path": "/metadata/annotations/pod"}]),
        json!([{"op": "replace", "path": "/metadata/labels/pristine~1reported", "value": "falco"}]),
    ];
    for patch in patches {
        ns.run(&["patch", "pod", &name, &talon, "--type=json", "-p", &patch.to_string()]).await;
    }
    let pod = eventually("the mark", 5, async || Some(ns.pod(&name).await).filter(is_marked)).await;
    assert_eq!(acts(&pod), [format!("report {text}")]);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_forwarder_for_tetragon_reports_a_process_that_was_brought_in() {
    let ns = Namespace::new("t-mark-").await;
    let pods = ns.workload("Deployment", 2).await;
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/detectors.md")).unwrap();
    let script = page.split("```sh\n").find(|block| block.starts_with("tetra ")).unwrap().split("```").next().unwrap();
    let event = |pod: &str, in_init_tree: bool, arguments: &str| {
        let process = json!({
            "exec_id": "e", "pid": 7, "binary": "/bin/sh", "arguments": arguments, "in_init_tree": in_init_tree,
            "pod": {"namespace": ns.name, "name": pod, "container": {"id": "containerd://c", "name": "app"}},
        });
        json!({"process_exec": {"process": process, "parent": {"binary": "/usr/bin/runc"}}, "node_name": "node"})
    };
    let [intruded, quiet] = [name_of(&pods[0]), name_of(&pods[1])];
    let on_the_node = json!({"process_exec": {"process": {"binary": "/bin/ls"}}});
    let long = "x".repeat(5000);
    let events = [event(quiet, true, "-c tick"), on_the_node, event(intruded, false, &format!("-c id\t; {long}"))];
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    fs::write(folder.path().join("events"), lines.join("\n") + "\n").unwrap();
    let tetra = folder.path().join("tetra");
    fs::write(&tetra, "#!/bin/sh\ncat \"${0%/*}/events\"\n").unwrap();
    fs::set_permissions(&tetra, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), setting("PATH").unwrap());
    let output = Command::new("bash").args(["-c", script]).env("PATH", path).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let pod = eventually("the mark", 5, async || Some(ns.pod(intruded).await).filter(is_marked)).await;
    let first = &record(&pod)["first"];
    assert_eq!(first["user"]["name"], "tetragon");
    assert!(acts(&pod)[0].starts_with("report process from outside: /bin/sh -c id"), "{:?}", acts(&pod));
    assert!(!is_marked(&ns.pod(quiet).await));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_account_without_the_right_cannot_report_and_nobody_can_forge_the_mark() {
    let ns = Namespace::new("t-mark-").await;
    let (editor, falco) = (detector(&ns, "editor", false).await, detector(&ns, "falco", true).await);
    let pod = ns.workload("Deployment", 1).await.remove(0);
    let name = name_of(&pod);
    let both = r#"{"metadata":{"labels":{"pristine/reported":"x"},"annotations":{"pristine/report":"y"}}}"#;
    for words in [
        &["label", "pod", name, "pristine/reported=x"][..],
        &["annotate", "pod", name, "pristine/report=y"],
        &["patch", "pod", name, "-p", both],
        &["label", "pod", name, "pristine/reported="],
    ] {
        let output = ns.attempt(&[words, &[&editor]].concat()).await;
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("Forbidden") && why.contains("verb 'report'"), "{words:?}: {why}");
    }
    let long = format!(r#"{{"metadata":{{"annotations":{{"pristine/report":"{}"}}}}}}"#, "x".repeat(250_000));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), long).unwrap();
    let file = file.path().display().to_string();
    for words in [
        &["label", "pod", name, "pristine/reported="][..],
        &["patch", "pod", name, "--patch-file", &file],
        &["label", "pod", name, "pristine/interacted=true"],
    ] {
        let output = ns.attempt(&[words, &[&falco]].concat()).await;
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = if words[3].contains("interacted") { "Pristine alone" } else { "at most 1024 characters" };
        assert!(!output.status.success() && why.contains(expected), "{words:?}: {why}");
    }
    let gone = ns.attempt(&["label", "pod", "no-such-pod", &falco, "pristine/reported=falco"]).await;
    assert!(String::from_utf8_lossy(&gone.stderr).contains("not found"));
    sleep(Duration::from_secs(1)).await;
    let pod = ns.pod(name).await;
    assert!(!is_marked(&pod) && !has_request(&pod));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_thousand_reports_are_one_mark_and_a_label_that_is_put_back_is_left_alone() {
    let ns = Namespace::new("t-mark-").await;
    let pod = ns.workload("Deployment", 1).await.remove(0);
    let name = name_of(&pod);
    let patch = kube::api::Patch::Merge(json!({"metadata": {
        "labels": {"pristine/reported": "falco"}, "annotations": {"pristine/report": "a shell"},
    }}));
    for _ in 0..1000 {
        ns.pods().patch(name, &kube::api::PatchParams::default(), &patch).await.unwrap();
    }
    let pod = eventually("the mark", 5, async || Some(ns.pod(name).await).filter(is_marked)).await;
    assert_eq!(record(&pod)["total"], 1, "{}", record(&pod));
    // By now the label is either removed with the mark, or was put back after it.
    ns.pods().patch(name, &kube::api::PatchParams::default(), &patch).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    let version = async || ns.pod(name).await.metadata.resource_version;
    let before = version().await;
    sleep(Duration::from_secs(15)).await;
    assert_eq!(version().await, before, "the pod is written again and again");
    let pod = ns.pod(name).await;
    assert!(record(&pod)["total"] == 1 && has_request(&pod), "{:?}", pod.metadata);
    let said = notes(&ns, "ReportIgnored").await;
    assert!(said.iter().any(|note| note.contains("the mark has it already")), "{said:?}");
    // Other words are another report.
    ns.run(&["annotate", "pod", name, "--overwrite", "pristine/report=a miner"]).await;
    let pod = eventually("the other report", 15, async || {
        Some(ns.pod(name).await).filter(|pod| record(pod)["total"] == 2 && !has_request(pod))
    })
    .await;
    assert_eq!(acts(&pod), ["report a shell", "report a miner"]);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_label_that_is_no_report_marks_nothing_and_an_event_says_why() {
    let ns = Namespace::new("t-fast-").await;
    let (exempt, recorded) = (Namespace::new("t-exempt-").await, Namespace::new("t-record-").await);
    // From a template: each replacement would have it.
    let template = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web", "pristine/reported": "falco"}},
            "spec": {"containers": [{"name": "app", "image": IMAGE, "command": ["sleep", "1000"]}]},
        }},
    });
    apply(&ns.name, &template.to_string()).await;
    let templated = ns.ready(1).await.remove(0);
    // Finished, exempt, recorded.
    let once = ["run", "once", &format!("--image={IMAGE}"), "--restart=Never", "--", "true"];
    ns.run(&once).await;
    ns.run(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=30s"]).await;
    ns.run(&["label", "pod", "once", "pristine/reported=falco"]).await;
    for other in [&exempt, &recorded] {
        other.workload("StatefulSet", 1).await;
        other.run(&["label", "pod", "web-0", "pristine/reported=falco"]).await;
    }
    for (ns, why) in
        [(&ns, "comes from the template"), (&ns, "the pod has finished"), (&exempt, "rule \"exempt\" exempts it")]
    {
        eventually(why, 20, async || notes(ns, "ReportIgnored").await.into_iter().find(|note| note.contains(why)))
            .await;
    }
    let pod = eventually("the record", 5, async || Some(recorded.pod("web-0").await).filter(is_marked)).await;
    assert_eq!(acts(&pod), ["report"]);
    assert!(!is_marked(&exempt.pod("web-0").await) && !is_marked(&ns.pod("once").await));
    // Longer than the rule's time to live.
    sleep(Duration::from_secs(8)).await;
    let after = ns.pod(name_of(&templated)).await;
    assert!(!is_marked(&after) && after.metadata.deletion_timestamp.is_none());
    // A detector may report such a pod all the same, under another name.
    ns.run(&["label", "pod", name_of(&templated), "--overwrite", "pristine/reported=tetragon"]).await;
    eventually("the mark", 5, async || Some(ns.pod(name_of(&templated)).await).filter(is_marked)).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_person_reports_with_the_plugin_and_reads_the_deadline() {
    let stage = Stage::with_pods("t-fast-", 1).await;
    let report = "report web-0 --reason=INC-7";
    assert_output(&stage.sees(&format!("{report} --dry-run=server")).await, "pod/web-0 reported (server dry run)\n");
    assert!(!is_marked(&stage.ns.pod("web-0").await));
    let said = shown(&stage.pristine(report).await);
    assert!(said.starts_with("pod/web-0 reported, due at "), "{said}");
    let whoami = run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    assert_eq!(acts(&stage.ns.pod("web-0").await), [format!("report INC-7, reported by {whoami}")]);
    let editor = detector(&stage.ns, "editor", false).await;
    let refused = shown(&stage.pristine(&format!("{report} {editor}")).await);
    assert!(refused.contains("verb 'report'"), "{refused}");
}

/// Processes of a pod that were started past the API server: their parent is outside of the pod, and they are not the
/// first of their container. By pid, what they run.
fn intruders(pod_uid: &str) -> HashMap<u32, String> {
    let slice = pod_uid.replace('-', "_");
    let cgroup = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let is_inside = |pid: &str| cgroup(pid).contains(pod_uid) || cgroup(pid).contains(&slice);
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let Ok(number) = pid.parse::<u32>() else { continue };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
        let is_first = field("NSpid:").split_whitespace().last() == Some("1");
        if is_inside(&pid) && !is_first && !is_inside(field("PPid:")) {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            found.insert(number, command.replace('\0', " ").trim().to_owned());
        }
    }
    found
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_shell_that_the_runtime_starts_past_the_api_server_is_reported_marked_and_evicted() {
    let ns = Namespace::new("t-fast-").await;
    let falco = detector(&ns, "falco", true).await;
    let before = ns.workload("Deployment", 1).await.remove(0);
    let (name, uid) = (name_of(&before).to_owned(), uid_of(&before).to_owned());
    assert_eq!(intruders(&uid), HashMap::new(), "the processes of the pod itself");
    let status = before.status.as_ref().unwrap();
    let container = status.container_statuses.as_ref().unwrap()[0].container_id.clone().unwrap();
    let socket = Path::new(&setting("KUBECONFIG").unwrap()).parent().unwrap().join("containerd/containerd.sock");
    let mut shell = Command::new("ctr");
    shell.args([
        "--address",
        &socket.display().to_string(),
        "--namespace",
        "k8s.io",
        "tasks",
        "exec",
        "--exec-id",
        "intruder",
    ]);
    shell.arg(container.trim_start_matches("containerd://")).args(["sh", "-c", "sleep 3; echo done"]);
    let shell =
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    // runc itself is in the container for a moment, before it becomes the command.
    let is_command = |command: &String| !command.contains("runc") && !command.starts_with("/proc/");
    let command = eventually("the process", 5, async || intruders(&uid).into_values().find(is_command)).await;
    assert!(command.starts_with("sh -c sleep 3"), "{command}");
    assert!(!is_marked(&ns.pod(&name).await), "the API server has seen it");
    // As a Falco action would.
    let text: Value = json!({"metadata": {
        "labels": {"pristine/reported": "watcher"},
        "annotations": {"pristine/report": format!("process past the API server: {command}")},
    }});
    ns.run(&["patch", "pod", &name, &falco, "-p", &text.to_string()]).await;
    let pod = eventually("the mark", 5, async || Some(ns.pod(&name).await).filter(is_marked)).await;
    assert_eq!(acts(&pod), [format!("report process past the API server: {command}")]);
    let late = ns.evicted(&name, &uid, deadline(&pod)).await;
    assert!((0.0..10.0).contains(&late), "{late} s");
    drop(shell);
}
