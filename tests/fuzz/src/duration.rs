//! Any text as a duration, and as the path of a request.
#![no_main]

use std::time::Duration;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use pristine::{admission::secret_path::Paths, config, duration};

fuzz_target!(|text: &str| {
    let _ = duration::parse(text);
    if let Ok(ttl) = config::parse_ttl(text) {
        assert!(ttl >= Duration::from_secs(1) && ttl <= Duration::from_secs(8784 * 3600));
    }
    let now = Timestamp::from_second(1_800_000_000).expect("a time");
    let paths = Paths { live: vec![text.to_owned()], previous: None };
    let (known_for, lifetime) = (Duration::from_secs(1), Duration::from_secs(900));
    assert!(paths.accepts(if text.is_empty() { "/" } else { text }, known_for));
    if let Some(renewal) = paths.renewal(false, lifetime, known_for, 1, now) {
        let next = Paths { live: vec![renewal.path.clone()], previous: renewal.previous };
        assert_eq!(next.renewal(false, lifetime, known_for, 2, now), None, "one renewal is enough");
    }
});
