//! HTTP in front of the handler: path, method, size and time limits. A bad request gets a clear answer and costs
//! little. I/O.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Body as _, body::Bytes, body::Incoming, header};
use serde_json::json;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{
    handler::{Handler, Reply},
    path_guard::PathGuard,
};
use crate::{
    duration, server,
    telemetry::{Metrics, Reason},
};

/// Bytes of the largest review: an update contains the object twice, and the API server accepts objects of 1.5 MiB.
pub const MAX_BODY: usize = 3 * 1024 * 1024;
/// A larger body is read and discarded up to this size, so that the client gets an HTTP answer and not a closed
/// connection.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;
/// Until the whole body has arrived, as a part of the API server's timeout: later, no client would read the answer.
const BODY_PATIENCE: f64 = 0.8;
/// `timeoutSeconds` of the shipped webhook entries. API servers send the value in force in the query.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// KiB of bodies in memory at once. A body of 3 MiB needs about twice its size while it is read, and the memory limit
/// of the container is 128 MiB.
const MEMORY_BUDGET: u32 = 24 * 1024;
/// How long a review waits for the budget, as a part of the API server's timeout: bodies are held only until they are
/// read, and what does not fit by then goes to another replica.
const PATIENCE: f64 = 0.2;

/// The API server shows it to the user, who needs to know which component failed.
const PANIC_TEXT: &str = "internal error in pristine; see `kubectl -n pristine-system logs deploy/pristine`";

/// The webhook as an HTTP service.
pub struct Endpoint {
    handler: Handler,
    guard: PathGuard,
    metrics: Arc<Metrics>,
    budget: Semaphore,
}

/// Why a request is not answered with a review.
struct Problem {
    status: StatusCode,
    reason: &'static str,
    text: String,
}

fn problem(status: StatusCode, reason: &'static str, text: impl Into<String>) -> Problem {
    Problem { status, reason, text: text.into() }
}

/// What another attempt may change: the API server sends the review again, over a new connection to any replica.
fn hand_over(reason: &'static str, text: impl Into<String>) -> Problem {
    problem(StatusCode::SERVICE_UNAVAILABLE, reason, text)
}

impl Problem {
    /// A `v1` Status, because API servers show its message to the user, and no other body
    /// (`k8s.io/client-go/rest/request.go`). They repeat a request that is answered with 503 and `Retry-After`, up to
    /// ten times within their timeout (`with_retry.go`); with zero, because they stop when they would sleep for longer
    /// than is left of it. The pauses are ours.
    fn response(&self) -> Response<Full<Bytes>> {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.text,
            "reason": if self.is_handed_over() { "ServiceUnavailable" } else { "BadRequest" },
            "code": self.status.as_u16(),
        });
        let mut response = json_response(status.to_string().into());
        *response.status_mut() = self.status;
        if self.is_handed_over() {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("0"));
        }
        response
    }

    fn is_handed_over(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }
}

