//! What the plugin prints about one marked pod. Pure: all of it is read from the pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::format::{clip, duration};
use crate::{
    eviction::{Next, Settings, plan},
    mark::{Found, Mark, QUARANTINED, State, Status, extension::Extension},
};

/// Maximum characters of REASON without `-o wide`.
const REASON: usize = 60;

/// A marked pod.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// The mark; none if the pod has Pristine's label without a valid mark of its own.
    pub mark: Option<Mark>,
    /// Its state, in one word.
    pub state: &'static str,
    /// Why it is in this state, if the state alone does not say it.
    pub reason: String,
    /// When it is evicted, with an extension that was granted.
    pub deadline: Option<Timestamp>,
}

impl Row {
    /// Reads it from the pod; none if no interaction is recorded on it.
    ///
    /// The limit of extensions is in a configuration that most users cannot read. So an extension counts once Pristine
    /// has written into the status that it was granted, and until when. Messages for people are not read.
    #[must_use]
    pub fn of(pod: &Pod, now: Timestamp) -> Option<Self> {
        let (mark, invalid) = match Found::on(pod) {
            Found::None => return None,
            Found::NotAMark(why) => (None, why),
            Found::Mark(mark) => (Some(mark), String::new()),
        };
        let extension = Extension::on(pod);
        let Status { state: written, evict_at, cause, .. } =
            Status::on(pod).unwrap_or_else(|| Status::new(State::Marked, None));
        let is_extended = extension.asks() && written == State::Extended;
        let is_waiting = matches!(written, State::EvictionBlocked | State::EvictionQueued | State::Suspended);
        let deadline = evict_at.filter(|_| is_extended || is_waiting).or_else(|| mark.as_ref()?.evict_at);
        let annotations = pod.metadata.annotations.as_ref();
        let is_quarantined = annotations.is_some_and(|all| all.contains_key(QUARANTINED));
        let is_due = deadline.is_some_and(|deadline| deadline <= now);
        let cause = cause.unwrap_or_default();
        let (state, reason) = match (&mark, plan(pod, &Settings::default(), now), written) {
            (None, ..) => ("NotAMark", invalid),
            (_, Next::Terminating { .. }, _) => ("Terminating", cause),
            (_, Next::Finished(_), _) => ("Finished", "its containers have terminated".to_owned()),
            (_, Next::Nothing(_), State::EvictionLoop) => ("Recorded", cause),
            (_, Next::Nothing(_), _) => ("Recorded", "the rule only records interactions".to_owned()),
            (_, Next::NotEvictable(_, why), _) => ("NotEvictable", why.to_owned()),
            (_, _, State::NotEvictable) => ("NotEvictable", cause),
            (_, _, State::EvictionBlocked) if is_due => ("Blocked", cause),
            (_, _, State::EvictionQueued) if is_due => ("Queued", cause),
            (_, _, State::Suspended) if is_due => ("Suspended", cause),
            _ if is_due => ("Due", String::new()),
            _ if is_extended => (if extension.holds() { "Held" } else { "Extended" }, extension.summary(None)),
            _ if is_quarantined => ("Quarantined", "out of service until it is evicted".to_owned()),
            _ if extension.asks() && cause.is_empty() => ("Marked", "an extension was requested".to_owned()),
            _ if extension.asks() => ("Marked", cause),
            _ => ("Marked", String::new()),
        };
        Some(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            deadline: if matches!(state, "NotEvictable" | "Finished" | "Terminating") { None } else { deadline },
            mark,
            state,
            reason,
        })
    }

    /// The same row after the pod, or its mark, was deleted.
    #[must_use]
    pub fn gone(self) -> Self {
        Self { state: "Gone", reason: String::new(), deadline: None, ..self }
    }

    /// Time until the eviction, for people.
    #[must_use]
    pub fn evicts_in(&self, now: Timestamp) -> String {
        match self.deadline {
            None => "<none>".to_owned(),
            Some(at) if at <= now => format!("due {}", duration(now.duration_since(at))),
            Some(at) => duration(at.duration_since(now)),
        }
    }

    /// The first user, and how many other users are recorded.
    #[must_use]
    pub fn by(&self) -> String {
        let Some(mark) = &self.mark else { return "<unknown>".to_owned() };
        let mut others: Vec<&str> = mark.recent.iter().map(|act| act.user.name.as_str()).collect();
        others.retain(|name| *name != mark.first.user.name);
        others.sort_unstable();
        others.dedup();
        let more = if others.is_empty() { String::new() } else { format!(" +{}", others.len()) };
        format!("{}{more}", clip(&mark.first.user.name, 80))
    }

    /// NAME, INTERACTIONS, BY, AGE, EVICTS-IN, STATE, REASON.
    #[must_use]
    pub fn cells(&self, is_wide: bool, now: Timestamp) -> [String; 7] {
        let age = self
            .mark
            .as_ref()
            .map_or_else(|| "<unknown>".to_owned(), |mark| duration(now.duration_since(mark.first.at)));
        [
            self.name.clone(),
            self.mark.as_ref().map_or(0, |mark| mark.total).to_string(),
            self.by(),
            age,
            self.evicts_in(now),
            self.state.to_owned(),
            clip(&self.reason, if is_wide { usize::MAX } else { REASON }),
        ]
    }

    /// For programs: times in RFC 3339, nothing relative.
    #[must_use]
    pub fn value(&self) -> Value {
        json!({
            "metadata": {"namespace": self.namespace, "name": self.name, "uid": self.uid},
            "state": self.state,
            "reason": self.reason,
            "evictAt": self.deadline,
            "interactions": self.mark.as_ref().map_or(0, |mark| mark.total),
            "first": self.mark.as_ref().map(|mark| &mark.first),
            "recent": self.mark.as_ref().map_or(&[][..], |mark| &mark.recent),
        })
    }
}

#[cfg(test)]
mod tests;
