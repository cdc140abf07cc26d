//! What gets past Pristine, who can forge a mark, and who can wipe one: each attempt, on a real cluster, fails.

use std::process::{Output, Stdio};

use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Pod};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::{
    common::{SYSTEM, https, name_of, setting, until},
    kubectl::{IMAGE, Namespace, annotation, apply, client, deadline, is_marked, kubectl, record, run, uid_of},
};

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A pod that somebody exec'd into, and its name.
async fn marked(ns: &Namespace) -> (String, Pod) {
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&["exec", &name, "--", "true"]).await;
    let pod = ns.pod(&name).await;
    assert!(is_marked(&pod));
    (name, pod)
}

/// Label, annotations and condition of ours.
fn ours(pod: &Pod) -> Value {
    let keys = ["pristine/interactions", "pristine/evict-at"].map(|key| annotation(pod, key).map(str::to_owned));
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let condition = conditions.filter(|condition| condition.type_ == "pristine/Pristine").collect::<Vec<_>>();
    json!([is_marked(pod), keys, condition])
}

async fn with_stdin(arguments: &[&str], text: &str) -> Output {
    let mut child = kubectl(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    child.wait_with_output().await.unwrap()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn nobody_wipes_or_edits_a_mark_not_even_an_administrator() {
    let ns = Namespace::new("t-mark-").await;
    let (name, before) = marked(&ns).await;
    let pod = format!("pod/{name}");
    let status = "--subresource=status";
    let strip = r#"{"metadata":{"labels":{"pristine/interacted":null},"annotations":{"pristine/interactions":null,"pristine/evict-at":null}}}"#;
    let later = r#"{"metadata":{"annotations":{"pristine/evict-at":"2099-01-01T00:00:00Z"}}}"#;
    let attempts: &[&[&str]] = &[
        &["label", &pod, "pristine/interacted-"],
        &["label", &pod, "pristine/interacted=false", "--overwrite"],
        &["annotate", &pod, "pristine/evict-at-"],
        &["annotate", &pod, "pristine/evict-at=2099-01-01T00:00:00Z", "--overwrite"],
        &["annotate", &pod, "pristine/interactions={}", "--overwrite"],
        &["patch", &pod, "--type=merge", "-p", strip],
        &["patch", &pod, "--type=merge", "-p", strip, status],
        &["patch", &pod, "--type=strategic", "-p", later],
        &["patch", &pod, "--type=strategic", "-p", later, status],
        &["patch", &pod, "-p", r#"{"metadata":{"labels":{"$patch":"replace","app":"web"}}}"#],
        &["patch", &pod, status, "-p", r#"{"status":{"conditions":[{"type":"pristine/Pristine","$patch":"delete"}]}}"#],
        &["patch", &pod, status, "-p", r#"{"status":{"conditions":[{"type":"pristine/Pristine","status":"True"}]}}"#],
        &["patch", &pod, status, "--type=merge", "-p", r#"{"status":{"conditions":[]}}"#],
        &["patch", &pod, "--type=json", "-p", r#"[{"op":"remove","path":"/metadata/annotations"}]"#],
    ];
    for attempt in attempts {
        let output = ns.attempt(attempt).await;
        let error = error(&output);
        assert!(!output.status.success() && error.contains("Pristine alone"), "{attempt:?}: {error}");
    }
    let configuration = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "annotations": {"pristine/evict-at": "2099-01-01T00:00:00Z"}},
    });
    let arguments =
        ["-n", &ns.name, "apply", "--server-side", "--force-conflicts", "--field-manager=pristine", "-f", "-"];
    let output = with_stdin(&arguments, &configuration.to_string()).await;
    assert!(!output.status.success() && error(&output).contains("Pristine alone"), "{}", error(&output));
    let mut replaced = serde_json::to_value(&before).unwrap();
    replaced["metadata"]["labels"] = json!({"app": "web"});
    replaced["metadata"]["annotations"] = json!({});
    replaced["metadata"]["resourceVersion"] = Value::Null;
    let output = with_stdin(&["-n", &ns.name, "replace", "-f", "-"], &replaced.to_string()).await;
    assert!(!output.status.success() && error(&output).contains("Pristine alone"), "{}", error(&output));

    assert_eq!(ours(&ns.pod(&name).await), ours(&before));
    // Everything else of the pod is everybody's, as ever.
    ns.run(&["label", &pod, "team=a"]).await;
    ns.run(&["annotate", &pod, "note=b"]).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_binding_plants_no_mark() {
    let ns = Namespace::new("t-mark-").await;
    let yaml = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{schedulerName: nobody, containers: [{{name: app, image: {IMAGE}}}]}}\n"
        )
    };
    apply(&ns.name, &yaml("unbound")).await;
    let binding = |annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": "unbound", "labels": {}, "annotations": annotations},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "nowhere"},
        })
    };
    let path = format!("/api/v1/namespaces/{}/pods/unbound/binding", ns.name);
    for path in [path.clone(), format!("/api/v1/namespaces/{}/bindings", ns.name)] {
        let forged = binding(json!({"pristine/evict-at": "2020-01-01T00:00:00Z"}));
        let output = with_stdin(&["create", "--raw", &path, "-f", "-"], &forged.to_string()).await;
        assert!(!output.status.success() && error(&output).contains("Pristine alone"), "{path}: {}", error(&output));
    }
    let output = with_stdin(&["create", "--raw", &path, "-f", "-"], &binding(json!({})).to_string()).await;
    assert!(output.status.success(), "{}", error(&output));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn what_is_created_with_our_keys_is_not_marked_and_cannot_be_held() {
    let ns = Namespace::new("t-fast-").await;
    let (_, pod) = marked(&ns).await;
    // A restore from a backup, as Velero makes it: it must work, and the new pod is nobody's.
    let mut restored = serde_json::to_value(&pod).unwrap();
    restored["status"] = Value::Null;
    let metadata = restored["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| key == "labels" || key == "annotations");
    metadata.insert("name".to_owned(), json!("restored"));
    metadata["annotations"]["pristine/hold"] = json!("for ever");
    metadata["labels"].as_object_mut().unwrap().remove("pod-template-hash");
    metadata["labels"]["app"] = json!("restored");
    let output = with_stdin(&["-n", &ns.name, "create", "-f", "-"], &restored.to_string()).await;
    assert!(output.status.success(), "{}", error(&output));
    run(&["-n", &ns.name, "wait", "--for=condition=Ready", "--timeout=60s", "pod/restored"]).await;
    // Nobody may make the annotation fit the new UID.
    let created = ns.pod("restored").await;
    let fitting = annotation(&created, "pristine/interactions").unwrap().replace(uid_of(&pod), uid_of(&created));
    let output =
        ns.attempt(&["annotate", "pod/restored", "--overwrite", &format!("pristine/interactions={fitting}")]).await;
    assert!(error(&output).contains("Pristine alone"), "{}", error(&output));
    // The deadline of the pod it was copied from passes.
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let later = ns.pod("restored").await;
    assert_eq!((uid_of(&later), later.metadata.deletion_timestamp.is_some()), (uid_of(&created), false));
    // An exec marks it, and what was planted is gone.
    ns.run(&["exec", "restored", "--", "true"]).await;
    let later = ns.pod("restored").await;
    assert_eq!((record(&later)["pod"].as_str().unwrap(), &record(&later)["total"]), (uid_of(&later), &json!(1)));
    assert_eq!(annotation(&later, "pristine/hold"), None);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_copy_for_debugging_is_not_the_marked_pod() {
    let ns = Namespace::new("t-mark-").await;
    let (name, _) = marked(&ns).await;
    let copy =
        ["debug", &name, "--copy-to=copy", "--keep-labels", "--keep-annotations", "--set-image=app=", "--", "sh"];
    let image = format!("--set-image=app={IMAGE}");
    let copy: Vec<&str> =
        copy.iter().map(|word| if *word == "--set-image=app=" { image.as_str() } else { word }).collect();
    ns.run(&copy[..copy.len() - 2]).await;
    let copied = ns.pod("copy").await;
    let of = record(&copied)["pod"].as_str().map(str::to_owned);
    assert_ne!(of.as_deref(), Some(uid_of(&copied)), "a mark of another pod is none");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn the_users_keys_are_for_who_may_extend_under_their_own_name() {
    let ns = Namespace::new("t-mark-").await;
    let (name, _) = marked(&ns).await;
    let pod = format!("pod/{name}");
    ns.run(&["create", "rolebinding", "ed", "--clusterrole=edit", "--user=ed"]).await;
    ns.run(&["create", "role", "patcher", "--verb=get,patch", "--resource=pods,pods/status"]).await;
    ns.run(&["create", "rolebinding", "mallory", "--role=patcher", "--user=mallory"]).await;
    until("the rights", 10, || async {
        let output = ns.attempt(&["auth", "can-i", "patch", "pods", "--as=mallory"]).await;
        output.status.success().then_some(())
    })
    .await;
    let until = "pristine/extend-to=2099-01-01T00:00:00Z";
    let (held, mine) = ("pristine/hold=looking", "pristine/extended-by=ed");
    for (user, keys, allowed) in [
        ("mallory", &[until, "pristine/extended-by=mallory"][..], false),
        ("ed", &[until], false),
        ("ed", &[until, "pristine/extended-by=root"], false),
        ("ed", &[until, mine, "pristine/evict-at=2099-01-01T00:00:00Z"], false),
        ("ed", &[until, mine], true),
        ("ed", &[held], true),
        ("mallory", &["pristine/hold-"], false),
        ("mallory", &["pristine/extended-by=mallory"], false),
        ("ed", &["pristine/hold-"], true),
    ] {
        let account = format!("--as={user}");
        let output = ns.attempt(&[&["annotate", "--overwrite", &account, &pod], keys].concat()).await;
        assert_eq!(output.status.success(), allowed, "{user} {keys:?}: {}", error(&output));
        assert!(allowed || error(&output).contains("pristine"), "{user} {keys:?}: {}", error(&output));
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn whoever_steals_our_token_changes_no_more_of_a_pod_than_its_mark() {
    let ns = Namespace::new("t-mark-").await;
    let (name, _) = marked(&ns).await;
    let pod = format!("pod/{name}");
    let account = "system:serviceaccount:pristine-system:pristine";
    let attempts = [
        r#"{"status":{"podIP":"10.9.9.9","podIPs":[{"ip":"10.9.9.9"}]}}"#,
        r#"{"metadata":{"labels":{"app":null}}}"#,
        r#"{"metadata":{"labels":{"app":"other"}}}"#,
        r#"{"metadata":{"annotations":{"foreign":"x"}}}"#,
        r#"{"metadata":{"finalizers":["example.com/stay"]}}"#,
        r#"{"metadata":{"ownerReferences":[]}}"#,
        r#"{"status":{"phase":"Failed"}}"#,
        r#"{"status":{"reason":"Evicted"}}"#,
        r#"{"status":{"containerStatuses":[]}}"#,
        r#"{"status":{"nominatedNodeName":"x"}}"#,
        r#"{"status":{"conditions":[{"type":"Ready","status":"False"}]}}"#,
        r#"{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}"#,
    ];
    let before = ns.pod(&name).await;
    for patch in attempts {
        for kind in ["strategic-merge", "merge"] {
            let request = http::Request::patch(format!("/api/v1/namespaces/{}/pods/{name}/status", ns.name))
                .header("Impersonate-User", account)
                .header("Content-Type", format!("application/{kind}-patch+json"))
                .body(patch.as_bytes().to_vec())
                .unwrap();
            match ns.client.request::<Pod>(request).await {
                Err(kube::Error::Api(status)) => {
                    // 422: two addresses of one family, which the API server itself does not take.
                    let refused =
                        status.code == 403 && status.message.contains("Pristine writes") || status.code == 422;
                    assert!(refused, "{patch} {kind}: {status:?}");
                }
                // A strategic patch with an empty list changes nothing, and nothing is refused.
                Ok(pod) => {
                    let of = |pod: &Pod| (pod.metadata.owner_references.clone(), pod.metadata.labels.clone());
                    assert_eq!(of(&pod), of(&before), "{patch} {kind}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    let after = ns.pod(&name).await;
    assert_eq!(after.metadata.labels, before.metadata.labels);
    assert_eq!(after.status.unwrap().pod_ips, before.status.unwrap().pod_ips);
    // And not the pod itself, nor one more Secret.
    let output = ns.attempt(&["label", &format!("--as={account}"), &pod, "pristine/interacted-"]).await;
    assert!(error(&output).contains("forbidden"), "{}", error(&output));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_made_up_review_changes_nothing_and_is_counted() {
    let ns = Namespace::new("t-mark-").await;
    let pod = ns.workload("Deployment", 1).await.remove(0);
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "made-up", "operation": "CONNECT", "resource": {"resource": "pods"}, "subResource": "exec",
            "namespace": ns.name, "name": name_of(&pod), "userInfo": {"username": "admin", "groups": ["system:masters"]},
            "object": {"container": "app", "command": ["id"]},
        },
    })
    .to_string();
    let pods: Api<Pod> = Api::namespaced(client().await, SYSTEM);
    let selector = ListParams::default().labels("app.kubernetes.io/component=webhook");
    for replica in pods.list(&selector).await.unwrap() {
        // Those of an earlier rollout drain, and answer or not.
        if replica.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let Some(ip) = replica.status.unwrap().pod_ip else { continue };
        let mut connection = https::connect(format!("{ip}:10250").parse().unwrap(), &[]).await.unwrap();
        for path in ["/", "/review/", "/review/6b03ebd6-00000000000000000000000000000000", "/validate"] {
            assert_eq!(connection.post_to(path, review.as_bytes()).await.unwrap().status, 403, "{path}");
        }
        let counted = run(&[
            "get",
            "--raw",
            &format!("/api/v1/namespaces/{SYSTEM}/pods/{}:8080/proxy/metrics", replica.metadata.name.unwrap()),
        ])
        .await;
        let line =
            counted.lines().find(|line| line.starts_with("pristine_http_requests_rejected_total{reason=\"path\"}"));
        let count: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(count >= 4.0, "{count}");
    }
    assert!(!is_marked(&ns.pod(name_of(&pod)).await));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn the_path_is_told_to_the_api_server_and_to_nobody_who_only_watches_pods() {
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client().await);
    let entries = configurations.get("pristine").await.unwrap().webhooks.unwrap();
    let paths: Vec<_> =
        entries.iter().map(|entry| entry.client_config.service.clone().unwrap().path.unwrap()).collect();
    assert!(paths.iter().all(|path| *path == paths[0] && path.starts_with("/review/")), "{paths:?}");
    for role in ["view", "edit", "admin"] {
        let rules = run(&["get", "clusterrole", role, "-o", "json"]).await;
        assert!(!rules.contains("validatingwebhookconfigurations"), "{role}");
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn an_exec_that_another_webhook_denies_leaves_a_mark_and_no_more() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    // Nobody answers it: the API server denies, after it has asked us in parallel.
    let other = format!(
        "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: {0}}}
webhooks:
- name: deny.example.com
  rules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: [CONNECT], resources: [pods/exec]}}]
  namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {0}}}}}
  clientConfig: {{service: {{name: nobody, namespace: {0}}}}}
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1]
",
        ns.name
    );
    apply(&ns.name, &other).await;
    until("the other webhook in force", 10, || async {
        let output = ns.attempt(&["exec", &name, "--", "true"]).await;
        (!output.status.success()).then_some(())
    })
    .await;
    let denied = ns.attempt(&["exec", &name, "--", "echo", "denied"]).await;
    run(&["delete", "validatingwebhookconfiguration", &ns.name]).await;
    assert!(error(&denied).contains("deny.example.com"), "{}", error(&denied));
    // The mark was written before the other one spoke: the pod goes although nothing ran in it. The docs say so.
    let record = record(&ns.pod(&name).await);
    let commands: Vec<_> =
        record["recent"].as_array().into_iter().flatten().map(|act| act["command"][0].clone()).collect();
    assert!(commands.contains(&json!("echo")), "{record}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn alone_ten_thousand_execs_leave_a_mark_of_bounded_size() {
    const FLOOD: usize = 10_000;
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (client, path) = (ns.client.clone(), format!("/api/v1/namespaces/{}/pods/{name}/exec", ns.name));
        workers.spawn(async move {
            for round in (worker..FLOOD).step_by(8) {
                let uri = format!("{path}?container=app&command=echo&command={round}&stdout=true");
                let request = http::Request::post(uri).body(Vec::new()).unwrap();
                match client.request_text(request).await {
                    // Admitted, and no upgrade to a stream; or too many writers at once, and denied.
                    Err(kube::Error::Api(status)) if status.code == 400 || status.code == 503 => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    let pod = ns.pod(&name).await;
    let text = annotation(&pod, "pristine/interactions").unwrap();
    assert!(text.len() <= 16 * 1024, "{} bytes", text.len());
    let record = record(&pod);
    let total = record["total"].as_u64().unwrap();
    assert!(total > FLOOD as u64 * 9 / 10, "{total} recorded");
    assert_eq!(record["recent"].as_array().unwrap().len(), 10);
    // Still answering, without a restart.
    ns.run(&["exec", &name, "--", "true"]).await;
    let restarts =
        run(&["-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"])
            .await;
    assert!(restarts.split(' ').all(|count| count == "0"), "{restarts}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn no_request_however_large_shows_its_user_the_path() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    for kilobytes in [1, 100, 700, 900] {
        let path = format!("/api/v1/namespaces/{}/pods/{name}/exec?container=app&command=echo&command=", ns.name);
        let uri = format!("{path}{}", "x".repeat(kilobytes * 1000));
        // hyper takes a URI of 64 kB, so curl asks.
        let admin = setting("KUBECONFIG").unwrap();
        let output = tokio::process::Command::new("python3")
            .args(["-c", LARGE_REQUEST, &admin, &uri[..path.len()], &(kilobytes * 1000).to_string()])
            .output()
            .await
            .unwrap();
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(!answer.is_empty(), "{}", error(&output));
        assert!(!answer.contains("/review/"), "{kilobytes} kB: {}", &answer[..answer.len().min(500)]);
    }
    ns.run(&["exec", &name, "--", "true"]).await;
}

/// A request with a URI of any size, over HTTP/1.1.
const LARGE_REQUEST: &str = r"
import base64, http.client, ssl, sys, tempfile, urllib.parse, re
admin = open(sys.argv[1]).read()
field = lambda name: re.search(name + r': (\S+)', admin).group(1)
def file(name):
    found = tempfile.NamedTemporaryFile(delete=False)
    found.write(base64.b64decode(field(name))); found.close()
    return found.name
context = ssl.create_default_context(cafile=file('certificate-CA-data'))
context.load_cert_chain(file('client-certificate-data'), file('client-key-data'))
server = urllib.parse.urlparse(field('server'))
connection = http.client.HTTPSConnection(server.hostname, server.port, context=context)
connection.request('POST', sys.argv[2] + 'x' * int(sys.argv[3]))
answer = connection.getresponse()
print(answer.status, answer.read().decode())
";

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn alone_nodes_proxy_enters_no_container_where_it_is_guarded() {
    let ns = Namespace::new("t-mark-").await;
    let pod = ns.workload("Deployment", 1).await.remove(0);
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/components/nodes-proxy-guard/policy.yaml");
    run(&["apply", "-f", policy]).await;
    let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    let enter = |path: &str| format!("/api/v1/nodes/{node}/proxy{path}/{}/{}/app?cmd=id", ns.name, name_of(&pod));
    until("the policy in force", 10, || async {
        let output = with_stdin(&["create", "--raw", &enter("/run"), "-f", "-"], "").await;
        error(&output).contains("containers unseen").then_some(())
    })
    .await;
    let mut failed = Vec::new();
    for path in ["//run", "/%72un", "/metrics/../run", "/metrics/%2e%2e/run", "/exec", "/metrics/..%2frun"] {
        let output = with_stdin(&["create", "--raw", &enter(path), "-f", "-"], "").await;
        if !error(&output).contains("containers unseen") {
            failed.push(format!("{path}: {}{}", error(&output), String::from_utf8_lossy(&output.stdout)));
        }
    }
    let metrics = run(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/resource")]).await;
    run(&["delete", "-f", policy]).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(metrics.contains("node_cpu_usage_seconds_total"));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
async fn a_debugger_pod_on_a_node_is_recorded_when_somebody_is_attached_and_goes_where_a_rule_says_so() {
    let ns = Namespace::new("t-mark-").await;
    let nodes = run(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await;
    let node = format!("node/{nodes}");
    // An open stdin that is never written to: the shell waits.
    let mut child = kubectl(&["-n", &ns.name, "debug", &node, &format!("--image={IMAGE}"), "-i", "--", "sh"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pod = until("the debugger marked", 60, || async {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap();
        pods.into_iter().find(is_marked)
    })
    .await;
    assert_eq!(record(&pod)["first"]["operation"], "attach");
    let late = ns.evicted(name_of(&pod), uid_of(&pod), deadline(&pod)).await;
    assert!(late < 3.0, "{late}");
    let _ = child.kill().await;
}
