//! Whether a replica creates the deleted webhook configuration again, and with which content. Only with the component
//! self-healing. Pure.
//!
//! A configuration that is left behind by an uninstallation denies every exec of the cluster, and no replica is there to
//! repair it. So each doubt decides against creating it: what is missing, is being deleted, or is not as shipped.

use std::{sync::LazyLock, time::Duration};

use k8s_openapi::{
    api::{
        admissionregistration::v1::{
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhook,
            ValidatingWebhookConfiguration,
        },
        apps::v1::Deployment,
        core::v1::{Namespace, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde_json::{Value, json};

use super::{GENERATION, Names, PATH_RENEWED_AT, check};

/// The annotation of our namespace that switches healing off.
pub const SWITCH: &str = "pristine/self-healing";

/// How long the configuration must be gone. Uninstallations delete it first and the rest within a second or two, so after
/// this time they are visible.
pub const HOLD: Duration = Duration::from_secs(10);

/// The most that a replica waits beyond [`HOLD`], at random, so that replicas do not create it in the same moment.
pub const SPREAD: Duration = Duration::from_secs(5);

/// The annotations of the configuration that replicas write, and that a restored one keeps.
const KEPT: [&str; 2] = [GENERATION, PATH_RENEWED_AT];

static POLICY: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../../manifests/components/self-healing/policy.yaml");
    let shipped: ValidatingAdmissionPolicy = serde_saphyr::from_str(text).expect("the shipped manifest is valid");
    comparable(&shipped)
});

/// What is read directly before the configuration is created. `None`: the object does not exist.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Our namespace.
    pub namespace: Option<Namespace>,
    /// The Deployment of the replicas.
    pub deployment: Option<Deployment>,
    /// The Service that the entries call.
    pub service: Option<Service>,
    /// The pod of this replica.
    pub pod: Option<Pod>,
    /// The policy that confines our account.
    pub policy: Option<ValidatingAdmissionPolicy>,
    /// Its binding.
    pub binding: Option<ValidatingAdmissionPolicyBinding>,
}

/// How long a replica waits before it may create the configuration, which has been gone for so long; `None`: it never
/// does.
#[must_use]
pub fn wait(gone_for: Duration, spread: Duration, is_stopping: bool) -> Option<Duration> {
    (!is_stopping).then(|| (HOLD + spread).saturating_sub(gone_for))
}

/// Why the configuration must not be created, or not stay if it was just created.
#[must_use]
pub fn obstacle(facts: &Facts) -> Option<&'static str> {
    if is_off(facts) {
        return Some("the annotation pristine/self-healing of our namespace switches it off");
    }
    if let Some(why) = uninstalling(facts) {
        return Some(why);
    }
    if !stays(facts.pod.as_ref().map(|pod| &pod.metadata)) {
        return Some("this replica is being deleted");
    }
    if !facts.policy.as_ref().is_some_and(|live| comparable(live) == *POLICY) {
        return Some("the policy self.webhooks.pristine is not the one of the component self-healing");
    }
    if !facts.binding.as_ref().is_some_and(is_shipped) {
        return Some("the binding of the policy self.webhooks.pristine is not as shipped");
    }
    None
}

/// Whether an operator switches healing off. Any other word than `on` may be meant as `off`.
#[must_use]
pub fn is_off(facts: &Facts) -> bool {
    let annotations = facts.namespace.as_ref().and_then(|namespace| namespace.metadata.annotations.as_ref());
    annotations.and_then(|all| all.get(SWITCH)).is_some_and(|word| word != "on")
}

