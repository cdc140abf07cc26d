//! Tells what became of a review: the answer, the audit log, Events and metrics. I/O.

use hyper::body::Bytes;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::time::Instant;

use super::{
    denials::Denials,
    marking::{Refused, Written},
    review::{self, Answer, Denial, Request},
    validate,
};
use crate::{
    api::{Context, events::EventType, pods::Recorded},
    audit_log::Line,
    mark::{
        Interaction, Operation, Status,
        owner::{STATIC, is_static},
    },
    telemetry::{Admission, AdmissionOutcome},
};

/// Reports about one review.
pub(super) struct Report<'a> {
    /// The review.
    pub(super) request: &'a Request,
    /// Where to report.
    pub(super) context: &'a Context,
    /// The denials of the last seconds.
    pub(super) denials: &'a Denials,
}

impl Report<'_> {
    /// Counts the review, and break-glass once it is answered.
    pub(super) fn count(&self, decision: AdmissionOutcome) {
        let operation = self.request.acts.first().map_or("none", |act| act.operation.as_str());
        self.context.metrics.admissions.get_or_create(&Admission { operation, decision }).inc();
        if self.request.breaks_glass() && !self.request.dry_run && decision != AdmissionOutcome::HandedOver {
            self.context.metrics.break_glass.inc();
        }
    }

    /// Admitted: a dry run, or a request that reaches no container.
    pub(super) fn nothing_to_mark(&self) -> Bytes {
        self.count(AdmissionOutcome::Exempt);
        self.render(&Answer::default())
    }

    /// Admitted: rules exempt every interaction.
    pub(super) fn exempt(&self, interactions: &[Interaction]) -> Bytes {
        self.count(AdmissionOutcome::Exempt);
        let mut answer = Answer::default();
        for interaction in interactions {
            self.write(&self.line("exempt", interaction));
            answer.audit.insert("rule", interaction.rule.clone());
        }
        answer.audit.insert("decision", "exempt".to_owned());
        self.render(&answer)
    }

    /// Admitted: the mark is on the pod.
    pub(super) fn marked(&self, written: &Written) -> Bytes {
        let Written { marked, recorded, exempt } = written;
        let mut answer = Answer::default();
        answer.audit.insert("decision", "marked".to_owned());
        answer.audit.insert("pod-uid", marked.mark.pod.clone());
        if let Some(at) = marked.mark.evict_at {
            answer.audit.insert("evict-at", at.to_string());
        }
        answer.warnings.extend(self.warning(&marked.pod));
        for interaction in exempt {
            self.write(&self.line("exempt", interaction));
        }
        if let Some(why) = &marked.replaced {
            let Request { namespace, pod, .. } = self.request;
            tracing::warn!(namespace, pod, why, "replaced annotations that were not a mark of this pod");
            let note = format!("replaced annotations that were not a mark of this pod: {why}");
            self.context.events.pod(&marked.pod, EventType::Warning, "MarkReplaced", "Mark", &note);
        }
        let mut news = 0;
        for one in recorded {
            answer.audit.insert("rule", one.interaction.rule.clone());
            // What another replica wrote for this very review may not be reported yet: its answer may have been lost. Its
            // line and this one then have the same `review`.
            if !one.folded || one.is_own(&marked.mark) {
                news += 1;
                self.tell(written, one);
            }
        }
        self.count(if news > 0 { AdmissionOutcome::Marked } else { AdmissionOutcome::Folded });
        self.render(&answer)
    }

    /// Until when the pod lives, and what to do about that. Without the time that is left: an API server asks again after
    /// each write of the pod, and prints equal warnings once.
    fn warning(&self, pod: &Pod) -> Option<String> {
        let debugs = self.request.acts.iter().any(|act| act.operation == Operation::Debug);
        let at = Status::on(pod).and_then(|status| status.evict_at).filter(|_| debugs && !is_static(pod))?;
        let Request { namespace, pod, .. } = self.request;
        Some(format!(
            "pod {pod} is due for eviction at {at:.0}; to keep it longer: kubectl pristine extend \
             -n {namespace} {pod} --for 30m"
        ))
    }

    fn tell(&self, written: &Written, one: &Recorded) {
        let mark = &written.marked.mark;
        let Recorded { interaction, total, .. } = one;
        let (pod_uid, evict_at, total) = (Some(mark.pod.as_str()), mark.evict_at, Some(*total));
        self.write(&Line { pod_uid, evict_at, total, ..self.line("marked", interaction) });
        let what = interaction.summary();
        let pod = &written.marked.pod;
        let note = match mark.evict_at {
            Some(_) if is_static(pod) => format!("{what}; not evicted: {STATIC}"),
            Some(at) => format!("{what}; due for eviction at {at}"),
            None => format!("{what}; recorded only"),
        };
        let (kind, reason) = if self.request.breaks_glass() {
            (EventType::Warning, "BreakGlass")
        } else {
            (EventType::Normal, "PodInteraction")
        };
        self.context.events.pod(pod, kind, reason, "Mark", &note);
        self.context.events.owner(pod, kind, reason, "Mark", &format!("pod {}: {note}", self.request.pod));
    }

    /// Denied, or admitted without a record if the review must not be denied for lack of one.
    pub(super) fn refused(&self, refused: Refused) -> Bytes {
        let Request { namespace, pod, user, .. } = self.request;
        let (denial, decision) = match refused {
            Refused::Rule { denial, interaction, pod } => return self.denied(denial, &interaction, &pod),
            Refused::Validation(denial) => (denial, AdmissionOutcome::Denied),
            Refused::Never(why) | Refused::Now(why) => {
                tracing::error!(namespace, pod, user = user.name, error = why, "cannot write the mark");
                let denial = Denial { code: 503, reason: "ServiceUnavailable", message: self.unavailable(&why) };
                (denial, AdmissionOutcome::Failed)
            }
        };
        // A request that fails validation is denied by the API server itself, after admission.
        if self.request.fails_open() {
            return self.unrecorded(&denial.message);
        }
        self.count(decision);
        self.write_about("denied", &denial.message);
        let audit = [("decision", decision.as_str().to_owned())].into();
        self.render(&Answer { denial: Some(denial), audit, ..Answer::default() })
    }

    /// Denied by a rule: an Event on the pod, because many clients show only `Handshake status 403`. The second attempt of
    /// a client that falls back from WebSocket to SPDY is denied too, and is no further denial.
    fn denied(&self, denial: Denial, interaction: &Interaction, pod: &ObjectReference) -> Bytes {
        let audit = [("decision", AdmissionOutcome::Denied.as_str().to_owned()), ("rule", interaction.rule.clone())];
        let is_dry = self.request.dry_run;
        if !is_dry && self.denials.is_repeated(self.request, Instant::now()) {
            self.count(AdmissionOutcome::Folded);
        } else {
            self.count(AdmissionOutcome::Denied);
            self.write(&Line { message: Some(&denial.message), ..self.line("denied", interaction) });
            if !is_dry {
                let note = format!("denied: {}; {}", interaction.summary(), denial.message);
                self.context.events.publish(pod.clone(), EventType::Warning, "InteractionDenied", "Deny", &note);
            }
        }
        self.render(&Answer { denial: Some(denial), audit: audit.into(), ..Answer::default() })
    }

    /// Admitted without a record, because the review must not be denied for lack of one.
    pub(super) fn unrecorded(&self, why: &str) -> Bytes {
        let decision = AdmissionOutcome::Unrecorded;
        self.count(decision);
        self.write_about("unrecorded", why);
        let audit = [("decision", decision.as_str().to_owned())].into();
        self.render(&Answer { denial: None, audit, ..Answer::default() })
    }

    /// A review that must not be denied is handed over to another replica. If none answers, the API server admits it and its
    /// audit log says nothing, so the line is written before.
    pub(super) fn handed_over(&self, why: &str) {
        self.write_about("handed-over", why);
    }

    /// What the user reads if no attempt succeeds.
    pub(super) fn unavailable(&self, why: &str) -> String {
        let Request { namespace, pod, .. } = self.request;
        format!(
            "pristine could not record this session on pod {namespace}/{pod}: {why}. \
             Retry; if it persists, see `kubectl -n pristine-system logs deploy/pristine`"
        )
    }

    fn write_about(&self, decision: &'static str, message: &str) {
        let Some(act) = self.request.acts.first() else { return };
        let now = self.context.clock.corrected();
        let interaction = validate::interaction(self.request, act, act.container.clone(), now);
        self.write(&Line { message: Some(message), ..self.line(decision, &interaction) });
    }

    fn line<'b>(&'b self, decision: &'static str, interaction: &'b Interaction) -> Line<'b> {
        let Request { namespace, pod, .. } = self.request;
        let (pod_uid, evict_at, total, message) = (None, None, None, None);
        Line { decision, namespace, pod, pod_uid, evict_at, total, message, interaction }
    }

    /// Writes a line, and counts the decision of its rule. The name is empty if no rule decided.
    fn write(&self, line: &Line<'_>) {
        self.context.audit_log.write(line);
        self.context.metrics.rules.decided(&line.interaction.rule, line.interaction.at);
    }

    fn render(&self, answer: &Answer) -> Bytes {
        review::render(&self.request.uid, answer).into()
    }
}
