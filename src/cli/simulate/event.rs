//! One record of an audit log → [`Event`]. Pure.
//!
//! A record is an Event of `audit.k8s.io/v1`, or an envelope around Events: what CloudWatch exports of an EKS cluster, an
//! `EventList`, or an entry of Cloud Logging, which [`cloud`] reads. What is not an interaction with a pod
//! is counted by its kind and skipped.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{cloud, uri};
use crate::{
    admission::review::{Act, UserInfo, proxied},
    config::policy::possible::Unknown,
    mark::{Operation, User},
};

/// What a record says.
#[derive(Debug)]
pub enum Decoded {
    /// An interaction with a pod.
    Event(Box<Event>),
    /// A request for something else.
    Other,
    /// JSON that is not of an audit log.
    NotAnEvent,
    /// Not JSON: cut, or something else.
    NotJson,
}

/// One stage of one interaction with a pod.
#[derive(Debug)]
pub struct Event {
    /// `auditID`, the same at every stage of the request.
    pub id: String,
    /// When the request was received.
    pub at: Timestamp,
    /// When the record was written: the order in a file.
    pub written: Timestamp,
    /// Over WebSocket: the verb is `get`.
    pub is_get: bool,
    /// Whether the API server admitted it.
    pub is_admitted: bool,
    /// The path and the query.
    pub uri: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The user whose rights the request had.
    pub user: User,
    /// What it did.
    pub act: Act,
    /// What the record does not say.
    pub unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    #[serde(default, borrow)]
    api_version: Cow<'a, str>,
    #[serde(default, borrow)]
    stage: Cow<'a, str>,
    #[serde(default, borrow)]
    verb: Cow<'a, str>,
    #[serde(default, borrow, rename = "auditID")]
    audit_id: Cow<'a, str>,
    #[serde(default, borrow, rename = "requestURI")]
    request_uri: Cow<'a, str>,
    #[serde(borrow)]
    object_ref: Option<Object<'a>>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    impersonated_user: Option<&'a RawValue>,
    response_status: Option<Status>,
    request_received_timestamp: Option<Timestamp>,
    stage_timestamp: Option<Timestamp>,
    // Envelopes.
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow, rename = "@message")]
    at_message: Option<&'a RawValue>,
    #[serde(borrow)]
    events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    log_events: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    proto_payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    #[serde(default, borrow)]
    resource: Cow<'a, str>,
    #[serde(default, borrow)]
    subresource: Cow<'a, str>,
    #[serde(default, borrow)]
    api_group: Cow<'a, str>,
    #[serde(default, borrow)]
    namespace: Cow<'a, str>,
    #[serde(default, borrow)]
    name: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "or_zero")]
    code: u16,
}

fn or_zero<'de, D: Deserializer<'de>>(value: D) -> Result<u16, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// Envelopes in envelopes.
const MAX_DEPTH: usize = 4;

/// Decodes a record, and gives each of its Events to `emit`.
pub fn decode(text: &[u8], emit: &mut dyn FnMut(Decoded)) {
    // The export of CloudWatch to S3 writes the time before each record.
    let start = text.iter().position(|byte| *byte == b'{').unwrap_or(0);
    decode_within(&text[start..], 0, emit);
}

fn decode_within(text: &[u8], depth: usize, emit: &mut dyn FnMut(Decoded)) {
    let record: Record<'_> = match serde_json::from_slice(text) {
        Ok(record) => record,
        Err(error) if error.is_data() => return emit(Decoded::NotAnEvent),
        Err(_) => return emit(Decoded::NotJson),
    };
    if record.api_version == "audit.k8s.io/v1" && record.items.is_none() {
        return emit(request(record).map_or(Decoded::Other, |event| Decoded::Event(Box::new(event))));
    }
    if record.proto_payload.is_some() {
        return emit(cloud::decode(text));
    }
    let lists = [&record.events, &record.log_events, &record.items];
    let inner = lists.into_iter().flatten().flatten().chain(&record.message).chain(&record.at_message);
    let inner: Vec<&RawValue> = if depth < MAX_DEPTH { inner.copied().collect() } else { Vec::new() };
    if inner.is_empty() {
        return emit(Decoded::NotAnEvent);
    }
    for inner in inner {
        // The message of CloudWatch is JSON in a string.
        match serde_json::from_str::<Cow<'_, str>>(inner.get()) {
            Ok(text) => decode_within(text.as_bytes(), depth + 1, emit),
            Err(_) => decode_within(inner.get().as_bytes(), depth + 1, emit),
        }
    }
}

/// The operation of a subresource of pods.
pub(super) fn operation(subresource: &str) -> Option<Operation> {
    Some(match subresource {
        "exec" => Operation::Exec,
        "attach" => Operation::Attach,
        "portforward" => Operation::PortForward,
        "proxy" => Operation::Proxy,
        "ephemeralcontainers" => Operation::Debug,
        _ => return None,
    })
}

/// Whether the request changed or reached the pod: the other verbs of `ephemeralcontainers` read.
pub(super) fn is_interaction(operation: Operation, verb: &str) -> bool {
    operation != Operation::Debug || matches!(verb, "patch" | "update")
}

fn request(record: Record<'_>) -> Option<Event> {
    let Object { resource, subresource, api_group, namespace, name } = record.object_ref?;
    if resource != "pods" || !api_group.is_empty() || !matches!(&*record.stage, "ResponseStarted" | "ResponseComplete")
    {
        return None;
    }
    let operation = operation(&subresource).filter(|it| is_interaction(*it, &record.verb))?;
    let uri = record.request_uri.into_owned();
    if operation == Operation::Debug && uri::is_dry_run(&uri) {
        return None;
    }
    let at = record.request_received_timestamp.or(record.stage_timestamp)?;
    let code = record.response_status.unwrap_or_default().code;
    let is_admitted = match operation {
        Operation::Debug => (200..300).contains(&code),
        // The answer is the container's own. Its 404 looks like that of a pod that does not exist.
        Operation::Proxy => (100..400).contains(&code),
        // Not a request of its own.
        Operation::Report => false,
        // A switch of protocols, or 200 of old SPDY.
        Operation::Exec | Operation::Attach | Operation::PortForward => matches!(code, 101 | 200),
    };
    let user: UserInfo = serde_json::from_str(record.impersonated_user.or(record.user)?.get()).ok()?;
    let is_debug = operation == Operation::Debug;
    Some(Event {
        id: record.audit_id.into_owned(),
        at,
        written: record.stage_timestamp.unwrap_or(at),
        is_get: record.verb == "get",
        is_admitted,
        namespace: namespace.into_owned(),
        pod: if operation == Operation::Proxy { proxied(&name).to_owned() } else { name.into_owned() },
        user: user.into(),
        act: uri::act(operation, &uri),
        // At level Metadata there is no body, which has the container.
        unknown: Unknown {
            container: is_debug,
            streams: is_debug,
            command: is_debug || operation == Operation::Proxy,
            pod: true,
            ..Unknown::default()
        },
        uri,
    })
}

#[cfg(test)]
mod tests;
