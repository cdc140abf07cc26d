//! The certificates room: its nouns. One Secret holds the CA, every replica mints its own serving certificate in
//! memory, and the webhook configuration's caBundle says whom to trust.
//!
//! How one CA A is followed by the next, B. No step assumes the one before it: each is planned from what is
//! observed, and any replica may take any step.
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
//! B signed by A is why no API server can be too slow: one that still knows only A accepts the chain through A, one
//! that has seen {A, B} accepts it through B.

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

/// How long certificates live. Checked by [`Lifetimes::new`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetimes {
    /// Of a CA.
    pub ca: Duration,
    /// Of a serving certificate.
    pub serving: Duration,
    /// Between a caBundle that holds the next CA and its activation.
    pub hold: Duration,
}

impl Lifetimes {
    /// Checks the relations: what is staged at two thirds of a CA's life must be active, and every certificate
    /// of its predecessor expired, before that predecessor expires.
    ///
    /// # Errors
    /// Which flag to change.
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

    /// How far back validity begins, for API servers whose clock is behind: an hour, and never more than a tenth of
    /// the life, so that short lives in tests keep their proportions.
    #[must_use]
    pub fn backdate(life: Duration) -> Duration {
        Duration::from_secs(3600).min(life / 10)
    }

    /// Added to the end of the last certificate of a CA before it is no longer trusted: a replica that read
    /// the Secret just before the activation may still mint for [`MINT_WITHIN`], and clocks differ.
    #[must_use]
    pub fn slack(&self) -> Duration {
        Self::backdate(self.serving) + MINT_WITHIN.min(self.serving / 4)
    }
}

/// A serving certificate is minted from a Secret read at most this long ago.
pub const MINT_WITHIN: Duration = Duration::from_secs(30);

/// An X.509 certificate and what decisions need of it.
#[derive(Clone, Eq, PartialEq)]
pub struct Certificate {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Begin of validity.
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
    /// Reads a certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, String> {
        let (rest, parsed) =
            X509Certificate::from_der(&der).map_err(|error| format!("not an X.509 certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("not an X.509 certificate: trailing bytes".to_owned());
        }
        let time = |second| Timestamp::from_second(second).map_err(|_| "a validity beyond all calendars".to_owned());
        let (not_before, not_after) =
            (time(parsed.validity().not_before.timestamp())?, time(parsed.validity().not_after.timestamp())?);
        let serial = parsed.raw_serial_as_string();
        Ok(Self { der, not_before, not_after, serial })
    }

    /// Reads the one certificate of a PEM text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem).map_err(|error| format!("no certificate in PEM: {error}"))?;
        Self::from_der(der)
    }

    /// Whether it can be used at this time.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When this fraction of its life is over.
    #[must_use]
    pub fn part_of_life(&self, numerator: i32, denominator: i32) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        self.not_before.saturating_add(life / denominator * numerator).unwrap_or(Timestamp::MAX)
    }
}

/// `later` after `at`, without overflow.
#[must_use]
pub fn after(at: Timestamp, later: Duration) -> Timestamp {
    SignedDuration::try_from(later).ok().and_then(|later| at.checked_add(later).ok()).unwrap_or(Timestamp::MAX)
}

/// `earlier` before `at`, without overflow.
#[must_use]
pub fn before(at: Timestamp, earlier: Duration) -> Timestamp {
    SignedDuration::try_from(earlier).ok().and_then(|earlier| at.checked_sub(earlier).ok()).unwrap_or(Timestamp::MIN)
}
