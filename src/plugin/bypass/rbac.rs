//! Reads RBAC as the API server's authorizer does: which subjects have a permission, and by which binding. Pure.
//!
//! It does not know which users are in a group.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::Permission;

/// The roles and bindings of a cluster.
#[derive(Default)]
pub struct Rbac {
    /// `clusterroles`
    pub cluster_roles: Vec<ClusterRole>,
    /// `clusterrolebindings`
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
    /// `roles` of Pristine's namespace
    pub roles: Vec<Role>,
    /// `rolebindings` of Pristine's namespace
    pub role_bindings: Vec<RoleBinding>,
}

/// A subject that has a permission, and the binding that grants it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Holder {
    /// For example `Group sre`.
    pub subject: String,
    /// For example `clusterrolebinding/ops`.
    pub binding: String,
}

impl Rbac {
    /// The subjects with this permission, without the control plane's own accounts and the [`Self::cluster_admins`].
    #[must_use]
    pub fn holders(&self, permission: &Permission) -> Vec<Holder> {
        let mut all = BTreeSet::new();
        let admins = self.cluster_admins();
        for (subjects, role, binding, is_cluster_wide) in self.bindings() {
            if !is_cluster_wide && !permission.is_ours {
                continue;
            }
            if !self.rules(role, is_cluster_wide).iter().any(|rule| grants(rule, permission)) {
                continue;
            }
            let is_admin = |subject: &String| admins.iter().any(|admin| admin.subject == *subject);
            let subjects = subjects.iter().filter(|subject| !is_control_plane(subject)).map(name);
            all.extend(subjects.filter(|it| !is_admin(it)).map(|subject| Holder { subject, binding: binding.clone() }));
        }
        all.into_iter().collect()
    }

    /// The subjects with all permissions in the cluster.
    #[must_use]
    pub fn cluster_admins(&self) -> Vec<Holder> {
        let mut all = BTreeSet::new();
        for (subjects, role, binding, is_cluster_wide) in self.bindings() {
            let star = |list: Option<&Vec<String>>| list.into_iter().flatten().any(|word| word == "*");
            let grants_all = |rule: &PolicyRule| {
                star(Some(&rule.verbs)) && star(rule.api_groups.as_ref()) && star(rule.resources.as_ref())
            };
            if is_cluster_wide && self.rules(role, true).iter().any(grants_all) {
                let subjects = subjects.iter().filter(|subject| !is_control_plane(subject));
                all.extend(subjects.map(|subject| Holder { subject: name(subject), binding: binding.clone() }));
            }
        }
        all.into_iter().collect()
    }

    fn bindings(&self) -> impl Iterator<Item = (&[Subject], &RoleRef, String, bool)> {
        let wide = self.cluster_role_bindings.iter().map(|binding| {
            let name = format!("clusterrolebinding/{}", binding.metadata.name.as_deref().unwrap_or_default());
            (binding.subjects.as_deref().unwrap_or_default(), &binding.role_ref, name, true)
        });
        let ours = self.role_bindings.iter().map(|binding| {
            let namespace = binding.metadata.namespace.as_deref().unwrap_or_default();
            let name = format!("-n {namespace} rolebinding/{}", binding.metadata.name.as_deref().unwrap_or_default());
            (binding.subjects.as_deref().unwrap_or_default(), &binding.role_ref, name, false)
        });
        wide.chain(ours)
    }

    fn rules(&self, role: &RoleRef, is_cluster_wide: bool) -> &[PolicyRule] {
        let is_named = |name: Option<&String>| name == Some(&role.name);
        if role.kind == "ClusterRole" {
            let found = self.cluster_roles.iter().find(|found| is_named(found.metadata.name.as_ref()));
            return found.and_then(|found| found.rules.as_deref()).unwrap_or_default();
        }
        let found = self.roles.iter().find(|found| !is_cluster_wide && is_named(found.metadata.name.as_ref()));
        found.and_then(|found| found.rules.as_deref()).unwrap_or_default()
    }
}

/// Evaluates a rule as `RuleAllows` of Kubernetes' RBAC authorizer does.
fn grants(rule: &PolicyRule, permission: &Permission) -> bool {
    let has =
        |list: Option<&Vec<String>>, word: &str| list.into_iter().flatten().any(|entry| entry == word || entry == "*");
    let subresource = permission.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let resources = rule.resources.as_ref();
    let names = rule.resource_names.as_deref().unwrap_or_default();
    permission.verbs.iter().any(|verb| has(Some(&rule.verbs), verb))
        && has(rule.api_groups.as_ref(), permission.group)
        && (has(resources, permission.resource) || subresource.is_some_and(|any| has(resources, &any)))
        && (names.is_empty() || permission.name.is_some_and(|name| names.iter().any(|entry| entry == name)))
}

/// Kubernetes' own components, and Pristine itself: a user who controls one of these controls the cluster anyway.
fn is_control_plane(subject: &Subject) -> bool {
    match (subject.kind.as_str(), subject.namespace.as_deref()) {
        ("ServiceAccount", Some("kube-system")) => true,
        ("ServiceAccount", Some("pristine-system")) => subject.name == "pristine",
        ("User", _) => subject.name.starts_with("system:kube-"),
        _ => false,
    }
}

fn name(subject: &Subject) -> String {
    match &subject.namespace {
        Some(namespace) if subject.kind == "ServiceAccount" => format!("ServiceAccount {namespace}/{}", subject.name),
        _ => format!("{} {}", subject.kind, subject.name),
    }
}
