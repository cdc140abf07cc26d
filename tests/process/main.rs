//! The webhook over real TLS with a fake API server behind it, and the programs as they are started.

#[path = "../common/mod.rs"]
mod common;

mod cli;
mod decisions;
mod mounted;
mod openssl;
mod reload;
mod webhook;
