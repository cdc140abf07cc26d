//! `manifests/install.yaml` on a real cluster with a real node. Run by `hack/test cluster`.
//!
//! Tests that disturb the installation are `#[serial]`: nothing runs beside them. All others are `#[parallel]`. Tests that
//! remove Pristine are in `lifecycle`. Those in `ecosystem` are run by `hack/test ecosystem`.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "a test says so by its name and by failing"
)]

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "another ring uses the rest")]
mod common;

mod attacks;
mod components;
mod coverage;
mod ecosystem;
mod enforcement;
mod eviction;
mod exec;
mod families;
mod hand_over;
mod kubectl;
mod lifecycle;
mod loops;
mod monitoring;
mod outage;
mod pacing;
mod plugin;
mod poller;
mod reports;
mod rules;
mod self_healing;
mod stage;
mod surge;
mod suspend;
