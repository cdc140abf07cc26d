//! Reads the configuration again when its file changes; what is wrong is refused, and the old rules stay.
//!
//! The directory is watched, not the file: kubelet swaps the symlink `..data`, and a watch on the file would go dead
//! with the first swap. Events are hints only; the text decides, and it is also looked at now and then.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::EventType;
use notify::{RecursiveMode, Watcher as _};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    config,
    events::Events,
    policy::Policy,
    telemetry::{Metrics, Reason},
};

/// Should the hints fail: inotify instances are limited, and some file systems have none.
const POLL: Duration = Duration::from_secs(30);
/// A swap is several events.
const SETTLE: Duration = Duration::from_millis(100);

/// Keeps the rules in force those of the file.
pub struct Reload {
    /// The file.
    pub path: PathBuf,
    /// Gets the new rules.
    pub policy: watch::Sender<Arc<Policy>>,
    /// Where Events go.
    pub events: Events,
    /// Our own pod, which the Events are about.
    pub about: ObjectReference,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Reload {
    /// Runs until the process ends.
    pub async fn run(self) {
        let changed = Arc::new(Notify::new());
        let folder = self.path.parent().unwrap_or_else(|| Path::new("/"));
        let hint = changed.clone();
        let watching = notify::recommended_watcher(move |_| hint.notify_one()).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watching {
            tracing::warn!(%error, "the configuration's directory cannot be watched; it is looked at every {POLL:?}");
        }
        let mut known = config::read(&self.path).ok();
        loop {
            if timeout(POLL, changed.notified()).await.is_ok() {
                sleep(SETTLE).await;
            }
            let text = config::read(&self.path);
            if text.as_ref().ok() == known.as_ref() {
                continue;
            }
            let parsed = text.and_then(|text| {
                let policy = config::parse(&self.path.display().to_string(), &text);
                known = Some(text);
                policy
            });
            match parsed {
                Ok(policy) => {
                    tracing::info!(rules = policy.rules.len(), "new configuration");
                    self.policy.send_replace(Arc::new(policy));
                    self.tell("accepted", EventType::Normal, "ConfigurationReloaded", "new rules are in force");
                }
                Err(error) => {
                    let note = format!("{error}; the rules before it stay in force");
                    tracing::error!(note, "configuration refused");
                    self.tell("refused", EventType::Warning, "ConfigurationRefused", &note);
                    // Said once, not at every poll.
                    known = known.or_else(|| Some(String::new()));
                }
            }
        }
    }

    fn tell(&self, reason: &'static str, type_: EventType, event: &'static str, note: &str) {
        self.metrics.reloads.get_or_create(&Reason { reason }).inc();
        self.events.tell(self.about.clone(), type_, event, "Reload", note);
    }
}
