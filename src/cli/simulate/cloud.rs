//! Entries of Google Cloud Logging ([`LogEntry`] with an `AuditLog`), as `gcloud logging read --format=json` and sinks of
//! a GKE cluster write them. Pure.
//!
//! They have neither the groups and the `extra` of the user nor the query of the request: the command, the container and
//! the streams are not known, and of a ServiceAccount, whether the request came with the token of a pod. The code of the
//! answer is one of `google.rpc.Code`.

use jiff::Timestamp;
use serde::Deserialize;

use super::event::{Decoded, Event, is_interaction, operation};
use crate::{
    admission::review::{Act, proxied},
    config::policy::possible::Unknown,
    mark::{Operation, SERVICE_ACCOUNT, User},
};

/// The fields that matter.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogEntry {
    proto_payload: AuditLog,
    timestamp: Option<Timestamp>,
    #[serde(default)]
    insert_id: String,
    operation: Option<LongRunning>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuditLog {
    #[serde(default)]
    service_name: String,
    #[serde(default)]
    method_name: String,
    #[serde(default)]
    resource_name: String,
    #[serde(default)]
    authentication_info: AuthenticationInfo,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthenticationInfo {
    principal_email: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: i32,
}

/// The entries of one request have one id.
#[derive(Deserialize)]
struct LongRunning {
    id: String,
}

/// Decodes an entry.
#[must_use]
pub fn decode(text: &[u8]) -> Decoded {
    let Ok(entry) = serde_json::from_slice::<LogEntry>(text) else { return Decoded::NotAnEvent };
    request(entry).map_or(Decoded::Other, |event| Decoded::Event(Box::new(event)))
}

fn request(entry: LogEntry) -> Option<Event> {
    let AuditLog { service_name, method_name, resource_name, authentication_info, status } = entry.proto_payload;
    if service_name != "k8s.io" {
        return None;
    }
    // io.k8s.core.v1.pods.exec.create of core/v1/namespaces/NAMESPACE/pods/POD/exec
    let (subresource, verb) = method_name.strip_prefix("io.k8s.core.v1.pods.")?.split_once('.')?;
    let operation = operation(subresource).filter(|it| is_interaction(*it, verb))?;
    let parts: Vec<&str> = resource_name.split('/').collect();
    let ["core", "v1", "namespaces", namespace, "pods", pod, ..] = parts[..] else { return None };
    let at = entry.timestamp?;
    let name = authentication_info.principal_email;
    // Only a ServiceAccount can have the token of a pod.
    let pod_token = name.starts_with(SERVICE_ACCOUNT);
    Some(Event {
        id: entry.operation.map_or(entry.insert_id, |operation| operation.id),
        at,
        written: at,
        is_get: verb == "get",
        is_admitted: status.code == 0,
        namespace: namespace.to_owned(),
        pod: if operation == Operation::Proxy { proxied(pod).to_owned() } else { pod.to_owned() },
        user: User { name, ..User::default() },
        act: Act { operation, container: String::new(), command: Vec::new(), stdin: false, tty: false },
        unknown: Unknown { groups: true, container: true, streams: true, pod_token, command: true, pod: true },
        uri: resource_name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn entry(method: &str, code: Option<i32>) -> Value {
        json!({
            "insertId": "i1", "timestamp": "2026-11-20T10:00:00.123456Z", "severity": "NOTICE",
            "logName": "projects/p/logs/cloudaudit.googleapis.com%2Factivity",
            "resource": {"type": "k8s_cluster", "labels": {"cluster_name": "c", "location": "l", "project_id": "p"}},
            "operation": {"id": "a1", "producer": "k8s.io", "first": true},
            "protoPayload": {
                "@type": "type.googleapis.com/google.cloud.audit.AuditLog", "serviceName": "k8s.io",
                "methodName": method, "resourceName": "core/v1/namespaces/shop/pods/web-0/exec",
                "authenticationInfo": {"principalEmail": "alice@example.com"},
                "status": code.map_or_else(|| json!({}), |code| json!({ "code": code })),
            },
        })
    }

    fn decoded(entry: &Value) -> Option<Event> {
        match decode(entry.to_string().as_bytes()) {
            Decoded::Event(event) => Some(*event),
            _ => None,
        }
    }

    #[test]
    fn an_exec_in_cloud_logging_is_an_event_without_a_command() {
        let event = decoded(&entry("io.k8s.core.v1.pods.exec.create", None)).unwrap();
        assert_eq!((event.id.as_str(), event.namespace.as_str(), event.pod.as_str()), ("a1", "shop", "web-0"));
        assert_eq!((event.user.name.as_str(), event.act.operation), ("alice@example.com", Operation::Exec));
        assert!(event.is_admitted && !event.is_get && event.unknown.command && event.unknown.groups);
        assert!(event.unknown.streams && !event.unknown.pod_token);
        assert!(decoded(&entry("io.k8s.core.v1.pods.exec.get", Some(0))).unwrap().is_get);
    }

    #[test]
    fn cloud_logging_does_not_say_whether_a_service_account_has_the_token_of_a_pod() {
        let mut machine = entry("io.k8s.core.v1.pods.exec.create", None);
        machine["protoPayload"]["authenticationInfo"]["principalEmail"] = json!("system:serviceaccount:shop:operator");
        assert!(decoded(&machine).unwrap().unknown.pod_token);
    }

    #[test]
    fn a_request_that_cloud_logging_shows_as_denied_was_not_admitted() {
        assert!(!decoded(&entry("io.k8s.core.v1.pods.exec.create", Some(7))).unwrap().is_admitted);
    }

    #[test]
    fn other_methods_of_cloud_logging_are_no_interactions() {
        for method in ["io.k8s.core.v1.pods.create", "io.k8s.core.v1.pods.status.patch", "google.container.v1.x", ""] {
            assert!(decoded(&entry(method, None)).is_none(), "{method}");
        }
        let mut other = entry("io.k8s.core.v1.pods.exec.create", None);
        other["protoPayload"]["serviceName"] = json!("container.googleapis.com");
        assert!(decoded(&other).is_none());
    }
}
