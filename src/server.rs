//! The webhook port: accepts TLS connections, answers one request on each, and drains. Generic over the service that
//! answers.
//!
//! Three rules follow from how API servers call webhooks:
//!
//! - They keep idle connections in a pool and go on using the one to a replica that is suspended or cut off. So each
//!   answer closes its connection, and each review chooses a replica again (docs/design.md, "Connections").
//! - They show the URL to the user when a call fails below HTTP, and do not repeat it. So every request gets an HTTP
//!   response, after its whole body was read.
//! - They call at any moment. So a client that only holds a connection open loses it to the next one, if all places are
//!   taken.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::telemetry::{Gauge, Metrics, Outcome};
use places::{Place, Places};

#[cfg(feature = "server")]
pub mod listen;
pub mod places;
pub mod probes;
pub mod readiness;

/// Limits on what one client can cost, and on the drain.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the TCP accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the end of the handshake to the end of the request's header.
    pub request: Duration,
    /// How long requests are still answered after `stop`.
    pub drain: Duration,
    /// Connections at the same time.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            request: Duration::from_secs(10),
            drain: Duration::from_secs(25),
            connections: 1024,
        }
    }
}

/// File descriptors for everything but the webhook's connections: the port of the probes has 64, and the API server's
/// client some ten.
const OTHER_FILES: usize = 128;

impl Limits {
    /// With at most so many connections that this many file descriptors suffice for them and for everything else.
    #[must_use]
    pub fn within(self, files: usize) -> Self {
        Self { connections: self.connections.min(files.saturating_sub(OTHER_FILES).max(16)), ..self }
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
    // A session is never resumed, because API servers keep no tickets for webhooks: sending them costs 4 messages each.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Serves until `stop` becomes true, then drains: new connections are still answered, until none came for half the
/// drain or the drain is over. `broken` is notified of every connection that failed below HTTP, because the API server
/// then shows the URL to the user.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Arc<S>,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
    broken: Arc<Notify>,
) {
    let places = Places::new(limits.connections);
    let acceptor = TlsAcceptor::from(tls);
    let shared = Arc::new(Shared { acceptor, service, limits, metrics, busy: Gauge::default(), broken });
    let drain = limits.drain;
    let mut end: Option<Instant> = None;
    let mut drain_check = tokio::time::interval(Duration::from_millis(100));
    drain_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel safe: accept and the interval lose nothing when another arm completes.
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(shared.clone().connection(stream, places.take().await))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Most likely out of file descriptors. Without a pause this loop would use a whole core.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = stopped(&mut stop), if end.is_none() => {
                end = Some(Instant::now() + drain);
                tracing::info!(connections = places.taken(), "draining");
            }
            _ = drain_check.tick(), if end.is_some() => {
                // API servers still call an endpoint that has just become unready, so an early idle is not the end.
                let early = end.is_some_and(|end| end > Instant::now() + drain / 2);
                if (places.taken() == 0 && !early) || end.is_some_and(|end| end <= Instant::now()) {
                    break;
                }
            }
        }
    }
    drop(listener);
    let _ = timeout(LAST_ANSWERS, until_idle(&shared.busy)).await;
}

/// Returns when `stop` is true, or when its sender is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn until_idle(busy: &Gauge) {
    while busy.get() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One more in a gauge until it is dropped, also if hyper drops the request because its client is gone.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Shared<S> {
    acceptor: TlsAcceptor,
    service: Arc<S>,
    limits: Limits,
    metrics: Arc<Metrics>,
    /// Requests being answered.
    busy: Gauge,
    broken: Arc<Notify>,
}

impl<S: Service> Shared<S> {
    async fn connection(self: Arc<Self>, stream: TcpStream, place: Place) {
        tokio::select! {
            () = place.lost() => {
                let result = "displaced";
                self.metrics.handshakes.get_or_create(&Outcome { result }).inc();
                tracing::debug!("closing a connection without a request, because all places are taken");
            }
            () = self.answer(stream, &place) => {}
        }
    }

    async fn answer(&self, stream: TcpStream, place: &Place) {
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
        let _open = Counted::new(&self.metrics.connections);
        let service = service_fn(async |request| {
            place.keep();
            let _answering = Counted::new(&self.busy);
            Ok::<_, Infallible>(self.service.call(request).await)
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.request)
            .max_buf_size(MAX_HEADER)
            .keep_alive(false)
            .serve_connection(TokioIo::new(tls), service);
        if let Err(error) = served.await {
            // A client that sends no request is not an API server.
            if !error.is_timeout() {
                self.broken.notify_one();
            }
            tracing::debug!(%error, "a connection failed below HTTP");
        }
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
