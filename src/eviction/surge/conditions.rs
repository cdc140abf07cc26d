//! Which due pods may surge. Pure.
//!
//! Every condition is one that was seen to go wrong without it: a rollout that would get a pod of the old version more, a
//! Service that would lose its only endpoint, or a budget that would never allow the eviction.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::budgets::Selecting;
use crate::mark::{
    is_ready,
    owner::{controller, is_controller, is_static},
    surge::{HASH, NO_SURGE, Object, SURGE, SURGE_HASH, Surge, annotation, label},
};

/// The longest surge.
pub const BOUND: SignedDuration = SignedDuration::from_secs(300);
/// The wait after the first failure. It doubles with each further one.
const RETRY: SignedDuration = SignedDuration::from_mins(10);
/// The longest wait after a failure.
const MAX_RETRY: SignedDuration = SignedDuration::from_hours(24);

/// A workload, as read from the API server for one decision.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// The pod's ReplicaSet, if the object of this name has the UID.
    pub set: &'a ReplicaSet,
    /// The Deployment of that.
    pub deployment: &'a Deployment,
    /// The pods of the namespace that the Deployment's selector matches.
    pub pods: &'a [Pod],
}

/// The answer to a dry run of the pod's eviction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DryRun {
    /// It would be accepted.
    Accepted,
    /// A budget refuses it: 429.
    Refused,
    /// Any other error.
    Failed,
}

/// What can be said without a request: whether the pod can surge at all.
///
/// # Errors
/// Why not.
pub fn pod(pod: &Pod) -> Result<(), &'static str> {
    let owner = controller(pod).ok_or("it has no controller")?;
    if (owner.api_version.as_str(), owner.kind.as_str()) != ("apps/v1", "ReplicaSet") {
        return Err("its controller is no ReplicaSet");
    }
    if is_static(pod) || pod.metadata.deletion_timestamp.is_some() {
        return Err("it is static or terminating");
    }
    if label(pod, HASH).is_none() || annotation(pod, SURGE_HASH).is_some() {
        return Err("it lacks the label pod-template-hash, or has the annotation pristine/surge-hash");
    }
    if annotation(pod, NO_SURGE) == Some("true") {
        return Err("its annotation pristine/no-surge says so");
    }
    if annotation(pod, "cluster-autoscaler.kubernetes.io/safe-to-evict") == Some("false")
        || annotation(pod, "karpenter.sh/do-not-disrupt") == Some("true")
    {
        return Err("its annotations ask not to disrupt it");
    }
    Ok(())
}

/// Whether the workload is complete and can have one more pod.
///
/// # Errors
/// Why not.
pub fn workload(pod: &Pod, found: Workload<'_>) -> Result<(), &'static str> {
    let Workload { set, deployment, pods } = found;
    let by_hash = |set: &ReplicaSet| set.spec.as_ref()?.selector.match_labels.as_ref()?.get(HASH).cloned();
    if by_hash(set).as_deref() != label(pod, HASH) {
        return Err("its ReplicaSet does not select it by pod-template-hash");
    }
    let owner = set.metadata.owner_references.iter().flatten().find(|owner| is_controller(owner));
    let is_owner = owner.is_some_and(|owner| {
        (owner.api_version.as_str(), owner.kind.as_str()) == ("apps/v1", "Deployment")
            && Some(&owner.uid) == deployment.metadata.uid.as_ref()
    });
    if !is_owner {
        return Err("the controller of its ReplicaSet is no Deployment");
    }
    if set.metadata.deletion_timestamp.is_some() || deployment.metadata.deletion_timestamp.is_some() {
        return Err("its Deployment is being deleted");
    }
    let annotations = deployment.metadata.annotations.as_ref();
    if annotations.and_then(|all| all.get(NO_SURGE)).is_some_and(|value| value == "true") {
        return Err("the annotation pristine/no-surge of its Deployment says so");
    }
    let (Some(spec), Some(status)) = (&deployment.spec, &deployment.status) else {
        return Err("its Deployment is new");
    };
    let wanted = spec.replicas.unwrap_or(1);
    let surge = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.as_ref());
    let is_rolling = spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("RollingUpdate");
    if !is_rolling || resolve(surge, wanted) < 1 {
        return Err("its Deployment allows no pod more than it has: strategy Recreate or maxSurge 0");
    }
    if spec.paused == Some(true) || status.observed_generation != deployment.metadata.generation || wanted < 1 {
        return Err("its Deployment is paused, changing or scaled to 0");
    }
    let patience = SignedDuration::from_secs(i64::from(spec.min_ready_seconds.unwrap_or(0)));
    if patience >= BOUND {
        return Err("minReadySeconds of its Deployment is longer than a surge may take");
    }
    let counts = [status.replicas, status.updated_replicas].map(|count| count.unwrap_or(0));
    let missing = wanted - status.available_replicas.unwrap_or(0);
    let is_missing = i32::from(!is_ready(pod));
    if counts != [wanted; 2]
        || set.spec.as_ref().and_then(|spec| spec.replicas) != Some(wanted)
        || missing > is_missing
        || has_failure(set)
    {
        return Err("another pod of its Deployment is missing or not available, or a rollout is not complete");
    }
    let in_surge = |other: &Pod| {
        label(other, SURGE).is_some()
            && other.metadata.uid != pod.metadata.uid
            && controller(other).map(|owner| &owner.uid) == set.metadata.uid.as_ref()
    };
    if pods.iter().any(in_surge) {
        return Err("another pod of its Deployment is in a surge");
    }
    Ok(())
}

