//! The record of a surge on its pod: its replacement is created first, and it is evicted then. Pure.
//!
//! While a pod is in a surge, it lacks the label [`HASH`], so its ReplicaSet does not count it and creates another one.
//! Everything that a new leader needs is on the pod. When a surge ends without an eviction, the label is put back, and
//! the record stays, so that the attempt is not repeated at once.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{EVICT_AT, Found, Mark, State, Status};

/// The label of a pod in a surge, by which an operator finds it, and the annotation with its [`Surge`], JSON.
pub const SURGE: &str = "pristine/surge";
/// The annotation with the value of the label that was taken off. The policies of manifests/components/surge go by it.
pub const SURGE_HASH: &str = "pristine/surge-hash";
/// The label by which the ReplicaSet of a Deployment selects its pods.
pub const HASH: &str = "pod-template-hash";
/// The annotation of a pod or a Deployment whose owner wants no surge: `"true"`.
pub const NO_SURGE: &str = "pristine/no-surge";

/// An object by name, and the UID that it must have.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Object {
    /// Its name, in the pod's namespace.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A surge.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Surge {
    /// The pod's controller.
    pub replica_set: Object,
    /// The controller of that.
    pub deployment: Object,
    /// The Deployment's `metadata.generation` at the start.
    pub generation: i64,
    /// Names, UIDs and generations of the PodDisruptionBudgets at the start.
    pub budgets: String,
    /// When it started.
    pub since: Timestamp,
    /// When it ends at the latest.
    pub until: Timestamp,
    /// Surges of this pod in a row that began with the same generation and budgets, this one included.
    pub attempt: u32,
    /// How it ended; none while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// The end of a surge without an eviction.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub why: End,
}

/// Why a surge ended without an eviction.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum End {
    /// No replacement was Ready, or no budget allowed the eviction, until the end of the surge.
    TimedOut,
    /// The ReplicaSet created no replacement within 30 s.
    NotCreated,
    /// The ReplicaSet could not create a replacement, for example because of a quota.
    CreateFailed,
    /// No node had room for the replacement for 30 s.
    Unschedulable,
    /// The ReplicaSet or the Deployment changed, was scaled, or is gone.
    OwnerChanged,
    /// The pod's ownerReference is gone: the component's policy is not in force.
    OwnerLost,
    /// The pod is no longer due: a user extended its deadline or holds it.
    NotDue,
    /// Evictions are suspended.
    Suspended,
    /// The configuration no longer has `eviction.surge`.
    Disabled,
    /// The API server refused the eviction for another reason than a budget.
    EvictionFailed,
    /// The webhook configuration is gone: Pristine is being uninstalled.
    Uninstalled,
    /// The record on the pod cannot be read.
    Unreadable,
}

impl End {
    /// Every variant.
    pub const ALL: [Self; 12] = [
        Self::TimedOut,
        Self::NotCreated,
        Self::CreateFailed,
        Self::Unschedulable,
        Self::OwnerChanged,
        Self::OwnerLost,
        Self::NotDue,
        Self::Suspended,
        Self::Disabled,
        Self::EvictionFailed,
        Self::Uninstalled,
        Self::Unreadable,
    ];

    /// The value of the metric's label.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::NotCreated => "not_created",
            Self::CreateFailed => "create_failed",
            Self::Unschedulable => "unschedulable",
            Self::OwnerChanged => "owner_changed",
            Self::OwnerLost => "owner_lost",
            Self::NotDue => "not_due",
            Self::Suspended => "suspended",
            Self::Disabled => "disabled",
            Self::EvictionFailed => "eviction_failed",
            Self::Uninstalled => "uninstalled",
            Self::Unreadable => "unreadable",
        }
    }

    /// One clause for people.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TimedOut => {
                "the pod could not be evicted in time: its replacement is not Ready, or a budget does not allow it"
            }
            Self::NotCreated => "the ReplicaSet created no replacement within 30 s",
            Self::CreateFailed => "the ReplicaSet cannot create a replacement; its condition ReplicaFailure says why",
            Self::Unschedulable => "no node has room for the replacement",
            Self::OwnerChanged => "its Deployment or ReplicaSet changed, was scaled, or is gone",
            Self::OwnerLost => {
                "its ReplicaSet released it; apply the component surge again, because its policy is not in force"
            }
            Self::NotDue => "the pod is no longer due",
            Self::Suspended => "evictions are suspended",
            Self::Disabled => "the configuration no longer has eviction.surge",
            Self::EvictionFailed => "the API server refused the eviction for another reason than a budget",
            Self::Uninstalled => "the webhook configuration is gone, as in an uninstallation",
            Self::Unreadable => "the annotation pristine/surge cannot be read",
        }
    }

    /// Whether another attempt with the same Deployment and budgets would probably end in the same way.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::NotDue | Self::Suspended | Self::Disabled | Self::Uninstalled | Self::OwnerChanged)
    }
}

impl Surge {
    /// Reads the record of a pod, of a surge that lasts or of the last one.
    #[must_use]
    pub fn on(pod: &Pod) -> Option<Self> {
        serde_json::from_str(annotation(pod, SURGE)?).ok()
    }

    fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a record has string keys only")
    }

    /// The PATCH of `pods/status` that takes the label with this value off. Label, record and status are written in one
    /// step, so a leader that is killed leaves either all of them or none.
    #[must_use]
    pub fn begin(&self, mark: &Mark, resource_version: &str, hash: &str) -> Value {
        let cause = format!("its replacement starts first (eviction.surge), until {:.0} at the latest", self.until);
        let message = format!("{}. It is due and waits: {cause}", mark.summary());
        let status = Status::due(State::EvictionQueued, mark.evict_at, cause);
        let mut patch = status.patch(&mark.pod, resource_version, mark.first.at, &message);
        patch["metadata"]["labels"] = json!({ SURGE: "true", HASH: null });
        let annotations = &mut patch["metadata"]["annotations"];
        annotations[SURGE] = json!(self.to_text());
        annotations[SURGE_HASH] = json!(hash);
        // A pod that was bare at the exec has this deadline only while a controller owns it.
        annotations[EVICT_AT] = json!(mark.evict_at.map(|at| at.to_string()));
        patch
    }
}

/// The PATCH of `pods/status` that ends a surge of this pod, as it was read: the label is put back, and the record says
/// why. None if the value of the label is not known.
#[must_use]
pub fn end(pod: &Pod, why: End, now: Timestamp) -> Option<Value> {
    let hash = annotation(pod, SURGE_HASH)?;
    // A label that another client has written since then is kept.
    let hash = label(pod, HASH).unwrap_or(hash);
    let record = Surge::on(pod).map(|surge| Surge { ended: Some(Ended { at: now, why }), ..surge }.to_text());
    Some(json!({ "metadata": {
        "uid": pod.metadata.uid,
        "resourceVersion": pod.metadata.resource_version,
        "labels": { HASH: hash, SURGE: null },
        "annotations": { SURGE_HASH: null, SURGE: record },
    }}))
}

/// Whether the pod is in a surge. The first mark of a pod clears the annotation that its template may have carried.
#[must_use]
pub fn is_in_surge(pod: &Pod) -> bool {
    let has_all = label(pod, SURGE).is_some() && annotation(pod, SURGE_HASH).is_some();
    has_all && annotation(pod, SURGE).is_some() && Found::on(pod).mark().is_some()
}

/// The value of a label.
#[must_use]
pub fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The value of an annotation.
#[must_use]
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
