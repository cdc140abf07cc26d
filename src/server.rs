//! The webhook port: accepts TLS connections, serves HTTP/1.1, and drains. Generic over the service that answers.
//!
//! Two rules follow from how the API server calls webhooks:
//!
//! - It keeps idle connections for 90 s and never retries a POST. So this server keeps them open for longer.
//! - It shows the URL to the user when a call fails below HTTP. So every request gets an HTTP response, after its whole
//!   body was read.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::telemetry::{Metrics, Outcome};

pub mod listen;
pub mod probes;
pub mod readiness;

/// Limits on what one client can cost, and on the drain.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the TCP accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// For a request's header; in hyper also how long a connection can be idle. More than the API server's 90 s:
    /// otherwise its next POST meets a connection that is being closed, and fails with EOF.
    pub idle: Duration,
    /// From the end of the handshake to the first request. A connection without a request is not the API server's.
    pub first_request: Duration,
    /// Requests on one connection before the client is asked to open a new one. API servers reuse connections: without
    /// this limit no API server would call a replica that was started later.
    pub requests: usize,
    /// How long requests are still answered after `stop`.
    pub drain: Duration,
    /// Connections at the same time. Each API server keeps at most 25 idle ones; the rest is for bursts.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            first_request: Duration::from_secs(10),
            requests: 1000,
            drain: Duration::from_secs(25),
            connections: 1024,
        }
    }
}

/// Bytes of a request's header. The API server's has some 300.
const MAX_HEADER: usize = 32 * 1024;
/// After the drain, for requests that arrived at its end. Even with it, the process exits before the kubelet's SIGKILL.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What the server serves. It never fails: every error is an HTTP response.
pub trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// The webhook's TLS configuration. Each handshake uses the certificate that the resolver has at that moment. The API
/// server speaks only HTTP/1.1 to webhooks, so HTTP/2 would only be attack surface.
///
/// # Errors
/// If the provider does not support the protocol versions.
pub fn tls_config(resolver: Arc<dyn rustls::server::ResolvesServerCert>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `stop` becomes true, then drains: new connections and requests are still answered, each with
/// `Connection: close`, until none is left or the drain is over. `broken` is notified of every connection that failed
/// below HTTP, because the API server then shows the URL to the user.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Arc<S>,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
    broken: Arc<Notify>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let (draining, busy) = (AtomicBool::new(false), AtomicUsize::new(0));
    let acceptor = TlsAcceptor::from(tls);
    let shared = Arc::new(Shared { acceptor, service, limits, metrics, draining, busy, broken });
    let drain = limits.drain;
    let mut end: Option<Instant> = None;
    let mut drain_check = tokio::time::interval(Duration::from_millis(100));
    drain_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel safe: the semaphore, accept and the interval lose nothing when another arm completes.
        tokio::select! {
            accepted = accept(&listener, &permits) => match accepted {
                Ok((stream, permit)) => drop(tokio::spawn(shared.clone().connection(stream, permit))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Most likely out of file descriptors. Without a pause this loop would use a whole core.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = stopped(&mut stop), if end.is_none() => {
                shared.draining.store(true, Ordering::Relaxed);
                end = Some(Instant::now() + drain);
                tracing::info!(connections = limits.connections - permits.available_permits(), "draining");
            }
            _ = drain_check.tick(), if end.is_some() => {
                let idle = permits.available_permits() == limits.connections;
                // API servers still call an endpoint that has just become unready, so an early idle is not the end.
                let early = end.is_some_and(|end| end > Instant::now() + drain / 2);
                if (idle && !early) || end.is_some_and(|end| end <= Instant::now()) {
                    break;
                }
            }
        }
    }
    drop(listener);
    let _ = timeout(LAST_ANSWERS, until_idle(&shared.busy)).await;
}

async fn until_idle(busy: &AtomicUsize) {
    while busy.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns when `stop` is true, or when its sender is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits for a permit first: connections above the limit wait in the kernel's backlog and are not closed.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

struct Shared<S> {
    acceptor: TlsAcceptor,
    service: Arc<S>,
    limits: Limits,
    metrics: Arc<Metrics>,
    draining: AtomicBool,
    /// Requests being answered.
    busy: AtomicUsize,
    broken: Arc<Notify>,
}

impl<S: Service> Shared<S> {
    async fn connection(self: Arc<Self>, stream: TcpStream, _permit: OwnedSemaphorePermit) {
        // Responses are small: waiting to fill a packet would add the client's delayed acknowledgement, 40 ms.
        let _ = stream.set_nodelay(true);
        let count = |result| self.metrics.handshakes.get_or_create(&Outcome { result }).inc();
        let tls = match timeout(self.limits.handshake, self.acceptor.accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                let reason = handshake_failure(&error);
                count(reason);
                if reason == "alert" {
                    self.broken.notify_one();
                }
                tracing::debug!(%error, reason, "the TLS handshake failed");
                return;
            }
            Err(_) => {
                count("timeout");
                return;
            }
        };
        count("ok");
        self.metrics.connections.inc();
        let (this, requests) = (self.clone(), Arc::new(AtomicUsize::new(0)));
        let count = requests.clone();
        let service = service_fn(move |request| {
            let last = count.fetch_add(1, Ordering::Relaxed) + 1 >= this.limits.requests;
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.respond(request, last).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.idle)
            .max_buf_size(MAX_HEADER)
            .serve_connection(TokioIo::new(tls), service);
        let mut served = std::pin::pin!(served);
        let silent = async {
            tokio::time::sleep(self.limits.first_request).await;
            if requests.load(Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            served = served.as_mut() => if let Err(error) = served {
                self.broken.notify_one();
                tracing::debug!(%error, "a connection failed below HTTP");
            },
            () = silent => tracing::debug!("closing a connection without a request"),
        }
        self.metrics.connections.dec();
    }

    async fn respond(&self, request: Request<Incoming>, last: bool) -> Response<Full<Bytes>> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        let mut response = self.service.call(request).await;
        self.busy.fetch_sub(1, Ordering::Relaxed);
        if last || self.draining.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        }
        response
    }
}

/// The result of a failed handshake, for the metric. A client that does not trust the certificate sends an alert, which
/// is counted on its own.
fn handshake_failure(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(_)) => "alert",
        Some(_) => "invalid",
        None => "closed",
    }
}
