//! Certificates brought along in a mounted directory, changed as kubelet changes it.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use pristine::{
    api::{
        Context,
        link::Link,
        webhook::{Names, watch::ConfigurationWatch, writer::Writer},
    },
    audit_log::AuditLog,
    certs::{bundle, ca::Ca, mounted::Mounted, objects::Objects, resolver::Resolver, secret_path::SecretPath},
    clock::Clock,
    server::readiness::Readiness,
    telemetry::Metrics,
};
use rustls_pki_types::CertificateDer;
use serde_json::json;

use crate::{
    common::{eventually, https},
    fake::Fake,
};

/// Somebody's PKI: a CA, and a pair of files by it.
struct Pki {
    ca: Ca,
}

impl Pki {
    fn new() -> Self {
        #[allow(clippy::disallowed_methods)]
        let now = Timestamp::now();
        let names = [https::NAME.to_owned()];
        Self { ca: Ca::create(1, &names, Duration::from_secs(90_000), now, None).unwrap().0 }
    }

    fn ca(&self) -> String {
        bundle::pem([&self.ca.certificate])
    }

    /// tls.crt and tls.key, and what is in the first.
    fn pair(&self) -> (String, String, CertificateDer<'static>) {
        #[allow(clippy::disallowed_methods)]
        let now = Timestamp::now();
        let leaf = self.ca.issue(&[https::NAME.to_owned()], Duration::from_secs(9000), now, None).unwrap();
        let key = BASE64_STANDARD.encode(leaf.key.secret_der());
        let key = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
        (bundle::pem([&leaf.certificate]), key, leaf.certificate.der)
    }
}

