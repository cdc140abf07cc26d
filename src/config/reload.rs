//! Reads the configuration again when its file changes; what is wrong is refused, and the old rules stay. What wakes it
//! is a hint; the text decides.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;

use crate::{
    api::{Context, events::EventType},
    config::{
        self, Configuration,
        policy::{Policy, overlap},
    },
    dir_watch::DirWatch,
    error::chain,
    eviction::Settings,
    telemetry::Outcome,
};

/// Keeps the rules in force those of the file.
pub struct Reload {
    /// The file.
    pub path: PathBuf,
    /// Its text when it was read first.
    pub text: String,
    /// Gets the new rules.
    pub policy: watch::Sender<Arc<Policy>>,
    /// Gets how to evict.
    pub eviction: watch::Sender<Settings>,
    /// The clock, and where what is done is reported.
    pub context: Context,
    /// Our own pod, which the Events are about.
    pub about: ObjectReference,
}

impl Reload {
    /// Runs until the process ends.
    pub async fn run(self) {
        let folder = DirWatch::watch(self.path.parent().unwrap_or_else(|| Path::new("/")));
        let mut known = Ok(self.text);
        self.context.metrics.configuration_valid.set(1);
        loop {
            folder.changed().await;
            let text = config::read(&self.path).map_err(|error| chain(&error));
            if text == known {
                continue;
            }
            let parsed = text.as_ref().map_err(Clone::clone).and_then(|text| {
                config::parse(&self.path.display().to_string(), text).map_err(|error| error.to_string())
            });
            // What was refused is known too: it is said once, not at every look.
            known = text;
            let (result, type_, event, note) = match parsed {
                Ok(Configuration { policy, eviction }) => {
                    let note = format!("{} rules and a default are in force", policy.rules.len());
                    let dead = overlap::dead(&policy.rules).into_iter();
                    let dead = dead.map(|dead| format!("rule {:?} never decides: {}", dead.rule, dead.why));
                    let note = dead.fold(note, |note, dead| format!("{note}; {dead}"));
                    self.policy.send_replace(Arc::new(policy));
                    // Who is told of it looks at every marked pod anew.
                    self.eviction.send_if_modified(|old| std::mem::replace(old, eviction) != eviction);
                    ("accepted", EventType::Normal, "ConfigurationReloaded", note)
                }
                Err(error) => {
                    let note = format!("{error}; the rules before it stay in force");
                    ("refused", EventType::Warning, "ConfigurationRefused", note)
                }
            };
            tracing::info!(result, note, "the configuration changed");
            self.context.metrics.reloads.get_or_create(&Outcome { result }).inc();
            self.context.metrics.configuration_valid.set(i64::from(result == "accepted"));
            self.context.events.publish(self.about.clone(), type_, event, "Reload", &note);
        }
    }
}
