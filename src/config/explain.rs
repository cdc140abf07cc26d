//! Which rule decides about a review, and why the rules before it do not match: `pristine explain`. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    admission::{
        review::{self, Denial},
        validate,
    },
    config::policy::{Attributes, Labels, NamespaceNeeded, Policy, Verdict},
    mark::{Disposition, before_quarantine},
};

/// Explains the decision about the review in `text`, for this pod or for a pod of a `ReplicaSet` without labels, in a
/// namespace with these labels or with none but its name.
///
/// # Errors
/// When the text is not a review.
pub fn explain(
    policy: &Policy,
    text: &[u8],
    pod: Option<&Pod>,
    namespace: Option<&Labels>,
    now: Timestamp,
) -> Result<String, review::Error> {
    let request = review::parse(text)?;
    let mut out = String::new();
    let assumed = assumed(&request.namespace, &request.pod);
    let only_name: Labels = [("kubernetes.io/metadata.name".to_owned(), request.namespace.clone())].into();
    if pod.is_none() {
        out.push_str("no --pod: assuming a pod of a ReplicaSet, without labels\n");
    }
    let given = &*before_quarantine(pod.unwrap_or(&assumed));
    for act in &request.acts {
        let container = match (pod, validate::container(act, given)) {
            (Some(_), Err(Denial { code, message, .. })) => {
                let _ = writeln!(
                    out,
                    "denied before any rule is checked, with the API server's own error: {code} {message}"
                );
                continue;
            }
            (_, Ok(container)) => container,
            (None, Err(_)) => act.container.clone(),
        };
        let interaction = validate::interaction(&request, act, container, now);
        let _ = writeln!(out, "pod {}/{}: {}", request.namespace, request.pod, interaction.summary());
        let it = Attributes {
            interaction: &interaction,
            user: &request.user,
            argv: &act.command,
            pod: given,
            namespace: Some(namespace.unwrap_or(&only_name)),
        };
        if namespace.is_none() && policy.decide(Attributes { namespace: None, ..it }) == Err(NamespaceNeeded) {
            out.push_str("  no --namespace: assuming a namespace without labels, except its name\n");
        }
        let Ok(decided) = policy.decide(it) else { continue };
        for rule in &policy.rules {
            if let Ok(Some(field)) = rule.misses(it) {
                let _ = writeln!(out, "  rule {:?} does not match: {field}", rule.name);
            } else {
                let _ = writeln!(out, "  rule {:?} matches", rule.name);
                break;
            }
        }
        let what = match &decided.verdict {
            Verdict::Exempt => "Exempt: admitted, nothing is written".to_owned(),
            Verdict::Mark(Disposition::Record) => "Record: admitted and marked, never evicted".to_owned(),
            Verdict::Mark(Disposition::EvictIfOwned(ttl)) => format!(
                "Record: admitted and marked, and evicted {ttl:?} later only if a controller owns the pod by then"
            ),
            Verdict::Mark(Disposition::Evict(ttl)) => {
                format!("Evict: admitted and marked, and the pod is evicted {ttl:?} later")
            }
            Verdict::Deny { .. } if request.breaks_glass() => {
                "Record: break-glass overrides Deny, admitted and marked, never evicted".to_owned()
            }
            Verdict::Deny { message } => format!("Deny: {message}"),
        };
        let by = if decided.rule == "default" { "the default".to_owned() } else { format!("rule {:?}", decided.rule) };
        let _ = writeln!(out, "  {by} decides: {what}");
    }
    if request.acts.is_empty() {
        out.push_str("the request reaches no container: admitted, nothing is written\n");
    }
    if request.dry_run {
        out.push_str("dry run: nothing is written\n");
    }
    Ok(out)
}

fn assumed(namespace: &str, name: &str) -> Pod {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    let metadata = json!({"namespace": namespace, "name": name, "ownerReferences": owner});
    serde_json::from_value(json!({ "metadata": metadata })).expect("no field of a pod is required")
}
