//! Notices loops: a user enters every new pod of a workload, Pristine evicts the pod, its successor is entered again, and
//! so on without an end. Pure.
//!
//! Three evictions in a row are a loop. If the user is a machine, it is only recorded in this workload for [`LASTS`] from
//! then on. If the user is a person, the workload gets a Warning and the evictions go on: a person must not become exempt
//! by being stubborn.
//!
//! A workload is known by kind and name, so that it stays the same when it is installed again. The leader alone notices
//! and decides, from the marks of the pods that it evicts. It keeps what it has seen in the ConfigMap [`CONFIG_MAP`], from
//! the second eviction in a row on. A new leader that lost the first one notices the loop one eviction later.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use serde::{Deserialize, Serialize};

use crate::mark::{Found, Mark, claims::Claim, owner::controller};

/// The ConfigMap with the loops, in the namespace of Pristine. It is shipped empty.
pub const CONFIG_MAP: &str = "pristine-loops";
/// The ConfigMap's key with the JSON list of [`Row`].
pub const KEY: &str = "loops.json";
/// So many evictions in a row are a loop.
pub const ROUNDS: u32 = 3;
/// How long a loop lasts after it was noticed: the machine is only recorded, or the person is listed.
pub const LASTS: SignedDuration = SignedDuration::from_hours(24);

/// A successor is created this long after the eviction at the latest, plus the grace period. Pods that are created later
/// replace the pod for another reason, for example a deployment that a CI job then enters.
const SUCCESSION: SignedDuration = SignedDuration::from_mins(10);
/// The clocks of two API servers, and times in whole seconds.
const CLOCKS: SignedDuration = SignedDuration::from_secs(2);
/// A row is forgotten so long after its last eviction, and so long after the end of its loop: by then, the pods of that
/// time are due.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Rows in memory, and rows that are stored: 200 of 700 bytes are a tenth of what a ConfigMap may have.
const MAX_ROWS: usize = 1000;
/// See [`MAX_ROWS`].
const MAX_STORED: usize = 200;

/// The top of the owner chain of a pod, as far as Pristine may read it.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its kind, for example `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Workload {
    /// The workload of this pod, where `parent` is the controller of its controller. None for a bare pod: nothing
    /// recreates it.
    #[must_use]
    pub fn of(pod: &Pod, parent: Option<&OwnerReference>) -> Option<Self> {
        let top = parent.or_else(|| controller(pod))?;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        Some(Self { namespace, kind: top.kind.clone(), name: top.name.clone() })
    }
}

/// The evictions in a row of one workload because of one user.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Row {
    /// The workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// The user's name.
    pub user: String,
    /// Whether the user is a machine.
    #[serde(default)]
    pub machine: bool,
    /// Evictions in a row.
    pub rounds: u32,
    /// When the last one was.
    pub last: Timestamp,
    /// When the loop ends, if these evictions are one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Row {
    /// Whether the evictions are a loop that has not ended.
    #[must_use]
    pub fn is_loop(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Whether the deadline of this claim does not count. Also after the end of the loop: the interaction was only
    /// recorded when it was admitted.
    #[must_use]
    pub fn spares(&self, claim: &Claim) -> bool {
        self.machine && claim.machine && self.user == claim.user && self.until.is_some_and(|until| claim.at < until)
    }

    fn is_kept(&self, now: Timestamp) -> bool {
        let end = self.until.unwrap_or(self.last).max(self.last);
        now < end.checked_add(KEPT).unwrap_or(Timestamp::MAX)
    }

    /// For people: what happened, and what happens now.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { workload: Workload { kind, name, .. }, user, rounds, .. } = self;
        let what = format!(
            "eviction loop: {kind} {name} was evicted {rounds} times in a row, and each time {user:?} entered the new pod \
             within its TTL"
        );
        match self.until {
            Some(until) if self.machine => {
                format!("{what}. Until {until:.0} its interactions with this workload are only recorded")
            }
            _ => format!("{what}. The user is a person for Pristine, so the pods are evicted as before"),
        }
    }

    /// What to do about it; for a machine, the rule to paste.
    #[must_use]
    pub fn advice(&self) -> String {
        if !self.machine {
            return "if the user is a program, let it use the token of its own pod, or add a rule for it".to_owned();
        }
        let short = self.user.rsplit(':').next().unwrap_or_default();
        let word: String = short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
        // JSON is YAML, and quotes whatever the name contains.
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        format!(
            "to record it always, add the rule {{name: {}, match: {{users: [{}], namespaces: [{}], podToken: true, tty: \
             false}}, action: Record}}",
            quoted(&format!("machine-{word}")),
            quoted(&self.user),
            quoted(&self.workload.namespace)
        )
    }
}

type Key = (Workload, String, bool);

/// What the leader knows of evictions in a row.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Loops(BTreeMap<Key, Row>);

