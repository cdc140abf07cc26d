//! The replica status: an annotation on a replica's own pod with its version, the chain that it serves and the rules that
//! have not decided yet, for people and for `kubectl pristine`. It contains certificates, which are public, and no key.
//! Pure.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

pub mod publisher;

/// The annotation of a replica's own pod. A ValidatingAdmissionPolicy reserves it for Pristine.
pub const REPLICA: &str = "pristine/replica";

/// Rules of which the status says that they have not decided: an annotation has room for some 250 KiB, and the chain must
/// always fit.
const MAX_RULES: usize = 100;

/// The annotation's value.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReplicaStatus {
    /// Version of the program.
    pub version: String,
    /// The chain that is served, leaf first, as DER in base64.
    chain: Vec<String>,
    /// The rules in force that have not decided on this replica, with the time since which they are in force: the first
    /// hundred by name. None from a version that does not publish them.
    #[serde(default, rename = "undecidedRules", skip_serializing_if = "Option::is_none")]
    pub undecided: Option<BTreeMap<String, Timestamp>>,
}

impl ReplicaStatus {
    /// The status of this program, which serves this chain, and whose rules `undecided` have not decided yet.
    #[must_use]
    pub fn new(chain: &[CertificateDer<'_>], undecided: BTreeMap<String, Timestamp>) -> Self {
        let chain = chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect();
        let undecided = Some(undecided.into_iter().take(MAX_RULES).collect());
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), chain, undecided }
    }

    /// The value of the annotation.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("strings serialise")
    }

    /// Parses the value of the annotation.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The chain that is served, leaf first.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().filter_map(|text| BASE64_STANDARD.decode(text).ok()).map(CertificateDer::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_status_can_be_parsed() {
        let since: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let rules = BTreeMap::from([("backups".to_owned(), since)]);
        let chain = [CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])];
        let status = ReplicaStatus::new(&chain, rules.clone());
        let read = ReplicaStatus::parse(&status.to_text()).unwrap();
        assert_eq!(read.chain(), [CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])]);
        assert_eq!((read.version.as_str(), ReplicaStatus::parse("{}")), (env!("CARGO_PKG_VERSION"), None));
        assert_eq!(read.undecided, Some(rules));
        let earlier = ReplicaStatus::parse(r#"{"version":"0.0.9","chain":["AQI="]}"#).unwrap();
        assert_eq!((earlier.undecided, earlier.chain.len()), (None, 1));
    }

    #[test]
    fn the_chain_fits_however_many_rules_have_not_decided() {
        let names = (0..20_000).map(|n| (format!("{n:05}{}", "\u{1}".repeat(58)), Timestamp::MAX));
        let status = ReplicaStatus::new(&[CertificateDer::from(vec![0; 2000])], names.collect());
        assert!(status.to_text().len() < 64 * 1024, "{}", status.to_text().len());
        assert_eq!(status.undecided.map(|rules| rules.len()), Some(MAX_RULES));
    }
}
