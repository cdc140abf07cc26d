//! Which rule decides about a review, and why the ones before it do not. Pure; for `pristine explain`.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    admission::{
        review::{self, Denial},
        validate,
    },
    config::policy::{Policy, Verdict},
    mark::{Disposition, before_quarantine},
};

/// Explains the decision about the review in `text`, on this pod or on one of a `ReplicaSet` without labels.
///
/// # Errors
/// When the text is no review.
pub fn explain(policy: &Policy, text: &[u8], pod: Option<&Pod>, now: Timestamp) -> Result<String, review::Error> {
    let request = review::parse(text)?;
    let mut out = String::new();
    let assumed = assumed(&request.namespace, &request.pod);
    if pod.is_none() {
        out.push_str("without --pod, a pod of a ReplicaSet without labels is assumed\n");
    }
    let given = &*before_quarantine(pod.unwrap_or(&assumed));
    for act in &request.acts {
        let container = match (pod, validate::container(act, given)) {
            (Some(_), Err(Denial { code, message, .. })) => {
                let _ = writeln!(out, "refused before any rule, as the API server would: {code} {message}");
                continue;
            }
            (_, Ok(container)) => container,
            (None, Err(_)) => act.container.clone(),
        };
        let interaction = validate::interaction(&request, act, container, now);
        let _ = writeln!(out, "{} of pod {}/{}", interaction.summary(), request.namespace, request.pod);
        let decided = policy.decide(&interaction, &request.user, &act.command, given);
        for rule in &policy.rules {
            if let Some(field) = rule.matches.misses(&interaction, &request.user, &act.command, given) {
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
                "break-glass: admitted and marked in spite of the rule".to_owned()
            }
            Verdict::Deny { message } => format!("Deny: {message}"),
        };
        let by = if decided.rule == "default" { "the default".to_owned() } else { format!("rule {:?}", decided.rule) };
        let _ = writeln!(out, "  {by} decides: {what}");
    }
    if request.acts.is_empty() {
        out.push_str("it touches no container: admitted, and nothing is written\n");
    }
    if request.dry_run {
        out.push_str("it is a dry run: nothing is written\n");
    }
    Ok(out)
}

fn assumed(namespace: &str, name: &str) -> Pod {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    let metadata = json!({"namespace": namespace, "name": name, "ownerReferences": owner});
    serde_json::from_value(json!({ "metadata": metadata })).expect("a pod has no field that is required")
}
