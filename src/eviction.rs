//! The eviction of marked pods. [`plan`](mod@plan) decides about one pod, [`pacing`] about the pods of one workload,
//! [`successor`] about the pod that gets the name of a deleted one, [`loops`] about workloads that are evicted again and
//! again. [`controller`] watches the pods, and [`reconcile`] does what was decided.

use std::time::Duration;

pub mod controller;
pub mod entry;
pub mod leadership;
pub mod loop_store;
pub mod loops;
pub mod mark_successor;
pub mod pacing;
pub mod plan;
pub mod quarantine;
pub mod queue;
pub mod reconcile;
pub mod successor;
pub mod surge;
pub mod suspension;
pub mod switch;
pub mod uninstall;

pub use plan::{Next, plan};

/// The eviction section of the configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// The longest time between the first interaction and an extended deadline.
    pub max_extension: Duration,
    /// Evictions shorten a longer grace period of a pod to this one.
    pub max_grace_period: Option<Duration>,
    /// An Event announces the eviction this long before the deadline.
    pub warn_before: Option<Duration>,
    /// The rate limit: evictions per minute, a tenth of them at once.
    pub per_minute: u32,
    /// Whether marked pods are taken out of service before their deadline.
    pub quarantine: bool,
    /// Whether the replacement of a due pod is created before its eviction, where that helps.
    pub surge: bool,
    /// Whether no pod is evicted.
    pub suspend: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self {
            max_extension: day,
            max_grace_period: None,
            warn_before: None,
            per_minute: 600,
            quarantine: false,
            surge: false,
            suspend: false,
        }
    }
}