/// Whether an eviction without a surge would be refused, or would leave the Deployment without a pod that serves.
///
/// # Errors
/// Why it would be neither.
pub fn need(pod: &Pod, deployment: &Deployment, dry_run: DryRun) -> Result<(), &'static str> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    match dry_run {
        DryRun::Failed => Err("the API server refuses its eviction for another reason than a budget"),
        DryRun::Accepted if wanted > 1 => Err("the other pods of its Deployment serve"),
        // Nothing is lost with a pod that does not serve.
        DryRun::Accepted if !is_ready(pod) => Err("it is not Ready"),
        DryRun::Accepted | DryRun::Refused => Ok(()),
    }
}

/// Begins a surge of the pod, for which the other conditions found no objection.
///
/// # Errors
/// Why the pod is evicted without one.
pub fn begin(pod: &Pod, found: Workload<'_>, selecting: &Selecting, now: Timestamp) -> Result<Surge, &'static str> {
    if selecting.is_by_hash() {
        return Err("a Service, NetworkPolicy or PodDisruptionBudget of its namespace selects by pod-template-hash");
    }
    let budgets = selecting.budgets_of(pod)?;
    let wanted = found.deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    if wanted > 1 && budgets.is_empty() {
        return Err("no budget refuses its eviction: the API server was busy");
    }
    let generation = found.deployment.metadata.generation.unwrap_or_default();
    let last = Surge::on(pod).filter(|last| last.generation == generation && last.budgets == budgets);
    let failed = last.as_ref().and_then(|last| Some((last, last.ended?))).filter(|(_, ended)| ended.why.is_failure());
    if let Some((last, ended)) = failed
        && now.duration_since(ended.at) < retry_after(last.attempt)
    {
        return Err("its last surge failed, and neither its Deployment nor its budgets have changed");
    }
    let object = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| Object {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    Ok(Surge {
        replica_set: object(&found.set.metadata),
        deployment: object(&found.deployment.metadata),
        generation,
        budgets,
        since: now,
        until: now.checked_add(BOUND).unwrap_or(Timestamp::MAX),
        attempt: failed.map_or(0, |(last, _)| last.attempt).saturating_add(1),
        ended: None,
    })
}

/// Whether the ReplicaSet could not create a pod at its last attempt.
#[must_use]
pub fn has_failure(set: &ReplicaSet) -> bool {
    let conditions = set.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")
}

/// How long a surge is not repeated after this many failures.
#[must_use]
pub fn retry_after(attempts: u32) -> SignedDuration {
    let factor = 2_i32.saturating_pow(attempts.saturating_sub(1).min(16));
    RETRY.checked_mul(factor).unwrap_or(MAX_RETRY).min(MAX_RETRY)
}

/// `maxSurge` as a number of pods; a percentage is rounded up, as the Deployment controller does. Without a value, the
/// API server writes 25%.
pub(super) fn resolve(value: Option<&IntOrString>, wanted: i32) -> i32 {
    match value {
        None => 1,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((percent * i64::from(wanted) + 99) / 100).unwrap_or(0)
        }
    }
}
