//! Makes certificates. The only place where rcgen is used, and where a private key is handled outside the Secret.
//!
//! The profile is for the strictest reader, Go in the API server: validity and path length of roots are checked there,
//! a critical extension it does not know is refused, and only names count, never the common name.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::{Certificate, Lifetimes, after, before};

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate")]
pub struct Error(#[from] rcgen::Error);

/// A private key in PEM. Never shown; written to the Secret and nowhere else.
#[derive(Clone, Eq, PartialEq)]
pub struct Key(pub String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A certificate that signs others, and its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ca {
    /// Self-signed.
    pub certificate: Certificate,
    /// Its private key.
    pub key: Key,
}

/// A serving certificate with its key, fresh from memory.
pub struct Leaf {
    /// The leaf, and behind it the active CA signed by its predecessor, if it had one.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
    /// The leaf.
    pub certificate: Certificate,
}

impl Ca {
    /// A stored CA.
    ///
    /// # Errors
    /// When the key is unreadable or not the certificate's.
    pub fn new(certificate: Certificate, key: Key) -> Result<Self, String> {
        let pair = KeyPair::from_pem(&key.0).map_err(|error| format!("not a private key: {error}"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate.der).map_err(|error| error.to_string())?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err("the key is not the certificate's".to_owned());
        }
        Ok(Self { certificate, key })
    }

    /// Makes a new CA for these names. With `predecessor` also the same CA signed by that one.
    ///
    /// # Errors
    /// When rcgen refuses.
    pub fn create(
        generation: u64,
        names: &[String],
        life: Duration,
        now: Timestamp,
        predecessor: Option<&Self>,
    ) -> Result<(Self, Option<Certificate>), Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Each generation has a subject of its own: with equal subjects Go tries every root and reports the wrong one.
        let subject = format!("pristine-ca-{generation}-{:08x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, subject);
        // Go counts the intermediates below a root: B signed by A is one.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = Some(constraints(names));
        params.use_authority_key_identifier_extension = true;
        params.not_before = time(before(now, Lifetimes::backdate(life)));
        params.not_after = time(after(now, life));
        params.serial_number = Some(serial());
        let certificate = certificate(params.self_signed(&key)?.der().clone());
        let cross = predecessor.map(|a| a.sign(params, &key, &certificate)).transpose()?;
        Ok((Self { certificate, key: Key(key.serialize_pem()) }, cross))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        Ok(Issuer::from_ca_cert_der(&self.certificate.der, KeyPair::from_pem(&self.key.0)?)?)
    }

    /// The successor with its own subject and key, signed by this CA.
    fn sign(
        &self,
        mut params: CertificateParams,
        key: &KeyPair,
        successor: &Certificate,
    ) -> Result<Certificate, Error> {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.serial_number = Some(serial());
        params.not_before = time(successor.not_before.max(self.certificate.not_before));
        params.not_after = time(successor.not_after.min(self.certificate.not_after));
        Ok(certificate(params.signed_by(key, &self.issuer()?)?.der().clone()))
    }

    /// Mints a serving certificate for these names with a new key; it ends with the CA at the latest.
    ///
    /// # Errors
    /// When rcgen refuses.
    pub fn issue(
        &self,
        names: &[String],
        life: Duration,
        now: Timestamp,
        cross: Option<&Certificate>,
    ) -> Result<Leaf, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = dns_names(names)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = time(before(now, Lifetimes::backdate(life)).max(self.certificate.not_before));
        params.not_after = time(after(now, life).min(self.certificate.not_after));
        params.serial_number = Some(serial());
        let leaf = certificate(params.signed_by(&key, &self.issuer()?)?.der().clone());
        let chain = [Some(&leaf), cross].into_iter().flatten().map(|c| c.der.clone()).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Leaf { chain, key, certificate: leaf })
    }
}

fn certificate(der: CertificateDer<'static>) -> Certificate {
    Certificate::from_der(der).expect("a certificate made a moment ago is readable")
}

/// At most 20 bytes and positive (RFC 5280, 4.1.2.2), and never used twice: rcgen's default repeats for the same key.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x01;
    SerialNumber::from_slice(&bytes)
}

/// A stolen key of the CA is good for our own names only. A list of permitted DNS names says nothing about IP
/// addresses (RFC 5280, 4.2.1.10), so those are excluded.
fn constraints(names: &[String]) -> NameConstraints {
    NameConstraints {
        permitted_subtrees: names.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    }
}

fn dns_names(names: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    names.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?))).collect()
}

/// X.509 has whole seconds.
fn time(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
