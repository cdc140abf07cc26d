//! `manifests/install.yaml` on a real cluster with a real node. Run by `hack/test cluster`.

#[path = "../common/mod.rs"]
mod common;

mod attacks;
mod components;
mod coverage;
mod eviction;
mod exec;
mod lifecycle;
mod monitoring;
mod pacing;
mod plugin;
