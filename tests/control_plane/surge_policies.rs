//! What an attacker with Pristine's own token can do to the labels of a pod with the component `surge`, and what the
//! ReplicaSet controller can: every attempt on a real API server, as the account itself.

use std::{path::Path, process::Command};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    config::KubeConfigOptions,
};
use serde_json::{Value, json};

use crate::{
    common::{SYSTEM, eventually, setting},
    leadership::namespace,
    replicas::client,
};

const CONTROLLER: &str = "system:serviceaccount:kube-system:replicaset-controller";

/// Runs kubectl with this input, and gives what it printed.
pub fn kubectl(arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let kubeconfig = setting("PRISTINE_KUBECONFIG_1").unwrap();
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig", &kubeconfig]).args(arguments);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "kubectl {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The RBAC and the policies of manifests/base with the component, without all that needs replicas.
fn install() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir_in(root.join("target")).unwrap();
    let text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../manifests/base]\ncomponents: [../../manifests/components/surge]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), text).unwrap();
    let rendered = kubectl(&["kustomize", folder.path().to_str().unwrap()], "");
    let kinds = ["ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    let is_wanted = |text: &&str| kinds.iter().any(|kind| text.lines().any(|line| line == format!("kind: {kind}")));
    let wanted: Vec<_> = rendered.split("\n---\n").filter(is_wanted).collect();
    assert!(wanted.iter().any(|text| text.contains("name: surge.pods.pristine")), "{rendered}");
    kubectl(&["apply", "-f", "-"], &wanted.join("\n---\n"));
}

/// Removes the policies: the other tests here write marks themselves.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        let names = [
            "mark.pods.pristine",
            "self.pods.pristine",
            "self.webhooks.pristine",
            "audit.pods.pristine",
            "surge.pods.pristine",
        ];
        for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
            kubectl(&[&["delete", kind, "--ignore-not-found"], &names[..]].concat(), "");
        }
    }
}

/// A client that says it is this user, with the user's groups. Its rights are the user's.
async fn as_user(user: &str) -> Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(setting("PRISTINE_KUBECONFIG_1").unwrap()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info.impersonate = Some(user.to_owned());
    Client::try_from(config).unwrap()
}

/// A pod of a ReplicaSet that does not exist: there is no garbage collector here.
async fn pod(admin: &Client, namespace: &str, name: &str, labels: Value, annotations: Value) {
    let pods: Api<Pod> = Api::namespaced(admin.clone(), namespace);
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true});
    let pod = json!({
        "metadata": {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": [owner]},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "app", "image": "none"}]},
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

/// A PATCH of `pods/status`; the code and the message if it is refused.
async fn patch(client: &Client, namespace: &str, name: &str, patch: &Value) -> Result<(), (u16, String)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
        Err(error) => panic!("{error}"),
    }
}

fn metadata(labels: Value, annotations: Value) -> Value {
    json!({"metadata": {"labels": labels, "annotations": annotations}})
}

#[tokio::test]
#[ignore = "needs two API servers: hack/test rotation"]
async fn a_stolen_token_can_take_the_hash_off_only_with_its_value_written_down_and_only_put_that_back() {
    let admin = client(1).await;
    install();
    let _installed = Installed;
    let ns = namespace(&admin).await;
    let ours = as_user(&format!("system:serviceaccount:{SYSTEM}:pristine")).await;
    let hash = "pod-template-hash";
    let full = json!({"app": "web", hash: "h", "pristine/interacted": "true"});
    pod(&admin, &ns, "marked", full.clone(), json!({})).await;
    pod(&admin, &ns, "unmarked", json!({"app": "web", hash: "h"}), json!({})).await;
    pod(&admin, &ns, "mirror", full, json!({"kubernetes.io/config.mirror": "x"})).await;
    let begin = metadata(
        json!({hash: null, "pristine/surge": "true"}),
        json!({"pristine/surge-hash": "h", "pristine/surge": "{}"}),
    );
    // The policies are in force a moment after they were applied. Another value each time: what changes nothing passes.
    pod(&admin, &ns, "probe", json!({"app": "web"}), json!({})).await;
    eventually("the policies", 30, || async {
        let attempt = metadata(json!({"app": rand::random::<u32>().to_string()}), json!({}));
        patch(&ours, &ns, "probe", &attempt).await.err().filter(|(code, _)| *code == 403)
    })
    .await;

    let refused = async |name: &str, attempt: &Value| {
        let answer = patch(&ours, &ns, name, attempt).await;
        assert!(
            matches!(&answer, Err((403, text)) if text.contains("self.pods.pristine")),
            "{name} {attempt}: {answer:?}"
        );
    };
    refused("unmarked", &begin).await;
    refused("mirror", &begin).await;
    for attempt in [
        metadata(json!({hash: "other"}), json!({})),
        metadata(json!({hash: null}), json!({})),
        metadata(json!({hash: null, "pristine/surge": "true"}), json!({})),
        metadata(json!({hash: null, "pristine/surge": "true"}), json!({"pristine/surge-hash": "other"})),
        metadata(json!({hash: null}), json!({"pristine/surge-hash": "h"})),
        metadata(json!({}), json!({"pristine/surge-hash": "h"})),
        metadata(json!({hash: null, "app": null, "pristine/surge": "true"}), json!({"pristine/surge-hash": "h"})),
        metadata(json!({hash: null, "app": "x", "pristine/surge": "true"}), json!({"pristine/surge-hash": "h"})),
        metadata(json!({}), json!({hash: "h"})),
    ] {
        refused("marked", &attempt).await;
    }
    patch(&ours, &ns, "marked", &begin).await.unwrap();
    for attempt in [
        metadata(json!({hash: "other", "pristine/surge": null}), json!({"pristine/surge-hash": null})),
        metadata(json!({hash: "h"}), json!({})),
        metadata(json!({}), json!({"pristine/surge-hash": null})),
        metadata(json!({}), json!({"pristine/surge-hash": "other"})),
        metadata(json!({hash: "h", "app": null}), json!({"pristine/surge-hash": null})),
    ] {
        refused("marked", &attempt).await;
    }
    // What Pristine writes on every marked pod still passes.
    patch(&ours, &ns, "marked", &metadata(json!({}), json!({"pristine/status": "{}"}))).await.unwrap();

    // The ReplicaSet controller releases no pod in a surge, and any other pod.
    let release = json!({"metadata": {"ownerReferences": null}});
    let controller = as_user(CONTROLLER).await;
    let pods: Api<Pod> = Api::namespaced(controller, &ns);
    let released = async |name: &str| pods.patch(name, &PatchParams::default(), &Patch::Merge(&release)).await;
    let answer = released("marked").await.unwrap_err();
    assert!(
        matches!(&answer, kube::Error::Api(status) if status.code == 422 && status.reason == "Invalid"),
        "{answer:?}"
    );
    assert!(released("unmarked").await.is_ok());

    // Others change none of the keys.
    for attempt in [
        metadata(json!({"pristine/surge": null}), json!({})),
        metadata(json!({}), json!({"pristine/surge-hash": null})),
        metadata(json!({}), json!({"pristine/surge": "x"})),
    ] {
        let answer = patch(&admin, &ns, "marked", &attempt).await;
        assert!(matches!(&answer, Err((403, text)) if text.contains("mark.pods.pristine")), "{attempt}: {answer:?}");
    }

    let end = metadata(json!({hash: "h", "pristine/surge": null}), json!({"pristine/surge-hash": null}));
    patch(&ours, &ns, "marked", &end).await.unwrap();
    assert!(released("marked").await.is_ok(), "it is in no surge any more");
}
