//! A virtual kubelet writes the whole status of a marked pod. The policies of `manifests/base`, on a real API server.

use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use pristine::mark::{Disposition, Interaction, Mark, Operation, User, status::condition};
use serde_json::{Value, json};

use crate::{
    common::{eventually, now},
    replicas,
};

const NAMESPACE: &str = "virtual-kubelet";
const NODE: &str = "virtual-node";
const PRISTINE: &str = "system:serviceaccount:pristine-system:pristine";

pub async fn acting_as(user: &str, groups: &[&str]) -> Client {
    let mut config = replicas::config(1).await;
    config.auth_info.impersonate = Some(user.to_owned());
    config.auth_info.impersonate_groups = Some(groups.iter().map(|group| (*group).to_owned()).collect());
    Client::try_from(config).unwrap()
}

async fn put(client: &Client, value: Value) {
    let gvk: Vec<&str> = value["apiVersion"].as_str().unwrap().rsplitn(2, '/').collect();
    let gvk = GroupVersionKind::gvk(gvk.get(1).unwrap_or(&""), gvk[0], value["kind"].as_str().unwrap());
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk));
    let name = value["metadata"]["name"].as_str().unwrap().to_owned();
    let params = PatchParams::apply("test").force();
    api.patch(&name, &params, &Patch::Apply(value)).await.unwrap();
}

/// The policy of `mark-guard.yaml`, bound to the namespace of this test alone: the other tests have no ServiceAccount of
/// Pristine.
async fn guard(client: &Client) {
    let text = std::fs::read_to_string("manifests/base/mark-guard.yaml").unwrap();
    let policy = text.split("\n---\n").next().unwrap();
    put(client, serde_saphyr::from_str(policy).unwrap()).await;
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}});
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "virtual-kubelet-test"},
        "spec": {
            "policyName": "mark.pods.pristine", "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": selector},
        },
    });
    put(client, binding).await;
}

/// A pod on the node, marked by Pristine.
async fn marked(client: &Client) -> Pod {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    let _ = namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    for name in ["default", "virtual-kubelet", "stranger"] {
        let account = json!({"metadata": {"name": name}});
        let _ = accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let _ = pods.delete("p", &DeleteParams::default().grace_period(0)).await;
    let spec = json!({"nodeName": NODE, "containers": [{"name": "app", "image": "none"}]});
    let pod = json!({"metadata": {"name": "p"}, "spec": spec});
    let pod = eventually("the pod", 10, async || {
        pods.create(&PostParams::default(), &serde_json::from_value(pod.clone()).unwrap()).await.ok()
    })
    .await;
    let interaction = Interaction {
        at: now(),
        operation: Operation::Exec,
        container: "app".into(),
        command: vec![],
        stdin: false,
        tty: false,
        user: User { name: "alice".into(), ..User::default() },
        review: "r".into(),
        rule: "r".into(),
    };
    let uid = pod.metadata.uid.clone().unwrap();
    let mark = Mark::after(None, &uid, interaction, Disposition::Evict(std::time::Duration::from_secs(600))).unwrap();
    let patch = Patch::Strategic(mark.patch(pod.metadata.resource_version.as_deref().unwrap(), true));
    let pristine: Api<Pod> = Api::namespaced(acting_as(PRISTINE, &["system:masters"]).await, NAMESPACE);
    pristine.patch_status("p", &PatchParams::default(), &patch).await.unwrap()
}

/// Writes the status as a virtual kubelet does: the whole object, without a version, with its provider's status.
async fn write(client: Client, pod: &Pod, change: impl Fn(&mut Value)) -> Result<Pod, String> {
    let mut copy = serde_json::to_value(pod).unwrap();
    copy["metadata"]["resourceVersion"] = json!("0");
    copy["metadata"].as_object_mut().unwrap().remove("managedFields");
    copy["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    change(&mut copy);
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let copy: Pod = serde_json::from_value(copy).unwrap();
    pods.replace_status("p", &PostParams::default(), &copy).await.map_err(|error| error.to_string())
}

#[tokio::test]
#[ignore = "needs two API servers: hack/test"]
async fn a_virtual_kubelet_writes_the_status_of_its_marked_pods_and_cannot_change_the_mark() {
    let admin = replicas::client(1).await;
    guard(&admin).await;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "virtual-kubelet-test"},
        "rules": [
            {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["update"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["update"], "resourceNames": [NODE]},
        ],
    });
    let other = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "stranger-test"},
        "rules": [{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["update"]}],
    });
    for (role, account) in [(role, "virtual-kubelet"), (other, "stranger")] {
        let name = role["metadata"]["name"].clone();
        put(&admin, role).await;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        });
        put(&admin, binding).await;
    }
    let node = acting_as(&format!("system:node:{NODE}"), &["system:nodes", "system:authenticated"]).await;
    let account = async |name: &str| {
        acting_as(&format!("system:serviceaccount:{NAMESPACE}:{name}"), &["system:authenticated"]).await
    };
    let keep = |_: &mut Value| ();
    let [unlabelled, earlier, forged]: [fn(&mut Value); 3] = [
        |copy| drop(copy["metadata"]["labels"].as_object_mut().unwrap().remove("pristine/interacted")),
        |copy| copy["metadata"]["annotations"]["pristine/evict-at"] = json!("2099-01-01T00:00:00Z"),
        |copy| copy["status"]["conditions"] = json!([{"type": "pristine/Pristine", "status": "True"}]),
    ];
    // The policy and the roles take a moment to be in force.
    eventually("the policy", 20, async || {
        let pod = marked(&admin).await;
        write(admin.clone(), &pod, keep).await.err().filter(|why| why.contains("Pristine alone"))
    })
    .await;
    for client in [node.clone(), account("virtual-kubelet").await] {
        let pod = marked(&admin).await;
        for change in [unlabelled, earlier, forged] {
            let why = write(client.clone(), &pod, change).await.unwrap_err();
            assert!(why.contains("Pristine alone"), "{why}");
        }
        let written = write(client, &pod, keep).await.unwrap();
        assert!(condition(&written, "pristine/Pristine").is_none() && condition(&written, "Ready").is_some());
        assert_eq!(written.metadata.annotations, pod.metadata.annotations);
        assert_eq!(written.metadata.labels, pod.metadata.labels);
    }
    let another = acting_as("system:node:another", &["system:masters"]).await;
    let pod = marked(&admin).await;
    for client in [account("stranger").await, another, admin.clone()] {
        let why = write(client, &pod, keep).await.unwrap_err();
        assert!(why.contains("Pristine alone"), "{why}");
    }
}
