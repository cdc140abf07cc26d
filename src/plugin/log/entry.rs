//! The entries of the history: lines of the replicas' audit logs, and requests in the API server's audit log that no line is
//! about. Pure.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    cli::simulate::event::Event,
    mark::{FOLD, Interaction},
};

/// What happened to a pod once.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod, which may be gone.
    pub pod: String,
    /// UID of the pod, if the record has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The operation of an interaction (`exec`), or `extend` or `evict`.
    pub action: String,
    /// Who did it. Pristine evicts in its own name.
    pub user: String,
    /// The container of an interaction.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The decision in the replica's line; `admitted` or `refused` if only the API server's audit log has the request.
    pub decision: String,
    /// The rule that decided.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// The deadline of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evict_at: Option<Timestamp>,
    /// The command of an interaction.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// For people: why it was denied, or what happened.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The review, the same in the lines of two replicas that handled it.
    #[serde(skip)]
    review: String,
}

/// One line of a replica's audit log: [`Line`](crate::audit_log::Line) or [`Change`](crate::audit_log::Change).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    decision: String,
    namespace: String,
    pod: String,
    pod_uid: Option<String>,
    evict_at: Option<Timestamp>,
    at: Option<Timestamp>,
    #[serde(default)]
    by: String,
    #[serde(default)]
    message: String,
    interaction: Option<Interaction>,
}

impl Entry {
    /// The entry of a line of a replica's log. None of the log of the process, and none of a line `handed-over`, which is
    /// followed by that of the replica that decided.
    #[must_use]
    pub fn of_replica(line: &[u8]) -> Option<Self> {
        let line: Line = serde_json::from_slice(line).ok()?;
        let Line { decision, namespace, pod, pod_uid, evict_at, at, by, message, interaction } = line;
        if let Some(it) = interaction {
            return (decision != "handed-over").then(|| Self {
                at: it.at,
                namespace,
                pod,
                pod_uid,
                action: it.operation.as_str().to_owned(),
                user: it.user.name,
                container: it.container,
                decision,
                rule: it.rule,
                evict_at,
                command: it.command,
                message,
                review: it.review,
            });
        }
        let (action, user) = match decision.as_str() {
            "evicted" => ("evict", "pristine".to_owned()),
            "extended" | "extension-ended" => ("extend", by),
            _ => return None,
        };
        let (action, command) = (action.to_owned(), Vec::new());
        let (container, rule, review) = Default::default();
        Some(Self {
            at: at?,
            namespace,
            pod,
            pod_uid,
            action,
            user,
            container,
            decision,
            rule,
            evict_at,
            command,
            message,
            review,
        })
    }

    fn of_request(event: Event) -> Self {
        let Event { at, namespace, pod, user, act, is_admitted, .. } = event;
        Self {
            at,
            namespace,
            pod,
            pod_uid: None,
            action: act.operation.as_str().to_owned(),
            user: user.name,
            container: act.container,
            decision: if is_admitted { "admitted" } else { "refused" }.to_owned(),
            rule: String::new(),
            evict_at: None,
            command: act.command,
            message: "in the API server's audit log alone".to_owned(),
            review: String::new(),
        }
    }
}

/// The replica and the API server have two clocks.
const CLOCKS: SignedDuration = SignedDuration::from_secs(2);

