//! The certificates as OpenSSL sees them. Go, in the API server, sees them in tests/control_plane/rotation.rs; rustls in the unit tests.

use std::{fs, path::Path, process::Command, time::Duration};

use jiff::Timestamp;
use pristine::certs::{
    Certificate, bundle,
    ca::{Ca, Leaf},
};

const NAME: &str = "pristine.pristine-system.svc";

fn verify(folder: &Path, roots: &[&Certificate], leaf: &Leaf, name: &str) -> bool {
    let write = |file: &str, text: String| {
        fs::write(folder.join(file), text).unwrap();
        folder.join(file)
    };
    let roots = write("roots.pem", bundle::pem(roots.iter().copied()));
    let chain: Vec<Certificate> =
        leaf.chain[1..].iter().map(|der| Certificate::from_der(der.clone()).unwrap()).collect();
    let (chain, leaf) = (write("chain.pem", bundle::pem(&chain)), write("leaf.pem", bundle::pem([&leaf.certificate])));
    let mut command = Command::new("openssl");
    command.args([
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        name,
        "-no-CAfile",
        "-no-CApath",
    ]);
    command.arg("-trusted").arg(roots);
    if fs::metadata(&chain).unwrap().len() > 0 {
        command.arg("-untrusted").arg(chain);
    }
    command.arg(leaf).output().expect("openssl is installed").status.success()
}

#[test]
fn openssl_accepts_the_chains_of_the_old_and_the_new_ca() {
    #[allow(clippy::disallowed_methods)]
    let now = Timestamp::now();
    let names = [NAME.to_owned()];
    let (day, folder) = (Duration::from_secs(86_400), tempfile::tempdir().unwrap());
    let (a, _) = Ca::create(1, &names, 365 * day, now, None).unwrap();
    let (b, cross) = Ca::create(2, &names, 365 * day, now, Some(&a)).unwrap();
    let leaf_a = a.issue(&names, 7 * day, now, None).unwrap();
    let leaf_b = b.issue(&names, 7 * day, now, cross.as_ref()).unwrap();
    let bare_b = b.issue(&names, 7 * day, now, None).unwrap();
    let (a, b) = (&a.certificate, &b.certificate);
    for (roots, leaf, expected) in [
        (&[a][..], &leaf_a, true),
        (&[a, b], &leaf_a, true),
        (&[b], &leaf_a, false),
        (&[a], &leaf_b, true),
        (&[a, b], &leaf_b, true),
        (&[b], &leaf_b, true),
        (&[a], &bare_b, false),
    ] {
        assert_eq!(verify(folder.path(), roots, leaf, NAME), expected, "{} roots", roots.len());
    }
    assert!(!verify(folder.path(), &[a, b], &leaf_b, "kubernetes.default.svc"));
}
