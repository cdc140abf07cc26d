//! Gives rustls the newest serving certificate. A renewal closes no connection: open ones keep their certificate.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::ca::Leaf;

/// The certificate that is served. It is empty until the first one is issued, and handshakes fail until then.
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
    /// If rustls does not support the key.
    pub fn serve(&self, leaf: Leaf) -> Result<(), rustls::Error> {
        let key = rustls::crypto::ring::sign::any_supported_type(&leaf.key)?;
        self.0.store(Some(Arc::new(CertifiedKey::new(leaf.chain, key))));
        Ok(())
    }
}

impl Resolver {
    /// The chain that is served.
    #[must_use]
    pub fn current(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.0.load().as_ref().map(|key| key.cert.clone())
    }

    /// Checks that the key belongs to the first certificate of the chain.
    ///
    /// # Errors
    /// If it does not, or rustls does not support it.
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
