//! Constrained impersonation, as attackers and as people on call use it, and what doctor says about both.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, config::AuthInfo, core::Status};
use serde_json::{Value, json};
use serial_test::serial;

use crate::{
    common::{SYSTEM, eventually, skip},
    kubectl::{Namespace, annotation, apply, attempt, is_marked, record, run},
    rules::without_credentials,
    stage::{Stage, shown},
};

const PRISTINE: &str = "system:serviceaccount:pristine-system:pristine";

/// Whether this version of Kubernetes has the feature.
async fn is_known() -> bool {
    let version: Value = serde_json::from_str(&run(&["get", "--raw", "/version"]).await).unwrap();
    let minor: u32 = version["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap();
    minor >= 36
}

/// A token of the ServiceAccount eve, which only these tests know.
async fn eve(ns: &Namespace) -> String {
    ns.run(&["create", "serviceaccount", "eve"]).await;
    ns.run(&["create", "token", "eve"]).await.trim().to_owned()
}

/// Labels web-0 as marked, by its status: the owner of the token impersonates Pristine's account.
async fn forge(token: &str, ns: &Namespace) -> Result<Pod, Box<Status>> {
    let mut config = kube::Config::infer().await.unwrap();
    config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
    let request = http::Request::patch(format!("/api/v1/namespaces/{}/pods/web-0/status", ns.name))
        .header("Impersonate-User", PRISTINE)
        .header("Content-Type", "application/merge-patch+json")
        .body(serde_json::to_vec(&json!({"metadata": {"labels": {"pristine/interacted": "true"}}})).unwrap());
    match Client::try_from(config).unwrap().request(request.unwrap()).await {
        Ok(pod) => Ok(pod),
        Err(kube::Error::Api(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

/// A role with one rule, bound to eve.
fn grant(ns: &str, group: &str, resource: &str, names: &str, verbs: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {ns}}}
rules: [{{apiGroups: [\"{group}\"], resources: [{resource}], resourceNames: [{names}], verbs: [\"{verbs}\"]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {ns}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {ns}}}
subjects: [{{kind: ServiceAccount, name: eve, namespace: {ns}}}]
"
    )
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn constrained_impersonation_forges_a_mark_and_doctor_names_who_can() {
    if !is_known().await {
        return skip("constrained impersonation is off by default before Kubernetes 1.36");
    }
    let stage = Stage::with_pods("t-mark-", 1).await;
    let (ns, name) = (&stage.ns, stage.ns.name.as_str());
    let token = eve(ns).await;
    let identity = grant(name, "authentication.k8s.io", "serviceaccounts", "pristine", "impersonate:serviceaccount");
    apply(SYSTEM, &identity).await;
    let tried = AssertUnwindSafe(async {
        let refused = forge(&token, ns).await.expect_err("one permission of two is not enough");
        assert_eq!(refused.code, 403, "{refused:?}");
        let account = format!("ServiceAccount {name}/eve (");
        assert!(!shown(&stage.pristine("doctor").await).contains(&account));

        apply(name, &grant(name, "", "pods/status", "", "impersonate-on:serviceaccount:patch")).await;
        let forged = eventually("the forged mark", 10, async || forge(&token, ns).await.ok()).await;
        assert!(is_marked(&forged) && annotation(&forged, "pristine/interactions").is_none(), "no interaction");
        let bindings = format!("-n {SYSTEM} rolebinding/{name} with -n {name} rolebinding/{name}");
        let warning = format!("WARNING  impersonate:serviceaccount serviceaccounts: {account}{bindings}) can act as");
        let doctor = shown(&stage.pristine("doctor").await);
        assert!(doctor.contains(&warning), "{warning}\n{doctor}");
    });
    let tried = tried.catch_unwind().await;
    run(&["-n", SYSTEM, "delete", "role,rolebinding", name]).await;
    tried.unwrap();
}

/// The manifest of docs/break-glass.md for this namespace and its ServiceAccounts.
fn documented(namespace: &str) -> String {
    let page = include_str!("../../../docs/break-glass.md");
    let manifest = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let group = format!("name: system:serviceaccounts:{namespace}}}");
    let manifest =
        manifest.replace("name: shop-on-call}", &group).replace("namespace: shop", &format!("namespace: {namespace}"));
    manifest.replace("name: shop-may-break-glass", &format!("name: {namespace}"))
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn the_documented_role_breaks_glass_in_its_namespace_only() {
    if !is_known().await {
        return skip("constrained impersonation is off by default before Kubernetes 1.36");
    }
    let (stage, other) = (Stage::with_pods("t-mark-", 1).await, Stage::with_pods("t-mark-", 1).await);
    let name = stage.ns.name.as_str();
    let token = eve(&stage.ns).await;
    let config = without_credentials().await;
    let cache = tempfile::tempdir().unwrap();
    let flags = [
        format!("--kubeconfig={}", config.path().display()),
        format!("--token={token}"),
        // As on a machine that has not called this API server before: kubectl asks which resources there are.
        format!("--cache-dir={}", cache.path().display()),
        "--as=pristine:break-glass".to_owned(),
        "--as-group=pristine:break-glass".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let exec = async |namespace: &str| {
        attempt(&[&flags[..], &["exec", "-n", namespace, "web-0", "--", "true"]].concat()).await
    };
    apply(name, &documented(name)).await;
    let tried = AssertUnwindSafe(async {
        eventually("break-glass in the namespace", 10, async || exec(name).await.status.success().then_some(())).await;
        assert_eq!(record(&stage.ns.pod("web-0").await)["first"]["user"]["name"], "pristine:break-glass");
        let elsewhere = shown(&exec(&other.ns.name).await);
        assert!(elsewhere.contains("forbidden") && !is_marked(&other.ns.pod("web-0").await), "{elsewhere}");
        let list = attempt(&[&flags[..], &["get", "secrets", "-n", name]].concat()).await;
        assert!(!list.status.success(), "nothing but what the role names");
        let doctor = shown(&stage.pristine("doctor").await);
        let group =
            format!("impersonate:user-info groups: Group system:serviceaccounts:{name} (clusterrolebinding/{name}");
        assert!(doctor.contains(&group), "{doctor}");
    });
    let tried = tried.catch_unwind().await;
    run(&["delete", "clusterrole,clusterrolebinding", name]).await;
    tried.unwrap();
}