/// Why it looks as if Pristine were being uninstalled. A policy that was changed and not deleted is no sign of that: an
/// upgrade may do it.
#[must_use]
pub fn uninstalling(facts: &Facts) -> Option<&'static str> {
    let replicas = facts.deployment.as_ref().and_then(|deployment| deployment.spec.as_ref()?.replicas);
    for (metadata, why) in [
        (facts.namespace.as_ref().map(|found| &found.metadata), "our namespace is being deleted"),
        (facts.deployment.as_ref().map(|found| &found.metadata), "the Deployment is being deleted or does not exist"),
        (facts.service.as_ref().map(|found| &found.metadata), "the Service is being deleted or does not exist"),
        (facts.policy.as_ref().map(|found| &found.metadata), "the policy self.webhooks.pristine does not exist"),
        (
            facts.binding.as_ref().map(|found| &found.metadata),
            "the binding of the policy self.webhooks.pristine does not exist",
        ),
    ] {
        if !stays(metadata) {
            return Some(why);
        }
    }
    replicas.is_some_and(|replicas| replicas <= 0).then_some("the Deployment is scaled to 0")
}

/// Whether the object exists and is not being deleted.
fn stays(found: Option<&ObjectMeta>) -> bool {
    found.is_some_and(|metadata| metadata.deletion_timestamp.is_none())
}

fn is_shipped(binding: &ValidatingAdmissionPolicyBinding) -> bool {
    let Some(spec) = &binding.spec else { return false };
    spec.policy_name.as_deref() == Some("self.webhooks.pristine")
        && spec.validation_actions.as_deref().is_some_and(|actions| actions == ["Deny"])
        && spec.param_ref.is_none()
        && spec.match_resources.is_none()
}

/// The spec with the defaults of the API server and without differences in white space, which mean nothing in CEL outside
/// of comments. The shipped policy has no comments in it.
fn comparable(policy: &ValidatingAdmissionPolicy) -> Value {
    let mut spec = serde_json::to_value(&policy.spec).unwrap_or_default();
    if let Some(Value::Object(constraints)) = spec.get_mut("matchConstraints") {
        constraints.entry("matchPolicy").or_insert_with(|| json!("Equivalent"));
        for selector in ["namespaceSelector", "objectSelector"] {
            constraints.entry(selector).or_insert_with(|| json!({}));
        }
    }
    collapse(&mut spec);
    spec
}

fn collapse(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.split_whitespace().collect::<Vec<_>>().join(" "),
        Value::Array(items) => items.iter_mut().for_each(collapse),
        Value::Object(fields) => fields.values_mut().for_each(collapse),
        _ => {}
    }
}

/// The shipped configuration for this Service, owned by the namespace with this UID, with caBundle,
/// path and annotations of the configuration that was seen last.
///
/// Without caBundle, API servers would deny every exec until a replica writes it. The last one seen may be outdated or
/// from another client, and is safe all the same: it decides only whether API servers trust the replicas, no other server
/// answers for the Service, and the certificate controller compares it with the Secret at once. The path may be outdated in
/// the same way: its renewal continues from it.
#[must_use]
pub fn restored(
    last: &ValidatingWebhookConfiguration,
    names: &Names,
    namespace_uid: &str,
) -> ValidatingWebhookConfiguration {
    let mut new = check::shipped().clone();
    let known: Vec<&ValidatingWebhook> = names.entries(last).collect();
    let trusted = known.iter().find(|entry| entry.client_config.ca_bundle.is_some());
    for entry in new.webhooks.iter_mut().flatten() {
        let before = known.iter().find(|known| known.name == entry.name && known.client_config.ca_bundle.is_some());
        let before = before.or(trusted).map(|before| &before.client_config);
        entry.client_config.ca_bundle = before.and_then(|before| before.ca_bundle.clone());
        if let Some(target) = &mut entry.client_config.service {
            names.service.clone_into(&mut target.name);
            names.namespace.clone_into(&mut target.namespace);
            target.path = before.and_then(|before| before.service.as_ref()).and_then(|before| before.path.clone());
        }
    }
    let annotations = last.metadata.annotations.iter().flatten();
    let kept = annotations.filter(|(key, _)| KEPT.contains(&key.as_str()));
    new.metadata.annotations.get_or_insert_default().extend(kept.map(|(key, value)| (key.clone(), value.clone())));
    new.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: names.namespace.clone(),
        uid: namespace_uid.to_owned(),
        ..OwnerReference::default()
    }]);
    new
}

#[cfg(test)]
mod tests;
