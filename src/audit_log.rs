//! The audit log of a replica: one JSON line on stdout for each interaction and each denial, each extension and each
//! eviction. The log of the process itself is on stderr.

use std::{io::Write as _, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;

use crate::mark::Interaction;

/// One line of the audit log.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line<'a> {
    /// `marked`, `exempt`, `denied`, `unrecorded` for an interaction that was admitted without a mark because it is
    /// never denied, or `handed-over` before another replica gets such an interaction.
    pub decision: &'static str,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// UID of the pod, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<&'a str>,
    /// When the pod is due for eviction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evict_at: Option<Timestamp>,
    /// Number of interactions with this pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// The message for the user, or why nothing was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
    /// The interaction, as it is recorded on the pod.
    pub interaction: &'a Interaction,
}

/// One line about what became of a marked pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change<'a> {
    /// `evicted`, `extended`, or `extension-ended`.
    pub decision: &'static str,
    /// When it happened.
    pub at: Timestamp,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// UID of the pod.
    pub pod_uid: &'a str,
    /// The deadline of the pod.
    pub evict_at: Timestamp,
    /// The user who extended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<&'a str>,
    /// For people.
    pub message: &'a str,
}

/// The destination of the lines.
#[derive(Clone)]
pub struct AuditLog(Arc<dyn Fn(&str) + Send + Sync>);

impl AuditLog {
    /// Writes to stdout. A line that cannot be written does not fail the exec, because the record is on the pod.
    #[must_use]
    pub fn stdout() -> Self {
        Self::of(|line| drop(writeln!(std::io::stdout().lock(), "{line}")))
    }

    /// Passes the lines to this function.
    pub fn of(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// Writes one line, a [`Line`] or a [`Change`].
    pub fn write(&self, line: &impl Serialize) {
        (self.0)(&serde_json::to_string(line).expect("a line has string keys only"));
    }
}
