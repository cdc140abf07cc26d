//! Three Pristine processes on two real API servers, without a node. Run by `hack/test rotation`.
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

mod burst;
mod clocks;
mod connections;
mod families;
mod forward;
mod leadership;
mod load;
mod many_pods;
mod pacing;
mod replicas;
mod restarts;
mod rotation;
mod simulate;
mod simulated_nodes;
mod static_guard;
mod strangers;
mod surge_policies;
mod terminating;
mod virtual_kubelet;
