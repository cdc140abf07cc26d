//! What happens to a marked pod before its deadline (I/O).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::Reconcile;
use crate::{
    api::{events::EventType, pods},
    eviction::{
        entry::{Entry, Requeue},
        pacing::permit::Turn,
        plan::{Waiting, waiting},
        quarantine,
    },
    mark::{Mark, State, Status, extension::Extension},
};

impl Reconcile<'_> {
    /// Answers, warns, and takes the pod out of service if the configuration says so.
    pub(super) async fn wait(
        &self,
        turn: Option<Turn>,
        pod: &Pod,
        mark: &Mark,
        until: Timestamp,
    ) -> Result<Requeue, pods::Error> {
        // First, so that a user who requests an extension gets an answer even if the quarantine fails.
        match self.answer(pod, until).await? {
            Requeue::Again(at)
                if self.settings.quarantine && self.why_suspended().is_none() && quarantine::is_wanted(pod) =>
            {
                Ok(Requeue::Again(at.min(self.quarantine(turn, pod, mark).await)))
            }
            waiting => Ok(waiting),
        }
    }

    /// Answers a request for an extension, and warns before the deadline.
    async fn answer(&self, pod: &Pod, until: Timestamp) -> Result<Requeue, pods::Error> {
        let Some(waiting) = waiting(pod, &self.settings) else { return Ok(Requeue::Done) };
        let (written, since) = (Status::on(pod), self.context.clock.now());
        let Waiting { status, message } = &waiting;
        let is_written =
            waiting.is_news(written.as_ref()) && self.pods.set_condition(pod, since, status, message).await?;
        let is_extended = status.state == State::Extended;
        if is_written && (is_extended || written.is_some_and(|written| written.state == State::Extended)) {
            let (reason, decision) =
                if is_extended { ("EvictionExtended", "extended") } else { ("ExtensionEnded", "extension-ended") };
            self.tell(decision, until, Extension::on(pod).by.as_deref(), message);
            self.count("extended");
            self.context.events.pod(pod, EventType::Normal, reason, "Extend", message);
        }
        if let Some(problem) = status.cause.as_ref().filter(|_| !self.entry.is_answered) {
            self.context.events.pod(pod, EventType::Warning, "ExtensionIgnored", "Extend", problem);
        }
        let warn = self.settings.warn_before.and_then(|before| until.checked_sub(before).ok());
        match warn {
            Some(at) if self.context.clock.never_ahead() < at => Ok(Requeue::Again(at)),
            // Once: in the reconciliation that was scheduled for the warning, and not in later ones.
            Some(at) if self.entry.next <= at => {
                let note = format!("{message}; this is the warning before the eviction (eviction.warnBefore)");
                let Entry { namespace, name, .. } = self.entry;
                tracing::info!(namespace, pod = name, uid = self.uid, %until, "the pod will be evicted soon");
                self.context.events.pod(pod, EventType::Normal, "EvictionSoon", "Evict", &note);
                Ok(Requeue::Again(until))
            }
            _ => Ok(Requeue::Again(until)),
        }
    }
}
