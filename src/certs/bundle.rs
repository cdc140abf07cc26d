//! caBundle: which roots the API server is to trust, as PEM. Pure.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::Certificate;

/// More than this is not read: PEM decoders of this field have been quadratic (CVE-2024-12401), and ours holds two
/// certificates of half a kilobyte.
pub const MAX_BYTES: usize = 256 * 1024;

/// The roots as PEM, in the order given. All replicas must write the same bytes, else they would overwrite each other
/// for ever; so there is no time, no comment, and nothing from anywhere but the Secret.
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

/// Whether a caller with this bundle trusts one of these roots now.
#[must_use]
pub fn trusts(bundle: &[u8], roots: &[&Certificate], now: Timestamp) -> bool {
    if bundle.len() > MAX_BYTES {
        return false;
    }
    // As Go does: what does not parse is skipped.
    let trusted: Vec<_> = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect();
    roots.iter().any(|root| root.is_valid(now) && trusted.contains(&root.der))
}
