use super::*;
use proptest::prelude::*;

fn interaction(user: &str, at: &str) -> Interaction {
    Interaction {
        at: at.parse().unwrap(),
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

fn pod_with(patch: &Value, uid: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "uid": uid,
            "labels": patch["metadata"]["labels"],
            "annotations": patch["metadata"]["annotations"].as_object().unwrap().iter()
                .filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect::<serde_json::Map<_, _>>(),
        }
    }))
    .unwrap()
}

const TTL: Option<Duration> = Some(Duration::from_secs(600));

#[test]
fn the_deadline_is_the_first_interaction_plus_the_ttl() {
    let mark = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), TTL).unwrap();
    assert_eq!(mark.evict_at, Some("2026-01-01T00:10:00Z".parse().unwrap()));
}

#[test]
fn a_pod_that_was_bare_at_the_exec_is_due_once_it_has_a_controller() {
    // A user removes the label, execs, and restores the label.
    let mark =
        Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), Disposition::EvictIfOwned(TTL.unwrap()));
    let mut pod = pod_with(&mark.unwrap().patch("1", true), "u1");
    assert_eq!(Found::on(&pod).mark().unwrap().evict_at, None);
    for (kind, deadline) in [("Job", None), ("ReplicaSet", Some("2026-01-01T00:10:00Z".parse().unwrap()))] {
        let owner = json!([{"apiVersion": "v1", "kind": kind, "name": "o", "uid": "o", "controller": true}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        assert_eq!(Found::on(&pod).mark().unwrap().evict_at, deadline, "{kind}");
    }
    // A later Record changes nothing, and the deadline gets its annotation.
    let next = interaction("b", "2026-01-01T00:01:00Z");
    let after = Mark::after(Found::on(&pod).mark(), "u1", next, Disposition::Record).unwrap();
    assert_eq!(after.patch("2", false)["metadata"]["annotations"][EVICT_AT], "2026-01-01T00:10:00Z");
}

#[test]
fn a_later_interaction_only_brings_the_deadline_forward() {
    let first = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), TTL);
    let later = Mark::after(first.clone(), "u1", interaction("b", "2026-01-01T00:05:00Z"), TTL).unwrap();
    assert_eq!(later.evict_at, first.clone().unwrap().evict_at);
    let sooner = Mark::after(first, "u1", interaction("b", "2026-01-01T00:05:00Z"), Some(Duration::from_secs(60)));
    assert_eq!(sooner.unwrap().evict_at, Some("2026-01-01T00:06:00Z".parse().unwrap()));
}

#[test]
fn a_recorded_pod_gets_a_deadline_from_a_later_rule_and_keeps_it() {
    let recorded = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), None);
    assert_eq!(recorded.as_ref().unwrap().evict_at, None);
    let due = Mark::after(recorded, "u1", interaction("b", "2026-01-01T00:01:00Z"), TTL);
    let at = Some("2026-01-01T00:11:00Z".parse().unwrap());
    assert_eq!(due.as_ref().unwrap().evict_at, at);
    let recorded_again = Mark::after(due, "u1", interaction("c", "2026-01-01T00:02:00Z"), None).unwrap();
    assert_eq!(recorded_again.evict_at, at);
}

#[test]
fn the_same_interaction_within_seconds_writes_nothing() {
    let mark = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), TTL);
    assert_eq!(Mark::after(mark.clone(), "u1", interaction("a", "2026-01-01T00:00:09Z"), TTL), None);
    let mut later = interaction("a", "2026-01-01T00:00:11Z");
    assert_eq!(Mark::after(mark.clone(), "u1", later.clone(), TTL), None, "the same review, sent again");
    later.review = "another".to_owned();
    assert!(Mark::after(mark.clone(), "u1", later, TTL).is_some());
    assert!(Mark::after(mark, "u1", interaction("b", "2026-01-01T00:00:01Z"), TTL).is_some());
}

#[test]
fn an_interaction_with_a_stricter_verdict_or_a_terminal_is_never_folded() {
    let recorded = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), None);
    let strict = Mark::after(recorded.clone(), "u1", interaction("a", "2026-01-01T00:00:01Z"), TTL).unwrap();
    assert_eq!(strict.evict_at, Some("2026-01-01T00:10:01Z".parse().unwrap()));
    let mut plain = interaction("a", "2026-01-01T00:00:01Z");
    plain.tty = false;
    assert_eq!(Mark::after(recorded, "u1", plain, None).unwrap().total, 2);
}

