//! Reads RBAC as the API server's authorizer does: which subjects have a permission, and by which binding. Pure.
//!
//! It does not know which users are in a group.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};

use super::{ANY, Impersonation, Permission, Scope};

/// The roles and bindings of a cluster.
#[derive(Default)]
pub struct Rbac {
    /// Pristine's namespace.
    pub ours: String,
    /// `clusterroles`
    pub cluster_roles: Vec<ClusterRole>,
    /// `clusterrolebindings`
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
    /// `roles` of all namespaces
    pub roles: Vec<Role>,
    /// `rolebindings` of all namespaces
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

/// A binding with the rules of its role.
struct Bound<'a> {
    subjects: &'a [Subject],
    rules: &'a [PolicyRule],
    /// None: in the whole cluster.
    namespace: Option<&'a str>,
    name: &'a str,
}

impl Rbac {
    /// The subjects with this permission, without the control plane's own accounts and the [`Self::cluster_admins`].
    #[must_use]
    pub fn holders(&self, permission: &Permission) -> Vec<Holder> {
        self.granted(permission.scope, |rule| grants(rule, permission)).into_iter().collect()
    }

    /// The subjects that can act as another identity by constrained impersonation, for requests that matter. The API
    /// server asks for two permissions: to act as the identity, and to send the request meanwhile. They may come from two
    /// bindings, and from a user and a group of theirs: nothing in the cluster says who is in a group, so each group
    /// counts. Without those who may act as the identity for every request, who are [`Self::holders`] of that permission.
    #[must_use]
    pub fn impersonators(&self, impersonation: &Impersonation) -> Vec<Holder> {
        let identity = &impersonation.identity;
        let unconstrained = Permission { verbs: &["impersonate"], group: "", ..*identity };
        let reported: BTreeSet<String> =
            self.holders(&unconstrained).into_iter().map(|holder| holder.subject).collect();
        let mut sending = BTreeSet::new();
        for request in impersonation.requests {
            sending.extend(self.granted(request.scope, |rule| grants(rule, request)));
        }
        let acting = self.granted(identity.scope, |rule| grants(rule, identity));
        let acting = acting.into_iter().filter(|holder| !reported.contains(&holder.subject));
        let both = acting.filter_map(|Holder { subject, binding }| {
            let same = sending.iter().find(|other| other.subject == subject);
            let other = same.or_else(|| sending.iter().find(|other| may_be_one_user(&subject, &other.subject)))?;
            let of = if same.is_some() { String::new() } else { format!(" of {}", other.subject) };
            let binding =
                if binding == other.binding { binding } else { format!("{binding} with {}{of}", other.binding) };
            Some(Holder { subject, binding })
        });
        both.collect()
    }

