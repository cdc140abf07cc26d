//! Constrained impersonation (beta in Kubernetes 1.36, and on by default): who may act as another identity, but only for
//! some requests. Pure.
//!
//! The API server asks for two permissions (`k8s.io/apiserver/pkg/endpoints/filters/impersonation/mode.go`):
//! `impersonate:MODE` on the identity, in the group authentication.k8s.io and not in the core group, and
//! `impersonate-on:MODE:VERB` on the object of the request, in the namespace of the request. The verb `*` contains both.
//! The group system:masters cannot be impersonated this way. Versions without the feature ignore these permissions, and an
//! upgrade makes them effective, so they are reported on every version.

use super::{ANY, NARROW, Permission, Scope};

/// A way to act as an identity that matters.
#[derive(Clone, Copy, Debug)]
pub struct Impersonation {
    /// The permission to act as the identity.
    pub identity: Permission,
    /// The permissions to send a request meanwhile. Any of them is enough to bypass Pristine.
    pub requests: &'static [Permission],
}

const ACCOUNT: Permission = Permission {
    allows: "act as Pristine's ServiceAccount by constrained impersonation (since Kubernetes 1.36), for requests with which \
             it can forge marks, evict pods, read the CA's private key or disable the webhook",
    verbs: &["impersonate:serviceaccount"],
    group: GROUP,
    resource: "serviceaccounts",
    name: Some("pristine"),
    scope: Scope::Ours,
    fix: NARROW,
};

const BREAK_GLASS: Permission = Permission {
    allows: "act as the break-glass group by constrained impersonation (since Kubernetes 1.36): an exec is then admitted \
             even if the pod cannot be marked",
    verbs: &["impersonate:user-info"],
    group: GROUP,
    resource: "groups",
    name: Some("pristine:break-glass"),
    scope: Scope::Cluster,
    fix: "if it is not meant as in docs/break-glass.md, remove the rule from the role, or delete the binding: kubectl \
          delete BINDING",
};

/// All such ways.
pub const IMPERSONATIONS: &[Impersonation] = &[
    Impersonation {
        identity: ACCOUNT,
        requests: &[
            Permission {
                verbs: &["impersonate-on:serviceaccount:patch"],
                resource: "pods/status",
                scope: Scope::Everywhere,
                ..ANY
            },
            Permission {
                verbs: &["impersonate-on:serviceaccount:create"],
                resource: "pods/eviction",
                scope: Scope::Everywhere,
                ..ANY
            },
            Permission {
                verbs: &[
                    "impersonate-on:serviceaccount:get",
                    "impersonate-on:serviceaccount:list",
                    "impersonate-on:serviceaccount:watch",
                    "impersonate-on:serviceaccount:update",
                ],
                resource: "secrets",
                name: Some("pristine-ca"),
                scope: Scope::Ours,
                ..ANY
            },
            Permission {
                verbs: &["impersonate-on:serviceaccount:patch", "impersonate-on:serviceaccount:delete"],
                group: "admissionregistration.k8s.io",
                resource: "validatingwebhookconfigurations",
                name: Some("pristine"),
                ..ANY
            },
        ],
    },
    Impersonation {
        identity: BREAK_GLASS,
        requests: &[
            Permission { verbs: EXEC, resource: "pods/exec", scope: Scope::Everywhere, ..ANY },
            Permission { verbs: EXEC, resource: "pods/attach", scope: Scope::Everywhere, ..ANY },
            Permission {
                verbs: &["impersonate-on:user-info:patch"],
                resource: "pods/ephemeralcontainers",
                scope: Scope::Everywhere,
                ..ANY
            },
        ],
    },
];

const GROUP: &str = "authentication.k8s.io";
/// An exec over WebSocket is a GET, one over SPDY a POST.
const EXEC: &[&str] = &["impersonate-on:user-info:create", "impersonate-on:user-info:get"];
