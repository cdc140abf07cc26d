//! What is in the repository fits together: the code's modules, the manifests.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "a test says so by its name and by failing")]

mod layering;
mod manifests;
