//! Any text as a configuration: a policy or an error that names the file, and nothing that follows from it panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pristine::config::{self, policy::{conditions, overlap}};

fuzz_target!(|text: &str| {
    match config::parse("f", text) {
        Ok(configuration) => {
            let policy = configuration.policy;
            assert!(overlap::dead(&policy.rules).len() <= policy.rules.len());
            let _ = conditions::patch(&policy);
        }
        Err(error) => assert!(error.to_string().starts_with('f')),
    }
});
