//! `kubectl pristine certs`: the CAs in caBundle, and the certificate that each replica serves. It reads public
//! certificates only, and never the Secret with the CA's key.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Pod};
use kube::Api;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    connection::Connection,
    format::{duration, table},
    output::{Failure, emit},
};
use crate::{
    certs::{
        Certificate, bundle,
        replica_status::{REPLICA, ReplicaStatus},
    },
    clock::Clock,
    mark::is_ready,
};

/// The `ValidatingWebhookConfiguration`, and the Service that its entries call.
pub const NAME: &str = "pristine";

/// A replica, as read from its pod.
pub struct Replica {
    /// The name of the pod.
    pub name: String,
    /// The node of the pod; none until it is scheduled.
    pub node: Option<String>,
    /// Whether the pod is Ready.
    pub is_ready: bool,
    /// Its version; none until the replica has published its status.
    pub version: Option<String>,
    /// The rules that have not decided on it, with the time since which they are in force; none if it does not say so.
    pub undecided: Option<BTreeMap<String, Timestamp>>,
    chain: Vec<CertificateDer<'static>>,
}

/// The public state of all certificates.
pub struct Trust {
    /// Name and caBundle of each webhook entry that calls Pristine.
    pub entries: Vec<(String, Vec<u8>)>,
    /// The replicas.
    pub replicas: Vec<Replica>,
    /// Whether `kubectl debug` is denied when the webhook fails.
    pub is_closed: bool,
    dns: String,
}

impl Trust {
    /// Reads the state from the API server.
    ///
    /// # Errors
    /// The answer of the API server.
    pub async fn read(connection: &Connection) -> Result<Self, Failure> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(connection.client.clone());
        let found = connection.call("get validatingwebhookconfigurations", api.get(NAME)).await?;
        let debug = found.webhooks.iter().flatten().find(|entry| entry.name == "debug.pods.pristine");
        let is_closed = debug.is_some_and(|entry| entry.failure_policy.as_deref() == Some("Fail"));
        let entries = found.webhooks.into_iter().flatten().filter(|entry| {
            entry.client_config.service.as_ref().is_some_and(|service| service.namespace == connection.pristine)
        });
        let entries = entries.map(|entry| (entry.name, entry.client_config.ca_bundle.unwrap_or_default().0)).collect();
        let pods = connection.replicas().await?;
        let mut replicas: Vec<Replica> = pods.into_iter().filter_map(replica).collect();
        replicas.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { entries, replicas, is_closed, dns: format!("{NAME}.{}.svc", connection.pristine) })
    }

    /// Whether caBundle is set and identical in all entries.
    #[must_use]
    pub fn is_one_bundle(&self) -> bool {
        self.entries
            .first()
            .is_some_and(|(_, first)| !first.is_empty() && self.entries.iter().all(|(_, it)| it == first))
    }

    /// All CAs of all caBundles, without duplicates.
    fn cas(&self) -> Vec<Certificate> {
        let mut all: Vec<Certificate> = Vec::new();
        for (_, bundle) in &self.entries {
            let found = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok);
            for certificate in found.filter_map(|der| Certificate::from_der(der).ok()) {
                if !all.contains(&certificate) {
                    all.push(certificate);
                }
            }
        }
        all
    }

    /// The expiry of this replica's certificate, if the API server trusts it through every entry; else none.
    #[must_use]
    pub fn trusted_until(&self, replica: &Replica, now: Timestamp) -> Option<Timestamp> {
        let trusts = |bundle: &[u8]| bundle::verifies(bundle, &replica.chain, &self.dns, now);
        let leaf = Certificate::from_der(replica.chain.first()?.clone()).ok()?;
        self.entries.iter().all(|(_, bundle)| trusts(bundle)).then_some(leaf.not_after)
    }
}

fn replica(pod: Pod) -> Option<Replica> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let is_ready = is_ready(&pod);
    let status = pod.metadata.annotations.as_ref().and_then(|all| all.get(REPLICA));
    let status = status.and_then(|text| ReplicaStatus::parse(text));
    let chain = status.as_ref().map(ReplicaStatus::chain).unwrap_or_default();
    let (version, undecided) = status.map(|status| (status.version, status.undecided)).unzip();
    let node = pod.spec.and_then(|spec| spec.node_name);
    Some(Replica { name: pod.metadata.name?, node, is_ready, version, undecided: undecided.flatten(), chain })
}

/// Prints the CAs and the serving certificates.
///
/// # Errors
/// The answer of the API server.
pub async fn run(connection: &Connection, clock: &Clock) -> Result<(), Failure> {
    let trust = Trust::read(connection).await?;
    emit(&text(&trust, clock.now()))
}

fn text(trust: &Trust, now: Timestamp) -> String {
    let expires_in = |at: Timestamp| {
        if at <= now { "expired".to_owned() } else { duration(at.duration_since(now)) }
    };
    let entries = trust.entries.len();
    let ca = |ca: &Certificate| {
        let alone = bundle::pem([ca]);
        let has = |bundle: &Vec<u8>| bundle::trusts(bundle, &[ca], now);
        let trusting = trust.entries.iter().filter(|(_, bundle)| has(bundle)).count();
        // The leaf alone, because the chain can also contain the cross certificate, which another CA signed.
        let signs = |replica: &&Replica| {
            bundle::verifies(alone.as_bytes(), replica.chain.get(..1).unwrap_or_default(), &trust.dns, now)
        };
        let signed = trust.replicas.iter().filter(signs).count();
        [
            ca.serial.clone(),
            format!("{:.0}", ca.not_after),
            expires_in(ca.not_after),
            format!("{trusting} of {entries} entries"),
            format!("{signed} of {} replicas", trust.replicas.len()),
        ]
    };
    let cas: Vec<_> = trust.cas().iter().map(ca).collect();
    let replica = |replica: &Replica| {
        let leaf = replica.chain.first().and_then(|der| Certificate::from_der(der.clone()).ok());
        let trusted = if trust.trusted_until(replica, now).is_some() { "yes" } else { "no" };
        let unknown = || "<unknown>".to_owned();
        [
            replica.name.clone(),
            leaf.as_ref().map_or_else(unknown, |leaf| leaf.serial.clone()),
            leaf.as_ref().map_or_else(unknown, |leaf| format!("{:.0}", leaf.not_after)),
            leaf.as_ref().map_or_else(unknown, |leaf| expires_in(leaf.not_after)),
            if leaf.is_some() { trusted.to_owned() } else { unknown() },
        ]
    };
    let replicas: Vec<_> = trust.replicas.iter().map(replica).collect();
    let is_identical = if trust.is_one_bundle() { "yes" } else { "no" };
    let none = |text: String, is_empty: bool| if is_empty { "<none>\n".to_owned() } else { text };
    format!(
        "{}\n{}\ncaBundle is set and identical in all {entries} webhook entries: {is_identical}\n",
        none(table(&["CA", "VALID-UNTIL", "EXPIRES-IN", "TRUSTED-BY", "SIGNED-FOR"], &cas), cas.is_empty()),
        none(
            table(&["REPLICA", "CERTIFICATE", "VALID-UNTIL", "EXPIRES-IN", "TRUSTED"], &replicas),
            replicas.is_empty()
        ),
    )
}