/// What kubelet does: a new directory, and the link to it swapped by a rename.
fn swap(mount: &Path, version: usize, files: &[(&str, &str)]) {
    let folder = format!("..{version}");
    fs::create_dir(mount.join(&folder)).unwrap();
    for (name, text) in files {
        fs::write(mount.join(&folder).join(name), text).unwrap();
        if !mount.join(name).is_symlink() {
            symlink(format!("..data/{name}"), mount.join(name)).unwrap();
        }
    }
    symlink(&folder, mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
}

struct World {
    mount: tempfile::TempDir,
    fake: Fake,
    resolver: Resolver,
    metrics: Arc<Metrics>,
    ready: Readiness,
}

fn world(bundle: &str, hold: Duration) -> World {
    let mount = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let target = json!({"service": {"name": "pristine", "namespace": "pristine-system"}, "caBundle": BASE64_STANDARD.encode(bundle)});
    let entry =
        |name| json!({"name": name, "clientConfig": target, "sideEffects": "None", "admissionReviewVersions": ["v1"]});
    let webhooks = json!([entry("a"), entry("b")]);
    fake.state().configuration =
        Some(json!({"metadata": {"name": "pristine", "resourceVersion": "1"}, "webhooks": webhooks}));
    let metrics = Arc::new(Metrics::default());
    let (context, publish) =
        Context::new(fake.client(), "test", Clock::system(), AuditLog::stdout(), metrics.clone(), Link::default());
    tokio::spawn(publish);
    let [namespace, service, configuration] = ["pristine-system", "pristine", "pristine"].map(str::to_owned);
    let names = Names { configuration, service, namespace };
    let (changes, seen) = ConfigurationWatch::new(fake.client(), names.clone());
    tokio::spawn(changes.run());
    let ready = Readiness::default();
    let resolver = Resolver::default();
    let mounted = Mounted {
        directory: mount.path().to_owned(),
        objects: Objects::new(fake.client(), "unused".to_owned(), Writer::new(fake.client(), names), seen),
        hold,
        about: ObjectReference::default(),
        context,
        resolver: resolver.clone(),
        ready: ready.clone(),
    };
    let (path, _key) = SecretPath::new(Duration::from_secs(86_400), Arc::default());
    tokio::spawn(mounted.run(path));
    World { mount, fake, resolver, metrics, ready }
}

impl World {
    async fn serves(&self, leaf: &CertificateDer<'static>) {
        eventually("the new certificate is served", 5, || async {
            self.resolver.current().filter(|served| served[0] == *leaf).map(drop)
        })
        .await;
    }

    fn bundle(&self) -> String {
        let text = self.fake.state().configuration.as_ref().unwrap()["webhooks"][0]["clientConfig"]["caBundle"].clone();
        String::from_utf8(BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap()).unwrap()
    }
}

#[tokio::test]
async fn every_new_certificate_is_served_and_ca_crt_becomes_the_ca_bundle() {
    let pki = Pki::new();
    let world = world("", Duration::from_millis(100));
    for version in 0..3 {
        let (crt, key, leaf) = pki.pair();
        swap(world.mount.path(), version, &[("tls.crt", &crt), ("tls.key", &key), ("ca.crt", &pki.ca())]);
        world.serves(&leaf).await;
    }
    assert_eq!(world.bundle(), pki.ca());
    eventually("the replica is ready", 5, || async { world.ready.get().ok() }).await;

    // Another CA: both are trusted, because other replicas still serve by the first.
    let other = Pki::new();
    let (crt, key, leaf) = other.pair();
    swap(world.mount.path(), 9, &[("tls.crt", &crt), ("tls.key", &key), ("ca.crt", &other.ca())]);
    world.serves(&leaf).await;
    assert!(world.bundle().contains(&pki.ca()) && world.bundle().contains(&other.ca()));
}

#[tokio::test]
async fn an_invalid_certificate_pair_never_replaces_the_served_one() {
    let pki = Pki::new();
    let world = world(&pki.ca(), Duration::from_millis(100));
    let (crt, key, leaf) = pki.pair();
    swap(world.mount.path(), 0, &[("tls.crt", &crt), ("tls.key", &key)]);
    world.serves(&leaf).await;
    let (other, other_key, _) = pki.pair();
    let bad = [(other.as_str(), key.as_str()), ("garbage", "garbage"), (&other[..100], other_key.as_str()), ("", "")];
    for (n, (crt, key)) in bad.iter().enumerate() {
        swap(world.mount.path(), n + 1, &[("tls.crt", crt), ("tls.key", key)]);
        let refused = format!("pristine_certificate_steps_total{{result=\"refused\"}} {}", n + 1);
        // One complaint for each kind of wrong; two in a row with the same words are one.
        let _ = tokio::time::timeout(Duration::from_millis(600), async {
            while !world.metrics.render().contains(&refused) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        world.serves(&leaf).await;
    }
    assert!(world.metrics.render().contains("result=\"refused\"}"), "{}", world.metrics.render());
}

#[tokio::test]
async fn a_certificate_is_not_served_until_the_injected_ca_bundle_trusts_it() {
    let (first, second) = (Pki::new(), Pki::new());
    let world = world(&first.ca(), Duration::from_millis(100));
    let (crt, key, leaf) = first.pair();
    swap(world.mount.path(), 0, &[("tls.crt", &crt), ("tls.key", &key)]);
    world.serves(&leaf).await;
    let (crt, key, next) = second.pair();
    swap(world.mount.path(), 1, &[("tls.crt", &crt), ("tls.key", &key)]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    world.serves(&leaf).await;
    assert_eq!(world.bundle(), first.ca(), "the bundle is somebody else's");
    let configuration = world.fake.state().configuration.clone().unwrap();
    let path = |entry: usize| configuration["webhooks"][entry]["clientConfig"]["service"]["path"].clone();
    assert!(path(0).as_str().is_some_and(|path| path.starts_with("/review/")) && path(0) == path(1), "{configuration}");
    assert_eq!(configuration["metadata"]["ownerReferences"][0]["uid"], "namespace-uid", "{configuration}");
    // Another client takes away the path of one entry, and then the owner: each comes back alone.
    for taken in ["/webhooks/1/clientConfig/service/path", "/metadata/ownerReferences"] {
        let nothing = if taken.ends_with("path") { json!("") } else { json!([]) };
        *world.fake.state().configuration.as_mut().unwrap().pointer_mut(taken).unwrap() = nothing;
        fs::write(world.mount.path().join("hint"), taken).unwrap();
        eventually(taken, 5, || async {
            let restored = world.fake.state().configuration.clone();
            (restored?.pointer(taken) == configuration.pointer(taken)).then_some(())
        })
        .await;
    }
    for entry in world.fake.state().configuration.as_mut().unwrap()["webhooks"].as_array_mut().unwrap() {
        entry["clientConfig"]["caBundle"] = json!(BASE64_STANDARD.encode(second.ca()));
    }
    // The fake has no watch: a change in the directory is the hint.
    fs::write(world.mount.path().join("hint"), "").unwrap();
    world.serves(&next).await;
}

fn refused(times: u32) -> String {
    format!("pristine_certificate_steps_total{{result=\"refused\"}} {times}")
}

#[tokio::test]
async fn a_ca_crt_that_disappears_is_refused_and_changes_nothing() {
    let pki = Pki::new();
    let world = world("", Duration::from_millis(100));
    let (crt, key, leaf) = pki.pair();
    swap(world.mount.path(), 0, &[("tls.crt", &crt), ("tls.key", &key), ("ca.crt", &pki.ca())]);
    world.serves(&leaf).await;
    let (crt, key, _) = pki.pair();
    swap(world.mount.path(), 1, &[("tls.crt", &crt), ("tls.key", &key)]);
    fs::remove_file(world.mount.path().join("ca.crt")).unwrap();
    eventually("the directory is refused", 5, || async { world.metrics.render().contains(&refused(1)).then_some(()) })
        .await;
    assert_eq!(world.bundle(), pki.ca());
    world.serves(&leaf).await;
}

#[tokio::test]
async fn an_answer_of_the_api_server_is_no_refused_certificate() {
    let pki = Pki::new();
    let world = world(&pki.ca(), Duration::from_millis(100));
    world.fake.state().configuration = Some(json!({"metadata": "garbage"}));
    let (crt, key, _) = pki.pair();
    swap(world.mount.path(), 0, &[("tls.crt", &crt), ("tls.key", &key)]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(world.metrics.render().contains(&refused(0)), "{}", world.metrics.render());
}
