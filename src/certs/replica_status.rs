//! The replica status: an annotation on a replica's own pod with its version and the chain that it serves, for people
//! and for `kubectl pristine`. It contains certificates, which are public, and no key. Pure.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

pub mod publisher;

/// The annotation of a replica's own pod. A ValidatingAdmissionPolicy reserves it for Pristine.
pub const REPLICA: &str = "pristine/replica";

/// The annotation's value.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReplicaStatus {
    /// Version of the program.
    pub version: String,
    /// The chain that is served, leaf first, as DER in base64.
    chain: Vec<String>,
}

impl ReplicaStatus {
    /// The status of this program, which serves this chain.
    #[must_use]
    pub fn new(chain: &[CertificateDer<'_>]) -> Self {
        let chain = chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect();
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), chain }
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
        let status = ReplicaStatus::new(&[CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])]);
        let read = ReplicaStatus::parse(&status.to_text()).unwrap();
        assert_eq!(read.chain(), [CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])]);
        assert_eq!((read.version.as_str(), ReplicaStatus::parse("{}")), (env!("CARGO_PKG_VERSION"), None));
    }
}
