//! What was read of audit logs, and what a reader has to know about them. Pure.

use serde_json::{Map, Value, json};

use super::{print::Source, summary::Summary};

/// What was read, and what was not understood.
#[derive(Debug, Default)]
pub struct Read {
    /// All records.
    pub records: u64,
    /// Requests that are no interactions with pods.
    pub other: u64,
    /// JSON that is not of an audit log.
    pub not_audit: u64,
    /// Not JSON, or cut.
    pub not_json: u64,
    /// Longer than any record of an API server.
    pub too_long: u64,
    /// Files that ended with an error, and the error.
    pub broken: Vec<String>,
}

impl Read {
    /// The source of the summary. `name` and `text` are of the configuration.
    #[must_use]
    pub fn source<'a>(&self, summary: &Summary, name: &'a str, text: &'a str, has_pods: bool) -> Source<'a> {
        Source { name, text, notes: self.notes(summary, has_pods), fields: self.fields(summary) }
    }

    fn notes(&self, summary: &Summary, has_pods: bool) -> Vec<String> {
        let Self { records, other, not_audit, not_json, too_long, broken } = self;
        let mut notes = vec![format!(
            "{records} records read: {other} of other requests; skipped: {not_json} not JSON or cut, {not_audit} not of an \
             audit log, {too_long} too long"
        )];
        notes.extend(broken.iter().map(|file| format!("the file was read only in part: {file}")));
        if summary.gets.1 > 0 && summary.gets.0 == 0 {
            notes.push(format!(
                "warning: none of {} exec and attach requests has the verb get, which kubectl uses since 1.31: the audit \
                 policy may log only create, and then most of them are missing here",
                summary.gets.1
            ));
        }
        if summary.rows.is_empty() {
            notes.push(
                "warning: no interaction was found: the audit policy must log pods/exec, pods/attach and \
                 pods/ephemeralcontainers at level Metadata"
                    .to_owned(),
            );
        }
        let depends_on_pods =
            || summary.rows.keys().any(|key| key.effect.depends_on.iter().any(|it| matches!(*it, "owner" | "labels")));
        if has_pods {
            notes.push(summary.note_about_pods());
        } else if depends_on_pods() {
            notes.push(
                "an audit log has no labels and no owners of pods: `kubectl get pods -A -o json >pods.json` and --pods \
                 pods.json decide about pods that still exist"
                    .to_owned(),
            );
        }
        notes
    }

    fn fields(&self, summary: &Summary) -> Map<String, Value> {
        let fields = json!({
            "withVerbGet": summary.gets.0, "records": self.records, "otherRequests": self.other,
            "skipped": {"notJson": self.not_json, "notAuditLog": self.not_audit, "tooLong": self.too_long},
            "incompleteFiles": self.broken,
        });
        fields.as_object().cloned().unwrap_or_default()
    }
}
