//! Liveness, readiness and metrics, over plain HTTP on a port of their own: liveness must never depend on a
//! certificate, and the kubelet and Prometheus need none of ours.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::readiness::Readiness;
use crate::telemetry::Metrics;

/// Connections at the same time. The kubelet and Prometheus have one or two; the rest is for strangers, who must not use
/// up the file descriptors of the webhook.
const CONNECTIONS: usize = 64;
/// How long a connection may stay open when others wait for its place: enough for a client to send the request that it
/// connected for, and so short that a thousand silent connections in front of the kubelet's delay it by 0.2 s.
const GUARANTEED: Duration = Duration::from_millis(10);
/// For the header of the request.
const HEADER: Duration = Duration::from_secs(10);
/// For the request and the answer: a client that does not read its answer keeps no place.
const WHOLE: Duration = Duration::from_secs(20);

/// Answers `/livez`, `/readyz` and `/metrics` until the process ends. `ready` is what `/readyz` answers.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, ready: Readiness) {
    let mut open = Places::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.make_room().await;
        open.add(tokio::spawn(connection(stream, metrics.clone(), ready.clone())).abort_handle());
    }
}

/// One request on each connection: a client that keeps its connection has no use for it until the next probe or scrape.
async fn connection(stream: TcpStream, metrics: Arc<Metrics>, ready: Readiness) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.uri().path(), &metrics, &ready.get());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(8 * 1024).keep_alive(false);
    let _ = timeout(WHOLE, http.serve_connection(TokioIo::new(stream), service)).await;
}

/// The open connections, oldest first.
#[derive(Default)]
struct Places(VecDeque<(Instant, AbortHandle)>);

impl Places {
    fn add(&mut self, connection: AbortHandle) {
        self.0.push_back((Instant::now(), connection));
    }

    /// Closes the oldest connection if all places are taken. It has had the longest time to send its request, so a client
    /// that sends one at once, as the kubelet does, gets its answer even while a stranger takes every place.
    async fn make_room(&mut self) {
        self.0.retain(|(_, connection)| !connection.is_finished());
        if self.0.len() < CONNECTIONS {
            return;
        }
        if let Some((since, oldest)) = self.0.pop_front() {
            sleep_until(since + GUARANTEED).await;
            oldest.abort();
        }
    }
}

fn answer(path: &str, metrics: &Metrics, ready: &Result<(), String>) -> Response<Full<Bytes>> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, text, media_type) = match (path, ready) {
        ("/livez", _) | ("/readyz", Ok(())) => (StatusCode::OK, "ok\n".to_owned(), "text/plain"),
        ("/readyz", Err(missing)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n"), "text/plain"),
        ("/metrics", _) => (StatusCode::OK, metrics.render(), OPEN_METRICS),
        _ => (StatusCode::NOT_FOUND, "not found: try /livez, /readyz or /metrics\n".to_owned(), "text/plain"),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_connection_gives_way_when_all_places_are_taken_and_not_before_its_time() {
        let mut open = Places::default();
        let tasks: Vec<_> = (0..=CONNECTIONS).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        let start = Instant::now();
        for task in &tasks {
            open.make_room().await;
            open.add(task.abort_handle());
        }
        assert_eq!(start.elapsed(), GUARANTEED);
        tokio::task::yield_now().await;
        let closed: Vec<bool> = tasks.iter().map(tokio::task::JoinHandle::is_finished).collect();
        assert_eq!((closed[0], closed.iter().filter(|closed| **closed).count()), (true, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_ended_leaves_its_place() {
        let mut open = Places::default();
        let tasks: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        for task in &tasks {
            open.add(task.abort_handle());
        }
        tasks[7].abort();
        tokio::task::yield_now().await;
        open.make_room().await;
        assert_eq!(open.0.len(), CONNECTIONS - 1);
        assert!(!tasks[0].is_finished());
    }
}
