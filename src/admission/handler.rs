//! Decides about an interaction, writes the mark, answers. The edge of the admission room.
//!
//! The order is the promise: the mark is on the pod before "allowed" leaves. It cannot be turned round, because
//! [`Admitted`] asks for a [`Marked`].

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::events::EventType;
use tokio::sync::watch;

use super::review::{self, Act, Answer, Denial, Request};
use crate::{
    clock::Clock,
    error::chain,
    events::Events,
    mark::{Interaction, Operation},
    pods::{self, Marked, Pods},
    policy::{Policy, Verdict},
    redact,
    telemetry::{Admission, Decision, Metrics},
};

/// Subtracted from the API server's timeout, so that the user reads our reason and not "context deadline exceeded",
/// which also shows the URL that was called.
const RESERVE: Duration = Duration::from_millis(500);

/// Answers admission reviews.
pub struct Handler {
    /// Reads and marks pods.
    pub pods: Pods,
    /// The rules in force.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// The wall clock.
    pub clock: Clock,
    /// Where Events go.
    pub events: Events,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Why an interaction is let through.
enum Admitted {
    /// The mark is on the pod.
    Marked(Marked, String),
    /// A rule exempts it.
    Exempt(String),
    /// Nothing may be written, or no container is touched.
    NothingToMark,
}

/// Why it is not.
enum Refused {
    Denied(Denial),
    Unavailable(pods::Error),
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl Handler {
    /// Answers one review within `timeout`, the API server's own.
    ///
    /// # Errors
    /// When the body is no review.
    pub async fn answer(&self, body: &[u8], timeout: Duration) -> Result<Vec<u8>, review::Error> {
        let request = review::parse(body)?;
        let start = tokio::time::Instant::now();
        let outcome = tokio::time::timeout(timeout.saturating_sub(RESERVE), self.admit(&request)).await;
        self.metrics.admission_seconds.observe(start.elapsed().as_secs_f64());
        let (answer, decision) = match outcome {
            Ok(Ok(admitted)) => admit(&request, &admitted),
            Ok(Err(Refused::Denied(denial))) => deny(&request, denial),
            Ok(Err(Refused::Unavailable(error))) => fail(&request, &chain(&error)),
            Err(_) => fail(&request, "the API server did not answer in time"),
        };
        let operation = request.acts.first().map_or("none", |act| act.operation.as_str());
        self.metrics.admissions.get_or_create(&Admission { operation, decision }).inc();
        Ok(review::render(&request.uid, &answer))
    }

    async fn admit(&self, request: &Request) -> Result<Admitted, Refused> {
        let Some(first) = request.acts.first() else { return Ok(Admitted::NothingToMark) };
        // Both at once: neither needs the other, and the user waits.
        let read = || self.pods.get(&request.namespace, &request.pod);
        let (permitted, mut pod) = tokio::join!(self.permitted(request, first.operation), read());
        permitted?;
        loop {
            let found = match pod {
                Ok(pod) => pod,
                Err(pods::Error::Gone) => return Err(not_found(&request.pod).into()),
                Err(error) => return Err(Refused::Unavailable(error)),
            };
            let policy = self.policy.borrow().clone();
            let mut to_mark = Vec::new();
            let mut exempted_by = String::new();
            for act in &request.acts {
                let mut interaction = self.interaction(request, act, &found)?;
                let decided = policy.decide(&interaction, &request.user, &act.command, &found);
                interaction.rule.clone_from(&decided.rule);
                match decided.verdict {
                    Verdict::Exempt => exempted_by = decided.rule,
                    Verdict::Record => to_mark.push((interaction, None)),
                    Verdict::Evict { ttl } => to_mark.push((interaction, Some(ttl))),
                    Verdict::Deny { message } => {
                        let message = format!("rule {:?}: {message}", decided.rule);
                        return Err(Denial { code: 403, reason: "Forbidden", message }.into());
                    }
                }
            }
            if request.dry_run {
                return Ok(Admitted::NothingToMark);
            }
            if to_mark.is_empty() {
                return Ok(Admitted::Exempt(exempted_by));
            }
            let rule = to_mark[0].0.rule.clone();
            match self.pods.mark(&found, to_mark).await {
                Ok(marked) => {
                    if marked.written {
                        self.tell(&found, &marked);
                    }
                    return Ok(Admitted::Marked(marked, rule));
                }
                // Somebody wrote to the pod since it was read, or it was replaced: look again, within the timeout.
                Err(pods::Error::Conflict | pods::Error::Gone) => pod = read().await,
                Err(error) => return Err(Refused::Unavailable(error)),
            }
        }
    }

    /// What will be recorded, after the checks that the API server makes only after admission: a mark on a pod that
    /// the API server then refuses to connect to would be a mark without an interaction.
    fn interaction(&self, request: &Request, act: &Act, pod: &Pod) -> Result<Interaction, Denial> {
        let container = match act.operation {
            // The API server has validated the update; the container is not in the pod yet.
            Operation::Debug => act.container.clone(),
            Operation::Attach | Operation::Exec => reachable(&act.container, pod)?,
        };
        Ok(Interaction {
            at: thousandth(self.clock.now()),
            operation: act.operation,
            container,
            command: redact::command(&act.command),
            stdin: act.stdin,
            tty: act.tty,
            user: redact::user(&request.user),
            review: request.uid.clone(),
            rule: String::new(),
        })
    }

    async fn permitted(&self, request: &Request, operation: Operation) -> Result<(), Refused> {
        let (verbs, subresource): (&[&str], _) = match operation {
            Operation::Attach => (&["create"], "attach"),
            Operation::Exec => (&["create"], "exec"),
            // A review does not tell PATCH, which kubectl sends, from PUT.
            Operation::Debug => (&["patch", "update"], "ephemeralcontainers"),
        };
        let Request { namespace, pod, user, .. } = request;
        for verb in verbs {
            if self.pods.may(user, verb, subresource, namespace, pod).await.map_err(Refused::Unavailable)? {
                return Ok(());
            }
        }
        let verb = verbs[0];
        let message = format!(
            "pods {pod:?} is forbidden: User {:?} cannot {verb} resource \"pods/{subresource}\" in API group \"\" in the namespace {namespace:?}",
            user.name
        );
        Err(Denial { code: 403, reason: "Forbidden", message }.into())
    }

    fn tell(&self, pod: &Pod, marked: &Marked) {
        let last = marked.mark.last();
        tracing::info!(
            namespace = pod.metadata.namespace,
            pod = pod.metadata.name,
            uid = marked.mark.pod,
            user = last.user.name,
            groups = ?last.user.groups,
            operation = last.operation.as_str(),
            container = last.container,
            command = ?last.command,
            stdin = last.stdin,
            tty = last.tty,
            rule = last.rule,
            review = last.review,
            total = marked.mark.total,
            evict_at = marked.mark.evict_at.map(tracing::field::display),
            "interaction"
        );
        let (what, who) = (last.operation.as_str(), &last.user.name);
        let note = match marked.mark.evict_at {
            Some(at) => format!("{what} into container {} by {who:?}; to be evicted at {at}", last.container),
            None => format!("{what} into container {} by {who:?}; recorded", last.container),
        };
        self.events.pod(pod, EventType::Normal, "PodInteraction", "Mark", &note);
    }
}

/// Records need no finer time, and every byte of them counts.
fn thousandth(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

fn admit(request: &Request, admitted: &Admitted) -> (Answer, Decision) {
    let mut answer = Answer::default();
    let decision = match admitted {
        Admitted::NothingToMark => Decision::Exempt,
        Admitted::Exempt(rule) => {
            tracing::info!(namespace = request.namespace, pod = request.pod, user = request.user.name, rule, "exempt");
            answer.audit.insert("rule", rule.clone());
            answer.audit.insert("decision", "exempt".to_owned());
            Decision::Exempt
        }
        Admitted::Marked(Marked { mark, written }, rule) => {
            answer.audit.insert("rule", rule.clone());
            answer.audit.insert("decision", "marked".to_owned());
            answer.audit.insert("pod-uid", mark.pod.clone());
            if let Some(at) = mark.evict_at {
                answer.audit.insert("evict-at", at.to_string());
            }
            if *written { Decision::Marked } else { Decision::Folded }
        }
    };
    (answer, decision)
}

fn deny(request: &Request, denial: Denial) -> (Answer, Decision) {
    let Denial { code, message, .. } = &denial;
    tracing::info!(namespace = request.namespace, pod = request.pod, user = request.user.name, code, message, "denied");
    let audit = [("decision", "denied".to_owned())].into();
    (Answer { denial: Some(denial), audit }, Decision::Denied)
}

fn fail(request: &Request, why: &str) -> (Answer, Decision) {
    let Request { namespace, pod, .. } = request;
    tracing::error!(namespace, pod, user = request.user.name, error = why, "the mark could not be written; denied");
    let message = format!(
        "the interaction could not be recorded on pod {namespace}/{pod}, and nobody enters a container unrecorded: {why}. \
         Try again; if it lasts, see the log of the deployment pristine in its namespace"
    );
    let denial = Denial { code: 503, reason: "ServiceUnavailable", message };
    (Answer { denial: Some(denial), audit: [("decision", "failed".to_owned())].into() }, Decision::Failed)
}

fn not_found(pod: &str) -> Denial {
    Denial { code: 404, reason: "NotFound", message: format!("pods {pod:?} not found") }
}

/// The container that the API server will connect to; its own rules and words (`validateContainer` and
/// `streamLocation` in `pkg/registry/core/pod/strategy.go` of Kubernetes 1.37).
fn reachable(container: &str, pod: &Pod) -> Result<String, Denial> {
    let bad = |message| Denial { code: 400, reason: "BadRequest", message };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else { return Err(not_found(name)) };
    let init = spec.init_containers.iter().flatten().map(|c| &c.name);
    let main = spec.containers.iter().map(|c| &c.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
    let all: Vec<&String> = init.chain(main).chain(ephemeral).collect();
    let container = match (container, spec.containers.as_slice()) {
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