impl Loops {
    /// Reads the ConfigMap's data. What is not a list of rows is as if it were empty: then each loop is noticed again. No row
    /// can be of the future, so what was written by hand lasts no longer than what the leader writes.
    #[must_use]
    pub fn parse(data: &BTreeMap<String, String>, now: Timestamp) -> Self {
        let rows: Vec<Row> = data.get(KEY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let rows = rows.into_iter().take(MAX_STORED).map(|mut row| {
            row.last = row.last.min(now);
            let limit = row.last.checked_add(LASTS).unwrap_or(Timestamp::MAX);
            row.until = row.until.map(|until| until.min(limit));
            (key(&row), row)
        });
        Self(rows.collect())
    }

    /// The ConfigMap's data: the loops and what may become one, the latest first.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, String> {
        let mut rows: Vec<&Row> = self.0.values().filter(|row| is_stored(row)).collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.until, row.last)));
        rows.truncate(MAX_STORED);
        [(KEY.to_owned(), serde_json::to_string(&rows).expect("a row has string keys only"))].into()
    }

    /// Replaces what is stored by what the ConfigMap has, and keeps what is only in memory.
    #[must_use]
    pub fn adopt(self, stored: Self) -> Self {
        let mut all = self.0;
        all.retain(|_, row| !is_stored(row));
        all.extend(stored.0);
        Self(all)
    }

    /// The loops that have not ended.
    pub fn active(&self, now: Timestamp) -> impl Iterator<Item = &Row> {
        self.0.values().filter(move |row| row.is_loop(now))
    }

    /// The rows because of which deadlines of this mark do not count.
    #[must_use]
    pub fn sparing(&self, workload: &Workload, mark: &Mark) -> Vec<&Row> {
        let rows = mark.claims.iter().filter_map(|claim| {
            let row = self.0.get(&(workload.clone(), claim.user.clone(), claim.machine))?;
            row.spares(claim).then_some(row)
        });
        rows.collect()
    }

    /// Whether a deadline of this pod may not count, as far as the pod itself shows: that depends on its workload.
    #[must_use]
    pub fn may_spare(&self, pod: &Pod) -> bool {
        let namespace = pod.metadata.namespace.as_deref();
        let is_near = |row: &&Row| row.until.is_some() && Some(row.workload.namespace.as_str()) == namespace;
        let mut rows = self.0.values().filter(is_near).peekable();
        // Most often there is no loop, and then the mark need not be read.
        let mark = rows.peek().and_then(|_| Found::on(pod).mark());
        mark.is_some_and(|mark| rows.any(|row| mark.claims.iter().any(|claim| row.spares(claim))))
    }

    /// Notes that this pod of the workload was evicted at its deadline, at `now`. Returns the loops that were noticed.
    pub fn evicted(&mut self, workload: &Workload, pod: &Pod, mark: &Mark, now: Timestamp) -> Vec<Row> {
        let mut noticed = Vec::new();
        for claim in mark.claims.iter() {
            let row = self.0.entry((workload.clone(), claim.user.clone(), claim.machine)).or_insert_with(|| Row {
                workload: workload.clone(),
                user: claim.user.clone(),
                machine: claim.machine,
                rounds: 0,
                last: Timestamp::MIN,
                until: None,
            });
            match follows(row, pod, claim) {
                Follows::SameGeneration => continue,
                Follows::Successor => row.rounds = row.rounds.saturating_add(1),
                Follows::Other => row.rounds = 1,
            }
            row.last = now;
            if row.rounds >= ROUNDS && !row.is_loop(now) {
                row.until = now.checked_add(LASTS).ok();
                noticed.push(row.clone());
            }
        }
        noticed
    }

    /// Forgets what is old, and what is too much.
    pub fn sweep(&mut self, now: Timestamp) {
        self.0.retain(|_, row| row.is_kept(now));
        if self.0.len() > MAX_ROWS {
            let mut order: Vec<(Option<Timestamp>, Timestamp)> =
                self.0.values().map(|row| (row.until, row.last)).collect();
            order.sort_unstable();
            let oldest = order[order.len() - MAX_ROWS];
            self.0.retain(|_, row| (row.until, row.last) >= oldest);
        }
    }
}

fn key(row: &Row) -> Key {
    (row.workload.clone(), row.user.clone(), row.machine)
}

/// The first eviction of a row is not stored: every eviction would be a write of the ConfigMap.
const fn is_stored(row: &Row) -> bool {
    row.rounds > 1 || row.until.is_some()
}

/// How a pod relates to the last eviction of a row.
enum Follows {
    /// It was there already at the last eviction: another replica.
    SameGeneration,
    /// It replaced the evicted pod, and the user entered it within one TTL of its start.
    Successor,
    /// Neither.
    Other,
}

fn follows(row: &Row, pod: &Pod, claim: &Claim) -> Follows {
    let Some(created) = pod.metadata.creation_timestamp.as_ref().map(|time| time.0) else { return Follows::Other };
    if row.rounds == 0 {
        return Follows::Other;
    }
    let after = created.duration_since(row.last);
    if after < -CLOCKS {
        return Follows::SameGeneration;
    }
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let is_soon = after <= SUCCESSION.saturating_add(SignedDuration::from_secs(grace.clamp(0, 86_400)));
    let ttl = claim.evict_at.duration_since(claim.at);
    let is_prompt = claim.at.duration_since(started(pod).unwrap_or(created)) <= ttl.saturating_add(CLOCKS);
    if is_soon && is_prompt { Follows::Successor } else { Follows::Other }
}

/// When the first of the pod's running containers started.
fn started(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    containers.filter_map(|container| Some(container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)).min()
}

#[cfg(test)]
mod tests;
