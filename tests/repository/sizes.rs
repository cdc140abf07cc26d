//! Files stay small enough to read, and modules few enough to remember.

use std::{collections::BTreeSet, fs};

use crate::{files, root};

/// Lines of a file, tests included.
const MAX_LINES: usize = 400;
/// Top-level modules of the library.
const MAX_MODULES: usize = 16;
/// Written by tools.
const LOCK_FILES: [&str; 2] = ["Cargo.lock", "go.sum"];

#[test]
fn no_file_has_more_than_400_lines() {
    let mut long = Vec::new();
    for file in ["src", "tests", "hack"].into_iter().flat_map(files) {
        if LOCK_FILES.iter().any(|name| file.ends_with(name)) {
            continue;
        }
        // Seeds of the fuzz targets may be any bytes.
        let lines = fs::read(root().join(&file)).unwrap().split(|byte| *byte == b'\n').count();
        if lines > MAX_LINES + 1 {
            long.push(format!("{} has {} lines; split it by what it does", file.display(), lines - 1));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn the_library_has_at_most_16_top_level_modules() {
    let names = files("src").into_iter().filter_map(|file| {
        let first = file.components().nth(1)?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
        (!["lib", "main", "bin"].contains(&first.as_str())).then_some(first)
    });
    let modules: BTreeSet<String> = names.collect();
    assert!(modules.len() > 5 && modules.len() <= MAX_MODULES, "{} modules: {modules:?}", modules.len());
}
