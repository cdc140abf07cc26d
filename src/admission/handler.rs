//! Decides about an interaction, writes the mark, and answers. I/O.
//!
//! The order is the promise: the mark is on the pod before the answer "allowed" is sent. The types enforce it, because
//! [`Admitted`] contains a [`Marked`].

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::{
    locks::PodLocks,
    review::{self, Answer, Denial, Request},
    validate,
};
use crate::{
    api::{
        Context,
        events::EventType,
        pods::{self, Marked, Pods},
    },
    audit_log::Line,
    config::policy::{Decision, Policy, Verdict},
    error::chain,
    mark::{Disposition, Interaction, Operation},
    telemetry::{Admission, AdmissionOutcome},
};

/// Subtracted from the API server's timeout, so that the user reads Pristine's reason and not "context deadline
/// exceeded", which also shows the URL of the webhook.
const RESERVE: Duration = Duration::from_millis(500);

/// Answers admission reviews.
pub struct Handler {
    /// Reads and marks pods.
    pub pods: Pods,
    /// The configured rules.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// The clock, Events, audit log and metrics.
    pub context: Context,
    /// One writer for each pod.
    pub locks: PodLocks,
}

/// Why an interaction is admitted.
enum Admitted {
    /// The mark is on the pod; with the pod as it was read before.
    Marked(Box<Pod>, Marked),
    /// A rule exempts the interaction.
    Exempt(Interaction),
    /// A dry run, or a request that reaches no container.
    NothingToMark,
}

/// The decision of the rules about the interactions of one review.
#[derive(Default)]
struct Decided {
    /// The interactions to write on the pod.
    to_mark: Vec<(Interaction, Disposition)>,
    /// The last interaction that a rule exempts, for the audit log.
    exempt: Option<Interaction>,
}

/// Why an interaction is denied.
enum Refused {
    /// By a rule.
    Rule(Denial),
    /// By a check that the API server repeats after admission.
    Validation(Denial),
    /// Because the mark cannot be written.
    Unavailable(String),
}

impl From<pods::Error> for Refused {
    fn from(error: pods::Error) -> Self {
        Self::Unavailable(chain(&error))
    }
}

impl Handler {
    /// Answers one review within `timeout`, which is the API server's.
    ///
    /// # Errors
    /// When the body is not a review.
    pub async fn answer(&self, body: &[u8], timeout: Duration) -> Result<Vec<u8>, review::Error> {
        let request = review::parse(body)?;
        let start = tokio::time::Instant::now();
        let outcome = tokio::time::timeout(timeout.saturating_sub(RESERVE), self.admit(&request)).await;
        self.context.metrics.admission_seconds.observe(start.elapsed().as_secs_f64());
        if request.breaks_glass() && !request.dry_run {
            self.context.metrics.break_glass.inc();
        }
        let late = || Err(Refused::Unavailable("the API server did not answer Pristine in time".to_owned()));
        let (answer, decision) = match outcome.unwrap_or_else(|_| late()) {
            Ok(admitted) => self.admitted(&request, &admitted),
            Err(refused) => self.refused(&request, refused),
        };
        let operation = request.acts.first().map_or("none", |act| act.operation.as_str());
        self.context.metrics.admissions.get_or_create(&Admission { operation, decision }).inc();
        Ok(review::render(&request.uid, &answer))
    }

