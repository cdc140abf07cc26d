//! The policy of `manifests/static-guard` in API servers that read it from a file: who may weaken Pristine, while a replica
//! renews its certificates with the rights that it has in a cluster.

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use kube::{
    Api, Client, Error,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::{
    common::{SYSTEM, eventually, setting, skip},
    forward::with_kubeconfig,
    replicas::{Replicas, SHORT_LIVES, client, kubeconfig, pid_of, send_signal},
    restarts::{is_running, start_again},
    surge_policies::kubectl,
    virtual_kubelet::acting_as,
};

const PRISTINE: &str = "system:serviceaccount:pristine-system:pristine";
const GROUP: &str = "pristine:policy-admins";
const GUARD: &str = "guard.pristine.static.k8s.io";
const FILE: &str = "manifests/static-guard/policies/pristine.yaml";
const POLICIES: &str = "validatingadmissionpolicies";
const BINDINGS: &str = "validatingadmissionpolicybindings";
const WEBHOOKS: &str = "validatingwebhookconfigurations";

/// The RBAC, the policies and the webhook configuration of install.yaml, without what needs a node.
fn manifest() -> String {
    let text = fs::read_to_string("manifests/install.yaml").unwrap();
    let kinds = [
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    ];
    let is_wanted = |text: &&str| kinds.iter().any(|kind| text.lines().any(|line| line == format!("kind: {kind}")));
    text.split("\n---\n").filter(is_wanted).collect::<Vec<_>>().join("\n---\n")
}

/// The directory from which this API server reads policies.
fn directory(server: usize) -> Option<String> {
    setting(&format!("PRISTINE_STATIC_POLICIES_{server}"))
}

/// Writes the file as a whole: a part of it would be a policy too.
fn write(server: usize, text: &str) {
    let file = format!("{}/pristine.yaml", directory(server).unwrap());
    fs::write(format!("{file}.new"), text).unwrap();
    fs::rename(format!("{file}.new"), file).unwrap();
}

fn remove(server: usize) {
    let _ = fs::remove_file(format!("{}/pristine.yaml", directory(server).unwrap()));
}

/// Ends the guard and removes the policies: the other tests here write marks and webhook configurations themselves.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        for (server, kind) in [(1, BINDINGS), (2, POLICIES)] {
            remove(server);
            // As an administrator: it succeeds as soon as the server has no guard.
            let mut delete = Command::new("kubectl");
            delete.args(["--kubeconfig", &kubeconfig(server), "delete", kind, "-l", "app.kubernetes.io/name=pristine"]);
            for _ in 0..450 {
                if delete.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success() {
                    break;
                }
                sleep(Duration::from_millis(200));
            }
        }
    }
}

fn kind_of(plural: &str) -> &'static str {
    match plural {
        "namespaces" => "Namespace",
        POLICIES => "ValidatingAdmissionPolicy",
        BINDINGS => "ValidatingAdmissionPolicyBinding",
        _ => "ValidatingWebhookConfiguration",
    }
}

/// One kind of objects, as one user at one API server.
fn all(client: &Client, plural: &str) -> Api<DynamicObject> {
    let group = if plural == "namespaces" { "" } else { "admissionregistration.k8s.io" };
    let gvk = GroupVersionKind::gvk(group, "v1", kind_of(plural));
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&gvk, plural))
}

async fn names(client: &Client, plural: &str) -> Vec<String> {
    let found = all(client, plural).list(&ListParams::default()).await.unwrap();
    found.items.into_iter().filter_map(|one| one.metadata.name).filter(|name| name.ends_with(".pristine")).collect()
}

/// One way to weaken Pristine.
enum Attempt {
    Change(Value),
    Delete,
    /// All of the kind that have this name: such a request names no object.
    DeleteCollection,
}

async fn attempt(client: &Client, plural: &str, name: &str, what: &Attempt, dry_run: bool) -> Result<(), Error> {
    let api = all(client, plural);
    let delete = DeleteParams { dry_run, ..DeleteParams::default() };
    match what {
        Attempt::Change(patch) => {
            let params = PatchParams { dry_run, ..PatchParams::default() };
            // Of a webhook configuration, the entry of that name changes.
            let patch = if plural == WEBHOOKS { Patch::Strategic(patch) } else { Patch::Merge(patch) };
            api.patch(name, &params, &patch).await.map(drop)
        }
        Attempt::Delete => api.delete(name, &delete).await.map(drop),
        Attempt::DeleteCollection => {
            let selected = ListParams::default().fields(&format!("metadata.name={name}"));
            api.delete_collection(&delete, &selected).await.map(drop)
        }
    }
}

