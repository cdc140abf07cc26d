//! The state of a marked pod, for three readers: the condition for people and `kubectl wait`, an annotation for
//! `kubectl pristine`, and the metric `pristine_marked_pods`. Pure.
//!
//! Sentences are for people. A program reads [`Status`], so that a message can be reworded without breaking a reader.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{second, shorten};

/// The pod condition that shows the state to `kubectl describe` and `kubectl wait`.
pub const CONDITION: &str = "pristine/Pristine";
/// The annotation with the [`Status`], JSON.
pub const STATUS: &str = "pristine/status";

/// Bytes of the condition's message.
pub const MAX_MESSAGE: usize = 1024;
/// Bytes of [`Status::cause`]. The API server's refusal of an eviction names a budget and is shorter than this.
const MAX_CAUSE: usize = 512;

/// What a marked pod is waiting for. The variant's name is the condition's reason, but for [`State::Marked`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum State {
    /// A user interacted with the pod and its deadline is in the future.
    #[serde(rename = "Interacted")]
    Marked,
    /// The pod is due and waits for another pod of its workload, or for the rate limit.
    EvictionQueued,
    /// The eviction was refused by a PodDisruptionBudget or failed, and is retried.
    EvictionBlocked,
    /// The API server accepted the eviction. The condition never shows it: the pod is terminating a moment later.
    Evicting,
    /// A user extended the deadline or holds the pod.
    Extended,
    /// The pod is due, and evictions are suspended.
    Suspended,
    /// The pod is out of service until its deadline.
    Quarantined,
    /// A rule asks for an eviction of the pod, and it is never evicted; the cause says why.
    NotEvictable,
    /// The pod had a deadline because of machines that are only recorded for a day, because their evictions were a loop.
    EvictionLoop,
    /// The pod is terminating.
    Terminating,
    /// The pod's containers have terminated.
    Finished,
}

impl State {
    /// The condition's reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Marked => "Interacted",
            Self::EvictionQueued => "EvictionQueued",
            Self::EvictionBlocked => "EvictionBlocked",
            Self::Evicting => "Evicting",
            Self::Extended => "Extended",
            Self::Suspended => "Suspended",
            Self::Quarantined => "Quarantined",
            Self::NotEvictable => "NotEvictable",
            Self::EvictionLoop => "EvictionLoop",
            Self::Terminating => "Terminating",
            Self::Finished => "Finished",
        }
    }
}

/// What programs read about a marked pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The same as the condition's reason.
    pub state: State,
    /// The deadline in force, with an extension that was granted; none if the pod is not evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict_at: Option<Timestamp>,
    /// Why the pod is in this state, if the state alone does not say it: what the API server answered, or which limit
    /// holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The request for an extension that this status answers, as [`Extension::request`](super::extension::Extension)
    /// names it: a user whose request is not answered yet must not read the answer to an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
}

impl Status {
    /// Without a deadline.
    #[must_use]
    pub fn new(state: State, cause: impl Into<Option<String>>) -> Self {
        Self::due(state, None, cause)
    }

    /// With the deadline in force.
    #[must_use]
    pub fn due(state: State, evict_at: Option<Timestamp>, cause: impl Into<Option<String>>) -> Self {
        Self { state, evict_at, cause: cause.into(), answers: None }
    }

    /// Reads the status of a marked pod; none if there is no valid one.
    #[must_use]
    pub fn on(pod: &Pod) -> Option<Self> {
        serde_json::from_str(pod.metadata.annotations.as_ref()?.get(STATUS)?).ok()
    }

    /// The annotation's value.
    #[must_use]
    pub fn to_text(&self) -> String {
        let cause = self.cause.as_deref().map(|cause| shorten(cause, MAX_CAUSE));
        serde_json::to_string(&Self { cause, ..self.clone() }).expect("a status has string keys only")
    }

    /// Whether the pod has this status already, in both places.
    #[must_use]
    pub fn is_on(&self, pod: &Pod, message: &str) -> bool {
        let annotated = pod.metadata.annotations.as_ref().and_then(|all| all.get(STATUS));
        annotated == Some(&self.to_text())
            && condition(pod, CONDITION).is_some_and(|condition| {
                condition.reason.as_deref() == Some(self.state.reason())
                    && condition.message.as_deref() == Some(shorten(message, MAX_MESSAGE).as_str())
            })
    }

    /// The strategic merge PATCH of `pods/status` that writes condition and annotation, on the pod as it was read.
    #[must_use]
    pub fn patch(&self, uid: &str, resource_version: &str, since: Timestamp, message: &str) -> Value {
        json!({
            "metadata": {
                "uid": uid,
                "resourceVersion": resource_version,
                "annotations": { STATUS: self.to_text() },
            },
            "status": { "conditions": [{
                "type": CONDITION,
                "status": "False",
                "reason": self.state.reason(),
                "message": shorten(message, MAX_MESSAGE),
                "lastTransitionTime": second(since).to_string(),
            }]},
        })
    }
}

/// The pod's condition of this type.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the pod is Ready.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_back_as_it_was_written_and_its_cause_is_bounded() {
        let at = Some("2026-01-01T00:10:00Z".parse().unwrap());
        let status = Status::due(State::EvictionBlocked, at, "x".repeat(9000));
        let text = status.to_text();
        assert!(text.len() < 700, "{}", text.len());
        let mut pod = Pod::default();
        pod.metadata.annotations = Some([(STATUS.to_owned(), text)].into());
        let read = Status::on(&pod).unwrap();
        assert_eq!((read.state, read.evict_at), (State::EvictionBlocked, at));
        pod.metadata.annotations = Some([(STATUS.to_owned(), "{\"state\":\"Unknown\"}".to_owned())].into());
        assert_eq!(Status::on(&pod), None, "of a later version");
    }

    #[test]
    fn the_annotation_names_the_state_as_the_condition_does() {
        for state in [State::Marked, State::Extended, State::EvictionQueued, State::Finished] {
            let value = serde_json::to_value(Status::new(state, None)).unwrap();
            assert_eq!(value, json!({ "state": state.reason() }));
        }
    }
}
