//! Counts the pods of a workload, and finds out whether one of them is being replaced. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::PodCondition,
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use serde::Deserialize;

use crate::mark::owner::{Seen, group, is_controller};

/// What a pod says about its workload. Only what is needed: a workload can have thousands of pods.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Member {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    owner_references: Vec<OwnerReference>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    phase: Option<String>,
    #[serde(default)]
    conditions: Vec<PodCondition>,
}

impl Member {
    /// A label.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// An annotation.
    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// The end of the grace period, if the pod is terminating.
    pub(super) fn leaves_at(&self) -> Option<Timestamp> {
        self.metadata.deletion_timestamp.as_ref().map(|time| time.0)
    }

    /// Whether the pod is Ready.
    pub(super) fn is_ready(&self) -> bool {
        self.ready().is_some_and(|condition| condition.status == "True")
    }

    fn ready(&self) -> Option<&PodCondition> {
        self.status.conditions.iter().find(|condition| condition.type_ == "Ready")
    }

    /// Since when the pod is as Ready, or not Ready, as it is.
    pub(super) fn changed_at(&self) -> Option<Timestamp> {
        let condition = self.ready().and_then(|condition| condition.last_transition_time.as_ref());
        condition.or(self.metadata.creation_timestamp.as_ref()).map(|time| time.0)
    }

    /// The pod's controller, if it is in a workload at all.
    fn controller(&self) -> Option<&OwnerReference> {
        self.metadata.owner_references.iter().find(|owner| is_controller(owner))
    }
}

/// Counts pods, page by page.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    uid: &'a str,
    /// See [`group`]. Pods of another owner of the group are not counted, but they show whether one is being replaced.
    group: Option<String>,
    min_ready: SignedDuration,
    now: Timestamp,
    /// Pods that have neither finished nor begun to terminate.
    pub(super) live: i32,
    /// Those of them that are Ready for as long as their owner demands.
    pub(super) ready: i32,
    /// Whether one is being replaced.
    pub(super) seen: Seen,
}

impl<'a> Tally<'a> {
    /// Counts the pods of the owner with this UID, which are available once they are Ready for `min_ready`.
    #[must_use]
    pub(super) fn new(uid: &'a str, group: Option<String>, min_ready_seconds: Option<i32>, now: Timestamp) -> Self {
        let min_ready = SignedDuration::from_secs(min_ready_seconds.unwrap_or(0).into());
        Self { uid, group, min_ready, now, live: 0, ready: 0, seen: Seen::default() }
    }

    /// Counts one pod.
    pub(super) fn add(&mut self, pod: &Member) {
        let Some(owner) = pod.controller() else { return };
        let is_own = owner.uid == self.uid;
        let is_in_group = self.group.is_some() && group(pod.metadata.labels.as_ref(), owner) == self.group;
        let is_finished = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if is_finished || !(is_own || is_in_group) {
            return;
        }
        if let Some(until) = &pod.metadata.deletion_timestamp {
            // A ReplicaSet recreates the pod at once, so its replacement is among the others.
            if owner.kind != "ReplicaSet" {
                self.seen.leaving_until = self.seen.leaving_until.max(Some(until.0));
            }
            return;
        }
        self.live += i32::from(is_own);
        let is_ready = pod.is_ready();
        let since = pod.changed_at().unwrap_or(self.now);
        if is_ready && self.now.duration_since(since) >= self.min_ready {
            self.ready += i32::from(is_own);
        } else {
            self.seen.starting_since = self.seen.starting_since.max(Some(since));
        }
    }

    /// After all pods: whether pods of this many wanted ones are missing.
    pub(super) fn expect(&mut self, wanted: i32) {
        if self.live < wanted {
            self.seen.starting_since = Some(self.now);
        }
    }
}

#[cfg(test)]
mod tests;
