//! Which permissions are enough to bypass Pristine or to disable it. Pure.

pub mod impersonation;
pub mod rbac;

use impersonation::Impersonation;

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
    /// Where it has to be granted.
    pub scope: Scope,
    /// How to revoke it, or make it harmless.
    pub fix: &'static str,
}

/// Where a permission has to be granted to matter. A ClusterRoleBinding grants it everywhere.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// In the whole cluster.
    Cluster,
    /// In Pristine's namespace.
    Ours,
    /// In any namespace.
    Everywhere,
}

const NARROW: &str = "remove the rule from the role, or delete the binding: kubectl delete BINDING";

/// For the fields that differ.
const ANY: Permission =
    Permission { allows: "", verbs: &[], group: "", resource: "", name: None, scope: Scope::Cluster, fix: "" };

/// All such permissions, without those of [`impersonation`].
pub const PERMISSIONS: &[Permission] = &[
    Permission {
        allows: "exec through the kubelet's API, which bypasses admission webhooks and audit policies for execs",
        verbs: &["get", "create"],
        group: "",
        resource: "nodes/proxy",
        name: None,
        scope: Scope::Cluster,
        fix: "kubectl apply -k manifests/components/nodes-proxy-guard, or grant nodes/metrics, nodes/stats and \
              nodes/log instead",
    },
    Permission {
        allows: "impersonate the break-glass group: an exec is then admitted even if the pod cannot be marked",
        verbs: &["impersonate"],
        group: "",
        resource: "groups",
        name: Some("pristine:break-glass"),
        scope: Scope::Cluster,
        fix: "bind the ClusterRole pristine:may-break-glass to the intended users only, and let no user impersonate \
              any group",
    },
    Permission {
        allows: "impersonate the group system:masters, which may do everything",
        verbs: &["impersonate"],
        group: "",
        resource: "groups",
        name: Some("system:masters"),
        scope: Scope::Cluster,
        fix: NARROW,
    },
    Permission {
        allows: "disable the webhook, or redirect its requests",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingwebhookconfigurations",
        name: Some("pristine"),
        scope: Scope::Cluster,
        fix: NARROW,
    },
    Permission {
        allows: "disable the policies that protect marks from being forged or wiped",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingadmissionpolicybindings",
        name: Some("mark.pods.pristine"),
        scope: Scope::Cluster,
        fix: NARROW,
    },
    Permission {
        allows: "disable the policies that protect marks from being forged or wiped",
        verbs: &["update", "patch", "delete", "deletecollection"],
        group: "admissionregistration.k8s.io",
        resource: "validatingadmissionpolicies",
        name: Some("mark.pods.pristine"),
        scope: Scope::Cluster,
        fix: NARROW,
    },
    Permission {
        allows: "impersonate Pristine's ServiceAccount, and write marks as it",
        verbs: &["impersonate"],
        group: "",
        resource: "serviceaccounts",
        name: Some("pristine"),
        scope: Scope::Ours,
        fix: NARROW,
    },
    Permission {
        allows: "delete Pristine's namespace, and with it Pristine",
        verbs: &["delete"],
        group: "",
        resource: "namespaces",
        name: Some("pristine-system"),
        scope: Scope::Cluster,
        fix: NARROW,
    },
    Permission {
        allows: "run pods as Pristine's ServiceAccount",
        verbs: &["create", "update", "patch"],
        group: "apps",
        resource: "deployments",
        name: None,
        scope: Scope::Ours,
        fix: NARROW,
    },
    Permission {
        allows: "read the CA's private key, and answer admission reviews in Pristine's place",
        verbs: &["get", "list", "watch"],
        group: "",
        resource: "secrets",
        name: Some("pristine-ca"),
        scope: Scope::Ours,
        fix: NARROW,
    },
    Permission {
        allows: "create a token of Pristine's ServiceAccount, and write marks as it",
        verbs: &["create"],
        group: "",
        resource: "serviceaccounts/token",
        name: Some("pristine"),
        scope: Scope::Ours,
        fix: NARROW,
    },
    Permission {
        allows: "run a pod as Pristine's ServiceAccount",
        verbs: &["create"],
        group: "",
        resource: "pods",
        name: None,
        scope: Scope::Ours,
        fix: NARROW,
    },
    Permission {
        allows: "change Pristine's configuration",
        verbs: &["update", "patch", "delete"],
        group: "",
        resource: "configmaps",
        name: Some("pristine"),
        scope: Scope::Ours,
        fix: NARROW,
    },
    Permission {
        allows: "write Pristine's configuration, while there is no ConfigMap pristine",
        verbs: &["create"],
        group: "",
        resource: "configmaps",
        name: None,
        scope: Scope::Ours,
        fix: NARROW,
    },
];

#[cfg(test)]
mod tests;
