//! Creates CAs and issues serving certificates. Pure, except for random keys and serial numbers. The only module that
//! uses rcgen, and the only one that signs with the key of a CA.
//!
//! The profile is for the strictest verifier, Go in the API server: it checks the validity and path length of roots,
//! rejects a critical extension that it does not know, and compares only the subject alternative names, never the
//! common name.

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

/// Why a certificate could not be created.
#[derive(Debug, thiserror::Error)]
#[error("cannot create a certificate")]
pub struct Error(#[from] rcgen::Error);

/// A private key in PEM. It is written to the Secret and nowhere else, and `Debug` does not print it.
#[derive(Clone, Eq, PartialEq)]
pub struct Key(pub String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// A CA: a certificate that signs others, and its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ca {
    /// The self-signed certificate.
    pub certificate: Certificate,
    /// Its private key.
    pub key: Key,
}

/// A serving certificate with its key, which exists only in memory.
pub struct Leaf {
    /// The leaf, and behind it the issuer signed by its predecessor, if it had one.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
    /// The leaf.
    pub certificate: Certificate,
}

impl Ca {
    /// A CA from the Secret.
    ///
    /// # Errors
    /// If the key cannot be parsed or does not belong to the certificate.
    pub fn new(certificate: Certificate, key: Key) -> Result<Self, String> {
        let pair = KeyPair::from_pem(&key.0).map_err(|error| format!("not a private key: {error}"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate.der).map_err(|error| error.to_string())?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err("the key does not belong to the certificate".to_owned());
        }
        Ok(Self { certificate, key })
    }

    /// Creates a CA for these names, and with a `predecessor` also the same CA signed by that one.
    ///
    /// # Errors
    /// If rcgen fails.
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
        // Each CA has a subject of its own: with equal subjects Go tries every root and reports the wrong one.
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

    /// Signs the successor, with the successor's subject and key: the cross-signed certificate.
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

    /// Issues a serving certificate for these names with a new key. It ends with the CA at the latest.
    ///
    /// # Errors
    /// If rcgen fails.
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
        // As old as the issuer: it costs nothing, and no API server's clock, and no step of ours, makes it too young.
        params.not_before = time(self.certificate.not_before);
        params.not_after = time(after(now, life).min(self.certificate.not_after));
        params.serial_number = Some(serial());
        let leaf = certificate(params.signed_by(&key, &self.issuer()?)?.der().clone());
        let chain = [Some(&leaf), cross].into_iter().flatten().map(|c| c.der.clone()).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Leaf { chain, key, certificate: leaf })
    }
}

fn certificate(der: CertificateDer<'static>) -> Certificate {
    Certificate::from_der(der).expect("a certificate created a moment ago is valid DER")
}

/// At most 20 bytes and positive (RFC 5280, 4.1.2.2), and never used twice: rcgen's default repeats with the same key.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x01;
    SerialNumber::from_slice(&bytes)
}

/// With these, a stolen key of the CA can sign for our own names only. A list of permitted DNS names does not restrict
/// IP addresses (RFC 5280, 4.2.1.10), so those are excluded.
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

/// The time in whole seconds, as X.509 has it.
fn time(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
