//! What happens next to a pod in a surge, from what the API server says now. Pure.
//!
//! Level-triggered: the record on the pod is all that is known of the past, so a new leader decides as the last one. The
//! status of a ReplicaSet proves nothing: with a controller manager that lags it still counts the pod itself. Only a LIST
//! shows that another pod serves.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};

use super::conditions::has_failure;
use crate::{
    eviction::Next,
    mark::{
        is_ready,
        owner::controller,
        status::condition,
        surge::{End, HASH, SURGE_HASH, Surge, annotation, label},
    },
};

/// How long nothing may come of a surge: no replacement, or none that a node has room for.
const STALLED: SignedDuration = SignedDuration::from_secs(30);
/// Nodes need a moment to send requests to a pod that has just become Ready.
const ENDPOINT_DELAY: SignedDuration = SignedDuration::from_secs(2);
/// The longest wait for a ReplicaSet after the label was put back.
const SETTLE: SignedDuration = SignedDuration::from_secs(60);
/// The ReplicaSet controller needs a moment to see the label.
const SYNC_DELAY: SignedDuration = SignedDuration::from_secs(2);

/// A pod in a surge and its workload, as read from the API server.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The ReplicaSet with the recorded name; none if there is none.
    pub set: Option<&'a ReplicaSet>,
    /// The Deployment with the recorded name; none if there is none.
    pub deployment: Option<&'a Deployment>,
    /// The pods of the namespace with the recorded value of the label [`HASH`], as a LIST of the API server returned
    /// them, and not a cache.
    pub pods: &'a [Pod],
}

/// What happens next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Look again in a second.
    Wait,
    /// Its replacement serves: evict the pod.
    Evict,
    /// Put the label back.
    End(End),
}

/// Why the surge ends whatever its workload does; none if it goes on. `next` is the plan for the pod without a surge.
#[must_use]
pub fn stop(next: &Next, is_suspended: bool, is_enabled: bool) -> Option<End> {
    if is_suspended {
        return Some(End::Suspended);
    }
    if !is_enabled {
        return Some(End::Disabled);
    }
    (!matches!(next, Next::Evict { .. })).then_some(End::NotDue)
}

/// Decides. Never returns [`Step::Evict`] unless the LIST has as many other pods that serve as the ReplicaSet wants.
#[must_use]
pub fn step(observed: Observed<'_>, now: Timestamp) -> Step {
    let Observed { pod, set, deployment, pods } = observed;
    let Some(surge) = Surge::on(pod) else { return Step::End(End::Unreadable) };
    let set = set.filter(|set| set.metadata.uid.as_ref() == Some(&surge.replica_set.uid));
    // A ReplicaSet that is deleted with --cascade=orphan releases its pods as well.
    let is_going = set.is_none_or(|set| set.metadata.deletion_timestamp.is_some());
    if !is_going && controller(pod).is_none_or(|owner| owner.uid != surge.replica_set.uid) {
        return Step::End(End::OwnerLost);
    }
    let deployment = deployment.filter(|it| it.metadata.uid.as_ref() == Some(&surge.deployment.uid));
    let (Some(set), Some(deployment)) = (set, deployment) else { return Step::End(End::OwnerChanged) };
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let is_unchanged = deployment.metadata.generation == Some(surge.generation)
        && deployment.metadata.deletion_timestamp.is_none()
        && !is_going
        && wanted >= 1
        && label(pod, HASH).is_none();
    if !is_unchanged {
        return Step::End(End::OwnerChanged);
    }
    let others: Vec<&Pod> = pods.iter().filter(|other| is_counted(other, pod, &surge)).collect();
    let serving = others.iter().filter(|other| serves(other, set, now)).count();
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if serving >= wanted {
        return Step::Evict;
    }
    if now >= surge.until {
        return Step::End(End::TimedOut);
    }
    if has_failure(set) {
        return Step::End(End::CreateFailed);
    }
    if others.len() < wanted && now.duration_since(surge.since) >= STALLED {
        return Step::End(End::NotCreated);
    }
    if others.iter().any(|other| is_unschedulable(other, now)) {
        return Step::End(End::Unschedulable);
    }
    Step::Wait
}

/// Whether the ReplicaSet of a pod whose surge has ended counts the pod again, so that the pod can be evicted as without a
/// surge: a ReplicaSet that waits to create a pod again only forgets that wait when it counts as many pods as it wants.
#[must_use]
pub fn is_settled(pod: &Pod, set: Option<&ReplicaSet>, pods: &[Pod], now: Timestamp) -> bool {
    let ended = Surge::on(pod).and_then(|surge| surge.ended);
    let (Some(ended), Some(set)) = (ended, set) else { return true };
    let since = now.duration_since(ended.at);
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let counted = set.status.as_ref().map_or(0, |status| status.replicas);
    let owned = |other: &&Pod| {
        other.metadata.deletion_timestamp.is_none()
            && label(other, HASH).is_some()
            && controller(other).map(|owner| &owner.uid) == set.metadata.uid.as_ref()
    };
    let living = pods.iter().filter(owned).count();
    let is_counted = counted == wanted && i32::try_from(living) == Ok(wanted) && !has_failure(set);
    since >= SETTLE || (since >= SYNC_DELAY && is_counted)
}

/// Whether the ReplicaSet counts this pod instead of the one in the surge.
fn is_counted(other: &Pod, pod: &Pod, surge: &Surge) -> bool {
    other.metadata.uid != pod.metadata.uid
        && other.metadata.deletion_timestamp.is_none()
        && controller(other).is_some_and(|owner| owner.uid == surge.replica_set.uid)
        && label(other, HASH).is_some()
        && label(other, HASH) == annotation(pod, SURGE_HASH)
}

/// Whether this pod has been Ready for as long as its Deployment asks.
fn serves(pod: &Pod, set: &ReplicaSet, now: Timestamp) -> bool {
    let patience = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let patience = SignedDuration::from_secs(i64::from(patience)).max(ENDPOINT_DELAY);
    is_ready(pod) && lasts(pod, "Ready", patience, now)
}

fn is_unschedulable(pod: &Pod, now: Timestamp) -> bool {
    let scheduled = condition(pod, "PodScheduled");
    scheduled.is_some_and(|it| it.status == "False" && it.reason.as_deref() == Some("Unschedulable"))
        && lasts(pod, "PodScheduled", STALLED, now)
}

/// Whether the condition has been as it is for this long.
fn lasts(pod: &Pod, type_: &str, long: SignedDuration, now: Timestamp) -> bool {
    let since = condition(pod, type_).and_then(|condition| condition.last_transition_time.as_ref());
    since.is_some_and(|since| now.duration_since(since.0) >= long)
}
