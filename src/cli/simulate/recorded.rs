//! An interaction that Pristine recorded, on a pod or in the audit log of a replica → [`Event`], as if it stood in the API
//! server's audit log. Pure.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::event::Event;
use crate::{
    admission::review::Act,
    config::policy::possible::Unknown,
    mark::{Found, Interaction, redact::MASK},
};

/// One line of a replica's audit log.
#[derive(Deserialize)]
struct Line {
    decision: String,
    namespace: String,
    pod: String,
    interaction: Interaction,
}

/// The interactions that are listed on a pod, and how many more there were.
#[must_use]
pub fn on_pod(pod: &Pod) -> (Vec<Event>, u64) {
    let Some(mark) = Found::on(pod).mark() else { return (Vec::new(), 0) };
    let name = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, pod) = (name(&pod.metadata.namespace), name(&pod.metadata.name));
    let listed = std::iter::once(mark.first).chain(mark.recent);
    let events: Vec<Event> = listed.map(|it| event(namespace.clone(), pod.clone(), it, true)).collect();
    let omitted = mark.total.saturating_sub(events.len() as u64);
    (events, omitted)
}

/// The interaction of a line of a replica's log; none if it is a line of another kind. A line `handed-over` is followed by
/// that of the replica that decided.
#[must_use]
pub fn in_log(line: &str) -> Option<Event> {
    let line: Line = serde_json::from_str(line).ok()?;
    let is_admitted = match line.decision.as_str() {
        "marked" | "exempt" | "unrecorded" => true,
        "denied" => false,
        _ => return None,
    };
    Some(event(line.namespace, line.pod, line.interaction, is_admitted))
}

fn event(namespace: String, pod: String, it: Interaction, is_admitted: bool) -> Event {
    let Interaction { at, operation, container, command, stdin, tty, user, review, .. } = it;
    let unknown = Unknown { command: command.iter().any(|word| word.contains(MASK)), pod: true, ..Unknown::default() };
    // A review of `kubectl debug` can have several containers.
    let id = if review.is_empty() { review } else { format!("{review}/{container}") };
    let uri = format!("{operation:?} {namespace}/{pod}/{container} {command:?} {stdin} {tty}");
    let act = Act { operation, container, command, stdin, tty };
    Event { id, at, written: at, is_get: false, is_admitted, uri, namespace, pod, user, act, unknown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(decision: &str, command: &[&str]) -> String {
        json!({
            "decision": decision, "namespace": "shop", "pod": "web-0", "podUid": "u", "total": 1,
            "interaction": {
                "at": "2026-01-01T00:00:00Z", "operation": "exec", "container": "app", "command": command,
                "user": {"name": "alice", "groups": ["dev"]}, "review": "r", "rule": "default",
            },
        })
        .to_string()
    }

    #[test]
    fn a_line_of_a_replica_is_an_interaction_and_the_log_of_its_process_is_none() {
        let found = in_log(&line("marked", &["sh"])).unwrap();
        assert_eq!((found.namespace.as_str(), found.pod.as_str(), found.is_admitted), ("shop", "web-0", true));
        assert_eq!((found.user.name.as_str(), found.unknown.command), ("alice", false));
        assert!(!in_log(&line("denied", &["sh"])).unwrap().is_admitted);
        assert!(in_log(&line("handed-over", &["sh"])).is_none());
        let masked = in_log(&line("marked", &["mysql", &format!("-p{MASK}")])).unwrap();
        assert!(masked.unknown.command, "a rule may have matched what is masked");
        for other in ["", "not JSON", r#"{"level": "INFO", "message": "the pod was evicted", "namespace": "shop"}"#] {
            assert!(in_log(other).is_none(), "{other}");
        }
    }
}