fn json_response(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl server::Service for Endpoint {
    async fn call(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        // A panic must not end the process, and its caller gets an answer.
        let outcome = AssertUnwindSafe(self.review(request)).catch_unwind().await;
        match outcome.unwrap_or_else(|_| Err(hand_over("panic", PANIC_TEXT))) {
            Ok(answer) => json_response(answer),
            Err(problem) => {
                let Problem { status, reason, text } = &problem;
                self.metrics.rejected.get_or_create(&Reason { reason }).inc();
                tracing::warn!(status = status.as_u16(), reason, text, "a request was not answered with a review");
                problem.response()
            }
        }
    }
}

impl Endpoint {
    /// Passes the reviews that `guard` admits to `handler`.
    #[must_use]
    pub fn new(handler: Handler, guard: PathGuard, metrics: Arc<Metrics>) -> Self {
        Self { handler, guard, metrics, budget: Semaphore::new(MEMORY_BUDGET as usize) }
    }

    /// Reserves memory for a body of this size, until the permit is dropped.
    async fn reserve(&self, size: u64, until: Instant) -> Option<SemaphorePermit<'_>> {
        // The length is only what the client claims, but hyper enforces it.
        let kib = u32::try_from(size.min(MAX_BODY as u64).div_ceil(1024)).unwrap_or(MEMORY_BUDGET).max(1);
        tokio::time::timeout_at(until, self.budget.acquire_many(kib)).await.ok()?.ok()
    }

    async fn review(&self, request: Request<Incoming>) -> Result<Bytes, Problem> {
        let arrived = Instant::now();
        // Of the headers only the length is read. Later API servers send an Authorization header to webhooks, which
        // proves nothing here and must not reach a log.
        let (head, body) = request.into_parts();
        let timeout = timeout(head.uri.query());
        // Memory is reserved only for clients that know the path: otherwise eight slow bodies would block every exec.
        let is_known = self.guard.admits(head.uri.path()).await;
        let size = body.size_hint().upper().unwrap_or(u64::MAX);
        let reserved = if is_known { self.reserve(size, arrived + timeout.mul_f64(PATIENCE)).await } else { None };
        // The body is read first, whatever else is wrong: to the client, an answer before its end is a broken
        // connection.
        let limit = if reserved.is_some() { MAX_BODY } else { 0 };
        let body = tokio::time::timeout_at(arrived + timeout.mul_f64(BODY_PATIENCE), read(body, limit)).await;
        if head.method != Method::POST {
            return Err(problem(StatusCode::METHOD_NOT_ALLOWED, "method", "POST an AdmissionReview"));
        }
        if !is_known {
            let text =
                "this replica does not know the path: API servers and replicas learn a new one at different times";
            return Err(hand_over("path", text));
        }
        if reserved.is_none() {
            return Err(hand_over("busy", "this replica has too many reviews at once"));
        }
        let body = body.map_err(|_| hand_over("slow", "the review did not arrive in time"))??;
        let bad = |error: super::review::Error| problem(StatusCode::BAD_REQUEST, "not_a_review", error.to_string());
        let reply = self.handler.receive(&body, arrived, timeout).map_err(bad)?;
        // A review takes its memory only while it is read, or a few large ones would hold up all others until they are
        // marked.
        drop((body, reserved));
        match reply.await {
            Reply::Answer(answer) => Ok(answer),
            Reply::HandOver(why) => Err(hand_over("api_server", why)),
        }
    }
}

/// Reads the body to its end, or up to [`MAX_DISCARDED`], and returns it if it has at most `limit` bytes.
async fn read(mut body: Incoming, limit: usize) -> Result<Vec<u8>, Problem> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut kept = Vec::with_capacity(expected.min(64 * 1024));
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            problem(StatusCode::BAD_REQUEST, "broken_body", format!("cannot read the body: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        total += data.len();
        if total > MAX_DISCARDED {
            break;
        }
        if total <= limit {
            kept.extend_from_slice(&data);
        } else {
            kept = Vec::new();
        }
    }
    if total > MAX_BODY {
        return Err(problem(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {MAX_BODY} bytes"),
        ));
    }
    Ok(kept)
}

/// The timeout in the query, `?timeout=5s` in Go's notation, between 1 s and 30 s.
fn timeout(query: Option<&str>) -> Duration {
    let value = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("timeout="));
    let parsed = value.and_then(|text| duration::parse(text).ok());
    parsed.unwrap_or(DEFAULT_TIMEOUT).clamp(Duration::from_secs(1), Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_servers_timeout_is_read_and_bounded() {
        for (query, seconds) in [
            (None, 5),
            (Some("timeout=3s"), 3),
            (Some("a=b&timeout=10s"), 10),
            (Some("timeout=9h"), 30),
            (Some("timeout=x"), 5),
        ] {
            assert_eq!(timeout(query).as_secs(), seconds, "{query:?}");
        }
    }
}
