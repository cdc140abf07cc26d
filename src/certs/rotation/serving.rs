//! What a replica serves, and whether callers accept it. Pure.

use jiff::Timestamp;

use crate::{
    certs::{Certificate, bundle, secret::Store},
    clock::Now,
};

/// The serving certificate that this replica has in memory.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The leaf.
    pub leaf: Certificate,
    /// The CA that issued it.
    pub issuer: Certificate,
    /// The issuer signed by its predecessor, if it is served behind the leaf.
    pub cross: Option<Certificate>,
    /// When the leaf was issued. It is valid from the start of its issuer's validity, which says nothing about its age.
    pub issued_at: Timestamp,
}

impl Serving {
    /// When this fraction of the time from the issue of the leaf to its end is over.
    #[must_use]
    pub fn part_of_life(&self, numerator: i32, denominator: i32) -> Timestamp {
        let life = self.leaf.not_after.duration_since(self.issued_at);
        self.issued_at.saturating_add(life / denominator * numerator).unwrap_or(Timestamp::MAX)
    }
}

/// Whether a replica that serves this may become Ready: callers accept the certificate, and it is not in the last tenth
/// of its life. A replica that resumes in that tenth renews first, because its own clock may be the wrong one.
#[must_use]
pub fn may_be_ready(bundles: &[Vec<u8>], serving: &Serving, store: &Store, now: &Now) -> bool {
    now.corrected < serving.part_of_life(9, 10) && trusted(bundles, serving, store, now.corrected)
}

/// Whether a caller with any of these bundles accepts what is served.
#[must_use]
pub fn trusted(bundles: &[Vec<u8>], serving: &Serving, store: &Store, now: Timestamp) -> bool {
    let mut roots = vec![&serving.issuer];
    if serving.cross.is_some() {
        roots.extend(&store.previous);
    }
    !bundles.is_empty() && serving.leaf.is_valid(now) && bundles.iter().all(|live| bundle::trusts(live, &roots, now))
}
