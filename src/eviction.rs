//! Evicting marked pods. [`plan`] decides about one pod, [`pacing`] about the pods of one workload, and [`controller`]
//! does it.

pub mod controller;
pub mod entry;
pub mod leadership;
pub mod mark_successor;
pub mod pacing;
pub mod plan;
pub mod quarantine;
pub mod queue;
pub mod reconcile;

pub use plan::{Next, Settings, plan};
