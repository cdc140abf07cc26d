//! Any bytes as an admission review: no panic, and what is recorded of it stays within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pristine::{admission::{review, validate}, mark::{Found, Mark}};

fuzz_target!(|data: &[u8]| {
    let Ok(request) = review::parse(data) else { return };
    let mut mark: Option<Mark> = None;
    for act in request.acts.iter().take(20) {
        let interaction = validate::interaction(&request, act, act.container.clone(), jiff::Timestamp::UNIX_EPOCH);
        assert!(interaction.command.iter().map(String::len).sum::<usize>() <= 2048);
        mark = Mark::after(mark.clone(), "u", interaction, None).or(mark);
    }
    let Some(mark) = mark else { return };
    let patch = mark.patch("1", true);
    let annotation = patch["metadata"]["annotations"]["pristine/interactions"].as_str().expect("a record").to_owned();
    let pod = serde_json::json!({"metadata": {"uid": "u", "annotations": {"pristine/interactions": annotation}}});
    let pod = serde_json::from_value(pod).expect("a pod");
    assert_eq!(Found::on(&pod), Found::Mark(mark));
});
