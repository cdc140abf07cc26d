//! Reloads the configuration when its file changes. An invalid file is rejected, and the previous configuration stays
//! in force; without a file, the built-in one is. A notification is only a hint: the text decides whether anything
//! changed. I/O.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;

use crate::{
    api::{Context, events::EventType},
    config::{
        Configuration,
        policy::{Policy, overlap},
        source::{Source, Text},
    },
    dir_watch::DirWatch,
    error::chain,
    eviction::Settings,
    telemetry::{Metrics, Outcome, rules::IsUnchanged},
};

/// Reloads the configuration.
pub struct Reload {
    /// The file.
    pub source: Source,
    /// The text with which the process started.
    pub text: Text,
    /// Receives the new rules.
    pub policy: watch::Sender<Arc<Policy>>,
    /// Receives the new eviction settings.
    pub eviction: watch::Sender<Settings>,
    /// The metrics and Events.
    pub context: Context,
    /// This replica's pod, for Events.
    pub about: ObjectReference,
}

impl Reload {
    /// Runs until the process ends.
    pub async fn run(self) {
        let dir = DirWatch::watch(self.source.folder());
        let mut known = Ok(self.text);
        self.context.metrics.configuration_valid.set(1);
        loop {
            dir.changed().await;
            let text = self.source.read().map_err(|error| chain(&error));
            if text == known {
                continue;
            }
            let parsed = text
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|text| Ok((text.parse().map_err(|error| error.to_string())?, text.is_built_in)));
            // A rejected text is remembered too, so that it is reported once.
            known = text;
            let (result, type_, event, note) = match parsed {
                Ok((Configuration { policy, eviction }, is_built_in)) => {
                    let rules = format!("{} rules and a default", policy.rules.len());
                    let dead = overlap::dead(&policy.rules).into_iter();
                    let dead = dead.map(|dead| format!("; rule {:?} never decides: {}", dead.rule, dead.why));
                    let dead: String = dead.collect();
                    let before = self.policy.borrow().clone();
                    count_decisions(&self.context.metrics, &policy, Some(&before), self.context.clock.now());
                    self.policy.send_replace(Arc::new(policy));
                    // The receiver reconciles every marked pod after a change, so only a change is sent.
                    self.eviction.send_if_modified(|old| std::mem::replace(old, eviction) != eviction);
                    if is_built_in {
                        let why = "the file does not exist any more, so the built-in configuration is in force";
                        ("accepted", EventType::Warning, "ConfigurationDeleted", format!("{why}: {rules}{dead}"))
                    } else {
                        let note = format!("{rules} are in force{dead}");
                        ("accepted", EventType::Normal, "ConfigurationReloaded", note)
                    }
                }
                Err(error) => {
                    let note = format!("{error}; the previous configuration stays in force");
                    ("refused", EventType::Warning, "ConfigurationRefused", note)
                }
            };
            match event {
                "ConfigurationReloaded" => tracing::info!(note, "the configuration was reloaded"),
                "ConfigurationDeleted" => tracing::warn!(note, "the configuration was deleted"),
                _ => tracing::warn!(note, "the configuration was rejected"),
            }
            self.context.metrics.reloads.get_or_create(&Outcome { result }).inc();
            self.context.metrics.configuration_valid.set(i64::from(result == "accepted"));
            self.context.events.publish(self.about.clone(), type_, event, "Reload", &note);
        }
    }
}

/// Counts the decisions of these rules from now on, where `before` were in force until now.
pub fn count_decisions(metrics: &Metrics, policy: &Policy, before: Option<&Policy>, now: Timestamp) {
    let is_unchanged = |rule| IsUnchanged(before.is_some_and(|before| before.rules.contains(rule)));
    metrics.rules.load(policy.rules.iter().map(|rule| (rule.name.as_str(), is_unchanged(rule))), now);
}
