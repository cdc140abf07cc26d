//! A report: the label by which a detector, or a person, says that a user was in a pod. Pure.
//!
//! A policy in the API server checks who may set the label on a pod that exists. Nothing checks who creates pods with it, so
//! a label that comes from the template of a controller is no report: each replacement would have it, and would be evicted.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::owner::controller;

/// The label of a report. Its value is the source, such as `falco`.
pub const REPORTED: &str = "pristine/reported";
/// The annotation with what the source knows, in free text: its rule, the process, the time.
pub const REPORT: &str = "pristine/report";

/// What is reported about a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// Who reports it.
    pub source: String,
    /// What happened, if the source says.
    pub text: Option<String>,
}

/// Why a pod with the label is not marked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Ignored {
    /// Each pod of the controller has the label.
    #[error("the label comes from the template of the pod's controller. Remove it there")]
    Template,
    /// Nothing can be evicted.
    #[error("the pod has finished")]
    Finished,
    /// The policy in the API server refuses this on a pod that exists.
    #[error("the label has no value. Its value is the source of the report")]
    NoSource,
}

impl Report {
    /// The report on a pod, or why its label is none. `None` without the label.
    #[must_use]
    pub fn on(pod: &Pod) -> Option<Result<Self, Ignored>> {
        let source = pod.metadata.labels.as_ref()?.get(REPORTED)?;
        let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(REPORT));
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(if source.is_empty() {
            Err(Ignored::NoSource)
        } else if matches!(phase, Some("Succeeded" | "Failed")) {
            Err(Ignored::Finished)
        } else if is_from_template(pod) {
            Err(Ignored::Template)
        } else {
            let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
            Ok(Self { source: source.clone(), text })
        })
    }
}

/// Whether one field manager wrote both the spec and the label of a controller's pod: the controller, when it created the pod.
fn is_from_template(pod: &Pod) -> bool {
    let label = format!("f:{REPORTED}");
    let wrote_both = |fields: &Value| {
        fields.get("f:spec").is_some()
            && fields.pointer("/f:metadata/f:labels").is_some_and(|all| all.get(&label).is_some())
    };
    let entries = pod.metadata.managed_fields.iter().flatten();
    let mut written = entries.filter_map(|entry| entry.fields_v1.as_ref());
    controller(pod).is_some() && written.any(|fields| wrote_both(&fields.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(labels: &Value, owned: bool, by: [&str; 2]) -> Pod {
        let owners = if owned {
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}])
        } else {
            json!([])
        };
        let entry = |manager: &str| {
            let mut fields = json!({});
            if by[0] == manager {
                fields["f:spec"] = json!({"f:containers": {}});
            }
            if by[1] == manager {
                fields["f:metadata"] = json!({"f:labels": {".": {}, "f:pristine/reported": {}}});
            }
            json!({"manager": manager, "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields})
        };
        let managed = json!([entry("kube-controller-manager"), entry("falco")]);
        let metadata = json!({
            "name": "web-0", "labels": labels, "annotations": {REPORT: "  a shell \n"}, "ownerReferences": owners,
            "managedFields": managed,
        });
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Running"}})).unwrap()
    }

    const REPORTER: [&str; 2] = ["kube-controller-manager", "falco"];
    const TEMPLATE: [&str; 2] = ["kube-controller-manager", "kube-controller-manager"];

    #[test]
    fn a_report_is_a_label_with_a_source_that_no_controller_put_there() {
        let falco = json!({REPORTED: "falco"});
        let report = Report { source: "falco".into(), text: Some("a shell".into()) };
        assert_eq!(Report::on(&pod(&json!({}), true, REPORTER)), None);
        assert_eq!(Report::on(&pod(&falco, true, REPORTER)), Some(Ok(report.clone())));
        assert_eq!(Report::on(&pod(&falco, true, TEMPLATE)), Some(Err(Ignored::Template)));
        // Nothing replaces a bare pod, so there is no loop.
        assert_eq!(Report::on(&pod(&falco, false, TEMPLATE)), Some(Ok(report)));
        assert_eq!(Report::on(&pod(&json!({REPORTED: ""}), true, REPORTER)), Some(Err(Ignored::NoSource)));
        let mut finished = pod(&falco, true, REPORTER);
        finished.status.as_mut().unwrap().phase = Some("Failed".into());
        assert_eq!(Report::on(&finished), Some(Err(Ignored::Finished)));
    }
}
