//! How errors are shown: each type says what was tried, its source says why, and [`chain`] joins them. Pure.

use std::error::Error;

/// The error and its sources in one line, without sources that only repeat the text before them.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let answer = answer(error);
        let why = answer.map_or_else(|| error.to_string(), str::to_owned);
        if text.is_empty() {
            text = why;
        } else if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        next = if answer.is_some() { None } else { error.source() };
    }
    text
}

/// The API server's own sentence, if this is its answer. kube's error and its sources repeat the whole Status in Rust's debug
/// format, and users read this in denials, conditions and Events.
fn answer<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
    let boxed = || error.downcast_ref::<Box<kube::Error>>().map(AsRef::as_ref);
    match error.downcast_ref::<kube::Error>().or_else(boxed) {
        Some(kube::Error::Api(status)) if !status.message.is_empty() => Some(&status.message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot create pods/eviction")]
    struct Tried(#[source] Box<kube::Error>);

    #[test]
    fn the_api_servers_answer_is_shown_in_its_own_words() {
        let status = kube::core::Status::failure("pods \"web-0\" is forbidden: User \"u\" cannot evict", "Forbidden");
        let error = kube::Error::Api(status.with_code(403).boxed());
        assert_eq!(chain(&error), "pods \"web-0\" is forbidden: User \"u\" cannot evict");
        let tried = Tried(Box::new(error));
        assert_eq!(chain(&tried), "cannot create pods/eviction: pods \"web-0\" is forbidden: User \"u\" cannot evict");
    }

    #[test]
    fn a_source_that_repeats_the_text_is_left_out() {
        let twice = std::io::Error::other(std::io::Error::other("no route to host"));
        assert_eq!(chain(&twice), "no route to host");
    }
}
