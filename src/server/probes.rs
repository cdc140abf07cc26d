//! Liveness, readiness and metrics, over plain HTTP on a port of their own: liveness must never depend on a
//! certificate, and the kubelet and Prometheus need none of ours.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::readiness::Readiness;
use crate::telemetry::Metrics;

/// Answers `/livez`, `/readyz` and `/metrics` until the process ends. `ready` is what `/readyz` answers.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, ready: Readiness) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (metrics, ready) = (metrics.clone(), ready.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(request.uri().path(), &metrics, &ready.get());
            async move { Ok::<_, Infallible>(response) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10)).max_buf_size(8 * 1024);
        tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
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
