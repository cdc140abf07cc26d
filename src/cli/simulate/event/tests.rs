use super::*;
use serde_json::{Value, json};

fn line(subresource: &str, verb: &str, code: u16) -> Value {
    json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "a1",
        "stage": "ResponseComplete", "verb": verb,
        "requestURI": format!("/api/v1/namespaces/n/pods/p/{subresource}?command=id&container=app&stdout=true"),
        "user": {"username": "alice", "groups": ["dev"], "extra": {"scopes": null}},
        "sourceIPs": ["10.0.0.1"], "userAgent": "kubectl/v1.37.2",
        "objectRef": {"resource": "pods", "namespace": "n", "name": "p", "apiVersion": "v1", "subresource": subresource},
        "responseStatus": {"metadata": {}, "code": code},
        "requestReceivedTimestamp": "2026-11-20T10:00:00.000001Z", "stageTimestamp": "2026-11-20T10:00:05.000001Z",
        "annotations": {"authorization.k8s.io/decision": "allow"},
    })
}

fn decoded(text: &str) -> Vec<Decoded> {
    let mut found = Vec::new();
    decode(text.as_bytes(), &mut |decoded| found.push(decoded));
    found
}

fn event(line: &Value) -> Option<Event> {
    match decoded(&line.to_string()).pop() {
        Some(Decoded::Event(event)) => Some(*event),
        _ => None,
    }
}

#[test]
fn a_line_says_who_did_what_where_and_when() {
    let found = event(&line("exec", "get", 101)).unwrap();
    assert_eq!((found.id.as_str(), found.namespace.as_str(), found.pod.as_str()), ("a1", "n", "p"));
    assert_eq!((found.user.name.as_str(), found.user.groups.len()), ("alice", 1));
    assert_eq!((found.act.container.as_str(), found.act.command.as_slice()), ("app", &["id".to_owned()][..]));
    assert_eq!((found.is_get, found.at.to_string().as_str()), (true, "2026-11-20T10:00:00.000001Z"));
    assert_eq!(found.unknown, Unknown { pod: true, ..Unknown::default() });
}

#[test]
fn only_the_codes_of_an_admitted_request_count() {
    for (subresource, verb, code, expected) in [
        ("exec", "get", 101, true),
        ("exec", "create", 101, true),
        ("exec", "create", 200, true),
        ("exec", "create", 403, false),
        ("exec", "get", 404, false),
        ("exec", "get", 400, false),
        ("exec", "get", 500, false),
        ("attach", "create", 101, true),
        ("portforward", "create", 101, true),
        ("portforward", "get", 403, false),
        ("proxy", "get", 200, true),
        ("proxy", "get", 302, true),
        ("proxy", "get", 404, false),
        ("ephemeralcontainers", "patch", 200, true),
        ("ephemeralcontainers", "update", 200, true),
        ("ephemeralcontainers", "patch", 403, false),
    ] {
        let found = event(&line(subresource, verb, code)).unwrap();
        assert_eq!(found.is_admitted, expected, "{subresource} {verb} {code}");
    }
    let mut without = line("exec", "get", 101);
    without["responseStatus"] = Value::Null;
    assert!(!event(&without).unwrap().is_admitted);
}

#[test]
fn the_user_is_the_one_that_is_impersonated() {
    let mut impersonated = line("exec", "get", 101);
    impersonated["impersonatedUser"] = json!({"username": "system:serviceaccount:n:sa", "groups": ["g"]});
    assert_eq!(event(&impersonated).unwrap().user.name, "system:serviceaccount:n:sa");
}

#[test]
fn an_ephemeral_container_is_known_without_its_name_and_command() {
    let found = event(&line("ephemeralcontainers", "patch", 200)).unwrap();
    assert_eq!(found.act.operation, Operation::Debug);
    assert!(found.unknown.container && found.unknown.command && found.unknown.streams && !found.unknown.groups);
    assert!(event(&line("ephemeralcontainers", "get", 200)).is_none());
    let mut dry = line("ephemeralcontainers", "patch", 200);
    dry["requestURI"] = json!("/api/v1/namespaces/n/pods/p/ephemeralcontainers?dryRun=All");
    assert!(event(&dry).is_none());
}

#[test]
fn a_proxied_pod_is_named_with_scheme_and_port() {
    let mut proxy = line("proxy", "get", 200);
    proxy["objectRef"]["name"] = json!("http:web-0:8080");
    assert_eq!(event(&proxy).unwrap().pod, "web-0");
}

#[test]
fn requests_for_something_else_are_no_interactions() {
    for (field, value) in [
        ("/objectRef/resource", json!("nodes")),
        ("/objectRef/apiGroup", json!("metrics.k8s.io")),
        ("/objectRef/subresource", json!("status")),
        ("/objectRef", Value::Null),
        ("/stage", json!("RequestReceived")),
        ("/stage", json!("Panic")),
        ("/user", Value::Null),
    ] {
        let mut other = line("exec", "get", 101);
        if let Some(group) = other.pointer_mut("/objectRef").filter(|_| field == "/objectRef/apiGroup") {
            group["apiGroup"] = Value::Null;
        }
        match other.pointer_mut(field) {
            Some(found) => *found = value,
            None => panic!("{field}"),
        }
        assert!(event(&other).is_none(), "{field}");
    }
}

#[test]
fn events_are_read_out_of_the_envelopes_of_cloudwatch_and_of_webhooks() {
    let one = line("exec", "get", 101);
    let message = json!({"timestamp": 1_700_000_000_000_u64, "message": one.to_string()});
    for text in [
        json!({"events": [message, message], "nextToken": "x"}).to_string(),
        json!({"messageType": "DATA_MESSAGE", "logEvents": [message, message]}).to_string(),
        json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "items": [one, one]}).to_string(),
        json!({"events": [{"message": one}, {"@message": one.to_string()}]}).to_string(),
    ] {
        let found = decoded(&text);
        assert!(found.len() == 2 && found.iter().all(|it| matches!(it, Decoded::Event(_))), "{text}: {found:?}");
    }
    let found = decoded(&format!("2026-11-20T10:00:00.000Z {one}"));
    assert!(matches!(found[..], [Decoded::Event(_)]), "{found:?}");
}

#[test]
fn what_is_not_an_event_is_told_from_what_is_not_json() {
    let whole = line("exec", "get", 101).to_string();
    for cut in [1, 20, whole.len() / 2, whole.len() - 1] {
        let found = decoded(&whole[..cut]);
        assert!(matches!(found[..], [Decoded::NotJson]), "{cut}: {found:?}");
    }
    for text in ["\u{1f}\u{8b}\u{0}", "hello", "I1120 10:00:00 server.go] x", "{\"a\":"] {
        assert!(matches!(decoded(text)[..], [Decoded::NotJson]), "{text}");
    }
    for text in ["{}", "{\"message\": \"{}\"}", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}", "{\"stage\": 1}"] {
        assert!(matches!(decoded(text)[..], [Decoded::NotAnEvent]), "{text}");
    }
}

#[test]
fn messages_in_messages_end() {
    let deep = (0..100).fold("{}".to_owned(), |inner, _| format!("{{\"message\":{inner}}}"));
    assert!(matches!(decoded(&deep)[..], [Decoded::NotAnEvent]));
}
