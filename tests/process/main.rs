//! The webhook over real TLS with a fake API server behind it, and the programs as they are started.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "a test says so by its name and by failing"
)]

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "another ring uses the rest")]
mod common;

mod api_server;
mod cli;
mod completion;
mod decisions;
mod fake;
mod hand_over;
mod harness;
mod listen;
mod loops;
mod mounted;
mod openssl;
mod owners;
mod plugin;
mod reload;
mod rules;
mod simulate;
mod successors;
mod webhook;
