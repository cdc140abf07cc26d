//! Serves certificates from a mounted directory (`--tls-dir`), for clusters with a PKI of their own (I/O). It runs
//! instead of [`super::controller`]: Pristine then creates no CA and writes no Secret.
//!
//! - `tls.crt` and `tls.key` are the serving certificate with its chain, and its key.
//! - `ca.crt` is optional. With it, Pristine adds the CAs in it to caBundle, and removes only CAs that have expired,
//!   because other replicas may still serve certificates of the others. Without it, another component injects caBundle,
//!   and Pristine does not change it.
//!
//! A new certificate must pass the same test as one of our own CA: it is served after every caBundle has trusted it for
//! `--hold`. It is served at once only if no certificate is served, or the served one is in the last tenth of its life.
//! Files that are invalid, incomplete or expired never replace the served certificate.

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

/// Serves what is mounted.
pub struct Mounted {
    /// The directory.
    pub path: PathBuf,
    /// The webhook configuration.
    pub objects: Objects,
    /// How long caBundle must have trusted a certificate before it is served.
    pub hold: Duration,
    /// The clock, metrics and Events.
    pub context: Context,
    /// This replica's own pod, which the Events are about.
    pub about: ObjectReference,
    /// Receives the serving certificates.
    pub resolver: Resolver,
    /// Whether the API server can verify what this replica serves.
    pub ready: Readiness,
}

/// The content of the directory, valid.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    leaf: Certificate,
    ca: Option<Vec<u8>>,
}

/// What this replica remembers between two calls of `reconcile`.
#[derive(Default)]
struct Memory {
    serving: Option<Certificate>,
    /// The certificate that is not served yet, and since when every caBundle has trusted it.
    waiting: Option<(Certificate, Timestamp)>,
    /// The problem that was reported last, so that it is reported once.
    problem: Option<String>,
}

impl Mounted {
    /// Runs until the process ends.
    pub async fn run(self) {
        let directory = DirWatch::watch(&self.path);
        let wake = Notify::new();
        let mut memory = Memory::default();
        let watching = async {
            let mut changes = self.objects.changes();
            while changes.next().await.is_some() {
                wake.notify_one();
            }
        };
        let reconciling = async {
            loop {
                let problem = self.reconcile(&mut memory).await.err();
                if let Some(problem) = problem.as_ref().filter(|problem| memory.problem.as_ref() != Some(problem)) {
                    tracing::error!(path = %self.path.display(), problem, "cannot use the mounted certificate");
                    self.context.metrics.certificate_steps.get_or_create(&Outcome { result: "refused" }).inc();
                    let note = format!("{}: {problem}; the previous certificate stays in use", self.path.display());
                    self.context.events.publish(
                        self.about.clone(),
                        EventType::Warning,
                        "CertificateRefused",
                        "Issue",
                        &note,
                    );
                }
                memory.problem = problem;
                let hold = self.hold.min(Duration::from_secs(5));
                tokio::select! {
                    () = directory.changed() => {}
                    () = wake.notified() => {}
                    () = tokio::time::sleep(hold), if memory.waiting.is_some() => {}
                }
            }
        };
        tokio::select! {
            () = watching => {}
            () = reconciling => {}
        }
    }

    /// Reads the directory and the objects, then publishes the CA or serves the certificate, if due.
    async fn reconcile(&self, memory: &mut Memory) -> Result<(), String> {
        let pair = self.read();
        let live = self.objects.read().await.map_err(|error| chain(&error))?;
        if live.is_terminating() {
            return self.objects.withdraw(&live).await.map_err(|error| chain(&error));
        }
        let now = self.context.clock.now();
        let Some(bundles) = live.bundles() else {
            let name = &self.objects.names.configuration;
            self.ready.set_missing(format!(
                "there is no ValidatingWebhookConfiguration {name}: apply the manifest, Pristine never creates it"
            ));
            return Ok(());
        };
        let pair = pair?;
        if let Some(ca) = &pair.ca {
            // Only expired CAs are removed: other replicas may still serve certificates of the others.
            let wanted = bundle::merge(bundles.iter().map(Vec::as_slice).chain([ca.as_slice()]), now);
            if !live.is_owned() || bundles.iter().any(|live| live != wanted.as_bytes()) {
                return match self.objects.publish(&wanted, live.published_generation(), &live).await {
                    // Our own write, or the one of the replica that was faster, wakes this loop again.
                    Ok(()) | Err(objects::Error::Conflict) => Ok(()),
                    Err(error) => Err(chain(&error)),
                };
            }
        }
        let name = &self.objects.names.dns()[0];
        let accepted = !bundles.is_empty() && bundles.iter().all(|live| bundle::verifies(live, &pair.chain, name, now));
        self.serve(pair, accepted, memory, now)
    }

    /// Serves the pair, once it has been trusted for the hold.
    fn serve(&self, pair: Pair, accepted: bool, memory: &mut Memory, now: Timestamp) -> Result<(), String> {
        let Pair { chain, key, leaf, .. } = pair;
        if memory.serving.as_ref() != Some(&leaf) {
            let since = match (&memory.waiting, accepted) {
                (_, false) => None,
                (Some((waiting, since)), true) if *waiting == leaf => Some(*since),
                (_, true) => Some(now),
            };
            memory.waiting = since.map(|since| (leaf.clone(), since));
            let trusted = since.is_some_and(|since| after(since, self.hold) <= now);
            // Waiting would protect nothing: no certificate is served, or the served one is about to expire.
            let ending = memory.serving.as_ref().is_none_or(|serving| serving.part_of_life(9, 10) <= now);
            if !trusted && !ending {
                self.ready.set_missing("caBundle does not trust the mounted certificate yet".to_owned());
                return if accepted { Ok(()) } else { Err("caBundle does not trust tls.crt yet".to_owned()) };
            }
            self.resolver.serve(Leaf { chain, key, certificate: leaf.clone() }).map_err(|error| error.to_string())?;
            tracing::info!(serial = leaf.serial, not_after = %leaf.not_after, "serving a new certificate");
            let note = format!("serving certificate {}, valid until {}", leaf.serial, leaf.not_after);
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
            Err("caBundle does not trust the served certificate".to_owned())
        }
    }

    /// Reads and checks the files. The certificate and the key must belong together: a half-written pair is an error.
    fn read(&self) -> Result<Pair, String> {
        let file = |name: &str| {
            let path = self.path.join(name);
            let bytes = fs::read(&path).map_err(|error| format!("cannot read {name}: {error}"))?;
            if bytes.len() > bundle::MAX_BYTES {
                Err(format!("{name}: {} bytes exceed the limit of {}", bytes.len(), bundle::MAX_BYTES))
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
            return Err(format!("tls.crt: the certificate expired at {}", leaf.not_after));
        }
        let ca = if self.path.join("ca.crt").exists() { Some(file("ca.crt")?) } else { None };
        if ca.as_ref().is_some_and(|ca| bundle::merge([ca.as_slice()], self.context.clock.now()).is_empty()) {
            return Err("ca.crt: no certificate is valid now".to_owned());
        }
        Ok(Pair { chain, key, leaf, ca })
    }
}