    async fn admit(&self, request: &Request) -> Result<Admitted, Refused> {
        let Some(first) = request.acts.first() else { return Ok(Admitted::NothingToMark) };
        // Both at once: neither needs the other, and the user is waiting.
        let read = || self.pods.get(&request.namespace, &request.pod);
        let locked = async {
            let lock = self.locks.lock(&request.namespace, &request.pod).await;
            (lock, read().await)
        };
        let (authorized, (_lock, mut pod)) = tokio::join!(self.authorize(request, first.operation), locked);
        authorized?;
        loop {
            let found = match pod {
                Ok(pod) => pod,
                Err(pods::Error::Gone) => return Err(Refused::Validation(validate::not_found(&request.pod))),
                Err(error) => return Err(error.into()),
            };
            let Decided { to_mark, exempt } = self.decide(request, &found)?;
            if request.dry_run {
                return Ok(Admitted::NothingToMark);
            }
            if let (true, Some(exempt)) = (to_mark.is_empty(), exempt) {
                return Ok(Admitted::Exempt(exempt));
            }
            match self.pods.mark(&found, to_mark).await {
                Ok(marked) => return Ok(Admitted::Marked(Box::new(found), marked)),
                // The pod was changed or replaced since it was read: read it again, within the timeout.
                Err(pods::Error::Conflict | pods::Error::Gone) => pod = read().await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Applies the rules to each interaction of the review with this pod.
    fn decide(&self, request: &Request, pod: &Pod) -> Result<Decided, Refused> {
        let policy = self.policy.borrow().clone();
        let mut decided = Decided::default();
        for act in &request.acts {
            let container = validate::container(act, pod).map_err(Refused::Validation)?;
            let mut interaction = validate::interaction(request, act, container, self.context.clock.corrected());
            let Decision { verdict, rule } = policy.decide(&interaction, &request.user, &act.command, pod);
            interaction.rule = rule;
            match verdict {
                Verdict::Exempt => decided.exempt = Some(interaction),
                Verdict::Mark(disposition) => decided.to_mark.push((interaction, disposition)),
                Verdict::Deny { .. } if request.breaks_glass() => {
                    decided.to_mark.push((interaction, Disposition::Record));
                }
                Verdict::Deny { message } => {
                    let message = format!("rule {:?}: {message}", interaction.rule);
                    return Err(Refused::Rule(Denial { code: 403, reason: "Forbidden", message }));
                }
            }
        }
        Ok(decided)
    }

    async fn authorize(&self, request: &Request, operation: Operation) -> Result<(), Refused> {
        let (verbs, subresource) = validate::needed(operation);
        for verb in verbs {
            if self.pods.can_i(&request.user, verb, subresource, &request.namespace, &request.pod).await? {
                return Ok(());
            }
        }
        Err(Refused::Validation(validate::forbidden(request, operation)))
    }

    fn admitted(&self, request: &Request, admitted: &Admitted) -> (Answer, AdmissionOutcome) {
        let mut answer = Answer::default();
        let Request { namespace, pod: name, .. } = request;
        let decision = match admitted {
            Admitted::NothingToMark => AdmissionOutcome::Exempt,
            Admitted::Exempt(interaction) => {
                let (pod_uid, evict_at, total, message) = (None, None, None, None);
                let decision = "exempt";
                let entry = Line { decision, namespace, pod: name, pod_uid, evict_at, total, message, interaction };
                self.context.audit_log.write(&entry);
                answer.audit.insert("rule", interaction.rule.clone());
                answer.audit.insert("decision", decision.to_owned());
                AdmissionOutcome::Exempt
            }
            Admitted::Marked(pod, marked) => {
                let interaction = marked.mark.last();
                answer.audit.insert("rule", interaction.rule.clone());
                answer.audit.insert("decision", "marked".to_owned());
                answer.audit.insert("pod-uid", marked.mark.pod.clone());
                if let Some(at) = marked.mark.evict_at {
                    answer.audit.insert("evict-at", at.to_string());
                }
                if marked.written {
                    self.report(request, pod, marked);
                }
                if marked.written { AdmissionOutcome::Marked } else { AdmissionOutcome::Folded }
            }
        };
        (answer, decision)
    }

    fn report(&self, request: &Request, pod: &Pod, marked: &Marked) {
        let (mark, interaction) = (&marked.mark, marked.mark.last());
        self.context.audit_log.write(&Line {
            decision: "marked",
            namespace: &request.namespace,
            pod: &request.pod,
            pod_uid: Some(&mark.pod),
            evict_at: mark.evict_at,
            total: Some(mark.total),
            message: None,
            interaction,
        });
        let what = interaction.summary();
        let note = match mark.evict_at {
            Some(at) => format!("{what}; due for eviction at {at}"),
            None => format!("{what}; recorded only"),
        };
        let reason = if request.breaks_glass() { "BreakGlass" } else { "PodInteraction" };
        let kind = if request.breaks_glass() { EventType::Warning } else { EventType::Normal };
        self.context.events.pod(pod, kind, reason, "Mark", &note);
        self.context.events.owner(pod, kind, reason, "Mark", &format!("pod {}: {note}", request.pod));
    }

    fn refused(&self, request: &Request, refused: Refused) -> (Answer, AdmissionOutcome) {
        let Request { namespace, pod, user, .. } = request;
        let is_admitted = match &refused {
            Refused::Rule(_) => false,
            // A request that fails validation is denied by the API server itself, after admission.
            Refused::Validation(_) | Refused::Unavailable(_) => request.fails_open(),
        };
        let (denial, decision) = match refused {
            Refused::Rule(denial) | Refused::Validation(denial) => (denial, AdmissionOutcome::Denied),
            Refused::Unavailable(why) => {
                tracing::error!(namespace, pod, user = user.name, error = why, "cannot write the mark");
                let message = format!(
                    "pristine could not record this session on pod {namespace}/{pod}: {why}. \
                     Retry; if it persists, see `kubectl -n pristine-system logs deploy/pristine`"
                );
                (Denial { code: 503, reason: "ServiceUnavailable", message }, AdmissionOutcome::Failed)
            }
        };
        let (word, decision) =
            if is_admitted { ("unrecorded", AdmissionOutcome::Unrecorded) } else { ("denied", decision) };
        if let Some(act) = request.acts.first() {
            let interaction =
                &validate::interaction(request, act, act.container.clone(), self.context.clock.corrected());
            let (pod_uid, evict_at, total, message) = (None, None, None, Some(denial.message.as_str()));
            let entry = Line { decision: word, namespace, pod, pod_uid, evict_at, total, message, interaction };
            self.context.audit_log.write(&entry);
        }
        let audit = [("decision", decision.as_str().to_owned())].into();
        (Answer { denial: Some(denial).filter(|_| !is_admitted), audit }, decision)
    }
}
