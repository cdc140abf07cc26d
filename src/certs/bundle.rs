//! `caBundle` of the webhook configuration: the roots that API servers trust, as PEM. Pure.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

use super::Certificate;

/// More bytes than this are not parsed: PEM decoders of this field have been quadratic (CVE-2024-12401), and ours
/// contains two certificates of half a kilobyte.
pub const MAX_BYTES: usize = 256 * 1024;

/// The roots as PEM, in the given order. All replicas must write the same bytes, or they would overwrite each other
/// endlessly. So the text contains no time, no comment, and nothing that is not in the Secret.
#[must_use]
pub fn pem<'a>(roots: impl IntoIterator<Item = &'a Certificate>) -> String {
    roots.into_iter().map(|root| certificate_pem(&root.der)).collect()
}

fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Whether an API server with this bundle trusts one of these roots now.
#[must_use]
pub fn trusts(bundle: &[u8], roots: &[&Certificate], now: Timestamp) -> bool {
    if bundle.len() > MAX_BYTES {
        return false;
    }
    // Entries that do not parse are skipped, as Go does.
    let trusted: Vec<_> = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect();
    roots.iter().any(|root| root.is_valid(now) && trusted.contains(&root.der))
}

/// Whether this bundle contains all of these roots, valid or not.
#[must_use]
pub fn contains(bundle: &[u8], roots: &[&Certificate]) -> bool {
    let present = certificates(bundle);
    roots.iter().all(|root| present.contains(root))
}

/// Every certificate of a bundle. Entries that do not parse are skipped, as Go does.
#[must_use]
pub fn certificates(bundle: &[u8]) -> Vec<Certificate> {
    if bundle.len() > MAX_BYTES {
        return Vec::new();
    }
    let all = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok);
    all.filter_map(|der| Certificate::from_der(der).ok()).collect()
}

/// Every certificate of these bundles that is valid now, once, in the order of their bytes, so that all replicas write
/// the same.
#[must_use]
pub fn merge<'a>(bundles: impl IntoIterator<Item = &'a [u8]>, now: Timestamp) -> String {
    let all = bundles.into_iter().filter(|bundle| bundle.len() <= MAX_BYTES);
    let all = all.flat_map(|bundle| CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect::<Vec<_>>());
    let mut valid: Vec<_> = all.filter_map(|der| Certificate::from_der(der).ok()).filter(|c| c.is_valid(now)).collect();
    valid.sort_by(|a, b| a.der.as_ref().cmp(b.der.as_ref()));
    valid.dedup_by(|a, b| a.der == b.der);
    pem(&valid)
}

/// Whether an API server with this bundle accepts this chain for this name now.
#[must_use]
pub fn verifies(bundle: &[u8], chain: &[CertificateDer<'_>], name: &str, now: Timestamp) -> bool {
    let (Some((leaf, rest)), Ok(name)) = (chain.split_first(), ServerName::try_from(name)) else { return false };
    let mut roots = RootCertStore::empty();
    // Go checks the validity of a root, webpki does not.
    let valid = merge([bundle], now);
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(valid.as_bytes()).filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0)));
    verifier.verify_server_cert(leaf, rest, &name, &[], now).is_ok()
}
