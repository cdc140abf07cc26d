//! Serves certificates from a mounted directory (`--tls-dir`), for clusters with a PKI of their own (I/O). It runs
//! instead of [`super::controller`]: Pristine then creates no CA and writes no Secret.
//!
//! - `tls.crt` and `tls.key` are the serving certificate with its chain, and its key.
//! - `ca.crt` is optional. With it, caBundle contains the CAs in it, and others for as long as other replicas may serve
//!   certificates of them ([`trust`]). If it was never there, another component injects caBundle, and Pristine does not
//!   change it. If it disappears, that is an error, and caBundle stays as it is.
//!
//! A new certificate must pass the same test as one of our own CA: it is served after every caBundle has trusted it for
//! `--hold`. It is served at once only if no certificate is served, or the served one is in the last tenth of its life.
//! Files that are invalid, incomplete or expired never replace the served certificate.

use std::{fs, io::ErrorKind, path::PathBuf, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{sync::Notify, time::Instant};

use self::trust::Leaving;

use super::{
    Certificate, bundle,
    ca::Leaf,
    objects::{self, Objects},
    resolver::Resolver,
    secret_path::SecretPath,
};
use crate::{
    api::{
        Context,
        events::EventType,
        webhook::{path::Key, writer::Publication},
    },
    clock::Now,
    dir_watch::DirWatch,
    error::chain,
    server::readiness::Readiness,
    telemetry::{Certificate as Label, Outcome},
};

pub mod trust;

/// The objects and the directory are read at least this often.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);

/// Serves what is mounted.
pub struct Mounted {
    /// The directory.
    pub directory: PathBuf,
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
struct Memory {
    path: SecretPath,
    serving: Option<Certificate>,
    /// The certificate that is not served yet, and since when every caBundle has trusted it.
    waiting: Option<(Certificate, Instant)>,
    /// The problem that was reported last, so that it is reported once.
    problem: Option<Problem>,
    /// Whether there was a `ca.crt`: its absence is a mistake then, and no wish.
    had_ca: bool,
    leaving: Leaving,
}

/// Why a certificate is not served, or caBundle is not written.
#[derive(Debug, Eq, PartialEq)]
enum Problem {
    /// The files, or that caBundle does not trust them.
    Refused(String),
    /// The API server does not answer, or refuses. The files may be good.
    Api(String),
}

impl From<objects::Error> for Problem {
    fn from(error: objects::Error) -> Self {
        Self::Api(chain(&error))
    }
}

impl Memory {
    fn new(path: SecretPath) -> Self {
        Self { path, serving: None, waiting: None, problem: None, had_ca: false, leaving: Leaving::default() }
    }
}

impl Mounted {
    /// Runs until the process ends.
    pub async fn run(self, path: SecretPath) {
        let files = DirWatch::watch(&self.directory);
        let wake = Notify::new();
        let mut memory = Memory::new(path);
        let watching = async {
            let mut changes = self.objects.changes();
            while changes.next().await.is_some() {
                wake.notify_one();
            }
        };
        let reconciling = async {
            let started = Instant::now();
            loop {
                let (wrote, problem) = match self.reconcile(&mut memory, started.elapsed()).await {
                    Ok(wrote) => (wrote, None),
                    Err(problem) => (false, Some(problem)),
                };
                if let Some(problem) = problem.as_ref().filter(|problem| memory.problem.as_ref() != Some(problem)) {
                    self.report(problem);
                }
                memory.problem = problem;
                let is_waiting = memory.waiting.is_some();
                let pause = if is_waiting { self.hold.min(Duration::from_secs(5)) } else { RESYNC_INTERVAL };
                let pause = if wrote { Duration::ZERO } else { pause.min(memory.path.next()) };
                let pause = pause.max(Duration::from_millis(10));
                tokio::select! {
                    () = files.changed() => {}
                    () = wake.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        };
        tokio::select! {
            () = watching => {}
            () = reconciling => {}
        }
    }

    fn report(&self, problem: &Problem) {
        let path = self.directory.display();
        let (reason, note) = match problem {
            Problem::Refused(why) => {
                tracing::error!(%path, problem = why, "cannot use the mounted certificate");
                self.context.metrics.certificate_steps.get_or_create(&Outcome { result: "refused" }).inc();
                ("CertificateRefused", format!("{path}: {why}; the previous certificate stays in use"))
            }
            Problem::Api(why) => {
                tracing::warn!(problem = why, "cannot compare caBundle with the mounted certificate, retrying");
                let note = format!("{why}; the mounted certificate is checked again when the API server answers");
                ("APIServerUnavailable", note)
            }
        };
        self.context.events.publish(self.about.clone(), EventType::Warning, reason, "Issue", &note);
    }

    /// Reads the directory and the objects, then publishes the CA and the secret path or serves the certificate, if due.
    /// Returns whether the webhook configuration was written, by this replica or one that was faster.
    async fn reconcile(&self, memory: &mut Memory, at: Duration) -> Result<bool, Problem> {
        let now = self.context.clock.interval();
        let pair = self.read(memory.had_ca, &now);
        let live = self.objects.read().await?;
        if live.is_terminating() {
            self.objects.withdraw(&live).await?;
            return Ok(false);
        }
        let Some(bundles) = live.bundles() else {
            let name = &self.objects.names().configuration;
            self.ready.set_missing(format!(
                "there is no ValidatingWebhookConfiguration {name}: apply the manifest, Pristine never creates it"
            ));
            return Ok(false);
        };
        let pair = pair.map_err(Problem::Refused)?;
        let name = &self.objects.names().dns();
        // All replicas mount the same key. For the moment in which they do not, the live path is good for all of them.
        memory.path.plan(&live.paths(), Some(Key::derive(pair.key.secret_der())), &now);
        let mut bundle = None;
        if let Some(ca) = &pair.ca {
            memory.had_ca = true;
            memory.leaving.observe(ca, &bundles, at);
            if memory.leaving.is_due(self.hold, at) {
                memory.leaving.drop_unneeded(&self.objects.served_chains().await?, name, self.hold, &now, at);
            }
            let wanted = memory.leaving.wanted(&now);
            bundle = Some(wanted);
        }
        let differs = bundle.as_ref().is_some_and(|wanted| bundles.iter().any(|live| live != wanted.as_bytes()));
        if differs || memory.path.due().is_some() || !live.is_owned() {
            let bundle = bundle.as_deref().map(|wanted| (wanted, live.published_generation()));
            let path = memory.path.due();
            return match self.objects.publish(&Publication { bundle, path }, &live).await {
                Ok(()) => {
                    memory.path.written(&self.context.metrics);
                    Ok(true)
                }
                Err(error) if error.is_conflict() => Ok(true),
                Err(error) => Err(error.into()),
            };
        }
        let accepts = |live: &Vec<u8>| bundle::verifies(live, &pair.chain, name, now.corrected);
        let accepted = !bundles.is_empty() && bundles.iter().all(accepts);
        self.serve(pair, accepted, memory, now.corrected).map_err(Problem::Refused)?;
        Ok(false)
    }

    /// Serves the pair, once it has been trusted for the hold.
    fn serve(&self, pair: Pair, accepted: bool, memory: &mut Memory, now: Timestamp) -> Result<(), String> {
        let Pair { chain, key, leaf, .. } = pair;
        if memory.serving.as_ref() != Some(&leaf) {
            let since = match (&memory.waiting, accepted) {
                (_, false) => None,
                (Some((waiting, since)), true) if *waiting == leaf => Some(*since),
                (_, true) => Some(Instant::now()),
            };
            memory.waiting = since.map(|since| (leaf.clone(), since));
            let trusted = since.is_some_and(|since| self.hold <= since.elapsed());
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
    fn read(&self, had_ca: bool, now: &Now) -> Result<Pair, String> {
        let file = |name: &str| {
            let path = self.directory.join(name);
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
        if leaf.not_after <= now.corrected {
            return Err(format!("tls.crt: the certificate expired at {}", leaf.not_after));
        }
        let ca = match fs::symlink_metadata(self.directory.join("ca.crt")) {
            // A file that is there but cannot be read is a mistake, and no wish for another component.
            Err(error) if error.kind() == ErrorKind::NotFound && !had_ca => None,
            _ => Some(file("ca.crt")?),
        };
        if ca.as_ref().is_some_and(|ca| !bundle::certificates(ca).iter().any(|ca| ca.is_valid(now.corrected))) {
            return Err("ca.crt: no certificate is valid now".to_owned());
        }
        Ok(Pair { chain, key, leaf, ca })
    }
}
