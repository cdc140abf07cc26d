//! The binary, as a person or a container runtime starts it.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "a test says so by its name and by failing")]

use std::{fs, process::Command};

fn pristine(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pristine")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn check_config_says_file_line_and_field() {
    let good = file("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: 10m}\n");
    let path = good.path().to_str().unwrap();
    assert_eq!(pristine(&["check-config", path]), (true, format!("{path}: ok, 0 rules and a default\n")));

    let bad = file("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: -10m}\n");
    let path = bad.path().to_str().unwrap();
    let expected = format!("pristine: {path}:3:31: ttl \"-10m\" is negative\n");
    assert_eq!(pristine(&["check-config", path]), (false, expected.clone()));
    // The same at the start of the webhook, before it asks anybody for anything.
    assert_eq!(pristine(&["serve", "--config", path]), (false, expected));
}

#[test]
fn a_missing_file_is_named() {
    let (ok, text) = pristine(&["check-config", "/does/not/exist.yaml"]);
    assert!(
        !ok && text.starts_with("pristine: cannot read the configuration /does/not/exist.yaml: No such file"),
        "{text}"
    );
}

#[test]
fn lifetimes_that_cannot_overlap_are_refused() {
    let (ok, text) = pristine(&["serve", "--authority-lifetime", "1h", "--serving-lifetime", "1h"]);
    assert!(!ok && text.starts_with("pristine: --authority-lifetime 3600s is too short"), "{text}");
}
