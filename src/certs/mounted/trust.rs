//! Which CAs caBundle contains with `--tls-dir` and `ca.crt`. Pure: `at` is a monotonic time.
//!
//! The CAs of our own `ca.crt` always. A CA that was in it before, or that every caBundle already contains, may be the
//! CA of another replica, whose directory changes at another time. It stays for [`PROPAGATION`] and the hold after this
//! replica first saw it outside its `ca.crt`, and then for as long as a replica's status shows a certificate that needs
//! it. So a CA that was replaced because it is compromised is gone soon, and so is one that was planted.

use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::{
    certs::{Certificate, bundle},
    clock::Now,
};

/// Within this time a changed Secret is in the directory of every replica: kubelet takes one to two minutes.
pub const PROPAGATION: Duration = Duration::from_secs(600);

/// The CAs that are not in `ca.crt`, and since when.
#[derive(Debug, Default)]
pub struct Leaving {
    /// The CAs of `ca.crt`, as last seen.
    current: Vec<Certificate>,
    leaving: Vec<Leaver>,
}

#[derive(Debug)]
struct Leaver {
    ca: Certificate,
    since: Duration,
    /// No longer wanted. It is remembered until caBundle is written, which can fail.
    is_dropped: bool,
}

impl Leaving {
    /// Compares `ca.crt` with what was in it before, and with caBundle of each entry.
    pub fn observe(&mut self, ca: &[u8], bundles: &[Vec<u8>], at: Duration) {
        let current = bundle::certificates(ca);
        let filled: Vec<_> = bundles.iter().filter(|live| !live.is_empty()).collect();
        // What is in one entry only is no replica's CA: replicas write all entries at once. A new entry is empty.
        let everywhere = filled.first().map(|live| bundle::certificates(live)).unwrap_or_default();
        let everywhere = everywhere.into_iter().filter(|ca| filled.iter().all(|live| bundle::contains(live, &[ca])));
        let everywhere: Vec<_> = everywhere.collect();
        let before = std::mem::replace(&mut self.current, current);
        self.leaving
            .retain(|known| !self.current.contains(&known.ca) && (!known.is_dropped || everywhere.contains(&known.ca)));
        for ca in before.into_iter().chain(everywhere) {
            if !self.current.contains(&ca) && self.leaving.iter().all(|known| known.ca != ca) {
                self.leaving.push(Leaver { ca, since: at, is_dropped: false });
            }
        }
    }

    /// Whether the time of a CA is over, so that the caller must find out what the replicas serve.
    #[must_use]
    pub fn is_due(&self, hold: Duration, at: Duration) -> bool {
        self.leaving.iter().any(|known| !known.is_dropped && is_over(known.since, hold, at))
    }

