//! The successor of a deleted pod: the pod that gets its name next. It is marked too, as long as an exec that was
//! admitted for the deleted pod may still run in it. Pure; [`super::mark_successor`] does it.
//!
//! Every replica knows which pods were deleted, and only the leader looks for their successors: once soon after the
//! deletion, and once when no exec can arrive any more. That is enough, because a successor is not evicted before that, and
//! an exec that ran in a pod that is gone by then changed nothing. Looks are at the same moments for all pods, so that
//! many of them are one list.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::mark::{Disposition, Found, Interaction, Operation};

/// Another webhook can delay an admitted exec for 30 s at most. The exec then runs in the pod that has the name by then
/// (seen: `web-0` was deleted meanwhile, and the exec ran in the new `web-0`).
pub const SUCCESSOR_WINDOW: SignedDuration = SignedDuration::from_secs(35);
/// A StatefulSet creates the successor within this time after the deletion.
const FIRST_LOOK: SignedDuration = SignedDuration::from_secs(2);
/// All looks are at multiples of this.
const LOOKS: i64 = 5;
/// The next leader finds what the last one did not do, if that died: its Lease expires after 15 s.
const KEPT: SignedDuration = SignedDuration::from_secs(30);
/// API servers' clocks, and times in whole seconds.
const CLOCKS: SignedDuration = SignedDuration::from_secs(2);

/// What the successor of a deleted pod is marked with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SuccessorMark {
    /// The last interaction with the deleted pod, which may reach the successor.
    pub interaction: Interaction,
    /// What happens to the successor because of the interaction.
    pub disposition: Disposition,
    /// The interaction cannot reach a pod after this time.
    pub until: Timestamp,
}

/// The mark for the successor of this pod if it is deleted now; none if no successor needs one.
#[must_use]
pub fn successor_mark(deleted: &Pod, now: Timestamp) -> Option<SuccessorMark> {
    // These controllers never reuse the name of a pod. Those of the same kind in another API group may.
    let reuses_no_name = |(version, kind): (&str, &str)| {
        matches!((version, kind), ("apps/v1", "ReplicaSet" | "DaemonSet") | ("batch/v1", "Job"))
    };
    let owners = deleted.metadata.owner_references.iter().flatten();
    if owners.into_iter().any(|owner| reuses_no_name((&owner.api_version, &owner.kind))) {
        return None;
    }
    let mark = Found::on(deleted).mark()?;
    let end = |interaction: &Interaction| interaction.at.checked_add(SUCCESSOR_WINDOW).unwrap_or(Timestamp::MAX);
    // A report is a label on this very pod, so it is not about the next one of the name.
    let latest = || mark.latest().filter(|one| one.operation != Operation::Report);
    let last = latest().next()?;
    let until = end(last);
    if until <= now {
        return None;
    }
    // Of several, one of a person: the deadline of a machine may be spared.
    let can_arrive = |one: &&Interaction| !one.is_machine() && now < end(one);
    let interaction = latest().find(can_arrive).unwrap_or(last).clone();
    // The successor is not evicted before `until`: otherwise its own successor would need the mark as well.
    let ttl = |at: Timestamp| Duration::try_from(at.max(until).duration_since(interaction.at)).unwrap_or_default();
    let disposition = match (mark.evict_at, mark.evict_if_owned_at()) {
        (Some(at), _) => Disposition::Evict(ttl(at)),
        (None, Some(at)) => Disposition::EvictIfOwned(ttl(at)),
        (None, None) => Disposition::Record,
    };
    Some(SuccessorMark { interaction, disposition, until })
}

/// A deleted pod whose successor is looked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expected {
    /// The namespace of both.
    pub namespace: String,
    /// The name of both.
    pub name: String,
    /// UID of the deleted pod.
    pub deleted: String,
    /// What the successor is marked with.
    pub mark: SuccessorMark,
    /// When it is looked for.
    next: Timestamp,
}

