//! The configuration as kubelet changes it: a swapped symlink in a mounted directory.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use pristine::{
    api::{Context, link::Link},
    audit_log::AuditLog,
    clock::Clock,
    config::{
        self,
        policy::{Policy, Verdict},
        reload::Reload,
    },
    telemetry::Metrics,
};
use tokio::sync::watch;

use crate::fake::Fake;

fn text(ttl: u32) -> String {
    format!("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {{action: Evict, ttl: {ttl}s}}\n")
}

/// What kubelet does: a new directory, and the link to it swapped by a rename.
fn swap(mount: &Path, version: u32, text: &str) {
    let folder = format!("..{version}");
    fs::create_dir(mount.join(&folder)).unwrap();
    fs::write(mount.join(&folder).join("pristine.yaml"), text).unwrap();
    symlink(&folder, mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
}

async fn becomes(rules: &mut watch::Receiver<Arc<Policy>>, ttl: u64) {
    let wanted = Verdict::Mark(pristine::mark::Disposition::Evict(Duration::from_secs(ttl)));
    let changed = rules.wait_for(|policy| policy.default == wanted);
    tokio::time::timeout(Duration::from_secs(5), changed).await.expect("the new rules within seconds").unwrap();
}

#[tokio::test]
async fn every_changed_configuration_is_loaded_and_an_invalid_one_is_rejected() {
    let mount = tempfile::tempdir().unwrap();
    swap(mount.path(), 0, &text(1));
    symlink("..data/pristine.yaml", mount.path().join("pristine.yaml")).unwrap();
    let path = mount.path().join("pristine.yaml");
    let metrics = Arc::new(Metrics::default());
    let first = text(1);
    let (policy, mut rules) = watch::channel(Arc::new(config::load(&path).unwrap().policy));
    let (eviction, _) = watch::channel(pristine::eviction::Settings::default());
    let (context, publish) = Context::new(
        Fake::default().client(),
        "test",
        Clock::system(),
        AuditLog::stdout(),
        metrics.clone(),
        Link::default(),
    );
    tokio::spawn(publish);
    let reload = Reload { path, text: first, policy, eviction, about: ObjectReference::default(), context };
    tokio::spawn(reload.run());
    tokio::time::sleep(Duration::from_millis(200)).await;

    for n in 2..=4 {
        swap(mount.path(), n, &text(n));
        becomes(&mut rules, n.into()).await;
    }
    swap(mount.path(), 5, "default: nonsense");
    let refused = r#"pristine_configuration_reloads_total{result="refused"} 1"#;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if metrics.render().contains(refused) {
            break;
        }
    }
    assert!(metrics.render().contains(refused), "{}", metrics.render());
    becomes(&mut rules, 4).await;
    swap(mount.path(), 6, &text(6));
    becomes(&mut rules, 6).await;
}
