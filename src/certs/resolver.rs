//! Gives rustls the newest serving certificate. Open connections keep theirs; nothing is closed by a renewal.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::ca::Leaf;

/// The certificate being served; empty until the first one is issued, and then handshakes fail.
#[derive(Clone, Default)]
pub struct Resolver(Arc<ArcSwapOption<CertifiedKey>>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// Serves this certificate from the next handshake on.
    ///
    /// # Errors
    /// When rustls does not take the key.
    pub fn serve(&self, leaf: Leaf) -> Result<(), rustls::Error> {
        let key = rustls::crypto::ring::sign::any_supported_type(&leaf.key)?;
        self.0.store(Some(Arc::new(CertifiedKey::new(leaf.chain, key))));
        Ok(())
    }
}

impl Resolver {
    /// The chain being served.
    #[must_use]
    pub fn current(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.0.load().as_ref().map(|key| key.cert.clone())
    }

    /// Whether the key is the chain's.
    ///
    /// # Errors
    /// When it is not, or rustls does not take it.
    pub fn check(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<(), rustls::Error> {
        let key = rustls::crypto::ring::sign::any_supported_type(key)?;
        CertifiedKey::new(chain.to_vec(), key).keys_match()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}
