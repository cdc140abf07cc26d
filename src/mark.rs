//! The mark: what Pristine writes on a pod after an interaction, and how it is read back.
//!
//! Pure. The pod is the only store, so the mark holds everything that the eviction needs, and everything that a person
//! sees is derived from it. The surprise: a mark names the UID of its pod. A copied pod, a template or a restore
//! carries the annotation too, but cannot know the UID that the API server assigns, so a mark with another UID is not a
//! mark.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::mark::{
    claims::{Claim, Claims},
    owner::controller,
};

pub mod claims;
pub mod extension;
mod interaction;
pub mod owner;
pub mod redact;
pub mod report;
pub mod status;
pub mod surge;
pub use interaction::{EXEC_REQUEST_UID, Interaction, Operation, POD_NAME, SERVICE_ACCOUNT, User};
pub use status::{State, Status, is_ready};

/// The label of every marked pod, and the only selector. User names never go into labels: an e-mail address is not a
/// valid label value, and the API server would reject the whole mark.
pub const INTERACTED: &str = "pristine/interacted";
/// The annotation with the interactions, JSON.
pub const INTERACTIONS: &str = "pristine/interactions";
/// The annotation with the deadline, RFC 3339.
pub const EVICT_AT: &str = "pristine/evict-at";
/// The annotations that users write: extend the deadline to a time, or hold the pod; by whom, and why.
pub const USERS_KEYS: [&str; 4] =
    ["pristine/extend-to", "pristine/hold", "pristine/extended-by", "pristine/extend-reason"];
/// The annotation with the labels that quarantine removed from a pod, JSON, for an operator who wants to restore them.
pub const QUARANTINED: &str = "pristine/quarantined";

/// Two reviews of one interaction arrive within this time: kubectl falls back from WebSocket to SPDY after a denial,
/// and the API server reviews `kubectl debug` again after each write of Pristine to the pod. Writing on each of those
/// reviews made it retry 574 times into a 504, so the second review must find the first one on the pod and write
/// nothing.
pub const FOLD: SignedDuration = SignedDuration::from_secs(10);

/// Latest interactions that are kept, besides the first.
const MAX_RECENT: usize = 10;
/// Bytes of the annotation, however many execs a loop sends. Kubernetes allows 256 KiB for all annotations of an
/// object.
const MAX_BYTES: usize = 16 * 1024;

/// The interactions with one pod, and when the pod is evicted because of them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Mark {
    /// UID of the pod.
    pub pod: String,
    /// Number of interactions, including those no longer listed.
    pub total: u64,
    /// The interaction that made the pod differ from what was deployed.
    pub first: Interaction,
    /// The latest interactions after the first, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<Interaction>,
    /// The deadline; none if a rule only records. It has an annotation of its own.
    #[serde(skip)]
    pub evict_at: Option<Timestamp>,
    /// The deadline of a pod that was bare at the interaction, if a controller owns it by then. Without this, a user
    /// could remove the label by which a ReplicaSet selects the pod before an exec, and restore it afterwards.
    #[serde(default, rename = "evictIfOwnedAt", skip_serializing_if = "Option::is_none")]
    evict_if_owned_at: Option<Timestamp>,
    /// Whose interactions cause the deadline.
    #[serde(default, skip_serializing_if = "Claims::is_empty")]
    pub claims: Claims,
}

/// What happens to a pod because of an interaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// The interaction is recorded and the pod is not evicted.
    Record,
    /// The pod is evicted this long after the interaction if a controller owns it by then.
    EvictIfOwned(Duration),
    /// The pod is evicted this long after the interaction.
    Evict(Duration),
}

impl From<Option<Duration>> for Disposition {
    fn from(ttl: Option<Duration>) -> Self {
        ttl.map_or(Self::Record, Self::Evict)
    }
}

/// The mark of a pod, as far as it can be read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// The pod has no mark.
    None,
    /// The pod has annotations of Pristine that are not a mark of this pod, and why. The next interaction overwrites
    /// them.
    NotAMark(String),
    /// The mark.
    Mark(Mark),
}

