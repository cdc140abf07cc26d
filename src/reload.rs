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
    error::chain,
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
    /// Its text when it was read first.
    pub text: String,
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
        let notice = move |event: notify::Result<notify::Event>| {
            // Our own reading of the file is an event too.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                hint.notify_one();
            }
        };
        let watching = notify::recommended_watcher(notice).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watching {
            tracing::warn!(%error, "the configuration's directory cannot be watched; it is looked at every {POLL:?}");
        }
        let mut known = Ok(self.text);
        loop {
            if timeout(POLL, changed.notified()).await.is_ok() {
                sleep(SETTLE).await;
            }
            let text = config::read(&self.path).map_err(|error| chain(&error));
            if text == known {
                continue;
            }
            let parsed = text.as_ref().map_err(Clone::clone).and_then(|text| {
                config::parse(&self.path.display().to_string(), text).map_err(|error| error.to_string())
            });
            // What was refused is known too: it is said once, not at every look.
            known = text;
            let (reason, type_, event, note) = match parsed {
                Ok(policy) => {
                    let note = format!("{} rules and a default are in force", policy.rules.len());
                    self.policy.send_replace(Arc::new(policy));
                    ("accepted", EventType::Normal, "ConfigurationReloaded", note)
                }
                Err(error) => {
                    let note = format!("{error}; the rules before it stay in force");
                    ("refused", EventType::Warning, "ConfigurationRefused", note)
                }
            };
            tracing::info!(reason, note, "the configuration changed");
            self.metrics.reloads.get_or_create(&Reason { reason }).inc();
            self.events.tell(self.about.clone(), type_, event, "Reload", &note);
        }
    }
}
