//! Certificates from a mounted directory, for those who have a PKI: `tls.crt`, `tls.key` and optionally `ca.crt`.
//!
//! The same trust gate as for our own: a new certificate is served once every caBundle has trusted it for the hold.
//! With `ca.crt`, caBundle is ours to keep; without, somebody else injects it, and it is left alone. What cannot be read
//! never replaces what is served.

use std::{fs, path::PathBuf, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::Notify;

use super::{
    Certificate, after, bundle,
    ca::Leaf,
    objects::{self, Objects},
    resolver::Resolver,
};
use crate::{
    api::{Context, events::EventType},
    dir_watch::DirWatch,
    error::chain,
    server::readiness::Readiness,
    telemetry::{Certificate as Label, Outcome},
};

/// Keeps what is served the same as what is mounted.
pub struct Mounted {
    /// The directory.
    pub path: PathBuf,
    /// The webhook configuration.
    pub objects: Objects,
    /// How long caBundle must have trusted a certificate before it is served.
    pub hold: Duration,
    /// The clock, and where what is done is reported.
    pub context: Context,
    /// Our own pod, which the Events are about.
    pub about: ObjectReference,
    /// Gets the serving certificates.
    pub resolver: Resolver,
    /// Whether the API server can verify what this replica serves.
    pub ready: Readiness,
}

/// What the directory held.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    leaf: Certificate,
    ca: Option<Vec<u8>>,
}

/// What this replica remembers between two looks.
#[derive(Default)]
struct Memory {
    serving: Option<Certificate>,
    /// A certificate that waits, and since when every caBundle trusts it.
    waiting: Option<(Certificate, Timestamp)>,
    complaint: Option<String>,
}

impl Mounted {
    /// Runs until the process ends.
    pub async fn run(self) {
        let folder = DirWatch::watch(&self.path);
        let wake = Notify::new();
        let mut memory = Memory::default();
        let watching = async {
            let mut changes = self.objects.changes();
            while changes.next().await.is_some() {
                wake.notify_one();
            }
        };
        let looking = async {
            loop {
                let problem = self.look(&mut memory).await.err();
                if let Some(problem) = problem.as_ref().filter(|problem| memory.complaint.as_ref() != Some(problem)) {
                    tracing::error!(path = %self.path.display(), problem, "the mounted certificate is not served");
                    self.context.metrics.certificate_steps.get_or_create(&Outcome { result: "refused" }).inc();
                    let note = format!("{}: {problem}; what was served before is served on", self.path.display());
                    self.context.events.publish(
                        self.about.clone(),
                        EventType::Warning,
                        "CertificateRefused",
                        "Issue",
                        &note,
                    );
                }
                memory.complaint = problem;
                let hold = self.hold.min(Duration::from_secs(5));
                tokio::select! {
                    () = folder.changed() => {}
                    () = wake.notified() => {}
                    () = tokio::time::sleep(hold), if memory.waiting.is_some() => {}
                }
            }
        };
        tokio::select! {
            () = watching => {}
            () = looking => {}
        }
    }

    async fn look(&self, memory: &mut Memory) -> Result<(), String> {
        let pair = self.read();
        let live = self.objects.look().await.map_err(|error| chain(&error))?;
        if live.is_leaving() {
            return self.objects.withdraw(&live).await.map_err(|error| chain(&error));
        }
        let now = self.context.clock.now();
        let Some(bundles) = live.bundles() else {
            self.ready.set_missing(format!(
                "there is no ValidatingWebhookConfiguration {}",
                self.objects.names.configuration
            ));
            return Ok(());
        };
        let pair = pair?;
        if let Some(ca) = &pair.ca {
            // Every replica adds, and nobody takes away what has not expired: the others may still serve under it.
            let wanted = bundle::merge(bundles.iter().map(Vec::as_slice).chain([ca.as_slice()]), now);
            if !live.is_owned() || bundles.iter().any(|live| live != wanted.as_bytes()) {
                return match self.objects.publish(&wanted, live.published_generation(), &live).await {
                    // What was written wakes this loop again; who lost against another replica looks again too.
                    Ok(()) | Err(objects::Error::Conflict) => Ok(()),
                    Err(error) => Err(chain(&error)),
                };
            }
        }
        let name = &self.objects.names.dns()[0];
        let accepted = !bundles.is_empty() && bundles.iter().all(|live| bundle::verifies(live, &pair.chain, name, now));
        self.swap(pair, accepted, memory, now)
    }

