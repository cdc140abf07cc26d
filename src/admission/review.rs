//! `AdmissionReview` (`admission.k8s.io/v1`) bytes ⇄ [`Request`] and [`Answer`].
//!
//! Pure. Only the fields that matter for the decision are read, so a review from a later Kubernetes, or of a pod with a
//! field that this version does not know, is understood. A body that is not understood is an HTTP error, never a panic.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Deserializer};
use serde_json::{json, value::RawValue};

use crate::mark::{EXEC_REQUEST_UID, Operation, User, shorten};

/// Why a body is not a review for this webhook.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The body is not JSON, or not an `AdmissionReview`.
    #[error("not an AdmissionReview: {0}")]
    NotAReview(#[from] serde_json::Error),
    /// The body is an `AdmissionReview` of another version, without a request, or of another resource.
    #[error("not an AdmissionReview that Pristine supports: {0}")]
    Unsupported(String),
}

/// One admission request.
#[derive(Debug, Eq, PartialEq)]
pub struct Request {
    /// UID of the review; the answer repeats it.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The user who sent the request.
    pub user: User,
    /// A dry run: nothing may be written.
    pub dry_run: bool,
    /// The interactions; empty if the request reaches no container.
    pub acts: Vec<Act>,
}

/// User and group of break-glass.
pub const BREAK_GLASS: &str = "pristine:break-glass";

impl Request {
    /// Whether this is break-glass: recorded if possible, and never denied.
    #[must_use]
    pub fn breaks_glass(&self) -> bool {
        self.user.groups.iter().any(|group| group == BREAK_GLASS)
    }

    /// Whether the shipped webhook entry admits the request while no replica answers. Then it is not denied for lack of
    /// a record either.
    #[must_use]
    pub fn fails_open(&self) -> bool {
        self.breaks_glass() || self.acts.iter().all(|act| !act.operation.enters())
    }
}

/// One interaction: a container, and what is run in it.
#[derive(Debug, Eq, Hash, PartialEq)]
pub struct Act {
    /// The operation.
    pub operation: Operation,
    /// The container, if the request names one.
    pub container: String,
    /// The command, as the client sent it, without the words that the Security Profiles Operator prepends. Attach has
    /// none.
    pub command: Vec<String>,
    /// Whether standard input is connected.
    pub stdin: bool,
    /// Whether a terminal is requested.
    pub tty: bool,
}

/// The answer to the API server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// `None` admits the request.
    pub denial: Option<Denial>,
    /// Entries for the API server's audit log, under `<webhook entry>/<key>`.
    pub audit: BTreeMap<&'static str, String>,
    /// What kubectl prints. API servers pass it on for `kubectl debug`, and drop it for exec, attach and port-forward.
    pub warnings: Vec<String>,
}

/// A denial in the API server's terms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// HTTP status code for the user.
    pub code: u16,
    /// `metav1.StatusReason`
    pub reason: &'static str,
    /// The text that kubectl prints.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(borrow)]
    request: Option<RawRequest<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest<'a> {
    uid: String,
    resource: Resource,
    #[serde(default)]
    sub_resource: String,
    operation: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    user_info: UserInfo,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    old_object: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Resource {
    resource: String,
}

/// `authentication.k8s.io/v1` `UserInfo`, also in audit logs. Go writes an absent list as `null`, also inside of a map.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    #[serde(deserialize_with = "or_default")]
    username: String,
    #[serde(deserialize_with = "or_default")]
    uid: String,
    #[serde(deserialize_with = "or_default")]
    groups: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    extra: BTreeMap<String, Option<Vec<String>>>,
}

impl From<UserInfo> for User {
    fn from(UserInfo { username: name, uid, groups, extra }: UserInfo) -> Self {
        // The key is Pristine's own: a value that the user impersonates would pass for the operator's.
        let extra = extra.into_iter().filter(|(key, _)| key != EXEC_REQUEST_UID);
        Self { name, uid, groups, extra: extra.map(|(key, values)| (key, values.unwrap_or_default())).collect() }
    }
}

/// `PodExecOptions` or `PodAttachOptions`. The second has no command.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    #[serde(deserialize_with = "or_default")]
    container: String,
    #[serde(deserialize_with = "or_default")]
    command: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    stdin: bool,
    #[serde(deserialize_with = "or_default")]
    tty: bool,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PortOptions {
    ports: Option<Vec<i64>>,
    path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodObject<'a> {
    #[serde(borrow)]
    spec: PodSpec<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec<'a> {
    #[serde(borrow)]
    ephemeral_containers: Option<Vec<&'a RawValue>>,
}

/// Containers that one update may add. kubectl adds one.
const MAX_ADDED: usize = 32;

#[derive(Default, Deserialize)]
#[serde(default)]
struct EphemeralContainer {
    name: String,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    stdin: bool,
    tty: bool,
}

fn object<'a, T: Default + Deserialize<'a>>(raw: Option<&'a RawValue>) -> Result<T, serde_json::Error> {
    raw.map(|raw| serde_json::from_str::<Option<T>>(raw.get()))
        .transpose()
        .map(|found| found.flatten().unwrap_or_default())
}

