//! The patches of hack/negative-controls, each a mistake that a test must notice: hack/soak and hack/mutants apply them.

use std::{path::PathBuf, process::Command};

use crate::{files, read, root, test_names::has_test};

fn patches() -> Vec<PathBuf> {
    let found = files("hack/negative-controls");
    assert!(
        found.len() > 5 && found.iter().all(|file| file.extension().is_some_and(|end| end == "patch")),
        "{found:?}"
    );
    found
}

#[test]
fn every_negative_control_applies() {
    let mut wrong = Vec::new();
    for patch in patches() {
        let output = Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(root()).output().unwrap();
        if !output.status.success() {
            wrong.push(format!("{}: {}", patch.display(), String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_negative_control_of_evictions_names_the_test_that_notices_it() {
    for patch in patches().iter().filter(|patch| patch.starts_with("hack/negative-controls/eviction")) {
        let text = read(patch.to_str().unwrap());
        let line = text.lines().nth(1).and_then(|line| line.strip_prefix("red: ")?.split_once(' '));
        let (binary, name) = line.unwrap_or_else(|| panic!("{}: no second line `red: RING TEST`", patch.display()));
        assert!(has_test(binary, name), "{}: no test {name} is run by hack/test {binary}", patch.display());
    }
}