    /// Drops each CA whose time is over and that none of these chains of the replicas needs.
    pub fn drop_unneeded(
        &mut self,
        chains: &[Vec<CertificateDer<'static>>],
        name: &str,
        hold: Duration,
        now: &Now,
        at: Duration,
    ) {
        let current = bundle::pem(&self.current);
        let verifies =
            |roots: &str, chain: &[CertificateDer<'_>]| bundle::verifies(roots.as_bytes(), chain, name, now.corrected);
        for known in self.leaving.iter_mut().filter(|known| is_over(known.since, hold, at)) {
            let with = format!("{current}{}", bundle::pem([&known.ca]));
            let is_needed = chains.iter().any(|chain| !verifies(&current, chain) && verifies(&with, chain));
            known.is_dropped = !is_needed;
        }
    }

    /// The caBundle to write, in the order of the bytes, so that all replicas write the same.
    #[must_use]
    pub fn wanted(&self, now: &Now) -> String {
        let all =
            self.current.iter().chain(self.leaving.iter().filter(|known| !known.is_dropped).map(|known| &known.ca));
        // Only a confirmed time removes a CA: one replica's clock may be a year ahead.
        let mut all: Vec<_> = all.filter(|ca| !now.is_confirmed || now.earliest < ca.not_after).collect();
        all.sort_by(|a, b| a.der.as_ref().cmp(b.der.as_ref()));
        all.dedup_by(|a, b| a.der == b.der);
        bundle::pem(all)
    }
}

fn is_over(since: Duration, hold: Duration, at: Duration) -> bool {
    PROPAGATION.saturating_add(hold) <= at.saturating_sub(since)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::certs::ca::Ca;

    const NAME: &str = "pristine.pristine-system.svc";
    const HOLD: Duration = Duration::from_secs(60);
    const OVER: Duration = Duration::from_secs(1000);

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn ca(generation: u64) -> Ca {
        Ca::create(generation, &[NAME.to_owned()], Duration::from_secs(900_000), now(), None).unwrap().0
    }

    fn pem(cas: &[&Ca]) -> Vec<u8> {
        let mut all: Vec<_> = cas.iter().map(|ca| &ca.certificate).collect();
        all.sort_by(|a, b| a.der.as_ref().cmp(b.der.as_ref()));
        bundle::pem(all).into_bytes()
    }

    fn wanted(leaving: &Leaving) -> Vec<u8> {
        leaving.wanted(&Now::exact(now())).into_bytes()
    }

    #[test]
    fn a_replaced_ca_leaves_after_its_time_unless_a_replica_needs_it() {
        let (old, new) = (ca(1), ca(2));
        let mut leaving = Leaving::default();
        leaving.observe(&pem(&[&old]), &[vec![]], Duration::ZERO);
        assert_eq!(wanted(&leaving), pem(&[&old]));
        leaving.observe(&pem(&[&new]), &[pem(&[&old])], Duration::ZERO);
        assert_eq!(wanted(&leaving), pem(&[&old, &new]));
        assert!(!leaving.is_due(HOLD, Duration::from_secs(659)) && leaving.is_due(HOLD, OVER));
        let chain = |ca: &Ca| ca.issue(&[NAME.to_owned()], Duration::from_secs(9000), now(), None).unwrap().chain;
        let exact = Now::exact(now());
        leaving.drop_unneeded(&[chain(&new), chain(&old)], NAME, HOLD, &exact, OVER);
        assert_eq!(wanted(&leaving), pem(&[&old, &new]), "a replica still serves by the old one");
        leaving.drop_unneeded(&[chain(&new)], NAME, HOLD, &exact, Duration::from_secs(659));
        assert_eq!(wanted(&leaving), pem(&[&old, &new]), "another replica may be about to serve by it");
        leaving.drop_unneeded(&[chain(&new)], NAME, HOLD, &exact, OVER);
        assert_eq!(wanted(&leaving), pem(&[&new]));
    }

    #[test]
    fn a_ca_in_one_entry_alone_does_not_spread() {
        let (ours, planted) = (ca(1), ca(2));
        let mut leaving = Leaving::default();
        let bundles = [pem(&[&ours]), pem(&[&ours, &planted]), vec![]];
        leaving.observe(&pem(&[&ours]), &bundles, Duration::ZERO);
        assert_eq!(wanted(&leaving), pem(&[&ours]));
    }

    #[test]
    fn a_ca_in_every_entry_that_was_never_in_ca_crt_stays_for_its_time_only() {
        let (ours, other) = (ca(1), ca(2));
        let mut leaving = Leaving::default();
        let live = [pem(&[&ours, &other])];
        leaving.observe(&pem(&[&ours]), &live, Duration::ZERO);
        leaving.observe(&pem(&[&ours]), &live, OVER);
        assert_eq!(wanted(&leaving), live[0]);
        leaving.drop_unneeded(&[], NAME, HOLD, &Now::exact(now()), OVER);
        assert_eq!(wanted(&leaving), pem(&[&ours]));
        // The write failed: the time does not begin again.
        leaving.observe(&pem(&[&ours]), &live, OVER);
        assert_eq!(wanted(&leaving), pem(&[&ours]));
    }

    #[test]
    fn a_clock_that_nothing_confirms_removes_no_ca() {
        let (ours, late) = (ca(1), "2036-01-01T00:00:00Z".parse().unwrap());
        let mut leaving = Leaving::default();
        leaving.observe(&pem(&[&ours]), &[], Duration::ZERO);
        assert_eq!(leaving.wanted(&Now::unconfirmed(late)).into_bytes(), pem(&[&ours]));
        assert_eq!(leaving.wanted(&Now::exact(late)), "");
    }
}
