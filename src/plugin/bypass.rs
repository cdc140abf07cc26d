//! Who may get around Pristine, or switch it off: a reading of RBAC. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

/// A right that is enough to go unseen.
#[derive(Clone, Copy, Debug)]
pub struct Right {
    /// What it leads to, for people.
    pub leads_to: &'static str,
    /// Any of these.
    pub verbs: &'static [&'static str],
    /// Its API group; "" is the core.
    pub group: &'static str,
    /// Its resource, with the subresource.
    pub resource: &'static str,
    /// The object that is meant; none is any.
    pub name: Option<&'static str>,
    /// Whether only Pristine's own namespace is meant.
    pub is_ours: bool,
    /// How to take it away, or make it harmless.
    pub fix: &'static str,
}

const NARROW: &str = "take the rule out of the role, or delete the binding: kubectl delete BINDING";

/// All of them.
pub const RIGHTS: &[Right] = &[
    Right {
        leads_to: "exec through the kubelet's API, which no admission webhook and no audit policy for execs sees",
        verbs: &["get", "create"],
        group: "",
        resource: "nodes/proxy",
        name: None,
        is_ours: false,
        fix: "kubectl apply -k manifests/components/nodes-proxy-guard, or grant nodes/metrics, nodes/stats and nodes/log instead",
    },
    Right {
        leads_to: "put on the group of break-glass: the exec is admitted also when it cannot be marked",
        verbs: &["impersonate"],
        group: "",
        resource: "groups",
        name: Some("pristine:break-glass"),
        is_ours: false,
        fix: "bind the ClusterRole pristine:may-break-glass to the few who are meant, and impersonation of any group to nobody",
    },
    Right {
        leads_to: "switch the webhook off, or send its requests elsewhere",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingwebhookconfigurations",
        name: Some("pristine"),
        is_ours: false,
        fix: NARROW,
    },
    Right {
        leads_to: "switch off the policies that keep marks from being faked or wiped",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingadmissionpolicybindings",
        name: Some("mark.pods.pristine"),
        is_ours: false,
        fix: NARROW,
    },
    Right {
        leads_to: "switch off the policies that keep marks from being faked or wiped",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingadmissionpolicies",
        name: Some("mark.pods.pristine"),
        is_ours: false,
        fix: NARROW,
    },
    Right {
        leads_to: "write marks as Pristine's ServiceAccount, by impersonating it",
        verbs: &["impersonate"],
        group: "",
        resource: "serviceaccounts",
        name: Some("pristine"),
        is_ours: true,
        fix: NARROW,
    },
    Right {
        leads_to: "delete Pristine's namespace, and Pristine with it",
        verbs: &["delete"],
        group: "",
        resource: "namespaces",
        name: Some("pristine-system"),
        is_ours: false,
        fix: NARROW,
    },
    Right {
        leads_to: "run pods as Pristine's ServiceAccount",
        verbs: &["create", "update", "patch"],
        group: "apps",
        resource: "deployments",
        name: None,
        is_ours: true,
        fix: NARROW,
    },
    Right {
        leads_to: "read the key of the CA, and answer admission reviews in Pristine's place",
        verbs: &["get", "list", "watch"],
        group: "",
        resource: "secrets",
        name: Some("pristine-ca"),
        is_ours: true,
        fix: NARROW,
    },
    Right {
        leads_to: "write marks as Pristine's ServiceAccount",
        verbs: &["create"],
        group: "",
        resource: "serviceaccounts/token",
        name: Some("pristine"),
        is_ours: true,
        fix: NARROW,
    },
    Right {
        leads_to: "run a pod as Pristine's ServiceAccount",
        verbs: &["create"],
        group: "",
        resource: "pods",
        name: None,
        is_ours: true,
        fix: NARROW,
    },
    Right {
        leads_to: "change the rules",
        verbs: &["update", "patch", "delete"],
        group: "",
        resource: "configmaps",
        name: Some("pristine"),
        is_ours: true,
        fix: NARROW,
    },
];

/// Roles and bindings of a cluster.
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

