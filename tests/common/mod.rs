//! What the test rings share.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

pub mod audit;
pub mod cluster;
pub mod fake;
pub mod https;
pub mod load;
pub mod plugin;
pub mod replicas;
pub mod webhook;