impl Found {
    /// Reads the mark of a pod.
    #[must_use]
    pub fn on(pod: &Pod) -> Self {
        let annotations = pod.metadata.annotations.as_ref();
        let annotation = |key| annotations.and_then(|all| all.get(key));
        let Some(text) = annotation(INTERACTIONS) else {
            let labelled = pod.metadata.labels.as_ref().is_some_and(|all| all.contains_key(INTERACTED));
            return if labelled { Self::NotAMark(format!("no annotation {INTERACTIONS}")) } else { Self::None };
        };
        let mut mark: Mark = match serde_json::from_str(text) {
            Ok(mark) => mark,
            Err(error) => {
                return Self::NotAMark(shorten(&format!("annotation {INTERACTIONS}: {error}"), status::MAX_MESSAGE));
            }
        };
        if Some(&mark.pod) != pod.metadata.uid.as_ref() {
            let other = shorten(&mark.pod, 64);
            return Self::NotAMark(format!("annotation {INTERACTIONS} belongs to another pod, with UID {other:?}"));
        }
        mark.evict_at = match annotation(EVICT_AT).map(|text| text.parse()) {
            None => None,
            Some(Ok(at)) => Some(at),
            Some(Err(error)) => return Self::NotAMark(format!("annotation {EVICT_AT}: {error}")),
        };
        if is_recreated(pod) {
            mark.evict_at = mark.evict_at.into_iter().chain(mark.evict_if_owned_at).min();
        }
        mark.claims.agree_with(mark.evict_at);
        Self::Mark(mark)
    }

    /// The mark, if there is one.
    #[must_use]
    pub fn mark(self) -> Option<Mark> {
        match self {
            Self::Mark(mark) => Some(mark),
            Self::None | Self::NotAMark(_) => None,
        }
    }
}

/// Whether a controller recreates the pod after eviction. A Job counts an eviction as a failure, and so do other
/// controllers that run pods to completion (Tekton, Argo Workflows, Spark, …). Pods that serve have the restart policy
/// Always: the API server accepts no other in the template of a ReplicaSet, a StatefulSet or a DaemonSet.
#[must_use]
pub fn is_recreated(pod: &Pod) -> bool {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    controller(pod).is_some_and(|owner| owner.kind != "Job") && policy.is_none_or(|policy| policy == "Always")
}

/// The pod as it was before its quarantine or its surge, for the rules: both remove labels, and quarantine the controller
/// with them.
#[must_use]
pub fn before_quarantine(pod: &Pod) -> Cow<'_, Pod> {
    let annotations = pod.metadata.annotations.as_ref();
    if surge::is_in_surge(pod)
        && let Some(hash) = surge::annotation(pod, surge::SURGE_HASH)
    {
        let mut before = pod.clone();
        before.metadata.labels.get_or_insert_default().entry(surge::HASH.to_owned()).or_insert_with(|| hash.to_owned());
        return Cow::Owned(before);
    }
    let Some(text) = annotations.and_then(|all| all.get(QUARANTINED)) else { return Cow::Borrowed(pod) };
    let labels: BTreeMap<String, String> = serde_json::from_str(text).unwrap_or_default();
    // Without a mark, Pristine did not write the annotation.
    if labels.is_empty() || Found::on(pod).mark().is_none() {
        return Cow::Borrowed(pod);
    }
    let mut before = pod.clone();
    let own = before.metadata.labels.get_or_insert_default();
    for (key, value) in labels {
        own.entry(key).or_insert(value);
    }
    if controller(pod).is_none() {
        // Only pods of ReplicaSets are quarantined.
        let owner = OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        before.metadata.owner_references.get_or_insert_default().push(owner);
    }
    Cow::Owned(before)
}