/// Reads a review.
///
/// # Errors
/// If the body is not a review, or reviews a request that the shipped webhook configuration does not select.
pub fn parse(body: &[u8]) -> Result<Request, Error> {
    let envelope: Envelope<'_> = serde_json::from_slice(body)?;
    let Envelope { api_version, kind, request: Some(raw) } = envelope else {
        return Err(Error::Unsupported(format!("{:?} {:?} without a request", envelope.api_version, envelope.kind)));
    };
    if (api_version.as_str(), kind.as_str()) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(Error::Unsupported(format!("{api_version:?} {kind:?}, expected \"admission.k8s.io/v1\"")));
    }
    let mut exec_request_uid = None;
    let acts = match (raw.operation.as_str(), raw.resource.resource.as_str(), raw.sub_resource.as_str()) {
        ("CONNECT", "pods", "exec") => {
            let mut options: Options = object(raw.object)?;
            exec_request_uid = take_exec_request_uid(&mut options.command);
            vec![connect(Operation::Exec, options)]
        }
        ("CONNECT", "pods", "attach") => vec![connect(Operation::Attach, object(raw.object)?)],
        ("CONNECT", "pods", "portforward") => vec![connect_port(Operation::PortForward, &object(raw.object)?)],
        ("CONNECT", "pods", "proxy") => vec![connect_port(Operation::Proxy, &object(raw.object)?)],
        ("UPDATE", "pods", "ephemeralcontainers") => added(&object(raw.old_object)?, &object(raw.object)?)?,
        (operation, resource, subresource) => {
            return Err(Error::Unsupported(format!("a review of {operation} {resource}/{subresource}")));
        }
    };
    let pod = if raw.sub_resource == "proxy" { proxied(&raw.name).to_owned() } else { raw.name };
    let mut user = User::from(raw.user_info);
    user.extra.extend(exec_request_uid.map(|id| (EXEC_REQUEST_UID.to_owned(), vec![id])));
    Ok(Request {
        uid: raw.uid,
        namespace: raw.namespace,
        pod,
        user,
        dry_run: raw.dry_run.unwrap_or(false),
        acts: bounded(acts),
    })
}

/// Bytes of all commands of one review that are kept while it is handled. Rules compare the beginning of a command, and
/// 1 KiB of it is recorded; without a limit, a few updates with megabytes of arguments would fill the memory.
const MAX_COMMANDS: usize = 64 * 1024;

/// The acts, with no more of their commands than [`MAX_COMMANDS`].
fn bounded(mut acts: Vec<Act>) -> Vec<Act> {
    let mut left = MAX_COMMANDS;
    for act in &mut acts {
        for word in &mut act.command {
            if word.len() > left {
                *word = shorten(word, left);
            }
            left = left.saturating_sub(word.len());
        }
        act.command.shrink_to_fit();
    }
    acts
}

/// The pod in `[scheme:]name[:port]`, as `SplitSchemeNamePort` of apimachinery reads it.
#[must_use]
pub fn proxied(name: &str) -> &str {
    match name.split(':').collect::<Vec<_>>()[..] {
        [_, name, _] | [name, ..] => name,
        [] => "",
    }
}

fn connect(operation: Operation, options: Options) -> Act {
    let Options { container, command, stdin, tty } = options;
    Act { operation, container, command, stdin, tty }
}

/// Removes `env SPO_EXEC_REQUEST_UID=<id>` from the front of a command, and gives the id. The mutating webhook of the
/// Security Profiles Operator prepends these two words to every exec, and rules are about what the user typed.
fn take_exec_request_uid(command: &mut Vec<String>) -> Option<String> {
    let [env, assignment, _, ..] = &command[..] else { return None };
    let id = assignment.strip_prefix("SPO_EXEC_REQUEST_UID=").filter(|_| env == "env")?.to_owned();
    command.drain(..2);
    Some(id)
}

/// `PodPortForwardOptions` and `PodProxyOptions`. Ports are present if the client named them in the URL.
fn connect_port(operation: Operation, options: &PortOptions) -> Act {
    let ports = options.ports.iter().flatten().map(ToString::to_string);
    let path = Some(&options.path).filter(|path| !path.is_empty()).cloned();
    let command = ports.chain(path).collect();
    Act { operation, container: String::new(), command, stdin: false, tty: false }
}

/// The ephemeral containers that the update adds or changes. They are compared as text, because one API server wrote
/// both, so three megabytes of containers cost three megabytes of hashing.
fn added(old: &PodObject<'_>, new: &PodObject<'_>) -> Result<Vec<Act>, Error> {
    let before = old.spec.ephemeral_containers.iter().flatten().map(|container| container.get());
    let before: HashSet<&str> = before.collect();
    let after = new.spec.ephemeral_containers.iter().flatten();
    let fresh: Vec<&RawValue> = after.copied().filter(|container| !before.contains(container.get())).collect();
    let count = fresh.len();
    if count > MAX_ADDED {
        return Err(Error::Unsupported(format!(
            "an update that adds {count} ephemeral containers, the limit is {MAX_ADDED}"
        )));
    }
    let act = |container: &RawValue| {
        let EphemeralContainer { name, command, args, stdin, tty } = serde_json::from_str(container.get())?;
        let command = command.into_iter().chain(args).flatten().collect();
        Ok(Act { operation: Operation::Debug, container: name, command, stdin, tty })
    };
    fresh.into_iter().map(act).collect()
}

/// Writes the answer to the review with this UID.
#[must_use]
pub fn render(uid: &str, answer: &Answer) -> Vec<u8> {
    let mut response = json!({ "uid": uid, "allowed": answer.denial.is_none() });
    if let Some(Denial { code, reason, message }) = &answer.denial {
        response["status"] = json!({ "status": "Failure", "code": code, "reason": reason, "message": message });
    }
    if !answer.audit.is_empty() {
        response["auditAnnotations"] = json!(answer.audit);
    }
    if !answer.warnings.is_empty() {
        response["warnings"] = json!(answer.warnings);
    }
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response });
    serde_json::to_vec(&review).expect("JSON values serialise")
}

#[cfg(test)]
mod tests;
