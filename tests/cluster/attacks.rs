//! What gets past Pristine, who can forge a mark, and who can wipe one: each attempt, on a real cluster, fails.

use std::{
    net::SocketAddr,
    process::{Output, Stdio},
};

use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Pod};
use kube::{Api, api::ListParams};
use serde_json::json;
use serial_test::{parallel, serial};
use tokio::io::AsyncWriteExt as _;

use crate::{
    common::{SYSTEM, eventually, https, name_of, setting},
    kubectl::{IMAGE, Namespace, annotation, apply, client, deadline, is_marked, kubectl, record, run, uid_of},
};

mod marks;
mod webhooks;

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn with_stdin(arguments: &[&str], text: &str) -> Output {
    let mut child = kubectl(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    child.wait_with_output().await.unwrap()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_forged_review_is_rejected_and_counted() {
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
        for path in ["/", "/review/", "/review/6b03ebd6-00000000000000000000000000000000", "/validate"] {
            let mut connection = https::connect(SocketAddr::new(ip.parse().unwrap(), 10250), &[]).await.unwrap();
            // As to an API server that was told of a new path before this replica: send it again.
            assert_eq!(connection.post_to(path, review.as_bytes()).await.unwrap().status, 503, "{path}");
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
#[parallel]
async fn the_default_roles_cannot_read_the_secret_url_path() {
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
#[parallel]
async fn an_exec_that_another_webhook_denies_leaves_a_mark() {
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
    eventually("the other webhook in force", 10, || async {
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
#[serial]
async fn ten_thousand_execs_leave_a_mark_of_bounded_size() {
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
#[parallel]
async fn the_error_of_a_large_request_does_not_contain_the_secret_url_path() {
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
context = ssl.create_default_context(cafile=file('certificate-authority-data'))
context.load_cert_chain(file('client-certificate-data'), file('client-key-data'))
server = urllib.parse.urlparse(field('server'))
connection = http.client.HTTPSConnection(server.hostname, server.port, context=context)
connection.request('POST', sys.argv[2] + 'x' * int(sys.argv[3]))
answer = connection.getresponse()
print(answer.status, answer.read().decode())
";

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn nodes_proxy_cannot_exec_with_the_nodes_proxy_guard() {
    let ns = Namespace::new("t-mark-").await;
    let pod = ns.workload("Deployment", 1).await.remove(0);
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/components/nodes-proxy-guard/policy.yaml");
    run(&["apply", "-f", policy]).await;
    let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
    let enter = |path: &str| format!("/api/v1/nodes/{node}/proxy{path}/{}/{}/app?cmd=id", ns.name, name_of(&pod));
    eventually("the policy in force", 10, || async {
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
#[parallel]
async fn a_node_debugger_pod_is_marked_on_attach_and_evicted_by_its_rule() {
    let ns = Namespace::new("t-mark-").await;
    let nodes = run(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await;
    let node = format!("node/{nodes}");
    // An open stdin that is never written to: the shell waits.
    let mut child = kubectl(&["-n", &ns.name, "debug", &node, &format!("--image={IMAGE}"), "-i", "--", "sh"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pod = eventually("the debugger marked", 60, || async {
        let pods = ns.pods().list(&ListParams::default()).await.unwrap();
        pods.into_iter().find(is_marked)
    })
    .await;
    assert_eq!(record(&pod)["first"]["operation"], "attach");
    let late = ns.evicted(name_of(&pod), uid_of(&pod), deadline(&pod)).await;
    assert!(late < 3.0, "{late}");
    let _ = child.kill().await;
}
