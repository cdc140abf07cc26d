//! What the rules would have done about the interactions of a log: counts for each user and workload. Pure.
//!
//! The memory depends on the number of users and workloads, not on the number of interactions: of an interaction, only
//! the time until which its pod would have been marked is kept, until that time is over.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::{
    event::Event,
    fold::{Fold, Folded},
    workload::{self, Pods, Workload},
};
use crate::{
    admission::{review::Request, validate},
    config::{
        self,
        policy::{Attributes, Policy, Verdict, possible::Possible},
    },
    mark::{Disposition, Operation, owner::is_static},
};

/// Commands that are kept of a row.
const MAX_COMMANDS: usize = 3;
/// Marks that are kept before those that are over are removed.
const MIN_MARKS: usize = 1 << 12;
/// How far records may be out of order: a session of this length, if only its end is logged.
const DISORDER: SignedDuration = SignedDuration::from_hours(24);

/// Whether the pod would be evicted.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Outcome {
    /// In every possible case.
    WouldEvict,
    /// In some of them.
    Depends,
    /// In none.
    WouldNotEvict,
}

/// What the rules do about an interaction.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Effect {
    /// Whether the pod would be evicted.
    pub outcome: Outcome,
    /// The possible actions: `evict`, `record`, `exempt`, `deny`.
    pub actions: Vec<&'static str>,
    /// What the choice between them depends on.
    pub depends_on: Vec<&'static str>,
    /// The rules that may decide.
    pub rules: Vec<String>,
}

/// What is counted together.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// The user.
    pub user: String,
    /// Whether it is known that the user came with the token of a pod.
    pub has_pod_token: bool,
    /// Namespace of the pod.
    pub namespace: String,
    /// The workload of the pod.
    pub workload: String,
    /// The operation.
    pub operation: Operation,
    /// What the rules do.
    pub effect: Effect,
}

/// The interactions of one key.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Interactions.
    pub count: u64,
    /// Evictions that would have happened.
    pub evictions: u64,
    /// Evictions that would have happened if all that is not known were so that the pod is evicted.
    pub evictions_at_most: u64,
    /// Interactions with a terminal.
    pub with_tty: u64,
    /// Interactions of which it is known that they had no terminal.
    pub without_tty: u64,
    /// The kind of the workload, if it is known.
    pub kind: Option<String>,
    /// Whether the name of the workload is a guess, for at least one pod.
    pub is_guess: bool,
    /// Some of the commands, redacted.
    pub commands: Vec<Vec<String>>,
}

/// Until when a pod would be marked.
#[derive(Clone, Copy, Default)]
struct Marked {
    surely: Option<(Timestamp, Timestamp)>,
    maybe: Option<(Timestamp, Timestamp)>,
}

/// The summary of the records so far.
pub struct Summary {
    policy: Policy,
    pods: Pods,
    fold: Fold,
    hasher: RandomState,
    marks: HashMap<u64, Marked>,
    next_removal: usize,
    /// The counts.
    pub rows: BTreeMap<Key, Row>,
    /// Requests that were not admitted.
    pub refused: u64,
    /// Interactions with the verb `get`, and all, of those that a client sends over WebSocket.
    pub gets: (u64, u64),
    /// Interactions whose pod is in the list of pods.
    pub known_pods: u64,
    /// The time of the first interaction, and of the last.
    pub span: Option<(Timestamp, Timestamp)>,
}

impl Summary {
    /// Nothing yet, under these rules.
    #[must_use]
    pub fn new(policy: Policy, pods: Pods) -> Self {
        Self {
            policy,
            pods,
            fold: Fold::default(),
            hasher: RandomState::new(),
            marks: HashMap::new(),
            next_removal: MIN_MARKS,
            rows: BTreeMap::new(),
            refused: 0,
            gets: (0, 0),
            known_pods: 0,
            span: None,
        }
    }

    /// Interactions.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.rows.values().map(|row| row.count).sum()
    }

    /// The rules, without the built-in ones, that decide none of the interactions: one of them may name the wrong user. Empty
    /// if there are no interactions.
    #[must_use]
    pub fn idle_rules(&self) -> Vec<&str> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let has_decided = |rule: &&str| self.rows.keys().any(|key| key.effect.rules.iter().any(|name| name == rule));
        let own = config::own(&self.policy.rules).into_iter().map(|rule| rule.name.as_str());
        own.filter(|rule| !has_decided(rule)).collect()
    }

    /// How many pods of the interactions are known, for people.
    #[must_use]
    pub fn note_about_pods(&self) -> String {
        format!(
            "{} of {} interactions were with pods that are in the list of pods; it shows them as they are now",
            self.known_pods,
            self.count()
        )
    }

    /// Adds a record. Those of all files come in the order of time.
    pub fn add(&mut self, event: Event) {
        match self.fold.add(&event) {
            Folded::Repeated => return,
            Folded::Refused => {
                self.refused += 1;
                return;
            }
            Folded::FellBack => self.refused = self.refused.saturating_sub(1),
            Folded::Admitted => {}
        }
        if matches!(event.act.operation, Operation::Exec | Operation::Attach) {
            self.gets.0 += u64::from(event.is_get);
            self.gets.1 += 1;
        }
        let at = event.at;
        self.span = Some(self.span.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        let pod = self.pods.find(&event.namespace, &event.pod);
        self.known_pods += u64::from(pod.is_some());
        let is_guess = pod.is_none();
        let Workload { kind, name } = pod.map_or_else(|| workload::guess(&event.pod), workload::of);
        let pod_id = self.hasher.hash_one((&event.namespace, &event.pod));
        let unknown = event.unknown;
        let Judged { user, command, tty, has_pod_token, namespace, operation, possible, effect } =
            judge(&self.policy, event, pod);
        let key = Key { user, has_pod_token, namespace, workload: name, operation, effect };
        let row = self.rows.entry(key).or_default();
        row.count += 1;
        row.with_tty += u64::from(tty);
        row.without_tty += u64::from(!unknown.streams && !tty);
        row.kind = kind.or_else(|| row.kind.take());
        row.is_guess |= is_guess;
        if !command.is_empty() && row.commands.len() < MAX_COMMANDS && !row.commands.contains(&command) {
            row.commands.push(command);
        }
        let (longest, shortest) = ttls(&possible);
        if longest.is_some() || shortest.is_some() {
            let marked = self.marks.entry(pod_id).or_default();
            row.evictions += u64::from(longest.is_some_and(|ttl| mark(&mut marked.surely, at, ttl)));
            row.evictions_at_most += u64::from(shortest.is_some_and(|ttl| mark(&mut marked.maybe, at, ttl)));
        }
        if self.marks.len() >= self.next_removal {
            let is_over = |mark: &Option<(_, Timestamp)>| {
                mark.is_none_or(|(_, until)| until.checked_add(DISORDER).is_ok_and(|end| end < at))
            };
            self.marks.retain(|_, mark| !is_over(&mark.surely) || !is_over(&mark.maybe));
            self.next_removal = (self.marks.len() * 2).max(MIN_MARKS);
        }
    }
}