/// Whoever has a right, and by which binding.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Holder {
    /// For example `Group sre`.
    pub subject: String,
    /// For example `clusterrolebinding/ops`.
    pub binding: String,
}

impl Rbac {
    /// Who has it; without the control plane's own accounts and those who may do everything, who are [`Self::masters`].
    #[must_use]
    pub fn holders(&self, right: &Right) -> Vec<Holder> {
        let mut all = BTreeSet::new();
        let masters = self.masters();
        for (subjects, role, binding, is_cluster_wide) in self.bindings() {
            if !is_cluster_wide && !right.is_ours {
                continue;
            }
            if !self.rules(role, is_cluster_wide).iter().any(|rule| grants(rule, right)) {
                continue;
            }
            let known = |subject: &String| masters.iter().any(|master| master.subject == *subject);
            let subjects = subjects.iter().filter(|subject| !is_control_plane(subject)).map(name);
            all.extend(subjects.filter(|it| !known(it)).map(|subject| Holder { subject, binding: binding.clone() }));
        }
        all.into_iter().collect()
    }

    /// Who may do everything in the cluster.
    #[must_use]
    pub fn masters(&self) -> Vec<Holder> {
        let mut all = BTreeSet::new();
        for (subjects, role, binding, is_cluster_wide) in self.bindings() {
            let star = |list: Option<&Vec<String>>| list.into_iter().flatten().any(|word| word == "*");
            let all_of_it = |rule: &PolicyRule| {
                star(Some(&rule.verbs)) && star(rule.api_groups.as_ref()) && star(rule.resources.as_ref())
            };
            if is_cluster_wide && self.rules(role, true).iter().any(all_of_it) {
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
        let is_it = |name: Option<&String>| name == Some(&role.name);
        if role.kind == "ClusterRole" {
            let found = self.cluster_roles.iter().find(|found| is_it(found.metadata.name.as_ref()));
            return found.and_then(|found| found.rules.as_deref()).unwrap_or_default();
        }
        let found = self.roles.iter().find(|found| !is_cluster_wide && is_it(found.metadata.name.as_ref()));
        found.and_then(|found| found.rules.as_deref()).unwrap_or_default()
    }
}

/// As `RuleAllows` of Kubernetes' RBAC authorizer reads a rule.
fn grants(rule: &PolicyRule, right: &Right) -> bool {
    let has =
        |list: Option<&Vec<String>>, word: &str| list.into_iter().flatten().any(|entry| entry == word || entry == "*");
    let subresource = right.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let resources = rule.resources.as_ref();
    let names = rule.resource_names.as_deref().unwrap_or_default();
    right.verbs.iter().any(|verb| has(Some(&rule.verbs), verb))
        && has(rule.api_groups.as_ref(), right.group)
        && (has(resources, right.resource) || subresource.is_some_and(|any| has(resources, &any)))
        && (names.is_empty() || right.name.is_some_and(|name| names.iter().any(|entry| entry == name)))
}

/// Kubernetes' own components, and Pristine itself: who has these has the cluster anyway.
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
        RIGHTS.iter().filter(|right| !rbac.holders(right).is_empty()).map(|right| right.resource).collect()
    }

    #[test]
    fn every_way_of_writing_a_right_is_read() {
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
        let named = |name| json!({"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": [name]});
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
    fn masters_and_the_control_plane_are_named_apart() {
        let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        let group = json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "admins"});
        let all = cluster_of(everything, group);
        assert_eq!(all.masters()[0].subject, "Group admins");
        assert!(RIGHTS.iter().all(|right| all.holders(right).is_empty()), "said once, not eight times");
        for account in [("kube-system", "namespace-controller"), ("pristine-system", "pristine")] {
            let subject = json!({"kind": "ServiceAccount", "namespace": account.0, "name": account.1});
            assert_eq!(found(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}), subject), [""; 0]);
        }
    }

    #[test]
    fn a_right_in_one_namespace_counts_where_the_namespace_is_ours() {
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
        let found: Vec<_> = RIGHTS.iter().flat_map(|right| rbac.holders(right)).collect();
        assert_eq!(found, [Holder { subject: "User eve".into(), binding: "-n pristine-system rolebinding/b".into() }]);
    }
}