impl Mark {
    /// The mark after one more interaction, or `None` if the pod has it already and nothing must be written.
    ///
    /// The deadline is the first interaction plus its TTL. A later interaction can only bring it forward.
    #[must_use]
    pub fn after(
        existing: Option<Self>,
        pod_uid: &str,
        interaction: Interaction,
        disposition: impl Into<Disposition>,
    ) -> Option<Self> {
        let after = |ttl: Duration| {
            SignedDuration::try_from(ttl)
                .ok()
                .and_then(|ttl| interaction.at.checked_add(ttl).ok())
                // Whole seconds, as elsewhere in the API. Rounded up, because an eviction is never early.
                .and_then(|at| at.round(TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil)).ok())
                .unwrap_or(Timestamp::MAX)
        };
        let (evict_at, evict_if_owned_at) = match disposition.into() {
            Disposition::Record => (None, None),
            Disposition::EvictIfOwned(ttl) => (None, Some(after(ttl))),
            Disposition::Evict(ttl) => (Some(after(ttl)), None),
        };
        let Some(mut mark) = existing else {
            let (pod, recent, mut claims) = (pod_uid.to_owned(), Vec::new(), Claims::default());
            evict_at.into_iter().for_each(|at| claims.add(&interaction, at));
            return Some(Self { pod, total: 1, first: interaction, recent, evict_at, evict_if_owned_at, claims });
        };
        let earliest = mark.evict_at.into_iter().chain(evict_at).min();
        let evict_if_owned_at = mark.evict_if_owned_at.into_iter().chain(evict_if_owned_at).min();
        let is_as_strict = (earliest, evict_if_owned_at) == (mark.evict_at, mark.evict_if_owned_at);
        // A stricter rule may have matched something that is not recorded (another group, words that are masked).
        if is_as_strict && mark.latest().any(|known| known.same(&interaction)) {
            return None;
        }
        mark.total = mark.total.saturating_add(1);
        evict_at.into_iter().for_each(|at| mark.claims.add(&interaction, at));
        mark.recent.push(interaction);
        (mark.evict_at, mark.evict_if_owned_at) = (earliest, evict_if_owned_at);
        let surplus = mark.recent.len().saturating_sub(MAX_RECENT);
        mark.recent.drain(..surplus);
        while mark.recent.len() > 1 && mark.record().len() > MAX_BYTES {
            mark.recent.remove(0);
        }
        Some(mark)
    }

    /// The deadline that applies if a controller owns the pod by then.
    #[must_use]
    pub const fn evict_if_owned_at(&self) -> Option<Timestamp> {
        self.evict_if_owned_at
    }

    /// The mark without these claims: the interactions stay, and cause no deadline any more.
    #[must_use]
    pub fn without(&self, is_spared: impl Fn(&Claim) -> bool) -> Self {
        let claims = self.claims.without(is_spared);
        Self { evict_at: claims.earliest(), claims, ..self.clone() }
    }

    /// The listed interactions, latest first.
    pub fn latest(&self) -> impl Iterator<Item = &Interaction> {
        self.recent.iter().rev().chain(std::iter::once(&self.first))
    }

    /// Whether an interaction of this review is listed.
    #[must_use]
    pub fn has_review(&self, review: &str) -> bool {
        self.latest().any(|known| known.review == review)
    }

    /// The latest interaction.
    #[must_use]
    pub fn last(&self) -> &Interaction {
        self.recent.last().unwrap_or(&self.first)
    }

    fn record(&self) -> String {
        serde_json::to_string(self).expect("a mark has string keys only")
    }

    /// For people: who did what, and when.
    #[must_use]
    pub fn who(&self) -> String {
        let more = match self.total {
            0 | 1 => String::new(),
            total => format!(" and {} more", total - 1),
        };
        format!("{} at {}{more}", self.first.summary(), second(self.first.at))
    }

    /// One sentence for people: who did what, and what happens to the pod.
    #[must_use]
    pub fn summary(&self) -> String {
        let then = match self.evict_at {
            Some(deadline) => format!("due for eviction at {deadline}"),
            None => "recorded only".to_owned(),
        };
        format!("{}; {then}", self.who())
    }

    /// The strategic merge PATCH of `pods/status` that writes this mark.
    ///
    /// `uid` protects a new pod of the same name. `resourceVersion` protects the mark that another replica writes at
    /// the same moment (without it, 20 of 20 concurrent marks lost one).
    ///
    /// The first mark clears the annotations of users, of quarantine and of a surge: no policy guards the creation of
    /// pods, so a template may have carried them.
    #[must_use]
    pub fn patch(&self, resource_version: &str, is_first: bool) -> Value {
        let status = Status::due(State::Marked, self.evict_at, None);
        self.patch_with(resource_version, is_first, &status, &self.summary())
    }

    /// The same with this status and this message for people.
    #[must_use]
    pub fn patch_with(&self, resource_version: &str, is_first: bool, status: &Status, message: &str) -> Value {
        let mut patch = status.patch(&self.pod, resource_version, self.first.at, message);
        patch["metadata"]["labels"] = json!({ INTERACTED: "true" });
        let annotations = &mut patch["metadata"]["annotations"];
        annotations[INTERACTIONS] = json!(self.record());
        annotations[EVICT_AT] = json!(self.evict_at.map(|at| at.to_string()));
        if is_first {
            for key in USERS_KEYS.into_iter().chain([QUARANTINED, surge::SURGE]) {
                annotations[key] = Value::Null;
            }
        }
        patch
    }
}

/// Whole seconds, because metav1.Time has no fractions.
fn second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// At most `limit` bytes of `text`, cut between characters.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
