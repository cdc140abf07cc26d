//! The command line of `pristine`: what is typed, and what is only printed.

pub mod args;
pub mod commands;
pub mod docgen;
pub mod simulate;
