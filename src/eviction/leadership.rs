//! One replica evicts at a time: leader election over a Lease, with the semantics of client-go.
//!
//! The holder renews every 2 s and stops acting 10 s after its last renewal; the others take the lease over when it has
//! not changed for 15 s by their own monotonic clock, so no two clocks are ever compared for it. Losing the lease loses
//! nothing: what is due is on the pods, and an eviction done twice hits one UID once.

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

use crate::{api::Context, clock::TOLERATED, error::chain};

const LEASE: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// What a replica may do about the lease it sees.
#[derive(Debug, Eq, PartialEq)]
enum Turn {
    /// It is ours: renew it.
    Renew,
    /// It is free, released or expired: take it.
    Take,
    /// Somebody else has it.
    Wait,
}

/// `unchanged` is how long this replica has seen the lease as it is.
fn turn(spec: &LeaseSpec, me: &str, unchanged: Duration) -> Turn {
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == me => Turn::Renew,
        None | Some("") => Turn::Take,
        Some(_) if unchanged >= LEASE => Turn::Take,
        Some(_) => Turn::Wait,
    }
}

/// The lease after `me` took or renewed it.
fn held(old: &LeaseSpec, me: &str, now: Timestamp) -> LeaseSpec {
    let mine = old.holder_identity.as_deref() == Some(me);
    let transitions = old.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: if mine { old.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if mine { transitions } else { transitions.saturating_add(1) }),
        ..LeaseSpec::default()
    }
}

/// Until when this replica may evict, by the monotonic clock. Cheap to clone.
#[derive(Clone)]
pub struct Leadership(Arc<watch::Sender<Option<Instant>>>);

impl Default for Leadership {
    fn default() -> Self {
        Self(Arc::new(watch::channel(None).0))
    }
}

impl Leadership {
    /// Whether this replica may evict now. That can end at any moment: the process may be suspended.
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

/// Takes part in the election.
pub struct LeaderElector {
    /// For leases.
    pub client: Client,
    /// Namespace of the lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This replica. A pod's name: its container, started anew, goes on where the last one was killed.
    pub identity: String,
    /// The clock, and where what is done is reported.
    pub context: Context,
}

impl LeaderElector {
    /// Runs until `stop`, then releases the Lease.
    pub async fn run(self, leadership: Leadership, mut stop: watch::Receiver<bool>) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut seen: Option<(String, Instant)> = None;
        loop {
            let asked = Instant::now();
            match timeout(RETRY * 2, self.try_acquire_or_renew(&api, &mut seen)).await {
                Ok(Ok(true)) => leadership.hold(asked + RENEW_DEADLINE),
                Ok(Ok(false)) => leadership.release(),
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "cannot read or write the Lease, retrying"),
                Err(_) => tracing::warn!("no answer from the API server about the Lease, retrying"),
            }
            if !leadership.is_held() {
                leadership.release();
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if leadership.is_held() {
            leadership.release();
            let _ = timeout(RETRY, self.release(&api)).await;
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
            return won(api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        let spec = lease.spec.unwrap_or_default();
        match turn(&spec, &self.identity, since.elapsed()) {
            Turn::Wait => Ok(false),
            Turn::Renew | Turn::Take => {
                lease.spec = Some(held(&spec, &self.identity, self.context.clock.now()));
                won(api.replace(&self.name, &PostParams::default(), &lease).await)
            }
        }
    }

    /// The lease; and since this is asked every two seconds by every replica, the time that the API server has.
    async fn read(&self) -> Result<Option<Lease>, kube::Error> {
        let Self { namespace, name, .. } = self;
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let response = self.client.send(request.map(kube::client::Body::from)).await?;
        let ours = self.context.clock.now();
        let date = response.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        // HTTP's date is RFC 2822's but for the name of its zone.
        let its = date.and_then(|text| jiff::fmt::rfc2822::parse(&text.replace("GMT", "+0000")).ok());
        if let Some(its) = its {
            let (ahead, is_news) = self.context.clock.compare(its.timestamp(), ours);
            self.context.metrics.clock_ahead.set(ahead.as_secs_f64());
            if is_news {
                let seconds = ahead.as_secs_f64();
                if ahead.abs() > TOLERATED {
                    tracing::warn!(
                        seconds,
                        "this clock is ahead of the API server's (behind, if negative); nothing is evicted early, but deadlines of interactions admitted here are off by as much"
                    );
                } else {
                    tracing::info!(seconds, "this clock agrees with the API server's again");
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

/// 409 is not an error: another replica was faster.
fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
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
    fn a_lease_is_taken_when_free_or_unchanged_for_its_duration() {
        assert_eq!(turn(&LeaseSpec::default(), "me", Duration::ZERO), Turn::Take);
        assert_eq!(turn(&spec(""), "me", Duration::ZERO), Turn::Take);
        assert_eq!(turn(&spec("me"), "me", Duration::ZERO), Turn::Renew);
        assert_eq!(turn(&spec("other"), "me", Duration::from_millis(14_999)), Turn::Wait);
        assert_eq!(turn(&spec("other"), "me", LEASE), Turn::Take);
    }

    #[test]
    fn the_holder_stops_before_another_may_start() {
        assert!(RENEW_DEADLINE + RETRY < LEASE);
    }

    #[test]
    fn only_a_change_of_holder_counts_as_a_transition() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(held(&spec("me"), "me", now).lease_transitions, Some(3));
        assert_eq!(held(&spec("other"), "me", now).lease_transitions, Some(4));
    }
}