/// One list, oldest first: the lines, each once, and the requests that no line is about. A line is about every request of
/// the same user and kind that follows it so soon that Pristine records both once, and for port-forward and proxy at any
/// time.
#[must_use]
pub fn history(lines: Vec<Entry>, requests: Vec<Event>) -> Vec<Entry> {
    let mut seen = HashSet::new();
    let mut entries: Vec<Entry> = lines
        .into_iter()
        .filter(|one| {
            one.review.is_empty() || seen.insert((one.review.clone(), one.container.clone(), one.decision.clone()))
        })
        .collect();
    let mut known: HashMap<[&str; 4], Vec<Timestamp>> = HashMap::new();
    for one in &entries {
        known.entry([&one.namespace, &one.pod, &one.action, &one.user]).or_default().push(one.at);
    }
    let is_known = |request: &Event| {
        let Event { at, namespace, pod, user, act, .. } = request;
        let key = [namespace.as_str(), pod.as_str(), act.operation.as_str(), user.name.as_str()];
        let near = |line: &Timestamp| line.duration_since(*at).abs() <= FOLD + CLOCKS;
        known.get(&key).is_some_and(|lines| !act.operation.enters() || lines.iter().any(near))
    };
    let unknown: Vec<Entry> =
        requests.into_iter().filter(|request| !is_known(request)).map(Entry::of_request).collect();
    entries.extend(unknown);
    entries.sort_by_key(|one| one.at);
    entries
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::simulate::event::{Decoded, decode};

    fn line(at: &str, decision: &str, user: &str, review: &str) -> Entry {
        let interaction = json!({
            "at": at, "operation": "exec", "container": "app", "command": ["sh"], "user": {"name": user}, "review": review,
            "rule": "default",
        });
        let line = json!({
            "decision": decision, "namespace": "shop", "pod": "web-0", "podUid": "u", "evictAt": "2026-01-01T00:10:00Z",
            "total": 1, "interaction": interaction,
        });
        Entry::of_replica(line.to_string().as_bytes()).unwrap()
    }

    fn request(at: &str, user: &str, subresource: &str) -> Event {
        let record = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "stage": "ResponseStarted", "auditID": format!("{at}{user}"),
            "requestURI": format!("/api/v1/namespaces/shop/pods/web-0/{subresource}?command=sh&container=app"),
            "verb": "get", "user": {"username": user}, "responseStatus": {"code": 101}, "requestReceivedTimestamp": at,
            "stageTimestamp": at,
            "objectRef": {"resource": "pods", "namespace": "shop", "name": "web-0", "apiVersion": "v1", "subresource": subresource},
        });
        let mut found = None;
        decode(record.to_string().as_bytes(), &mut |decoded| {
            if let Decoded::Event(event) = decoded {
                found = Some(*event);
            }
        });
        found.unwrap()
    }

    fn shown(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|one| format!("{} {} {}", one.action, one.user, one.decision)).collect()
    }

    #[test]
    fn only_lines_about_pods_are_entries() {
        let change = |value: Value| Entry::of_replica(value.to_string().as_bytes());
        let evicted = json!({
            "decision": "evicted", "at": "2026-01-01T00:10:01Z", "namespace": "shop", "pod": "web-0", "podUid": "u",
            "evictAt": "2026-01-01T00:10:00Z", "message": "evicted 1.0 s after its deadline",
        });
        let mut extended = evicted.clone();
        (extended["decision"], extended["by"]) = (json!("extended"), json!("alice"));
        assert_eq!(shown(&[change(evicted.clone()).unwrap()]), ["evict pristine evicted"]);
        assert_eq!(shown(&[change(extended).unwrap()]), ["extend alice extended"]);
        let mut other = evicted;
        other["decision"] = json!("something of a later version");
        assert_eq!(change(other), None);
        assert_eq!(change(json!({"level": "INFO", "message": "the pod was evicted", "namespace": "shop"})), None);
        assert_eq!(Entry::of_replica(b"not JSON"), None);
    }

    #[test]
    fn two_replicas_that_handled_one_review_are_one_entry() {
        let lines = vec![
            line("2026-01-01T00:00:05Z", "marked", "alice", "r2"),
            line("2026-01-01T00:00:00Z", "marked", "alice", "r1"),
            line("2026-01-01T00:00:00Z", "marked", "alice", "r1"),
        ];
        let entries = history(lines, Vec::new());
        assert_eq!(shown(&entries), ["exec alice marked", "exec alice marked"]);
        assert!(entries[0].at < entries[1].at);
    }

    #[test]
    fn a_request_that_no_line_is_about_is_an_entry_of_its_own() {
        let lines = || vec![line("2026-01-01T00:00:00Z", "marked", "alice", "r1")];
        for (at, user, subresource, is_known) in [
            ("2026-01-01T00:00:00Z", "alice", "exec", true),
            // Pristine records the same interaction once in 10 s.
            ("2026-01-01T00:00:11Z", "alice", "exec", true),
            ("2026-01-01T00:00:13Z", "alice", "exec", false),
            ("2026-01-01T00:00:00Z", "bob", "exec", false),
            ("2026-01-01T00:00:00Z", "alice", "attach", false),
        ] {
            let entries = history(lines(), vec![request(at, user, subresource)]);
            assert_eq!(entries.len(), if is_known { 1 } else { 2 }, "{at} {user} {subresource}");
            assert!(is_known || entries.iter().any(|one| one.decision == "admitted"));
        }
        // Of port-forward there is one record for each user and pod.
        let mut forward = line("2026-01-01T00:00:00Z", "marked", "alice", "r1");
        forward.action = "port-forward".to_owned();
        assert_eq!(history(vec![forward], vec![request("2026-01-01T09:00:00Z", "alice", "portforward")]).len(), 1);
    }
}
