//! How errors are shown: each type says what was tried, its source says why, and [`chain`] joins them. Pure.

use std::error::Error;

/// The error and its sources in one line, without sources that only repeat the text before them.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let why = source.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        next = source.source();
    }
    text
}
