//! Any text as a duration, and as the path of a request.
#![no_main]

use std::time::Duration;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use pristine::{
    api::webhook::path::{Key, Paths, Renewal},
    clock::Now,
    config, duration,
};

fuzz_target!(|text: &str| {
    let _ = duration::parse(text);
    if let Ok(ttl) = config::parse_ttl(text) {
        assert!(ttl >= Duration::from_secs(1) && ttl <= Duration::from_secs(8784 * 3600));
    }
    let now = Now::unconfirmed(Timestamp::from_second(1_800_000_000).expect("a time"));
    let key = Key::new([7; 32]);
    let paths = Paths { live: vec![text.to_owned()], renewed_at: None };
    assert!(paths.accepts(if text.is_empty() { "/" } else { text }, [], Some(&key)));
    let (mut renewal, later) = (Renewal::new(Duration::from_secs(900)), Duration::from_secs(1800));
    let _ = renewal.plan(&paths, &key, &now, Duration::ZERO);
    if let Some(write) = renewal.plan(&paths, &key, &now, later).0 {
        let next = Paths { live: vec![write.path], renewed_at: write.renewed_at };
        assert!(next.accepts(&next.live[0], [], Some(&key)));
        assert_eq!(renewal.plan(&next, &key, &now, later).0, None, "one renewal is enough");
    }
});
