//! Any text in our annotations: a mark of this pod, or none; and one more interaction never makes it larger than its
//! bounds.
#![no_main]

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use libfuzzer_sys::fuzz_target;
use pristine::{eviction, mark::{Found, Mark}};

fuzz_target!(|texts: (&str, &str, &str)| {
    let (interactions, evict_at, phase) = texts;
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {
            "uid": "u", "labels": {"pristine/interacted": "true"},
            "annotations": {"pristine/interactions": interactions, "pristine/evict-at": evict_at},
        },
        "status": {"phase": phase},
    }))
    .expect("a pod");
    let now = Timestamp::UNIX_EPOCH;
    let _ = (eviction::plan(&pod, &eviction::Settings::default(), now), eviction::successor::successor_mark(&pod, now));
    let Found::Mark(mark) = Found::on(&pod) else { return };
    assert_eq!(mark.pod, "u");
    let _ = mark.summary();
    let mut interaction = mark.first.clone();
    interaction.at = now;
    interaction.command = vec!["another".to_owned()];
    let before = mark.evict_at;
    if let Some(after) = Mark::after(Some(mark), "u", interaction, Some(std::time::Duration::from_secs(600))) {
        assert!(after.evict_at <= before || before.is_none(), "a deadline is only brought forward");
        assert!(after.recent.len() <= 10);
    }
});
