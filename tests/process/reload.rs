//! The configuration as kubelet changes it: a swapped symlink in a mounted directory.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use pristine::{
    api::{Context, link::Link},
    audit_log::AuditLog,
    clock::Clock,
    config::{
        policy::{Policy, Verdict},
        reload::{Reload, count_decisions},
        source::Source,
    },
    telemetry::Metrics,
};
use tokio::sync::watch;

use crate::{fake::Fake, harness::decisions};

fn text(ttl: u32) -> String {
    format!("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {{action: Evict, ttl: {ttl}s}}\n")
}

/// What kubelet does: a new directory, and the link to it swapped by a rename; then the links to its files.
fn swap(mount: &Path, version: u32, file: Option<(&str, &str)>) {
    let folder = format!("..{version}");
    fs::create_dir(mount.join(&folder)).unwrap();
    if let Some((name, text)) = file {
        fs::write(mount.join(&folder).join(name), text).unwrap();
    }
    symlink(&folder, mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    for name in ["pristine.yaml", "config.yaml"] {
        let link = mount.join(name);
        match file {
            Some((there, _)) if there == name => drop(symlink(Path::new("..data").join(name), link)),
            _ => drop(fs::remove_file(link)),
        }
    }
}

/// A replica that follows the file in this directory.
struct Replica {
    mount: tempfile::TempDir,
    policy: watch::Receiver<Arc<Policy>>,
    metrics: Arc<Metrics>,
    fake: Fake,
}

impl Replica {
    async fn start(first: Option<(&str, &str)>) -> Self {
        let mount = tempfile::tempdir().unwrap();
        swap(mount.path(), 0, first);
        let source = Source::optional(mount.path().join("pristine.yaml"));
        let (metrics, fake) = (Arc::new(Metrics::default()), Fake::default());
        let text = source.read().unwrap();
        let (policy, rules) = watch::channel(Arc::new(text.parse().unwrap().policy));
        count_decisions(&metrics, &rules.borrow(), None, Clock::system().now());
        let (eviction, _) = watch::channel(pristine::eviction::Settings::default());
        let (context, publish) =
            Context::new(fake.client(), "test", Clock::system(), AuditLog::stdout(), metrics.clone(), Link::default());
        tokio::spawn(publish);
        let about = ObjectReference { name: Some("pristine-0".to_owned()), ..ObjectReference::default() };
        let reload = Reload { source, text, policy, eviction, about, context };
        tokio::spawn(reload.run());
        tokio::time::sleep(Duration::from_millis(200)).await;
        Self { mount, policy: rules, metrics, fake }
    }

    fn change(&self, version: u32, file: Option<(&str, &str)>) {
        swap(self.mount.path(), version, file);
    }

    async fn evicts_after(&mut self, ttl: u64) {
        let wanted = Verdict::Mark(pristine::mark::Disposition::Evict(Duration::from_secs(ttl)));
        let changed = self.policy.wait_for(|policy| policy.default == wanted);
        tokio::time::timeout(Duration::from_secs(5), changed).await.expect("the new rules within seconds").unwrap();
    }

    async fn counts(&self, result: &str, count: u32) {
        let line = format!("pristine_configuration_reloads_total{{result=\"{result}\"}} {count}\n");
        self.eventually(&line, || self.metrics.render().contains(&line)).await;
    }

    /// The Events with this reason.
    async fn publishes(&self, reason: &str) -> Vec<String> {
        let notes = || {
            let events = self.fake.state().events.clone();
            let found = events.iter().filter(|event| event["reason"] == reason);
            found
                .map(|event| format!("{} {}", event["type"].as_str().unwrap(), event["note"].as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        self.eventually(reason, || !notes().is_empty()).await;
        notes()
    }

    async fn eventually(&self, what: &str, is_true: impl Fn() -> bool) {
        for _ in 0..50 {
            if is_true() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never: {what}\n{}", self.metrics.render());
    }
}

fn file(text: &str) -> (&str, &str) {
    ("pristine.yaml", text)
}

#[tokio::test]
async fn every_changed_configuration_is_loaded_and_an_invalid_one_is_rejected() {
    let mut replica = Replica::start(Some(file(&text(1)))).await;
    for n in 2..=4 {
        replica.change(n, Some(file(&text(n))));
        replica.evicts_after(n.into()).await;
    }
    replica.change(5, Some(file("default: nonsense")));
    replica.counts("refused", 1).await;
    replica.evicts_after(4).await;
    replica.change(6, Some(file(&text(6))));
    replica.evicts_after(6).await;
}

#[tokio::test]
async fn a_config_map_that_appears_replaces_the_built_in_rules_and_one_that_is_deleted_brings_them_back() {
    let mut replica = Replica::start(None).await;
    replica.evicts_after(600).await;
    assert_eq!(replica.policy.borrow().rules.len(), 2, "kube-system and machines");
    replica.change(1, Some(file(&text(1))));
    replica.evicts_after(1).await;
    let note = "Normal 0 rules and a default are in force";
    assert_eq!(replica.publishes("ConfigurationReloaded").await, [note]);

    replica.change(2, None);
    replica.evicts_after(600).await;
    assert_eq!(replica.policy.borrow().rules.len(), 2);
    let note =
        "Warning the file does not exist any more, so the built-in configuration is in force: 2 rules and a default";
    assert_eq!(replica.publishes("ConfigurationDeleted").await, [note]);
    assert!(replica.metrics.render().contains("pristine_configuration_valid 1"));
    replica.change(3, Some(file(&text(3))));
    replica.evicts_after(3).await;
    replica.counts("accepted", 3).await;
}

#[tokio::test]
async fn a_config_map_with_another_key_does_not_bring_the_built_in_rules_back() {
    let mut replica = Replica::start(Some(file(&text(1)))).await;
    replica.change(1, Some(("config.yaml", &text(2))));
    replica.counts("refused", 1).await;
    replica.evicts_after(1).await;
    let notes = replica.publishes("ConfigurationRefused").await;
    assert!(
        notes[0].contains("has no pristine.yaml, but config.yaml: the key of the ConfigMap must be pristine.yaml"),
        "{notes:?}"
    );
    assert!(notes[0].ends_with("the previous configuration stays in force"), "{notes:?}");
}

#[tokio::test]
async fn a_reload_keeps_the_counts_of_unchanged_rules_and_starts_those_of_others_at_zero() {
    let with = |ttl, rules: &str| format!("{}rules: [{rules}]\n", text(ttl));
    let same = "{name: same, match: {users: [a]}, action: Exempt}";
    let first = with(
        1,
        &format!("{same}, {{name: fixed, match: {{users: [velero]}}, action: Exempt}}, {{name: gone, action: Record}}"),
    );
    let mut replica = Replica::start(Some(file(&first))).await;
    for rule in ["same", "fixed", "gone", "default"] {
        replica.metrics.rules.decided(rule, Clock::system().now());
    }
    let second = with(
        2,
        &format!(
            "{{name: new, match: {{users: [b]}}, action: Exempt}}, {{name: fixed, match: {{users: [velero-server]}}, action: Exempt}}, {same}"
        ),
    );
    replica.change(1, Some(file(&second)));
    replica.evicts_after(2).await;
    let counts = |replica: &Replica| {
        let text = replica.metrics.render();
        ["same", "fixed", "gone", "new", "default"].map(|rule| decisions(&text, rule))
    };
    assert_eq!(counts(&replica), [Some(1), Some(0), None, Some(0), Some(1)]);
    assert!(replica.metrics.rules.undecided().keys().eq(["fixed", "new"]));
    // A file that is rejected changes nothing.
    replica.change(2, Some(file("default: nonsense")));
    replica.counts("refused", 1).await;
    assert_eq!(counts(&replica), [Some(1), Some(0), None, Some(0), Some(1)]);
}