impl Expected {
    fn of(pod: &Pod, now: Timestamp) -> Option<Self> {
        let (it, mark) = (&pod.metadata, successor_mark(pod, now)?);
        let (namespace, name, deleted) = (it.namespace.clone()?, it.name.clone()?, it.uid.clone()?);
        Some(Self { namespace, name, deleted, mark, next: now })
    }

    /// Whether this pod of the same name is the successor, which the interaction may have reached.
    #[must_use]
    pub fn is_succeeded_by(&self, pod: &Pod) -> bool {
        let it = &pod.metadata;
        let latest = self.mark.until.checked_add(CLOCKS).unwrap_or(Timestamp::MAX);
        it.uid.as_ref() != Some(&self.deleted)
            && it.deletion_timestamp.is_none()
            && it.creation_timestamp.as_ref().is_none_or(|created| created.0 <= latest)
    }
}

/// The pods that were entered a moment ago, and those of them that are gone. Its memory grows with the interactions of a
/// minute, and not with the cluster.
#[derive(Debug, Default)]
pub struct Successors {
    /// By UID: pods that exist.
    entered: HashMap<String, Expected>,
    /// By namespace and name: deleted pods.
    waiting: HashMap<(String, String), Expected>,
}

impl Successors {
    /// The pod exists and has this mark.
    pub fn observe(&mut self, pod: &Pod, now: Timestamp) {
        let Some(uid) = &pod.metadata.uid else { return };
        match Expected::of(pod, now) {
            Some(expected) => drop(self.entered.insert(uid.clone(), expected)),
            None => drop(self.entered.remove(uid)),
        }
    }

    /// The pod was deleted.
    pub fn delete(&mut self, pod: &Pod, now: Timestamp) {
        if let Some(uid) = &pod.metadata.uid {
            self.entered.remove(uid);
        }
        self.wait(Expected::of(pod, now), now);
    }

    /// All pods with a mark have these UIDs: the others were deleted while the watch was interrupted.
    pub fn replace(&mut self, listed: &HashSet<String>, now: Timestamp) {
        let gone: Vec<String> = self.entered.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            let expected = self.entered.remove(&uid);
            self.wait(expected, now);
        }
    }

    fn wait(&mut self, expected: Option<Expected>, now: Timestamp) {
        let Some(expected) = expected.filter(|expected| now < expected.mark.until) else { return };
        let next = grid(now.checked_add(FIRST_LOOK).unwrap_or(now));
        self.waiting.insert((expected.namespace.clone(), expected.name.clone()), Expected { next, ..expected });
    }

    /// Takes those that must be looked for now.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<Expected> {
        self.waiting.extract_if(|_, expected| expected.next <= now).map(|(_, expected)| expected).collect()
    }

    /// This successor was looked for at `now`, and was not there, or the look failed.
    pub fn look_again(&mut self, expected: Expected, has_failed: bool, now: Timestamp) {
        let next = if has_failed { grid(now) } else { grid(expected.mark.until) };
        // After the last look, no exec can have reached a pod that did not exist then.
        if !has_failed && expected.mark.until <= now {
            return;
        }
        let key = (expected.namespace.clone(), expected.name.clone());
        self.waiting.entry(key).or_insert(Expected { next, ..expected });
    }

    /// Forgets what can have no successor any more. A replica that does not lead keeps the deleted pods a bit longer.
    pub fn sweep(&mut self, now: Timestamp) {
        self.entered.retain(|_, expected| now < expected.mark.until);
        self.waiting.retain(|_, expected| now < expected.mark.until.checked_add(KEPT).unwrap_or(Timestamp::MAX));
    }
}

/// The next moment of a look after `at`.
fn grid(at: Timestamp) -> Timestamp {
    let second = at.as_second().div_euclid(LOOKS).saturating_add(1).saturating_mul(LOOKS);
    Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
