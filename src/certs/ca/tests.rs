use std::sync::Arc;

use rustls::{RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier};
use rustls_pki_types::{ServerName, UnixTime};
use x509_parser::prelude::*;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const NAME: &str = "pristine.pristine-system.svc";

fn names() -> Vec<String> {
    vec![NAME.to_owned()]
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn ca(generation: u64, predecessor: Option<&Ca>) -> (Ca, Option<Certificate>) {
    Ca::create(generation, &names(), 365 * DAY, now(), predecessor).unwrap()
}

/// Whether a client with these roots accepts this chain for this name.
fn accepts(roots: &[&Ca], leaf: &Leaf, name: &str, at: Timestamp) -> bool {
    let mut store = RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.certificate.der.clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.as_second().try_into().unwrap()));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(&leaf.chain[0], &leaf.chain[1..], &name, &[], at).is_ok()
}

#[test]
fn the_cross_signed_chain_is_accepted_with_the_old_root_the_new_root_or_both() {
    let (a, _) = ca(1, None);
    let (b, cross) = ca(2, Some(&a));
    let leaf_a = a.issue(&names(), 7 * DAY, now(), None).unwrap();
    let leaf_b = b.issue(&names(), 7 * DAY, now(), cross.as_ref()).unwrap();
    let bare_b = b.issue(&names(), 7 * DAY, now(), None).unwrap();
    for (roots, chain, expected) in [
        (&[&a][..], &leaf_a, true),
        (&[&a, &b], &leaf_a, true),
        (&[&b], &leaf_a, false),
        (&[&a], &leaf_b, true),
        (&[&a, &b], &leaf_b, true),
        (&[&b], &leaf_b, true),
        (&[&a], &bare_b, false),
    ] {
        assert_eq!(
            accepts(roots, chain, NAME, now()),
            expected,
            "{} roots, {} certificates",
            roots.len(),
            chain.chain.len()
        );
    }
}

#[test]
fn a_serving_certificate_is_good_for_its_name_and_time_only() {
    let (a, _) = ca(1, None);
    let leaf = a.issue(&names(), 7 * DAY, now(), None).unwrap();
    assert!(accepts(&[&a], &leaf, NAME, after(now(), Duration::from_secs(7 * 24 * 3600 - 1))));
    assert!(!accepts(&[&a], &leaf, NAME, after(now(), 7 * DAY + Duration::from_secs(1))));
    assert!(accepts(&[&a], &leaf, NAME, before(now(), Duration::from_secs(3599))));
    assert!(!accepts(&[&a], &leaf, NAME, before(now(), Duration::from_secs(3601))));
    assert!(!accepts(&[&a], &leaf, "pristine.other.svc", now()));
}

#[test]
fn a_stolen_ca_key_signs_for_our_names_only() {
    let (a, _) = ca(1, None);
    for name in ["kubernetes.default.svc", "10.96.0.1"] {
        // As a DNS name, an IP address is not even checked against the constraints.
        let leaf = a.issue(&[name.to_owned()], 7 * DAY, now(), None).unwrap();
        assert!(!accepts(&[&a], &leaf, name, now()), "{name}");
    }
}

#[test]
fn certificates_have_the_profile_that_go_checks() {
    let (a, _) = ca(1, None);
    let (b, cross) = ca(2, Some(&a));
    let cross = cross.unwrap();
    let leaf = b.issue(&names(), 7 * DAY, now(), Some(&cross)).unwrap().certificate;
    let parsed = |certificate: &Certificate| {
        X509Certificate::from_der(&certificate.der)
            .unwrap()
            .1
            .basic_constraints()
            .unwrap()
            .map(|e| (e.critical, e.value.ca, e.value.path_len_constraint))
    };
    assert_eq!(parsed(&a.certificate), Some((true, true, Some(1))));
    assert_eq!(parsed(&cross), Some((true, true, Some(0))));
    assert_eq!(parsed(&leaf), Some((true, false, None)));

    let (_, root) = X509Certificate::from_der(&b.certificate.der).unwrap();
    let (_, crossed) = X509Certificate::from_der(&cross.der).unwrap();
    let (_, end) = X509Certificate::from_der(&leaf.der).unwrap();
    assert_eq!(root.subject(), crossed.subject());
    assert_eq!(root.public_key().raw, crossed.public_key().raw);
    assert_ne!(a.certificate.serial, b.certificate.serial);
    assert_ne!(b.certificate.serial, cross.serial);
    assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(end.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(end.extended_key_usage().unwrap().unwrap().value.server_auth);
    let constraints = root.name_constraints().unwrap().unwrap();
    assert!(constraints.critical);
    assert_eq!(constraints.value.permitted_subtrees.as_ref().unwrap()[0].base, GeneralName::DNSName(NAME));
    assert_eq!(constraints.value.excluded_subtrees.as_ref().unwrap().len(), 2);
    let names = &end.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &vec![GeneralName::DNSName(NAME)]);
    for certificate in [&root, &crossed, &end] {
        let serial = certificate.raw_serial();
        assert!(serial.len() <= 20 && serial[0] < 0x80 && serial[0] > 0, "{serial:?}");
    }
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let (a, _) = Ca::create(1, &names(), DAY, now(), None).unwrap();
    let leaf = a.issue(&names(), 7 * DAY, now(), None).unwrap();
    assert_eq!(leaf.certificate.not_after, a.certificate.not_after);
    let later = after(now(), DAY / 2);
    let (b, cross) = Ca::create(2, &names(), DAY, later, Some(&a)).unwrap();
    assert_eq!(cross.unwrap().not_after, a.certificate.not_after);
    assert!(b.certificate.not_after > a.certificate.not_after);
}

#[test]
fn a_ca_with_the_key_of_another_ca_is_rejected() {
    let ((a, _), (b, _)) = (ca(1, None), ca(2, None));
    assert_eq!(Ca::new(a.certificate.clone(), a.key.clone()).unwrap(), a);
    assert_eq!(Ca::new(a.certificate.clone(), b.key).unwrap_err(), "the key does not belong to the certificate");
    assert!(Ca::new(a.certificate, Key("garbage".into())).unwrap_err().starts_with("not a private key"));
}

#[test]
fn debug_output_contains_no_key() {
    let (a, _) = ca(1, None);
    assert!(!format!("{a:?}").contains("BEGIN"), "{a:?}");
}
