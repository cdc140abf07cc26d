//! Checks that the API server makes only after admission, with the API server's own messages. Pure.
//!
//! Without them, Pristine would mark a pod to which the API server then denies the connection.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::review::{Act, Denial, Request};
use crate::mark::{Interaction, Operation, redact};

/// What is recorded of one interaction, before a rule decides about it.
#[must_use]
pub fn interaction(request: &Request, act: &Act, container: String, now: Timestamp) -> Interaction {
    Interaction {
        // Milliseconds are enough, and every byte of the annotation counts.
        at: Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now),
        operation: act.operation,
        container,
        command: redact::command(&act.command),
        stdin: act.stdin,
        tty: act.tty,
        user: redact::user(&request.user),
        review: request.uid.clone(),
        rule: String::new(),
    }
}

/// The denial for a pod that does not exist.
#[must_use]
pub fn not_found(pod: &str) -> Denial {
    Denial { code: 404, reason: "NotFound", message: format!("pods {pod:?} not found") }
}

/// The verbs of which the user needs one, and the subresource.
#[must_use]
pub const fn needed(operation: Operation) -> (&'static [&'static str], &'static str) {
    match operation {
        // Over WebSocket it is a GET, but a user who may only get must not reach a container. The API server itself
        // requires create since 1.35.
        Operation::Attach => (&["create"], "attach"),
        Operation::Exec => (&["create"], "exec"),
        Operation::PortForward => (&["create"], "portforward"),
        // The verb is that of the HTTP method, which a review does not contain.
        Operation::Proxy => (&["get", "create", "update", "patch", "delete"], "proxy"),
        // A review does not distinguish PATCH, which kubectl sends, from PUT.
        Operation::Debug => (&["patch", "update"], "ephemeralcontainers"),
        // Checked by a policy in the API server when the label is written.
        Operation::Report => (&["report"], "interactions"),
    }
}

/// The denial for a user who has none of the verbs.
#[must_use]
pub fn forbidden(request: &Request, operation: Operation) -> Denial {
    let (verbs, subresource) = needed(operation);
    let Request { namespace, pod, user, .. } = request;
    let message = format!(
        "pods {pod:?} is forbidden: User {:?} cannot {} resource \"pods/{subresource}\" in API group \"\" \
         in the namespace {namespace:?}",
        user.name, verbs[0]
    );
    Denial { code: 403, reason: "Forbidden", message }
}

/// The container that the API server will connect to, by its own rules (`validateContainer` and `streamLocation` in
/// `pkg/registry/core/pod/strategy.go` of Kubernetes 1.37).
///
/// # Errors
/// The error that the API server would return.
pub fn container(act: &Act, pod: &Pod) -> Result<String, Denial> {
    match act.operation {
        // The API server has validated the update. The container is not in the pod yet.
        Operation::Debug => return Ok(act.container.clone()),
        Operation::PortForward | Operation::Proxy | Operation::Report => return Ok(String::new()),
        Operation::Attach | Operation::Exec => {}
    }
    let bad = |message| Denial { code: 400, reason: "BadRequest", message };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else { return Err(not_found(name)) };
    let init = spec.init_containers.iter().flatten().map(|c| &c.name);
    let main = spec.containers.iter().map(|c| &c.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
    let all: Vec<&String> = init.chain(main).chain(ephemeral).collect();
    let container = match (act.container.as_str(), spec.containers.as_slice()) {
        ("", [only]) => only.name.clone(),
        ("", _) => {
            let names = all.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
            return Err(bad(format!("a container name must be specified for pod {name}, choose one of: [{names}]")));
        }
        (named, _) if all.iter().any(|known| *known == named) => named.to_owned(),
        (named, _) => return Err(bad(format!("container {named} is not valid for pod {name}"))),
    };
    if spec.node_name.as_deref().unwrap_or_default().is_empty() {
        return Err(bad(format!("pod {name} does not have a host assigned")));
    }
    Ok(container)
}