/// What would weaken Pristine: every policy, every binding, the webhook configuration, the namespace.
async fn attempts(client: &Client) -> Vec<(&'static str, String, Attempt)> {
    let mut all = Vec::new();
    let (policies, bindings) = (names(client, POLICIES).await, names(client, BINDINGS).await);
    assert!(policies.len() >= 4 && policies == bindings, "{policies:?} {bindings:?}");
    for name in &policies {
        for spec in [
            json!({"validations": [{"expression": "true"}], "auditAnnotations": null}),
            json!({"matchConditions": [{"name": "never", "expression": "false"}]}),
            json!({"matchConstraints": {"resourceRules": [{"apiGroups": ["none"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nones"]}]}}),
        ] {
            all.push((POLICIES, name.clone(), Attempt::Change(json!({"spec": spec}))));
        }
        for spec in [
            json!({"validationActions": ["Warn"]}),
            json!({"matchResources": {"namespaceSelector": {"matchLabels": {"none": "none"}}}}),
        ] {
            all.push((BINDINGS, name.clone(), Attempt::Change(json!({"spec": spec}))));
        }
        for kind in [POLICIES, BINDINGS] {
            all.push((kind, name.clone(), Attempt::DeleteCollection));
            all.push((kind, name.clone(), Attempt::Delete));
        }
    }
    let entry = |change: Value| {
        let mut entry = change;
        entry["name"] = json!("exec.pods.pristine");
        Attempt::Change(json!({"webhooks": [entry]}))
    };
    let annotation = |name: &str, value: Value| Attempt::Change(json!({"metadata": {"annotations": {name: value}}}));
    for attempt in [
        entry(json!({"failurePolicy": "Ignore"})),
        entry(json!({"rules": []})),
        entry(json!({"objectSelector": {"matchLabels": {"none": "none"}}})),
        entry(json!({"matchConditions": [{"name": "never", "expression": "false"}]})),
        entry(json!({"clientConfig": {"caBundle": null}})),
        entry(json!({"clientConfig": {"service": {"path": "/x"}}})),
        entry(json!({"$patch": "delete"})),
        annotation("pristine/accepted-deviations", json!("failurePolicy")),
        annotation("pristine/generation", json!("1000000")),
        annotation("pristine/path-renewed-at", Value::Null),
        Attempt::DeleteCollection,
        Attempt::Delete,
    ] {
        all.push((WEBHOOKS, "pristine".to_owned(), attempt));
    }
    all.push(("namespaces", SYSTEM.to_owned(), Attempt::Delete));
    all
}

/// The message of a refusal by this policy.
fn refusal(answer: Result<(), Error>, policy: &str) -> String {
    match answer {
        Err(Error::Api(status)) if status.code == 403 && status.message.contains(policy) => status.message.clone(),
        answer => panic!("{answer:?}"),
    }
}

/// Tries each of them, not only as a dry run unless it cannot be undone here. Returns how many the guard refused.
async fn refused(client: &Client) -> usize {
    let attempts = attempts(client).await;
    for (plural, name, what) in &attempts {
        let answer = attempt(client, plural, name, what, *plural == "namespaces").await;
        let message = refusal(answer, GUARD);
        assert!(message.contains(GROUP) && message.contains("docs/static-guard.md"), "{message}");
    }
    attempts.len()
}

/// A change that the guard refuses, as a dry run.
async fn is_refused(client: &Client) -> Option<()> {
    let what = Attempt::Change(json!({"spec": {"validationActions": ["Warn"]}}));
    attempt(client, BINDINGS, "mark.pods.pristine", &what, true).await.err().map(drop)
}

/// Ends the first API server and starts it again.
async fn restart() {
    let pid = pid_of("kube-apiserver");
    send_signal(pid, "KILL");
    eventually("the end of the API server", 10, async || (!is_running(pid)).then_some(())).await;
    start_again().await;
    assert_ne!(pid_of("kube-apiserver"), pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test rotation"]
async fn with_the_static_guard_only_its_group_can_weaken_policies_bindings_and_the_webhook_configuration() {
    if directory(1).is_none() {
        return skip("API servers read no policies from files before Kubernetes 1.37");
    }
    let _installed = Installed;
    let folder = tempfile::tempdir().unwrap();
    let as_pristine =
        with_kubeconfig(&folder, |text| text.replacen("  user:\n", &format!("  user:\n    as: {PRISTINE}\n"), 1));
    // As an administrator installs it, before the guard.
    kubectl(&["apply", "-f", "-"], &manifest());
    let replicas = Replicas::start_through(vec![as_pristine], SHORT_LIVES).await;
    let [one, two] = [client(1).await, client(2).await];
    is_refused(&one).await.ok_or(()).unwrap_err();

    write(1, &fs::read_to_string(FILE).unwrap());
    write(2, &fs::read_to_string(FILE).unwrap());
    restart().await;
    eventually("the guard in the API server that was not restarted", 90, || is_refused(&two)).await;
    let pristine = acting_as(PRISTINE, &[]).await;
    let webhooks = all(&one, WEBHOOKS);
    let before = webhooks.get("pristine").await.unwrap();

    // Whatever roles a user has.
    let root = acting_as("root", &["system:masters"]).await;
    let mut count = 0;
    for client in [&one, &two, &root] {
        count += refused(client).await;
    }
    println!("TOTALS: {count} attempts to weaken Pristine refused");
    // The owner of an object decides when the garbage collector deletes it, and an administrator decides about the owner.
    let collector = acting_as("system:serviceaccount:kube-system:generic-garbage-collector", &[]).await;
    refusal(attempt(&collector, WEBHOOKS, "pristine", &Attempt::Delete, true).await, GUARD);
    // Pristine's own account: the guard leaves its updates to the policy self.webhooks.pristine.
    refusal(attempt(&pristine, WEBHOOKS, "pristine", &Attempt::Delete, true).await, GUARD);
    let open = json!({"webhooks": [{"name": "exec.pods.pristine", "failurePolicy": "Ignore"}]});
    refusal(attempt(&pristine, WEBHOOKS, "pristine", &Attempt::Change(open), false).await, "self.webhooks.pristine");

    // What weakens nothing passes: the same manifest again, labels, the status that kube-controller-manager writes.
    kubectl(&["apply", "-f", "-"], &manifest());
    kubectl(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &manifest());
    let label = Patch::Merge(json!({"metadata": {"labels": {"team": "a"}, "annotations": {"team": "a"}}}));
    for (plural, name) in [(POLICIES, "mark.pods.pristine"), (BINDINGS, "mark.pods.pristine"), (WEBHOOKS, "pristine")] {
        all(&one, plural).patch(name, &PatchParams::default(), &label).await.unwrap();
    }
    let controller = "system:serviceaccount:kube-system:validatingadmissionpolicy-status-controller";
    let status = json!({"status": {"observedGeneration": 1, "typeChecking": {}}});
    let policies = all(&acting_as(controller, &[]).await, POLICIES);
    policies.patch_status("mark.pods.pristine", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    // And what is not Pristine's is not the guard's.
    let other = json!({"spec": {"validationActions": ["Audit"]}});
    let text = "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: other}, spec: {policyName: other, validationActions: [Deny]}}";
    kubectl(&["apply", "-f", "-"], text);
    attempt(&one, BINDINGS, "other", &Attempt::Change(other), false).await.unwrap();
    attempt(&one, BINDINGS, "other", &Attempt::Delete, false).await.unwrap();

    // The replica renews the path and replaces the CA as before.
    let annotation = |object: &DynamicObject, key: &str| {
        object.metadata.annotations.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default()
    };
    for key in ["pristine/generation", "pristine/path-renewed-at"] {
        eventually(key, 60, async || {
            let now = webhooks.get("pristine").await.unwrap();
            (annotation(&now, key) != annotation(&before, key)).then_some(())
        })
        .await;
    }

    // The group may do all of it. What it deleted, any administrator installs again.
    let member = acting_as("alice", &["system:masters", GROUP]).await;
    for (plural, name, what) in attempts(&member).await {
        let is_dry = plural == "namespaces";
        attempt(&member, plural, &name, &what, is_dry).await.unwrap_or_else(|error| panic!("{plural} {name}: {error}"));
        let is_gone = matches!(what, Attempt::Delete | Attempt::DeleteCollection) && !is_dry;
        assert_eq!(all(&one, plural).get_opt(&name).await.unwrap().is_none(), is_gone, "{plural} {name}");
        if is_gone {
            let (manifest, kind) = (manifest(), format!("kind: {}", kind_of(plural)));
            let has = |text: &str, wanted: &str| text.lines().any(|line| line == wanted);
            let is_it = |text: &&str| has(text, &kind) && has(text, &format!("  name: {name}"));
            kubectl(&["create", "-f", "-"], manifest.split("\n---\n").find(is_it).unwrap());
        }
    }
    replicas.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs two API servers: hack/test rotation"]
async fn an_invalid_file_of_the_static_guard_changes_nothing_and_an_api_server_without_the_file_has_no_guard() {
    if directory(1).is_none() {
        return skip("API servers read no policies from files before Kubernetes 1.37");
    }
    let _installed = Installed;
    kubectl(&["apply", "-f", "-"], &manifest());
    let [one, two] = [client(1).await, client(2).await];
    let shipped = fs::read_to_string(FILE).unwrap();
    write(1, &shipped);
    eventually("the guard", 90, || is_refused(&one)).await;
    is_refused(&two).await.ok_or(()).unwrap_err();

    let failures = async || {
        let metrics = one.request_text(http::Request::get("/metrics").body(Vec::new()).unwrap()).await.unwrap();
        let name = "apiserver_manifest_admission_config_controller_automatic_reloads_total";
        let is_failure = |line: &&str| line.starts_with(name) && line.contains("status=\"failure\"");
        metrics.lines().find(is_failure).and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    for (what, text) in [
        ("no YAML", "{".to_owned()),
        (
            "an expression that does not compile",
            shipped.replace("request.operation != 'DELETE'", "request.operation !="),
        ),
        ("a binding without its policy", shipped.split("\n---\n").nth(1).unwrap().to_owned()),
        ("a name that is not reserved for files", shipped.replace(".static.k8s.io", "")),
    ] {
        let before = failures().await;
        write(1, &text);
        eventually(what, 90, async || (failures().await > before).then_some(())).await;
        is_refused(&one).await.unwrap_or_else(|| panic!("{what}"));
    }
    remove(1);
    eventually("the end of the guard", 90, async || is_refused(&one).await.is_none().then_some(())).await;
}
