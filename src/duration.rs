//! Durations as Go writes them (`10m`, `1h30m`), the notation of every Kubernetes manifest. Pure.

use std::time::Duration;

/// Reads a duration.
///
/// # Errors
/// What is wrong with the text, as the end of a sentence that begins with what it is for.
pub fn parse(text: &str) -> Result<Duration, String> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    // The library takes signs anywhere and seconds of any size, and panics over what std's Duration cannot hold.
    if unsigned.is_empty() {
        return Err("is not a duration such as 10m or 1h30m, but empty".to_owned());
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
    fn gos_notation_is_read_and_the_rest_refused() {
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        for bad in ["", "10", "1d", "-1h", "1h-30m", "1h+30m", "9999999999999999h", "1h9999999999m", "x", "∞s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(any in any::<String>(), likely in "[-+]?([0-9.]{0,20}[-+]?(h|m|s|ms|us|ns)?){0,4}") {
            let _ = parse(&any);
            let _ = parse(&likely);
        }
    }
}
