//! The journal: one JSON line on stdout for each interaction and each refusal, for whoever keeps logs. What the process
//! says about itself goes to stderr.

use std::{io::Write as _, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;

use crate::mark::Interaction;

/// One line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line<'a> {
    /// `marked`, `exempt`, `denied`, or `unrecorded` for what was let through without a mark because it must not be held up.
    pub decision: &'static str,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub pod: &'a str,
    /// UID of the pod, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<&'a str>,
    /// When the pod will be evicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evict_at: Option<Timestamp>,
    /// Interactions with this pod so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What the user was told, or why nothing was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'a str>,
    /// Who did what, as it is on the pod.
    pub interaction: &'a Interaction,
}

/// Where the lines go.
#[derive(Clone)]
pub struct AuditLog(Arc<dyn Fn(&str) + Send + Sync>);

impl AuditLog {
    /// To stdout. A line that cannot be written is not worth a user's exec: the record is on the pod.
    #[must_use]
    pub fn stdout() -> Self {
        Self::of(|line| drop(writeln!(std::io::stdout().lock(), "{line}")))
    }

    /// To whoever wants them.
    pub fn of(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// Writes one line.
    pub fn write(&self, line: &Line<'_>) {
        (self.0)(&serde_json::to_string(line).expect("a line has string keys only"));
    }
}
