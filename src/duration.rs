//! Durations in Go's notation (`10m`, `1h30m`), as in every Kubernetes manifest. Pure.

use std::time::Duration;

/// Parses a duration.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence: `duration "1d"` is followed by `is not a duration …`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    // The library accepts signs anywhere and seconds of any size, and panics on values that std's Duration cannot hold.
    if unsigned.is_empty() {
        return Err("is empty: write a duration such as 10m or 1h30m".to_owned());
    }
    if unsigned.contains(['-', '+']) || unsigned.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 9) {
        return Err("is out of range, or not a duration such as 10m or 1h30m".to_owned());
    }
    let parsed: kube::core::Duration =
        unsigned.parse().map_err(|error| format!("is not a duration such as 10m or 1h30m: {error}"))?;
    if unsigned.len() < text.len() { Err("is negative".to_owned()) } else { Ok(parsed.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_durations_in_gos_notation_are_accepted() {
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        for bad in ["", "10", "1d", "-1h", "1h-30m", "1h+30m", "9999999999999999h", "1h9999999999m", "x", "∞s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_causes_a_panic(any in any::<String>(), likely in "[-+]?([0-9.]{0,20}[-+]?(h|m|s|ms|us|ns)?){0,4}") {
            let _ = parse(&any);
            let _ = parse(&likely);
        }
    }
}