#[test]
fn a_mark_with_another_uid_is_not_a_mark() {
    let mark = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), TTL).unwrap();
    assert_eq!(Found::on(&pod_with(&mark.patch("1", true), "u1")), Found::Mark(mark.clone()));
    assert!(matches!(Found::on(&pod_with(&mark.patch("1", true), "u2")), Found::NotAMark(_)));
}

#[test]
fn the_patch_is_guarded_by_uid_and_resource_version() {
    let patch = Mark::after(None, "u1", interaction("a", "2026-01-01T00:00:00Z"), TTL).unwrap().patch("41", true);
    assert_eq!(patch["metadata"]["uid"], "u1");
    assert_eq!(patch["metadata"]["resourceVersion"], "41");
    assert_eq!(patch["metadata"]["labels"], json!({ "pristine/interacted": "true" }));
    assert_eq!(patch["metadata"]["annotations"]["pristine/evict-at"], "2026-01-01T00:10:00Z");
    let condition = &patch["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("pristine/Pristine"), &json!("False")));
    assert_eq!(
        condition["message"],
        "exec into container app by \"a\" at 2026-01-01T00:00:00Z; due for eviction at 2026-01-01T00:10:00Z"
    );
}

#[test]
fn a_loop_of_interactions_keeps_first_latest_and_total_within_16_kib() {
    let mut mark = None;
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    for n in 0..2_000 {
        let mut next = interaction(&"u".repeat(900), "2026-01-01T00:00:00Z");
        next.at = start.checked_add(SignedDuration::from_secs(n)).unwrap();
        next.command = vec![format!("echo {n}"), "x".repeat(1000)];
        mark = Mark::after(mark, "u1", next, TTL);
    }
    let mark = mark.unwrap();
    assert_eq!(mark.total, 2_000);
    assert_eq!(mark.first.command[0], "echo 0");
    assert_eq!(mark.last().command[0], "echo 1999");
    assert!(mark.record().len() <= MAX_BYTES, "{}", mark.record().len());
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        name in any::<String>(),
        command in proptest::collection::vec(any::<String>(), 0..4),
    ) {
        let mut i = interaction(&name, "2026-01-01T00:00:00.123456789Z");
        i.command = command;
        let mark = Mark::after(None, "u1", i, TTL).unwrap();
        prop_assert_eq!(Found::on(&pod_with(&mark.patch("1", true), "u1")), Found::Mark(mark));
    }

    #[test]
    fn any_annotation_is_read_without_panic(text in any::<String>(), at in any::<String>()) {
        let annotations = json!({INTERACTIONS: text, EVICT_AT: at});
        let pod = serde_json::from_value(json!({"metadata": {"uid": "u", "annotations": annotations}})).unwrap();
        prop_assert!(Found::on(&pod).mark().is_none());
    }

    #[test]
    fn no_ttl_overflows(seconds in any::<u64>()) {
        let i = interaction("a", "2026-01-01T00:00:00Z");
        let at = i.at;
        prop_assert!(Mark::after(None, "u", i, Some(Duration::from_secs(seconds))).unwrap().evict_at.unwrap() >= at);
    }

    #[test]
    fn shorten_never_exceeds_and_never_splits(text in any::<String>(), limit in 3_usize..40) {
        prop_assert!(shorten(&text, limit).len() <= limit.max(3));
    }
}

#[test]
fn reports_of_one_source_are_one_unless_they_say_something_else_later() {
    let report = |source: &str, text: &str, at: &str| Interaction {
        operation: Operation::Report,
        container: String::new(),
        command: vec![text.into()],
        stdin: false,
        tty: false,
        review: format!("report-{at}"),
        ..interaction(source, at)
    };
    let mark = Mark::after(None, "u1", report("falco", "a shell", "2026-01-01T00:00:00Z"), TTL);
    let is_new = |one| Mark::after(mark.clone(), "u1", one, TTL).is_some();
    assert!(!is_new(report("falco", "a shell", "2026-01-01T00:00:01Z")));
    assert!(!is_new(report("falco", "a shell", "2026-01-01T09:00:00Z")));
    assert!(!is_new(report("falco", "a miner", "2026-01-01T00:00:10Z")));
    assert!(is_new(report("falco", "a miner", "2026-01-01T00:00:11Z")));
    assert!(is_new(report("tetragon", "a shell", "2026-01-01T00:00:01Z")));
}