/// Whether an interaction at this time is the first of a mark. Later ones never postpone the eviction.
fn mark(marked: &mut Option<(Timestamp, Timestamp)>, at: Timestamp, ttl: Duration) -> bool {
    let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
    let until = at.checked_add(ttl).unwrap_or(Timestamp::MAX);
    match *marked {
        // Records are out of order by less than a ttl: one mark.
        Some((from, end)) if until >= from && at <= end => false,
        Some((from, _)) if at < from => true,
        _ => {
            *marked = Some((at, until));
            true
        }
    }
}

/// The longest time to an eviction if every possible decision evicts, and the shortest one if any does.
fn ttls(possible: &Possible) -> (Option<Duration>, Option<Duration>) {
    let ttl = |verdict: &Verdict| match verdict {
        Verdict::Mark(Disposition::Evict(ttl)) => Some(*ttl),
        _ => None,
    };
    let all: Vec<Option<Duration>> = possible.decisions.iter().map(|it| ttl(&it.verdict)).collect();
    let longest = if all.contains(&None) { None } else { all.iter().copied().flatten().max() };
    (longest, all.into_iter().flatten().min())
}

struct Judged {
    user: String,
    command: Vec<String>,
    tty: bool,
    has_pod_token: bool,
    namespace: String,
    operation: Operation,
    possible: Possible,
    effect: Effect,
}

/// What the webhook would decide, by the same code.
fn judge(policy: &Policy, event: Event, pod: Option<&Pod>) -> Judged {
    let Event { id, at, namespace, pod: name, user, act, mut unknown, .. } = event;
    let mut container = act.container.clone();
    if let Some(pod) = pod {
        unknown.pod = false;
        // kubectl names no container if the pod has only one. A pod of this name may have had others then.
        if !unknown.container && container.is_empty() {
            container = validate::container(&act, pod).unwrap_or_default();
        }
    }
    unknown.container |= container.is_empty() && act.operation.enters();
    let assumed = Pod {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            ..Default::default()
        },
        ..Pod::default()
    };
    let request = Request { uid: id, namespace, pod: name, user, dry_run: false, acts: vec![act] };
    let act = &request.acts[0];
    let interaction = validate::interaction(&request, act, container, at);
    let (user, argv) = (&request.user, act.command.as_slice());
    let it = Attributes { interaction: &interaction, user, argv, pod: pod.unwrap_or(&assumed), namespace: None };
    let mut possible = policy.possible(it, unknown);
    for decision in &mut possible.decisions {
        let is_spared = matches!(decision.verdict, Verdict::Mark(_)) && pod.is_some_and(is_static);
        if is_spared || (matches!(decision.verdict, Verdict::Deny { .. }) && request.breaks_glass()) {
            decision.verdict = Verdict::Mark(Disposition::Record);
        }
    }
    let effect = effect(&possible);
    Judged {
        user: interaction.user.name,
        command: interaction.command,
        tty: act.tty,
        has_pod_token: request.user.has_pod_token(),
        operation: act.operation,
        namespace: request.namespace,
        possible,
        effect,
    }
}

fn effect(possible: &Possible) -> Effect {
    let mut actions = Vec::new();
    let mut rules = Vec::new();
    for decision in &possible.decisions {
        let action = match decision.verdict {
            Verdict::Mark(Disposition::Evict(_)) => "evict",
            Verdict::Mark(Disposition::Record | Disposition::EvictIfOwned(_)) => "record",
            Verdict::Exempt => "exempt",
            Verdict::Deny { .. } => "deny",
        };
        if !actions.contains(&action) {
            actions.push(action);
        }
        if !rules.contains(&decision.rule) {
            rules.push(decision.rule.clone());
        }
    }
    let evict =
        possible.decisions.iter().filter(|it| matches!(it.verdict, Verdict::Mark(Disposition::Evict(_)))).count();
    let outcome = match evict {
        0 => Outcome::WouldNotEvict,
        all if all == possible.decisions.len() => Outcome::WouldEvict,
        _ => Outcome::Depends,
    };
    Effect { outcome, actions, depends_on: possible.depends_on.clone(), rules }
}

#[cfg(test)]
mod tests;
