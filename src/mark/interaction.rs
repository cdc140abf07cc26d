//! One interaction: which user did what to which container. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FOLD, shorten};

/// How a user reached a running container.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `CONNECT pods/attach`
    Attach,
    /// `UPDATE pods/ephemeralcontainers`, what `kubectl debug` does to a running pod
    Debug,
    /// `CONNECT pods/exec`, also `kubectl cp`
    Exec,
    /// `CONNECT pods/portforward`
    PortForward,
    /// `CONNECT pods/proxy`
    Proxy,
    /// A report of a detector, or of a person: the label `pristine/reported`. It says what has happened already
    Report,
}

impl Operation {
    /// The word used in configuration, records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Debug => "debug",
            Self::Exec => "exec",
            Self::PortForward => "port-forward",
            Self::Proxy => "proxy",
            Self::Report => "report",
        }
    }

    /// All operations.
    pub const ALL: [Self; 6] = [Self::Attach, Self::Debug, Self::Exec, Self::PortForward, Self::Proxy, Self::Report];

    /// Whether it starts a process inside a container, or reports one. The others reach a port that the container serves.
    #[must_use]
    pub const fn enters(self) -> bool {
        matches!(self, Self::Attach | Self::Debug | Self::Exec | Self::Report)
    }
}

/// The key of [`User::extra`] with the id that the Security Profiles Operator gives to an exec. It is `requestUID` in
/// the operator's own log, so that both logs can be joined.
pub const EXEC_REQUEST_UID: &str = "spo-exec-request-uid";

/// The key of [`User::extra`] with the pod that a ServiceAccount token is bound to, as the kubelet's tokens are.
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// What the name of a ServiceAccount begins with, as a user.
pub const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The user as the API server authenticated (or impersonated) them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct User {
    /// `userInfo.username`
    pub name: String,
    /// `userInfo.uid`
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// `userInfo.groups`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// `userInfo.extra`, and [`EXEC_REQUEST_UID`]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whether the user authenticated with the token of a pod, as programs in the cluster do. A person who becomes a
    /// ServiceAccount with `kubectl --as` or `kubectl create token` has no [`POD_NAME`], unless the person asks for a token
    /// that is bound to a pod.
    #[must_use]
    pub fn has_pod_token(&self) -> bool {
        self.name.starts_with(SERVICE_ACCOUNT) && self.extra.contains_key(POD_NAME)
    }
}

/// One interaction of one user with one container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Interaction {
    /// When it was admitted.
    pub at: Timestamp,
    /// The operation.
    pub operation: Operation,
    /// The container, by name.
    pub container: String,
    /// The command of an exec or of an added container, redacted and bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Whether standard input was connected.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// Whether a terminal was requested.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tty: bool,
    /// The user.
    pub user: User,
    /// UID of the admission review, also in the API server's audit log.
    pub review: String,
    /// Name of the rule that decided.
    pub rule: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Interaction {
    /// Who did what, in a few words for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let Self { operation, container, user, .. } = self;
        let into = if container.is_empty() { String::new() } else { format!(" into container {container}") };
        if *operation == Operation::Report {
            let what = self.command.first().map(|text| format!(": {}", shorten(text, 256))).unwrap_or_default();
            return format!("report by {:?}{what}", shorten(&user.name, 256));
        }
        format!("{}{into} by {:?}", operation.as_str(), shorten(&user.name, 256))
    }

    /// Whether a machine did it: a program with the token of its own pod, and without a terminal, as the built-in rule
    /// `machines` says.
    #[must_use]
    pub fn is_machine(&self) -> bool {
        self.user.has_pod_token() && !self.tty
    }

    /// Whether `other` is the same interaction: same user, operation, container, command and streams, in
    /// the same review or within [`FOLD`].
    ///
    /// A report is the same as another one of its source if it has the same words, at any time, or came within [`FOLD`]: a
    /// program that puts the label back every minute must not cause a write every minute.
    ///
    /// Every HTTP request through `pods/proxy` is reviewed. One record for each user is enough, or a dashboard would
    /// push everything else off the pod.
    pub(super) fn same(&self, other: &Self) -> bool {
        // A person may be the same service account as a machine.
        let is_same = self.user.name == other.user.name
            && self.is_machine() == other.is_machine()
            && self.operation == other.operation;
        if !self.operation.enters() {
            return is_same;
        }
        if self.operation == Operation::Report {
            return is_same && (self.command == other.command || self.at.duration_since(other.at).abs() <= FOLD);
        }
        is_same
            && self.container == other.container
            && self.command == other.command
            && (self.stdin, self.tty) == (other.stdin, other.tty)
            // The same review again, or absolute, because two replicas have two clocks.
            && (self.review == other.review || self.at.duration_since(other.at).abs() <= FOLD)
    }
}