    /// The subjects that may `get` this resource somewhere and not `create` it there.
    #[must_use]
    pub fn get_only(&self, resource: &'static str) -> Vec<Holder> {
        let bound = self.bound();
        let of = |verbs: &'static [&'static str]| Permission { verbs, resource, scope: Scope::Everywhere, ..ANY };
        let (get, create) = (of(&["get"]), of(&["create"]));
        let may_create = |subject: &str, namespace: Option<&str>, got: &PolicyRule| {
            let mut there = bound.iter().filter(|it| it.namespace.is_none() || it.namespace == namespace);
            there.any(|it| {
                it.subjects.iter().any(|it| name(it) == subject)
                    && it.rules.iter().any(|rule| grants(rule, &create) && names_contain(rule, got))
            })
        };
        let admins = self.admins();
        let mut all = BTreeSet::new();
        for it in &bound {
            for rule in it.rules.iter().filter(|rule| grants(rule, &get)) {
                let subjects = it.subjects.iter().filter(|subject| !is_control_plane(subject)).map(name);
                let without = subjects.filter(|subject| !admins.contains(subject));
                let without = without.filter(|subject| !may_create(subject, it.namespace, rule));
                all.extend(without.map(|subject| Holder { subject, binding: it.text() }));
            }
        }
        all.into_iter().collect()
    }

    /// The subjects with all permissions in the cluster.
    #[must_use]
    pub fn cluster_admins(&self) -> Vec<Holder> {
        let star = |list: Option<&Vec<String>>| list.into_iter().flatten().any(|word| word == "*");
        let grants_all = |rule: &PolicyRule| {
            star(Some(&rule.verbs)) && star(rule.api_groups.as_ref()) && star(rule.resources.as_ref())
        };
        self.having(Scope::Cluster, grants_all).into_iter().collect()
    }

    fn admins(&self) -> BTreeSet<String> {
        self.cluster_admins().into_iter().map(|holder| holder.subject).collect()
    }

    /// The same as [`Self::having`], without the cluster's administrators.
    fn granted(&self, scope: Scope, is_granted: impl Fn(&PolicyRule) -> bool) -> BTreeSet<Holder> {
        let admins = self.admins();
        let all = self.having(scope, is_granted).into_iter();
        all.filter(|holder| !admins.contains(&holder.subject)).collect()
    }

    /// The subjects with such a rule, without the control plane's own accounts.
    fn having(&self, scope: Scope, is_granted: impl Fn(&PolicyRule) -> bool) -> BTreeSet<Holder> {
        let mut all = BTreeSet::new();
        for it in self.bound() {
            let is_there = match (scope, it.namespace) {
                (_, None) | (Scope::Everywhere, _) => true,
                (Scope::Ours, Some(namespace)) => namespace == self.ours,
                (Scope::Cluster, Some(_)) => false,
            };
            if is_there && it.rules.iter().any(&is_granted) {
                let subjects = it.subjects.iter().filter(|subject| !is_control_plane(subject));
                all.extend(subjects.map(|subject| Holder { subject: name(subject), binding: it.text() }));
            }
        }
        all
    }

    fn bound(&self) -> Vec<Bound<'_>> {
        let cluster = self.cluster_roles.iter().filter_map(|role| {
            Some(((None, role.metadata.name.as_deref()?), role.rules.as_deref().unwrap_or_default()))
        });
        let namespaced = self.roles.iter().filter_map(|role| {
            let namespace = Some(role.metadata.namespace.as_deref().unwrap_or_default());
            Some(((namespace, role.metadata.name.as_deref()?), role.rules.as_deref().unwrap_or_default()))
        });
        let roles: BTreeMap<(Option<&str>, &str), &[PolicyRule]> = cluster.chain(namespaced).collect();
        let rules_of = |role: &RoleRef, namespace: Option<&str>| {
            let namespace = if role.kind == "ClusterRole" { None } else { namespace };
            roles.get(&(namespace, role.name.as_str())).copied().unwrap_or_default()
        };
        let wide = self.cluster_role_bindings.iter().map(|binding| Bound {
            subjects: binding.subjects.as_deref().unwrap_or_default(),
            rules: rules_of(&binding.role_ref, None),
            namespace: None,
            name: binding.metadata.name.as_deref().unwrap_or_default(),
        });
        let narrow = self.role_bindings.iter().map(|binding| {
            let namespace = Some(binding.metadata.namespace.as_deref().unwrap_or_default());
            Bound {
                subjects: binding.subjects.as_deref().unwrap_or_default(),
                rules: rules_of(&binding.role_ref, namespace),
                namespace,
                name: binding.metadata.name.as_deref().unwrap_or_default(),
            }
        });
        wide.chain(narrow).collect()
    }
}

impl Bound<'_> {
    /// As an argument of kubectl.
    fn text(&self) -> String {
        match self.namespace {
            None => format!("clusterrolebinding/{}", self.name),
            Some(namespace) => format!("-n {namespace} rolebinding/{}", self.name),
        }
    }
}

/// Evaluates a rule as `RuleAllows` of Kubernetes' RBAC authorizer does.
fn grants(rule: &PolicyRule, permission: &Permission) -> bool {
    let has =
        |list: Option<&Vec<String>>, word: &str| list.into_iter().flatten().any(|entry| entry == word || entry == "*");
    let subresource = permission.resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    let resources = rule.resources.as_ref();
    let names = rule.resource_names.as_deref().unwrap_or_default();
    // The name of an object that is created is not known, but that of a pod into which a user execs is.
    let is_named = |verb: &str| match permission.name {
        _ if names.is_empty() => true,
        Some(name) => names.iter().any(|entry| entry == name),
        None => verb != "create" || subresource.is_some(),
    };
    permission.verbs.iter().any(|verb| has(Some(&rule.verbs), verb) && is_named(verb))
        && has(rule.api_groups.as_ref(), permission.group)
        && (has(resources, permission.resource) || subresource.as_ref().is_some_and(|any| has(resources, any)))
}

/// Whether the rule applies to all objects that the other rule applies to.
fn names_contain(rule: &PolicyRule, other: &PolicyRule) -> bool {
    let (names, others) = (rule.resource_names.as_deref(), other.resource_names.as_deref());
    let (names, others) = (names.unwrap_or_default(), others.unwrap_or_default());
    names.is_empty() || (!others.is_empty() && others.iter().all(|name| names.contains(name)))
}

/// Whether a user can have the permissions of both subjects.
fn may_be_one_user(one: &str, other: &str) -> bool {
    let is_in = |account: &str, group: &str| {
        let namespace = account.split('/').next().unwrap_or_default();
        let groups = ["system:authenticated", "system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")];
        groups.contains(&group)
    };
    match (one.split_once(' '), other.split_once(' ')) {
        (Some(("ServiceAccount", account)), Some(("Group", group)))
        | (Some(("Group", group)), Some(("ServiceAccount", account))) => is_in(account, group),
        (Some(("Group", _)), Some(_)) | (Some(_), Some(("Group", _))) => true,
        _ => one == other,
    }
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