    /// Serves the pair if it is time to.
    fn swap(&self, pair: Pair, accepted: bool, memory: &mut Memory, now: Timestamp) -> Result<(), String> {
        let Pair { chain, key, leaf, .. } = pair;
        if memory.serving.as_ref() != Some(&leaf) {
            let since = match (&memory.waiting, accepted) {
                (_, false) => None,
                (Some((waiting, since)), true) if *waiting == leaf => Some(*since),
                (_, true) => Some(now),
            };
            memory.waiting = since.map(|since| (leaf.clone(), since));
            let trusted = since.is_some_and(|since| after(since, self.hold) <= now);
            // With nothing to lose there is nothing to wait for.
            let ending = memory.serving.as_ref().is_none_or(|serving| serving.part_of_life(9, 10) <= now);
            if !trusted && !ending {
                self.ready.set_missing("caBundle does not trust the mounted certificate yet".to_owned());
                return if accepted { Ok(()) } else { Err("caBundle does not trust it yet".to_owned()) };
            }
            self.resolver.serve(Leaf { chain, key, certificate: leaf.clone() }).map_err(|error| error.to_string())?;
            tracing::info!(serial = leaf.serial, not_after = %leaf.not_after, "serving a new certificate");
            let note = format!("{} is served, valid until {}", leaf.serial, leaf.not_after);
            self.context.events.publish(
                self.about.clone(),
                EventType::Normal,
                "ServingCertificateRenewed",
                "Issue",
                &note,
            );
            let end = leaf.not_after.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64();
            self.context.metrics.not_after.get_or_create(&Label { certificate: "serving" }).set(end);
            memory.waiting = None;
            memory.serving = Some(leaf);
        }
        self.context.metrics.bundle_in_sync.set(i64::from(accepted));
        if accepted {
            self.ready.set_ready();
            Ok(())
        } else {
            self.ready.set_missing("caBundle does not trust the mounted certificate yet".to_owned());
            Err("caBundle does not trust it".to_owned())
        }
    }

    /// The pair as it is on disk, checked: both halves of one write, or neither.
    fn read(&self) -> Result<Pair, String> {
        let file = |name: &str| {
            let path = self.path.join(name);
            let bytes = fs::read(&path).map_err(|error| format!("{name}: {error}"))?;
            if bytes.len() > bundle::MAX_BYTES {
                Err(format!("{name}: {} bytes are too many", bytes.len()))
            } else {
                Ok(bytes)
            }
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&file("tls.crt")?)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("tls.crt: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(&file("tls.key")?).map_err(|error| format!("tls.key: {error}"))?;
        let leaf = chain.first().cloned().ok_or("tls.crt: no certificate")?;
        let leaf = Certificate::from_der(leaf).map_err(|error| format!("tls.crt: {error}"))?;
        Resolver::check(&chain, &key).map_err(|error| format!("tls.key: {error}"))?;
        if leaf.not_after <= self.context.clock.now() {
            return Err(format!("tls.crt: expired at {}", leaf.not_after));
        }
        let ca = if self.path.join("ca.crt").exists() { Some(file("ca.crt")?) } else { None };
        if ca.as_ref().is_some_and(|ca| bundle::merge([ca.as_slice()], self.context.clock.now()).is_empty()) {
            return Err("ca.crt: no certificate that is valid now".to_owned());
        }
        Ok(Pair { chain, key, leaf, ca })
    }
}
