//! Who can forge a mark, and who can wipe one.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{error, with_stdin};
use serial_test::parallel;

use crate::{
    common::{eventually, name_of},
    kubectl::{IMAGE, Namespace, annotation, apply, is_marked, record, run, uid_of},
};

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

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn not_even_an_administrator_can_edit_or_remove_a_mark() {
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
#[parallel]
async fn a_binding_cannot_add_a_mark() {
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
#[parallel]
async fn a_pod_created_with_our_annotations_is_not_marked() {
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
#[parallel]
async fn a_debug_copy_of_a_marked_pod_is_not_marked() {
    let ns = Namespace::new("t-mark-").await;
    let (name, _) = marked(&ns).await;
    let image = format!("--set-image=app={IMAGE}");
    let mut copy = vec!["debug", &name, "--copy-to=copy", &image];
    // kubectl before 1.31 has no such flags, and keeps the annotations.
    if run(&["debug", "--help"]).await.contains("--keep-annotations") {
        copy.extend(["--keep-labels", "--keep-annotations"]);
    }
    ns.run(&copy).await;
    let copied = ns.pod("copy").await;
    let of = record(&copied)["pod"].as_str().map(str::to_owned);
    assert_ne!(of.as_deref(), Some(uid_of(&copied)), "a mark of another pod is none");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn extension_annotations_need_the_extend_permission_and_the_users_own_name() {
    let ns = Namespace::new("t-mark-").await;
    let (name, _) = marked(&ns).await;
    let pod = format!("pod/{name}");
    ns.run(&["create", "rolebinding", "ed", "--clusterrole=edit", "--user=ed"]).await;
    ns.run(&["create", "role", "patcher", "--verb=get,patch", "--resource=pods,pods/status"]).await;
    ns.run(&["create", "rolebinding", "mallory", "--role=patcher", "--user=mallory"]).await;
    eventually("the rights", 10, || async {
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
#[parallel]
async fn a_stolen_service_account_token_can_change_only_the_mark() {
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
