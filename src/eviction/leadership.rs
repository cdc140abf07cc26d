//! One replica evicts at a time: leader election over a Lease, with the semantics of client-go.
//!
//! The holder renews the Lease every 2 s and stops evicting 10 s after its last renewal. Another replica acquires the
//! Lease when it has not changed for 15 s by that replica's own monotonic clock, so no two clocks are ever compared. A
//! change of leader loses no eviction, because the deadlines are on the pods. An eviction that two replicas send evicts
//! one UID once.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    core::Status,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::suspension::Suspended;
use crate::{api::Context, clock::TOLERATED_SKEW, error::chain};

// The names of client-go, with the defaults of its core clients.
const LEASE_DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What a replica does with the Lease that it read.
#[derive(Debug, Eq, PartialEq)]
enum Action {
    /// This replica holds the Lease: renew it.
    Renew,
    /// The Lease is new, released or expired: acquire it.
    Acquire,
    /// Another replica holds the Lease.
    Wait,
}

/// Decides; `unchanged` is how long this replica has seen no change of the Lease.
fn decide(spec: &LeaseSpec, me: &str, unchanged: Duration) -> Action {
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == me => Action::Renew,
        None | Some("") => Action::Acquire,
        Some(_) if unchanged >= LEASE_DURATION => Action::Acquire,
        Some(_) => Action::Wait,
    }
}

/// The Lease after `me` acquired or renewed it.
fn held(old: &LeaseSpec, me: &str, now: Timestamp) -> LeaseSpec {
    let mine = old.holder_identity.as_deref() == Some(me);
    let transitions = old.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: if mine { old.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if mine { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

/// Whether this replica may evict, and until when by the monotonic clock. Cheap to clone.
#[derive(Clone)]
pub struct Leadership(Arc<watch::Sender<Option<Instant>>>);

impl Default for Leadership {
    fn default() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }
}

impl Leadership {
    /// Whether this replica may evict now. That can end at any moment, because the process can be suspended.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn hold(&self, until: Instant) {
        if self.0.send_replace(Some(until)).is_none() {
            tracing::info!("this replica holds the Lease and evicts");
        }
    }

    fn release(&self) {
        if self.0.send_replace(None).is_some() {
            tracing::info!("this replica no longer holds the Lease");
        }
    }
}

/// Takes part in the leader election.
pub struct LeaderElector {
    /// Reads and writes the Lease.
    pub client: Client,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// The name of this replica's pod. A container that restarts in the pod still holds the Lease of the one before.
    pub identity: String,
    /// The clock, and the places to report to.
    pub context: Context,
    /// The switch that stops evictions: read before this replica begins to lead, and at each renewal.
    pub suspended: Suspended,
}

impl LeaderElector {
    /// Runs until `stop`, then releases the Lease.
    pub async fn run(self, leadership: Leadership, mut stop: watch::Receiver<bool>) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut seen: Option<(String, Instant)> = None;
        loop {
            let started = Instant::now();
            let round = async {
                let suspension = self.suspended.refresh(&self.client, &self.namespace);
                tokio::join!(self.try_acquire_or_renew(&api, &mut seen), suspension).0
            };
            match timeout(RETRY_PERIOD * 2, round).await {
                Ok(Ok(true)) => leadership.hold(started + RENEW_DEADLINE),
                Ok(Ok(false)) => leadership.release(),
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "cannot read or write the Lease, retrying"),
                Err(_) => {
                    self.context.link.failed();
                    tracing::warn!("no answer from the API server about the Lease, retrying");
                }
            }
            if !leadership.is_held() {
                leadership.release();
            }
            tokio::select! {
                () = sleep(RETRY_PERIOD) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if leadership.is_held() {
            leadership.release();
            let _ = timeout(RETRY_PERIOD, self.release(&api)).await;
        }
    }

    async fn try_acquire_or_renew(
        &self,
        api: &Api<Lease>,
        seen: &mut Option<(String, Instant)>,
    ) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.read().await? else {
            let spec = held(&LeaseSpec::default(), &self.identity, self.context.clock.now());
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            return is_written(api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        let spec = lease.spec.unwrap_or_default();
        match decide(&spec, &self.identity, since.elapsed()) {
            Action::Wait => Ok(false),
            Action::Renew | Action::Acquire => {
                lease.spec = Some(held(&spec, &self.identity, self.context.clock.now()));
                is_written(api.replace(&self.name, &PostParams::default(), &lease).await)
            }
        }
    }

    /// Reads the Lease, and compares this replica's clock with the API server's: every replica sends this request every
    /// two seconds anyway.
    async fn read(&self) -> Result<Option<Lease>, kube::Error> {
        let Self { namespace, name, .. } = self;
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let asked = Instant::now();
        let response = self.client.send(request.map(kube::client::Body::from)).await?;
        let date = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        // HTTP's date is that of RFC 2822, except for the name of the time zone.
        let its = date.and_then(|text| jiff::fmt::rfc2822::parse(&text.replace("GMT", "+0000")).ok());
        if let Some(its) = its {
            let (ahead, is_news) = self.context.clock.compare(its.timestamp(), asked);
            self.context.metrics.clock_ahead.set(ahead.as_secs_f64());
            if is_news {
                let seconds = ahead.as_secs_f64();
                if ahead.abs() > TOLERATED_SKEW {
                    tracing::warn!(
                        seconds,
                        "this clock is ahead of the API server's (behind, if negative): no pod is evicted early, \
                         and marks get the API server's time, but beyond an hour this replica leaves the rotation of \
                         the CA to others; check the time synchronisation of this node"
                    );
                } else {
                    tracing::info!(seconds, "this clock is in sync with the API server's again");
                }
            }
        }
        let is_found = response.status() != http::StatusCode::NOT_FOUND;
        if is_found && !response.status().is_success() {
            let status = Status::failure(&format!("get leases: {}", response.status()), "Unexpected");
            return Err(kube::Error::Api(status.with_code(response.status().as_u16()).boxed()));
        }
        let bytes =
            response.into_body().collect().await.map_err(|error| kube::Error::Service(Box::new(error)))?.to_bytes();
        if !is_found {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(kube::Error::SerdeError)
    }

    async fn release(&self, api: &Api<Lease>) -> Result<(), kube::Error> {
        let mut lease = api.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
            spec.holder_identity = Some(String::new());
            api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Whether this replica's write succeeded. A conflict is not an error, because another replica was faster.
fn is_written(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.into()), lease_transitions: Some(3), ..LeaseSpec::default() }
    }

    #[test]
    fn a_lease_is_acquired_if_it_is_free_or_unchanged_for_its_duration() {
        assert_eq!(decide(&LeaseSpec::default(), "me", Duration::ZERO), Action::Acquire);
        assert_eq!(decide(&spec(""), "me", Duration::ZERO), Action::Acquire);
        assert_eq!(decide(&spec("me"), "me", Duration::ZERO), Action::Renew);
        assert_eq!(decide(&spec("other"), "me", Duration::from_millis(14_999)), Action::Wait);
        assert_eq!(decide(&spec("other"), "me", LEASE_DURATION), Action::Acquire);
    }

    #[test]
    fn the_holder_stops_evicting_before_another_replica_can_acquire_the_lease() {
        assert!(RENEW_DEADLINE + RETRY_PERIOD < LEASE_DURATION);
    }

    #[test]
    fn only_a_change_of_holder_counts_as_a_transition() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(held(&spec("me"), "me", now).lease_transitions, Some(3));
        assert_eq!(held(&spec("other"), "me", now).lease_transitions, Some(4));
    }
}
