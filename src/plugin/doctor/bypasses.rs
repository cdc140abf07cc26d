//! What `kubectl pristine doctor` says about RBAC: who can bypass Pristine or disable it, and who loses exec with it.

use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{Api, api::ListParams};

use super::{
    Finding::{self, Fine, Warning},
    unknown, version,
};
use crate::plugin::{
    bypass::{
        PERMISSIONS, Permission,
        impersonation::IMPERSONATIONS,
        rbac::{Holder, Rbac},
    },
    connection::Connection,
    output::Failure,
};

/// The policy of the component manifests/components/nodes-proxy-guard.
const NODES_PROXY: &str = "nodes-proxy.pristine";

/// The findings, each with its subject. `minor` is the version of Kubernetes 1.x.
pub(super) async fn bypasses(connection: &Connection, minor: Option<u32>) -> Vec<(String, Finding)> {
    let rbac = match rbac(connection).await {
        Ok(rbac) => rbac,
        Err(failure) => return vec![("RBAC".to_owned(), unknown(&failure))],
    };
    let api: Api<ValidatingAdmissionPolicyBinding> = Api::all(connection.client.clone());
    let guard = connection.call("get validatingadmissionpolicybindings", api.get_opt(NODES_PROXY)).await;
    judge(&rbac, guard.is_ok_and(|found| found.is_some()), minor)
}

async fn rbac(connection: &Connection) -> Result<Rbac, Failure> {
    let (client, all) = (|| connection.client.clone(), ListParams::default());
    Ok(Rbac {
        ours: connection.pristine.clone(),
        cluster_roles: connection.call("list clusterroles", Api::<ClusterRole>::all(client()).list(&all)).await?.items,
        cluster_role_bindings: connection
            .call("list clusterrolebindings", Api::<ClusterRoleBinding>::all(client()).list(&all))
            .await?
            .items,
        roles: connection.call("list roles", Api::<Role>::all(client()).list(&all)).await?.items,
        role_bindings: connection.call("list rolebindings", Api::<RoleBinding>::all(client()).list(&all)).await?.items,
    })
}

/// One finding for each permission that has holders, and one for the cluster admins.
fn judge(rbac: &Rbac, nodes_proxy_is_guarded: bool, minor: Option<u32>) -> Vec<(String, Finding)> {
    let mut all = Vec::new();
    let what = |permission: &Permission| format!("{} {}", permission.verbs.join("/"), permission.resource);
    for permission in PERMISSIONS {
        let holders = rbac.holders(permission);
        if holders.is_empty() {
            continue;
        }
        let who = list(&holders);
        let finding = if permission.resource == "nodes/proxy" && nodes_proxy_is_guarded {
            let guard = "restricts it to metrics and lists, except for direct access to port 10250 of a node";
            Fine(format!("{who} can use it; the policy {NODES_PROXY} {guard}"))
        } else {
            Warning(format!("{who} can {}", permission.allows), permission.fix.to_owned())
        };
        all.push((what(permission), finding));
    }
    for impersonation in IMPERSONATIONS {
        let (identity, holders) = (&impersonation.identity, rbac.impersonators(impersonation));
        if !holders.is_empty() {
            let text = format!("{} can {}", list(&holders), identity.allows);
            all.push((what(identity), Warning(text, identity.fix.to_owned())));
        }
    }
    for resource in ["pods/exec", "pods/attach"] {
        let holders = if version::is_get_enough(minor) { rbac.get_only(resource) } else { Vec::new() };
        if !holders.is_empty() {
            all.push((format!("get {resource}"), without_create(&holders, resource)));
        }
    }
    let admins: Vec<String> = rbac.cluster_admins().into_iter().map(|holder| holder.subject).collect();
    let admins = if admins.is_empty() { "<none>".to_owned() } else { admins.join(", ") };
    all.push(("RBAC".to_owned(), Fine(format!("full access to the cluster: {admins}"))));
    all
}

fn without_create(holders: &[Holder], resource: &str) -> Finding {
    let text = format!(
        "{} may get {resource} and not create it. Without Pristine that is enough up to Kubernetes 1.34; Pristine denies \
         it, unless a group of theirs may create it",
        list(holders)
    );
    let fix =
        format!("add the verb create for {resource} to the roles of those who need it, and remove get from the others");
    Warning(text, fix)
}

fn list(holders: &[Holder]) -> String {
    let all: Vec<String> = holders.iter().map(|holder| format!("{} ({})", holder.subject, holder.binding)).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_may_only_get_an_exec_is_warned_about_up_to_1_34() {
        let role = json!({"metadata": {"namespace": "shop", "name": "r"}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/exec"]},
        ]});
        let binding = json!({
            "metadata": {"namespace": "shop", "name": "b"},
            "subjects": [{"kind": "User", "name": "eve"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        });
        let rbac = Rbac {
            roles: vec![serde_json::from_value(role).unwrap()],
            role_bindings: vec![serde_json::from_value(binding).unwrap()],
            ..Rbac::default()
        };
        let found = |minor| judge(&rbac, false, minor);
        let on_1_34 = found(Some(34));
        let [(what, Warning(text, fix)), (_, Fine(_))] = &on_1_34[..] else { panic!() };
        assert_eq!(what, "get pods/exec");
        assert!(text.starts_with("User eve (-n shop rolebinding/b) may get pods/exec and not create it."), "{text}");
        assert!(fix.starts_with("add the verb create for pods/exec"), "{fix}");
        assert_eq!(found(Some(35)).len(), 1);
    }
}
