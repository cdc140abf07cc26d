//! `kubectl pristine certs`: what the API server is told to trust, and what each replica serves. Public certificates only;
//! the Secret with the CA's key is not read.

use jiff::Timestamp;
use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Pod};
use kube::{Api, api::ListParams};
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

/// A replica as its pod shows it.
pub struct Replica {
    /// Name of the pod.
    pub name: String,
    /// Whether it is Ready.
    pub is_ready: bool,
    /// Its version; unknown until it has said so.
    pub version: Option<String>,
    chain: Vec<CertificateDer<'static>>,
}

/// All that is public about certificates.
pub struct Trust {
    /// Name and caBundle of each of our entries.
    pub entries: Vec<(String, Vec<u8>)>,
    /// The replicas.
    pub replicas: Vec<Replica>,
    /// Whether `kubectl debug` is refused when the webhook fails.
    pub is_closed: bool,
    dns: String,
}

impl Trust {
    /// Reads it.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn read(connection: &Connection) -> Result<Self, Failure> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(connection.client.clone());
        let found = connection.call("get validatingwebhookconfigurations", api.get(NAME)).await?;
        let debug = found.webhooks.iter().flatten().find(|entry| entry.name == "debug.pods.pristine");
        let is_closed = debug.is_some_and(|entry| entry.failure_policy.as_deref() == Some("Fail"));
        let entries = found.webhooks.into_iter().flatten().filter(|entry| {
            entry.client_config.service.as_ref().is_some_and(|service| service.namespace == connection.pristine)
        });
        let entries = entries.map(|entry| (entry.name, entry.client_config.ca_bundle.unwrap_or_default().0)).collect();
        let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.pristine);
        let params =
            ListParams::default().labels("app.kubernetes.io/name=pristine,app.kubernetes.io/component=webhook");
        let pods = connection.call("list pods", api.list(&params)).await?;
        let mut replicas: Vec<Replica> = pods.into_iter().filter_map(replica).collect();
        replicas.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { entries, replicas, is_closed, dns: format!("{NAME}.{}.svc", connection.pristine) })
    }

    /// Whether every entry has the same caBundle, and it is not empty.
    #[must_use]
    pub fn is_one_bundle(&self) -> bool {
        self.entries
            .first()
            .is_some_and(|(_, first)| !first.is_empty() && self.entries.iter().all(|(_, it)| it == first))
    }

    /// The CAs in any caBundle, each once.
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

    /// Until when the API server accepts what this replica serves, through every entry; nothing if it does not.
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
    let said = pod.metadata.annotations.as_ref().and_then(|all| all.get(REPLICA));
    let said = said.and_then(|text| ReplicaStatus::parse(text));
    let chain = said.as_ref().map(ReplicaStatus::chain).unwrap_or_default();
    Some(Replica { name: pod.metadata.name?, is_ready, version: said.map(|said| said.version), chain })
}

/// Prints it.
///
/// # Errors
/// What the API server says.
pub async fn run(connection: &Connection, clock: &Clock) -> Result<(), Failure> {
    let trust = Trust::read(connection).await?;
    emit(&text(&trust, clock.now()))
}

fn text(trust: &Trust, now: Timestamp) -> String {
    let left = |at: Timestamp| {
        if at <= now { "expired".to_owned() } else { duration(at.duration_since(now)) }
    };
    let entries = trust.entries.len();
    let ca = |ca: &Certificate| {
        let alone = bundle::pem([ca]);
        let has = |bundle: &Vec<u8>| bundle::trusts(bundle, &[ca], now);
        let trusting = trust.entries.iter().filter(|(_, bundle)| has(bundle)).count();
        // The leaf alone: the chain may also hold the cross certificate, by which another CA vouches for it.
        let signs = |replica: &&Replica| {
            bundle::verifies(alone.as_bytes(), replica.chain.get(..1).unwrap_or_default(), &trust.dns, now)
        };
        let signed = trust.replicas.iter().filter(signs).count();
        [
            ca.serial.clone(),
            format!("{:.0}", ca.not_after),
            left(ca.not_after),
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
            leaf.as_ref().map_or_else(unknown, |leaf| left(leaf.not_after)),
            if leaf.is_some() { trusted.to_owned() } else { unknown() },
        ]
    };
    let replicas: Vec<_> = trust.replicas.iter().map(replica).collect();
    let sync = if trust.is_one_bundle() { "yes" } else { "no" };
    let none = |text: String, is_empty: bool| if is_empty { "<none>\n".to_owned() } else { text };
    format!(
        "{}\n{}\ncaBundle is the same and not empty in all {entries} entries: {sync}\n",
        none(table(&["CA", "VALID UNTIL", "EXPIRES-IN", "TRUSTED BY", "SIGNED FOR"], &cas), cas.is_empty()),
        none(table(&["REPLICA", "SERVING", "VALID UNTIL", "EXPIRES-IN", "TRUSTED"], &replicas), replicas.is_empty()),
    )
}
