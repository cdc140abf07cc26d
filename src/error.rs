//! How errors are shown: each type says what was tried, its source says why, and this joins them.

use std::error::Error;

/// The error and its sources in one line; a source that only repeats what was said is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = source.source();
    }
    text
}
