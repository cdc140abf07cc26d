//! Decides about a review and answers it, or hands it over. I/O.
//!
//! A review is handled in a task of its own, which continues after its request ends: what was begun is marked and
//! reported, even if the client is gone by then. A request waits for that task only for a part of the API server's
//! timeout. If the task is not done by then, the answer is `503` with `Retry-After: 0`, and the API server sends the
//! review again, over a new connection to any replica ([`Reply::HandOver`]). The schedule is in docs/design.md, "What
//! happens to an exec that one replica cannot handle?".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture, future::Shared};
use hyper::body::Bytes;
use tokio::time::{Instant, sleep_until};

use super::{
    denials::Denials,
    marking::{Admitted, Marking, Refused},
    report::Report,
    review::{self, Request},
};
use crate::{api::Context, telemetry::AdmissionOutcome};

/// Subtracted from the API server's timeout: a mark that is written later belongs to an exec that was refused.
const RESERVE: Duration = Duration::from_millis(500);
/// A request waits for this part of the API server's timeout, 2 s of 5 s, while the API server answers this replica.
const PATIENCE: f64 = 0.4;
/// The same while it does not: 0.3 s of 5 s. Another replica may be healthy, and the API server sends a review eleven
/// times at most, so eleven of these fit into its timeout.
const PATIENCE_CUT_OFF: f64 = 0.06;
/// A review that must not be denied is handed over so many times, and then answered without a record: the API server
/// itself admits it after eleven, and then its audit log says nothing.
const MAX_HAND_OVERS: u32 = 4;

/// Answers admission reviews.
pub struct Handler {
    /// Decides and marks.
    pub marking: Arc<Marking>,
    /// The clock, Events, audit log and metrics.
    pub context: Context,
    reviews: Reviews,
    denials: Arc<Denials>,
}

/// What an API server gets.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The `AdmissionReview` with the answer.
    Answer(Bytes),
    /// Another attempt may succeed, here or at another replica; and why this one did not.
    HandOver(String),
}

type Outcome = Shared<BoxFuture<'static, Reply>>;

/// The reviews of the last seconds, by UID: a review that is sent again waits for the task that handles it already.
#[derive(Default)]
struct Reviews(Mutex<HashMap<String, Seen>>);

struct Seen {
    request: Arc<Request>,
    /// When the API server gives up soon: the last moment for an answer that its user reads.
    until: Instant,
    hand_overs: u32,
    outcome: Outcome,
}

impl Handler {
    /// Marks with `marking`, and reports to `context`.
    #[must_use]
    pub fn new(marking: Arc<Marking>, context: Context) -> Self {
        Self { marking, context, reviews: Reviews::default(), denials: Arc::default() }
    }

    /// Begins to handle the review in this body, which arrived at `arrived` with the API server's timeout. Returns the
    /// reply to wait for; the body is no longer needed.
    ///
    /// # Errors
    /// When the body is not a review.
    pub fn receive(
        &self,
        body: &[u8],
        arrived: Instant,
        timeout: Duration,
    ) -> Result<impl Future<Output = Reply> + '_, review::Error> {
        let request = Arc::new(review::parse(body)?);
        let until = arrived + timeout.saturating_sub(RESERVE.min(timeout / 5));
        let (outcome, until) = self.reviews.see(&request, until, |until| self.begin(request.clone(), until));
        Ok(self.wait(request, outcome, arrived, timeout, until))
    }

    async fn wait(
        &self,
        request: Arc<Request>,
        outcome: Outcome,
        arrived: Instant,
        timeout: Duration,
        until: Instant,
    ) -> Reply {
        let [end, cut_off] = [PATIENCE, PATIENCE_CUT_OFF].map(|part| until.min(arrived + timeout.mul_f64(part)));
        let is_cut_off = async {
            self.context.link.breaks().await;
            sleep_until(cut_off).await;
        };
        let why = tokio::select! {
            biased;
            reply = outcome => match reply {
                Reply::Answer(_) => return reply,
                Reply::HandOver(why) => {
                    // Paced here, because API servers send the next attempt at once.
                    sleep_until(cut_off).await;
                    why
                }
            },
            () = is_cut_off => "this replica cannot reach the API server".to_owned(),
            () = sleep_until(end) => "the mark is not written yet".to_owned(),
        };
        let report = Report { request: &request, context: &self.context, denials: &self.denials };
        if Instant::now() >= until {
            return Reply::Answer(report.refused(Refused::Now(why)));
        }
        let hand_overs = self.reviews.count_hand_over(&request.uid);
        if request.fails_open() {
            if hand_overs >= MAX_HAND_OVERS {
                return Reply::Answer(report.unrecorded(&why));
            }
            if hand_overs == 1 {
                report.handed_over(&why);
            }
        }
        Reply::HandOver(report.unavailable(&why))
    }

    /// Handles a review in a task, until `until`.
    fn begin(&self, request: Arc<Request>, until: Instant) -> Outcome {
        let (marking, context, denials) = (self.marking.clone(), self.context.clone(), self.denials.clone());
        let start = Instant::now();
        let task = tokio::spawn(async move {
            let report = Report { request: &request, context: &context, denials: &denials };
            let admitted = Box::pin(marking.admit(&request, until)).await;
            context.metrics.admission_seconds.observe(start.elapsed().as_secs_f64());
            match admitted {
                Err(Refused::Now(why)) => {
                    tracing::warn!(
                        namespace = request.namespace,
                        pod = request.pod,
                        user = request.user.name,
                        error = why,
                        "the mark was not written in time, the API server asks again"
                    );
                    report.count(AdmissionOutcome::HandedOver);
                    Reply::HandOver(why)
                }
                done => Reply::Answer(match done {
                    Ok(Admitted::NothingToMark) => report.nothing_to_mark(),
                    Ok(Admitted::Exempt(interactions)) => report.exempt(&interactions),
                    Ok(Admitted::Marked(marked)) => report.marked(&marked),
                    Err(refused) => report.refused(refused),
                }),
            }
        });
        let panicked = "Pristine had an internal error; its log has the details";
        async move { task.await.unwrap_or_else(|_| Reply::HandOver(panicked.to_owned())) }.boxed().shared()
    }
}

impl Reviews {
    /// The outcome of the task that handles this review. Begins a task if there is none, or if the last one ended without
    /// an answer. Returns also until when there is time for it, which is counted from the first attempt.
    fn see(
        &self,
        request: &Arc<Request>,
        until: Instant,
        begin: impl FnOnce(Instant) -> Outcome,
    ) -> (Outcome, Instant) {
        let mut all = self.lock();
        // By then the API server has given up.
        all.retain(|_, seen| Instant::now() < seen.until + RESERVE);
        // Another request with a known UID gets no answer that was meant for that one.
        if let Some(seen) = all.get_mut(&request.uid).filter(|seen| seen.request == *request) {
            if matches!(seen.outcome.peek(), Some(Reply::HandOver(_))) && Instant::now() < seen.until {
                seen.outcome = begin(seen.until);
            }
            return (seen.outcome.clone(), seen.until);
        }
        let outcome = begin(until);
        let seen = Seen { request: request.clone(), until, hand_overs: 0, outcome: outcome.clone() };
        all.insert(request.uid.clone(), seen);
        (outcome, until)
    }

    /// Counts one more hand-over of the review, and returns their number.
    fn count_hand_over(&self, uid: &str) -> u32 {
        let mut all = self.lock();
        let Some(seen) = all.get_mut(uid) else { return 1 };
        seen.hand_overs += 1;
        seen.hand_overs
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
