//! Certificates: how API servers come to trust each replica. This file holds the types that the modules below share.
//!
//! One Secret holds the CA. Each replica issues its own serving certificate in memory. `caBundle` in the webhook
//! configuration lists the CAs that API servers trust.
//!
//! CA A is replaced by the next one, B, in the steps of this table. Each step is planned from what a replica observes
//! and never from the step before it, so any replica can take any step ([`rotation`]).
//!
//! | when | step | the Secret | caBundle | served |
//! |---|---|---|---|---|
//! | start | create | active A | – | – |
//! | | publish, issue | active A | A | leaf by A |
//! | 2/3 of A's life | stage | active A, next B | A | leaf by A |
//! | at once | publish | | A, B | leaf by A |
//! | + hold | activate | active B, previous A without its key, B signed by A | A, B | leaf by B + B signed by A |
//! | last leaf by A expired | retire | active B | B | leaf by B + B signed by A |
//!
//! "B signed by A" is a cross-signed certificate: the subject and the key of B, signed by A. Because replicas serve it
//! behind the leaf, no API server can be too slow: one that still knows only A accepts the chain through A, and one
//! that has received {A, B} accepts it through B.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

pub mod bundle;
pub mod ca;
pub mod controller;
pub mod mounted;
pub mod objects;
pub mod replica_status;
pub mod resolver;
pub mod rotation;
pub mod secret;
pub mod secret_path;

/// How long certificates are valid. Checked by [`Lifetimes::new`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetimes {
    /// Validity of a CA.
    pub ca: Duration,
    /// Validity of a serving certificate.
    pub serving: Duration,
    /// How long every caBundle must have contained the next CA before it signs.
    pub hold: Duration,
}

impl Lifetimes {
    /// Checks the relations: the next CA is staged at two thirds of a CA's life. It must be active, and every
    /// certificate that its predecessor signed must have expired, before that predecessor expires.
    ///
    /// # Errors
    /// Names the flag to change.
    pub fn new(ca: Duration, serving: Duration, hold: Duration) -> Result<Self, String> {
        let all = Self { ca, serving, hold };
        if serving < Duration::from_secs(5) {
            return Err(format!("--serving-lifetime {serving:?} is too short; the shortest is 5s"));
        }
        let rest = ca / 3;
        let needed = serving + hold + all.slack();
        if rest <= needed {
            return Err(format!(
                "--ca-lifetime {ca:?} is too short: a third of it, {rest:?}, must be longer than \
                 --serving-lifetime {serving:?} plus --hold {hold:?} plus {:?}",
                all.slack()
            ));
        }
        Ok(all)
    }

    /// How far in the past validity begins, for API servers whose clock is behind: an hour, but at most a tenth of the
    /// life, so that the short lives in tests keep their proportions.
    #[must_use]
    pub fn backdate(life: Duration) -> Duration {
        Duration::from_secs(3600).min(life / 10)
    }

    /// How much longer than its last serving certificate a CA stays trusted. A replica that read the Secret just before
    /// the activation may still issue a certificate for [`MAX_SECRET_AGE`], and clocks differ.
    #[must_use]
    pub fn slack(&self) -> Duration {
        Self::backdate(self.serving) + MAX_SECRET_AGE.min(self.serving / 4)
    }
}

/// A serving certificate is issued only from a Secret that was read at most this long ago.
pub const MAX_SECRET_AGE: Duration = Duration::from_secs(30);

/// An X.509 certificate, with the fields that decisions need.
#[derive(Clone, Eq, PartialEq)]
pub struct Certificate {
    /// The certificate in DER.
    pub der: CertificateDer<'static>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// Serial number, for people.
    pub serial: String,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({} until {})", self.serial, self.not_after)
    }
}

impl Certificate {
    /// Parses a certificate.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(&der).map_err(|error| format!("not an X.509 certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("not an X.509 certificate: trailing bytes".to_owned());
        }
        let time = |second| {
            Timestamp::from_second(second).map_err(|_| "the validity of the certificate is out of range".to_owned())
        };
        let (not_before, not_after) =
            (time(parsed.validity().not_before.timestamp())?, time(parsed.validity().not_after.timestamp())?);
        let serial = parsed.raw_serial_as_string();
        Ok(Self { der, not_before, not_after, serial })
    }

    /// Parses the first certificate of a PEM text.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|error| format!("no certificate in PEM: {error}"))?;
        Self::from_der(der)
    }

    /// Whether the certificate is valid at this time.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When this fraction of the certificate's life is over.
    #[must_use]
    pub fn part_of_life(&self, numerator: i32, denominator: i32) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        self.not_before.saturating_add(life / denominator * numerator).unwrap_or(Timestamp::MAX)
    }
}

/// The time `later` after `at`, without overflow.
#[must_use]
pub fn after(at: Timestamp, later: Duration) -> Timestamp {
    SignedDuration::try_from(later).ok().and_then(|later| at.checked_add(later).ok()).unwrap_or(Timestamp::MAX)
}

/// The time `earlier` before `at`, without overflow.
#[must_use]
pub fn before(at: Timestamp, earlier: Duration) -> Timestamp {
    SignedDuration::try_from(earlier).ok().and_then(|earlier| at.checked_sub(earlier).ok()).unwrap_or(Timestamp::MIN)
}
