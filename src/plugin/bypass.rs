//! Finds in RBAC who can bypass Pristine or disable it. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

/// A permission that is enough to bypass Pristine or to disable it.
#[derive(Clone, Copy, Debug)]
pub struct Permission {
    /// For people: what its holder can do, as the end of a sentence.
    pub allows: &'static str,
    /// Any of these.
    pub verbs: &'static [&'static str],
    /// Its API group; "" is the core group.
    pub group: &'static str,
    /// Its resource, with a subresource if there is one.
    pub resource: &'static str,
    /// The name of the object that matters; none means any.
    pub name: Option<&'static str>,
    /// Whether only Pristine's own namespace matters.
    pub is_ours: bool,
    /// How to revoke it, or make it harmless.
    pub fix: &'static str,
}

const NARROW: &str = "remove the rule from the role, or delete the binding: kubectl delete BINDING";

/// All such permissions.
pub const PERMISSIONS: &[Permission] = &[
    Permission {
        allows: "exec through the kubelet's API, which bypasses admission webhooks and audit policies for execs",
        verbs: &["get", "create"],
        group: "",
        resource: "nodes/proxy",
        name: None,
        is_ours: false,
        fix: "kubectl apply -k manifests/components/nodes-proxy-guard, or grant nodes/metrics, nodes/stats and \
              nodes/log instead",
    },
    Permission {
        allows: "impersonate the break-glass group: an exec is then admitted even if the pod cannot be marked",
        verbs: &["impersonate"],
        group: "",
        resource: "groups",
        name: Some("pristine:break-glass"),
        is_ours: false,
        fix: "bind the ClusterRole pristine:may-break-glass to the intended users only, and let no user impersonate \
              any group",
    },
    Permission {
        allows: "disable the webhook, or redirect its requests",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingwebhookconfigurations",
        name: Some("pristine"),
        is_ours: false,
        fix: NARROW,
    },
    Permission {
        allows: "disable the policies that protect marks from being forged or wiped",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingadmissionpolicybindings",
        name: Some("mark.pods.pristine"),
        is_ours: false,
        fix: NARROW,
    },
    Permission {
        allows: "disable the policies that protect marks from being forged or wiped",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingadmissionpolicies",
        name: Some("mark.pods.pristine"),
        is_ours: false,
        fix: NARROW,
    },
    Permission {
        allows: "impersonate Pristine's ServiceAccount, and write marks as it",
        verbs: &["impersonate"],
        group: "",
        resource: "serviceaccounts",
        name: Some("pristine"),
        is_ours: true,
        fix: NARROW,
    },
    Permission {
        allows: "delete Pristine's namespace, and with it Pristine",
        verbs: &["delete"],
        group: "",
        resource: "namespaces",
        name: Some("pristine-system"),
        is_ours: false,
        fix: NARROW,
    },
    Permission {
        allows: "run pods as Pristine's ServiceAccount",
        verbs: &["create", "update", "patch"],
        group: "apps",
        resource: "deployments",
        name: None,
        is_ours: true,
        fix: NARROW,
    },
    Permission {
        allows: "read the CA's private key, and answer admission reviews in Pristine's place",
        verbs: &["get", "list", "watch"],
        group: "",
        resource: "secrets",
        name: Some("pristine-ca"),
        is_ours: true,
        fix: NARROW,
    },
    Permission {
        allows: "create a token of Pristine's ServiceAccount, and write marks as it",
        verbs: &["create"],
        group: "",
        resource: "serviceaccounts/token",
        name: Some("pristine"),
        is_ours: true,
        fix: NARROW,
    },
    Permission {
        allows: "run a pod as Pristine's ServiceAccount",
        verbs: &["create"],
        group: "",
        resource: "pods",
        name: None,
        is_ours: true,
        fix: NARROW,
    },
    Permission {
        allows: "change Pristine's configuration",
        verbs: &["update", "patch", "delete"],
        group: "",
        resource: "configmaps",
        name: Some("pristine"),
        is_ours: true,
        fix: NARROW,
    },
    Permission {
        allows: "write Pristine's configuration, while there is no ConfigMap pristine",
        verbs: &["create"],
        group: "",
        resource: "configmaps",
        name: None,
        is_ours: true,
        fix: NARROW,
    },
];

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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster_of(grant: serde_json::Value, subject: serde_json::Value) -> Rbac {
        let one = json!({"metadata": {"name": "r"}, "rules": [grant]});
        let binding = json!({
            "metadata": {"name": "b"}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"},
        });
        Rbac {
            cluster_roles: vec![serde_json::from_value(one).unwrap()],
            cluster_role_bindings: vec![serde_json::from_value(binding).unwrap()],
            ..Rbac::default()
        }
    }

    fn found(rule: serde_json::Value, subject: serde_json::Value) -> Vec<&'static str> {
        let rbac = cluster_of(rule, subject);
        PERMISSIONS.iter().filter(|it| !rbac.holders(it).is_empty()).map(|it| it.resource).collect()
    }

    #[test]
    fn every_way_to_write_a_permission_is_recognized() {
        let sre = json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "sre"});
        for (resources, expected) in [
            (json!(["nodes/proxy"]), vec!["nodes/proxy"]),
            (json!(["*/proxy"]), vec!["nodes/proxy"]),
            (json!(["nodes"]), vec![]),
            (json!(["nodes/metrics"]), vec![]),
            (json!(["secrets"]), vec!["secrets"]),
        ] {
            let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": resources});
            assert_eq!(found(rule, sre.clone()), expected);
        }
        let named = |name| {
            let verbs = ["impersonate"];
            json!({"verbs": verbs, "apiGroups": [""], "resources": ["groups"], "resourceNames": [name]})
        };
        assert_eq!(found(named("pristine:break-glass"), sre.clone()), ["groups"]);
        assert_eq!(found(named("other"), sre.clone()), [""; 0]);
        let other_group = json!({"verbs": ["*"], "apiGroups": ["storage.k8s.io"], "resources": ["*"]});
        assert_eq!(found(other_group, sre.clone()), [""; 0]);
        let any = json!({"verbs": ["*"], "apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"]});
        assert_eq!(
            found(any, sre),
            ["validatingwebhookconfigurations", "validatingadmissionpolicybindings", "validatingadmissionpolicies",]
        );
    }

    #[test]
    fn cluster_admins_and_the_control_plane_are_not_holders_of_single_permissions() {
        let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        let group = json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "admins"});
        let all = cluster_of(everything, group);
        assert_eq!(all.cluster_admins()[0].subject, "Group admins");
        assert!(PERMISSIONS.iter().all(|it| all.holders(it).is_empty()), "reported once, not eight times");
        for account in [("kube-system", "namespace-controller"), ("pristine-system", "pristine")] {
            let subject = json!({"kind": "ServiceAccount", "namespace": account.0, "name": account.1});
            assert_eq!(found(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}), subject), [""; 0]);
        }
    }

    #[test]
    fn a_namespaced_binding_counts_only_for_permissions_in_pristines_namespace() {
        let role = json!({"metadata": {"name": "r"}, "rules": [
            {"verbs": ["get", "create"], "apiGroups": [""], "resources": ["secrets", "nodes/proxy"]},
        ]});
        let binding = json!({
            "metadata": {"name": "b", "namespace": "pristine-system"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        });
        let rbac = Rbac {
            roles: vec![serde_json::from_value(role).unwrap()],
            role_bindings: vec![serde_json::from_value(binding).unwrap()],
            ..Rbac::default()
        };
        let found: Vec<_> = PERMISSIONS.iter().flat_map(|it| rbac.holders(it)).collect();
        assert_eq!(found, [Holder { subject: "User eve".into(), binding: "-n pristine-system rolebinding/b".into() }]);
    }
}
