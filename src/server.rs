//! The webhook port: accepts TLS connections, serves HTTP/1.1, drains.
//!
//! Generic over the service. Two rules come from the caller: the API server keeps idle connections for 90 s and never
//! sends a POST again, so an idle connection is ours to keep open for longer; and when a call fails below HTTP, it
//! shows the URL to the user, so every request gets an HTTP answer after its whole body was read.

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

pub mod probes;
pub mod readiness;

/// What one client may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the TCP accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// For a request's header, which in hyper is also how long a connection may be idle. Above the API server's 90 s,
    /// else its next POST meets a closing connection and fails with EOF.
    pub idle: Duration,
    /// From the end of the handshake to the first request. A connection that never said anything is not the API server's.
    pub first_request: Duration,
    /// Requests on one connection before the client is asked for a new one. API servers hold on to connections, and
    /// without this a replica that was started later would be called by nobody.
    pub requests: usize,
    /// How long requests are still answered after the stop.
    pub drain: Duration,
    /// Connections at once. Each API server keeps at most 25 idle ones; the rest is room for bursts.
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

/// Bytes of a request's header. The API server sends some 300.
const MAX_HEADER: usize = 32 * 1024;
/// After the drain, for requests that arrived at its very end. With it the process is gone before the kubelet's SIGKILL.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Answers one request. Never fails: whatever is wrong is an HTTP answer.
pub trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn call(&self, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// The webhook's TLS configuration: whatever certificate the resolver has at the moment of the handshake. The API
/// server speaks HTTP/1.1 to webhooks and nothing else, so HTTP/2 would only be attack surface.
///
/// # Errors
/// When the provider does not support the protocol versions.
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
/// `Connection: close`, until none is left or the drain is over. `broken` hears of every connection that ended below
/// HTTP: the API server shows users what it called, then.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Arc<S>,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
    broken: Arc<Notify>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let (draining, busy) = (AtomicBool::new(false), AtomicUsize::new(0));
    let acceptor = TlsAcceptor::from(tls);
    let shared = Arc::new(Shared { acceptor, service, limits, metrics, draining, busy, broken });
    let drain = limits.drain;
    let mut end: Option<Instant> = None;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel safe: the semaphore, accept and the sleep lose nothing when another arm wins.
        tokio::select! {
            accepted = accept(&listener, &places) => match accepted {
                Ok((stream, place)) => drop(tokio::spawn(shared.clone().connection(stream, place))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of file descriptors, most likely: without a pause this loop would take the whole core.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = stopped(&mut stop), if end.is_none() => {
                shared.draining.store(true, Ordering::Relaxed);
                end = Some(Instant::now() + drain);
                tracing::info!(connections = limits.connections - places.available_permits(), "draining");
            }
            _ = look.tick(), if end.is_some() => {
                let idle = places.available_permits() == limits.connections;
                // A freshly unready endpoint is still called for a moment, so an early quiet is not the end.
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

/// Also when whoever could say so is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits for a place first: what does not fit waits in the kernel's backlog, and is never closed on.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
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
    async fn connection(self: Arc<Self>, stream: TcpStream, _place: OwnedSemaphorePermit) {
        // Small answers: waiting to fill a packet would add the peer's delayed acknowledgement, 40 ms.
        let _ = stream.set_nodelay(true);
        let count = |result| self.metrics.handshakes.get_or_create(&Outcome { result }).inc();
        let tls = match timeout(self.limits.handshake, self.acceptor.accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                let reason = refusal(&error);
                count(reason);
                if reason == "alert" {
                    self.broken.notify_one();
                }
                tracing::debug!(%error, reason, "no TLS");
                return;
            }
            Err(_) => {
                count("timeout");
                return;
            }
        };
        count("ok");
        self.metrics.connections.inc();
        let (this, asked) = (self.clone(), Arc::new(AtomicUsize::new(0)));
        let count = asked.clone();
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
            if asked.load(Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            served = served.as_mut() => if let Err(error) = served {
                self.broken.notify_one();
                tracing::debug!(%error, "a connection ended below HTTP");
            },
            () = silent => tracing::debug!("a connection said nothing"),
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

/// A client that does not trust the certificate says so in an alert; that is worth a series of its own.
fn refusal(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(_)) => "alert",
        Some(_) => "invalid",
        None => "closed",
    }
}
