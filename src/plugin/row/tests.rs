use std::time::Duration;

use super::*;
use crate::mark::{Disposition, Interaction, Operation, User, status::condition};

const HEADER: usize = 7;

fn at(time: &str) -> Timestamp {
    format!("2026-01-01T{time}Z").parse().unwrap()
}

fn interaction(user: &str) -> Interaction {
    Interaction {
        at: at("00:00:00"),
        operation: Operation::Exec,
        container: "app".into(),
        command: vec!["sh".into()],
        stdin: true,
        tty: true,
        user: User { name: user.into(), ..User::default() },
        review: "r".into(),
        rule: "default".into(),
    }
}

/// A pod as the API server would have it after Pristine's strategic merge patches.
fn pod(status: Option<&Status>, message: &str, users: &[(&str, &str)]) -> Pod {
    let mark = Mark::after(None, "u", interaction("alice"), Disposition::Evict(Duration::from_secs(600))).unwrap();
    let mut value = mark.patch("1", true);
    if let Some(status) = status {
        let patch = status.patch("u", "1", at("00:00:00"), message);
        value["status"] = patch["status"].clone();
        value["metadata"]["annotations"]["pristine/status"] =
            patch["metadata"]["annotations"]["pristine/status"].clone();
    }
    for (key, text) in users {
        value["metadata"]["annotations"][*key] = json!(text);
    }
    let annotations = value["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.retain(|_, text| !text.is_null());
    value["metadata"]["name"] = json!("web-0");
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "o", "controller": true}]);
    value["metadata"]["ownerReferences"] = owner;
    serde_json::from_value(value).unwrap()
}

fn cells(pod: &Pod, now: &str) -> [String; HEADER] {
    Row::of(pod, at(now)).unwrap().cells(true, at(now))
}

/// A status, the annotations of users, and the time.
type Case = (Status, Vec<(&'static str, &'static str)>, &'static str);

fn statuses() -> Vec<Case> {
    let (own, later) = (Some(at("00:10:00")), Some(at("00:40:00")));
    let extended = vec![
        ("pristine/extend-to", "2026-01-01T00:40:00Z"),
        ("pristine/extended-by", "alice"),
        ("pristine/extend-reason", "INC-7; heap dump (\"x\")"),
    ];
    let held = vec![("pristine/hold", "looking; until 3 o'clock"), ("pristine/extended-by", "bob")];
    vec![
        (Status::due(State::Marked, own, None), vec![], "00:01:00"),
        (Status::due(State::Extended, later, None), extended.clone(), "00:01:00"),
        (Status::due(State::Extended, later, None), held, "00:01:00"),
        (Status::due(State::Marked, own, "the limit".to_owned()), extended, "00:01:00"),
        (Status::due(State::EvictionBlocked, own, "Cannot evict pod: budget".to_owned()), vec![], "00:11:00"),
        (Status::due(State::EvictionQueued, later, "another pod first".to_owned()), vec![], "00:41:00"),
        (Status::new(State::NotEvictable, "static".to_owned()), vec![], "00:11:00"),
    ]
}

#[test]
fn the_table_does_not_depend_on_the_text_of_messages() {
    for (status, users, now) in statuses() {
        let english = pod(Some(&status), "exec by \"alice\". It is due and waits: something until 2030", &users);
        let other = pod(Some(&status), "alice a exécuté une commande ; évincé jusqu'à 2040. C'est tout : rien", &users);
        assert_ne!(condition(&english, "pristine/Pristine"), condition(&other, "pristine/Pristine"));
        assert_eq!(cells(&english, now), cells(&other, now), "{status:?}");
    }
}

#[test]
fn each_state_shows_its_deadline_and_its_cause() {
    let shown: Vec<[String; 3]> = statuses()
        .iter()
        .map(|(status, users, now)| {
            let [_, _, _, _, evicts_in, state, reason] = cells(&pod(Some(status), "m", users), now);
            [evicts_in, state, reason]
        })
        .collect();
    let expected = [
        ["9m", "Marked", ""],
        ["39m", "Extended", "extended by alice: INC-7; heap dump (\"x\")"],
        ["39m", "Held", "held by bob: looking; until 3 o'clock"],
        ["9m", "Marked", "the limit"],
        ["due 60s", "Blocked", "Cannot evict pod: budget"],
        ["due 60s", "Queued", "another pod first"],
        ["<none>", "NotEvictable", "static"],
    ];
    assert_eq!(shown, expected.map(|row| row.map(str::to_owned)));
}

#[test]
fn a_reason_with_semicolons_and_quotes_is_shown_in_full_in_the_narrow_table_too() {
    let (status, users, now) = statuses().swap_remove(1);
    let row = Row::of(&pod(Some(&status), "m", &users), at(now)).unwrap();
    assert!(row.cells(false, at(now))[6].ends_with("INC-7; heap dump (\"x\")"));
}

#[test]
fn an_extension_counts_only_while_it_is_requested_and_granted() {
    let later = Some(at("00:40:00"));
    let released = pod(Some(&Status::due(State::Extended, later, None)), "m", &[]);
    assert_eq!(Row::of(&released, at("00:01:00")).unwrap().deadline, Some(at("00:10:00")), "released");
    let requested = pod(None, "", &[("pristine/extend-to", "2026-01-01T00:40:00Z")]);
    let row = Row::of(&requested, at("00:01:00")).unwrap();
    assert_eq!((row.deadline, row.reason.as_str()), (Some(at("00:10:00")), "an extension was requested"));
}
