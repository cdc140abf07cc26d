//! The whole of it on a real cluster with a real node: install.yaml as shipped, stock kubectl, real evictions.

use std::{process::Stdio, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    apps::v1::Deployment,
    core::v1::{Event, Pod, Secret},
};
use kube::{Api, api::ListParams};
use serial_test::parallel;
use tokio::io::AsyncReadExt as _;

use crate::{
    common::{SYSTEM, eventually, name_of, now},
    kubectl::{
        IMAGE, Namespace, acts, annotation, apply, attempt, client, deadline, is_marked, kubectl, record, run, uid_of,
    },
};

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn one_apply_installs_two_ready_replicas_that_the_api_server_trusts() {
    let client = client().await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM);
    let status = deployments.get("pristine").await.unwrap().status.unwrap();
    assert_eq!(status.ready_replicas, Some(2));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
    let secret = secrets.get("pristine-ca").await.unwrap().data.unwrap();
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let entries = configurations.get("pristine").await.unwrap().webhooks.unwrap();
    assert_eq!(entries.len(), 4);
    for entry in entries {
        assert_eq!(entry.client_config.ca_bundle.as_ref(), Some(&secret["active.crt"]), "{}", entry.name);
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_service_account_has_no_more_permissions_than_it_needs() {
    let account = "--as=system:serviceaccount:pristine-system:pristine";
    for (arguments, expected) in [
        (&["patch", "pods", "--subresource=status"][..], "yes"),
        (&["create", "pods", "--subresource=eviction"], "yes"),
        (&["get", "namespaces/default"], "yes"),
        (&["list", "namespaces"], "no"),
        (&["patch", "namespaces/default"], "no"),
        (&["patch", "pods"], "no"),
        (&["delete", "pods"], "no"),
        (&["get", "secrets"], "no"),
        (&["get", "secrets/other", "-n", SYSTEM], "no"),
        (&["get", "secrets/pristine-ca", "-n", SYSTEM], "yes"),
        (&["patch", "configmaps/pristine-loops", "-n", SYSTEM], "yes"),
        (&["patch", "configmaps/pristine-suspend", "-n", SYSTEM], "no"),
        (&["patch", "validatingwebhookconfigurations/other"], "no"),
    ] {
        let output = attempt(&[&["auth", "can-i", account], arguments].concat()).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{arguments:?}");
    }
}

/// Starts kubectl and reads the pod when the first byte of its output is there.
async fn pod_at_first_output(ns: &Namespace, pod: &str, arguments: &[&str]) -> Pod {
    // An open stdin: with an empty one, `kubectl debug -i` ends before the first output.
    let mut child = kubectl(&[&["-n", &ns.name], arguments].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    let mut out = child.stdout.take().unwrap();
    let read = tokio::time::timeout(Duration::from_secs(30), out.read(&mut byte)).await.expect("some output").unwrap();
    let found = ns.pod(pod).await;
    if read == 0 {
        let error = child.wait_with_output().await.unwrap();
        panic!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&error.stderr));
    }
    found
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn exec_attach_cp_and_debug_mark_the_pod_before_their_first_output() {
    let ns = Namespace::new("t-mark-").await;
    let pods = ns.workload("Deployment", 1).await;
    let name = name_of(&pods[0]);
    assert!(!is_marked(&pods[0]));

    let pod = pod_at_first_output(&ns, name, &["exec", name, "--", "echo", "one"]).await;
    assert!(is_marked(&pod));
    assert_eq!(acts(&pod), ["exec echo one"]);
    assert_eq!(record(&pod)["pod"], uid_of(&pod));

    let pod = pod_at_first_output(&ns, name, &["attach", name]).await;
    assert_eq!(acts(&pod), ["exec echo one", "attach"]);

    ns.run(&["cp", "/etc/hostname", &format!("{name}:/tmp/hostname")]).await;
    let copied = acts(&ns.pod(name).await);
    assert_eq!(copied[2..], ["exec test -d /tmp/hostname", "exec tar -xmf - -C /tmp"]);

    let image = format!("--image={IMAGE}");
    let arguments =
        ["debug", name, &image, "--container=d", "-i", "--", "sh", "-c", "while :; do echo x; sleep 0.2; done"];
    let pod = pod_at_first_output(&ns, name, &arguments).await;
    let all = acts(&pod);
    assert!(all[4].starts_with("debug sh -c while"), "{all:?}");
    assert_eq!(all[5..], ["attach"], "kubectl debug attaches to what it added");
    assert_eq!(record(&pod)["total"], 6);

    // What the operator sees.
    let described = ns.run(&["describe", "pod", name]).await;
    for text in ["pristine/interacted=true", "pristine/evict-at:", "pristine/Pristine", "PodInteraction"] {
        assert!(described.contains(text), "no {text} in {described}");
    }
    ns.run(&["wait", "--for=condition=pristine/Pristine=false", "--timeout=1s", "pod", name]).await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_pod_is_evicted_within_two_seconds_of_its_deadline_and_its_replacement_is_ready() {
    let ns = Namespace::new("t-fast-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&["exec", &name, "--", "true"]).await;
    let pod = ns.pod(&name).await;
    let (uid, deadline) = (uid_of(&pod).to_owned(), deadline(&pod));
    let late = ns.evicted(&name, &uid, deadline).await;
    assert!((0.0..2.0).contains(&late), "evicted {late} s after the deadline");
    let replacement = ns.ready(1).await.remove(0);
    assert_ne!(uid_of(&replacement), uid);
    assert!(!is_marked(&replacement));
    let events: Api<Event> = Api::namespaced(ns.client.clone(), &ns.name);
    eventually("the event", 5, || async {
        let all = events.list(&ListParams::default()).await.unwrap();
        all.into_iter().find(|event| event.reason.as_deref() == Some("PodEvicted"))
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_successor_created_long_after_the_last_exec_is_not_marked() {
    // 50 s, because within 35 s the mark is handed over: see the next test.
    let ns = Namespace::new("t-late-").await;
    ns.workload("StatefulSet", 1).await;
    ns.run(&["exec", "web-0", "--", "true"]).await;
    let marked = ns.pod("web-0").await;
    let deadline = deadline(&marked);
    tokio::time::sleep(Duration::from_secs(36)).await;
    ns.run(&["delete", "pod", "web-0", "--grace-period=1"]).await;
    let successor = ns.ready(1).await.remove(0);
    assert_ne!(uid_of(&successor), uid_of(&marked));
    assert!(now() < deadline, "replaced before the deadline");
    let wait = u64::try_from(deadline.duration_since(now()).as_secs() + 4).unwrap();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let later = ns.pod("web-0").await;
    assert_eq!(uid_of(&later), uid_of(&successor));
    assert_eq!((later.metadata.deletion_timestamp.is_some(), is_marked(&later)), (false, false));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_successor_created_soon_after_an_exec_gets_the_mark() {
    let ns = Namespace::new("t-late-").await;
    ns.workload("StatefulSet", 1).await;
    ns.run(&["exec", "web-0", "--", "true"]).await;
    let marked = ns.pod("web-0").await;
    ns.run(&["delete", "pod", "web-0", "--grace-period=1"]).await;
    let heir = eventually("the successor marked", 20, || async {
        ns.pods().get_opt("web-0").await.unwrap().filter(|pod| uid_of(pod) != uid_of(&marked) && is_marked(pod))
    })
    .await;
    assert_eq!(record(&heir)["first"], record(&marked)["first"]);
    assert_eq!((record(&heir)["pod"].as_str(), deadline(&heir)), (Some(uid_of(&heir)), deadline(&marked)));
    // Evicted at the deadline, and its own successor is nobody's.
    ns.evicted("web-0", uid_of(&heir), deadline(&heir)).await;
    let last = eventually("another", 30, || async {
        ns.pods().get_opt("web-0").await.unwrap().filter(|pod| uid_of(pod) != uid_of(&heir))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let last = ns.pod(name_of(&last)).await;
    assert!(!is_marked(&last));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn any_user_name_that_the_api_server_accepts_is_recorded() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let arn = format!(
        "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_PlatformEngineers/{}@example.com",
        "very-long-session".repeat(4)
    );
    let names = [
        "alice@example.com",
        &arn,
        "o'neil \"the\" \\ admin",
        "zoë 😀",
        "oidc:https://issuer.example.com/#42",
        &"x".repeat(1024),
    ];
    for (n, user) in names.iter().enumerate() {
        // system:masters, because these users are in no binding.
        ns.run(&["exec", &format!("--as={user}"), "--as-group=system:masters", &name, "--", "echo", &n.to_string()])
            .await;
        let record = record(&ns.pod(&name).await);
        let last = record["recent"].as_array().and_then(|recent| recent.last()).unwrap_or_else(|| &record["first"]);
        assert_eq!(last["user"]["name"], **user);
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_exec_that_the_api_server_would_reject_gets_its_message_and_no_mark() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let exec = async |path: String| {
        let request = http::Request::post(path).body(Vec::new()).unwrap();
        match ns.client.request_text(request).await {
            Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
            other => panic!("{other:?}"),
        }
    };
    let by = "admission webhook \"exec.pods.pristine\" denied the request: ";
    let path = format!("/api/v1/namespaces/{}/pods", ns.name);
    let absent = exec(format!("{path}/absent/exec?command=id")).await;
    assert_eq!(absent, (404, format!("{by}pods \"absent\" not found")));
    let container = exec(format!("{path}/{name}/exec?command=id&container=nosuch")).await;
    assert_eq!(container, (400, format!("{by}container nosuch is not valid for pod {name}")));
    assert!(!is_marked(&ns.pod(&name).await));

    // Admitted without a container's name; refused afterwards only because this is no upgrade to a stream.
    let admitted = exec(format!("{path}/{name}/exec?command=id&stdout=true")).await;
    assert_eq!(admitted.0, 400);
    assert_eq!(record(&ns.pod(&name).await)["first"]["container"], "app");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_user_who_may_only_get_pods_exec_is_denied_and_the_pod_is_not_marked() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    ns.run(&["create", "role", "reader", "--verb=get", "--resource=pods,pods/exec"]).await;
    ns.run(&["create", "rolebinding", "reader", "--role=reader", "--user=reader"]).await;
    let output = ns.attempt(&["exec", "--as=reader", &name, "--", "id"]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.to_lowercase().contains("forbidden"), "{error}");

    // The kubectl of 1.30 sends a POST, for which every API server asks for create. A GET, as over WebSocket, reaches
    // admission.
    let path = format!("/api/v1/namespaces/{}/pods/{name}/exec?command=id&stdout=true", ns.name);
    let output = ns.attempt(&["get", "--as=reader", "--raw", &path]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    let ours = "admission webhook \"exec.pods.pristine\" denied the request: pods ";
    assert!(error.contains(ours) && error.contains("User \"reader\" cannot create resource \"pods/exec\""), "{error}");
    assert!(!is_marked(&ns.pod(&name).await));
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_bare_pod_is_only_recorded_by_the_default_rule() {
    let ns = Namespace::new("t-mark-").await;
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: bare}}\nspec: {{containers: [{{name: app, image: {IMAGE}}}]}}\n"
    );
    apply(&ns.name, &pod).await;
    ns.ready(1).await;
    ns.run(&["exec", "bare", "--", "true"]).await;
    let pod = ns.pod("bare").await;
    assert!(is_marked(&pod));
    assert_eq!(annotation(&pod, "pristine/evict-at"), None);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn an_exec_in_kube_system_is_only_recorded() {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pristine-test}}\nspec: {{containers: [{{name: app, image: {IMAGE}}}]}}\n"
    );
    apply("kube-system", &pod).await;
    run(&["wait", "-n", "kube-system", "--for=condition=Ready", "--timeout=60s", "pod/pristine-test"]).await;
    run(&["exec", "-n", "kube-system", "pristine-test", "--", "true"]).await;
    let pods: Api<Pod> = Api::namespaced(client().await, "kube-system");
    let pod = pods.get("pristine-test").await.unwrap();
    run(&["delete", "pod", "-n", "kube-system", "pristine-test", "--wait=false"]).await;
    assert_eq!(record(&pod)["first"]["rule"], "kube-system");
    assert_eq!(annotation(&pod, "pristine/evict-at"), None);
}
