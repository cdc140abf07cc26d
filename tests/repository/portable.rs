//! The plugin compiles for macOS and Windows: without the feature `server`, no source of it needs Unix.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::read;

/// What only Unix has.
const UNIX: &[&str] = &["std::os::unix", "std::os::fd", "std::os::linux", "signal::unix", "rustix::", "libc::"];

/// The sources of the library that the compiler reads for the plugin, as it lists them itself.
fn compiled() -> Vec<String> {
    let check = Command::new(env!("CARGO"))
        .args(["check", "--locked", "--quiet", "--message-format=json", "--no-default-features"])
        .args(["--bin", "kubectl-pristine"])
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let messages = String::from_utf8(check.stdout).unwrap();
    let mut artifacts = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let library = artifacts
        .find(|it| it["reason"] == "compiler-artifact" && it["target"]["name"] == "pristine")
        .expect("cargo says where it wrote the library");
    // target/debug/deps/libpristine-HASH.rmeta, and beside it pristine-HASH.d: `output: source source …`
    let metadata = Path::new(library["filenames"][0].as_str().unwrap());
    let name = metadata.file_stem().unwrap().to_str().unwrap().strip_prefix("lib").unwrap();
    let listed = std::fs::read_to_string(metadata.with_file_name(format!("{name}.d"))).unwrap();
    let sources = listed.lines().next().unwrap().split_once(": ").unwrap().1;
    sources
        .split_whitespace()
        .filter(|path| Path::new(path).extension().is_some_and(|it| it == "rs"))
        .map(str::to_owned)
        .collect()
}

/// The lines that are code of the program, and not comments or tests.
fn code(source: &str) -> String {
    let text = read(source);
    let code = text.split("#[cfg(test)]").next().unwrap().lines();
    code.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn of_unix(source: &str) -> Option<&'static str> {
    let code = code(source);
    UNIX.iter().find(|name| code.contains(**name)).copied()
}

#[test]
fn no_source_of_the_plugin_needs_unix() {
    let sources = compiled();
    assert!(sources.contains(&"src/plugin/get.rs".to_owned()), "{sources:?}");
    for source in &sources {
        assert_eq!(of_unix(source), None, "{source} is compiled into the plugin, for Windows too");
    }
    // What the words find where Unix is needed.
    assert_eq!([of_unix("src/run.rs"), of_unix("src/server/listen.rs")], [Some("signal::unix"), Some("rustix::")]);
}

#[test]
fn the_release_and_hack_krew_build_the_same_plugin() {
    for file in [".github/workflows/release.yml", "hack/krew"] {
        let text = read(file).replace("\\\n", " ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let build = ["--no-default-features", "--bin", "kubectl-pristine", "--target"];
        assert!(words.windows(build.len()).any(|window| window == build), "{file} builds the plugin with {build:?}");
        assert!(text.contains("-C target-feature=+crt-static"), "{file} links libc statically");
    }
}
