use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::mark::{Disposition, Interaction, Operation, POD_NAME, User};

const TTL: i64 = 600;
const SA: &str = "system:serviceaccount:data:operator";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn web() -> Workload {
    Workload { namespace: "data".into(), kind: "StatefulSet".into(), name: "web".into() }
}

/// A pod of `web` that was created and started at this second.
fn pod(created: i64) -> Pod {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "w", "controller": true}]);
    serde_json::from_value(json!({
        "metadata": {"namespace": "data", "name": "web-0", "uid": "u", "creationTimestamp": at(created), "ownerReferences": owner},
        "status": {"containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": at(created)}},
        }]},
    }))
    .unwrap()
}

/// Entered at this second by a machine or a person of the same service account.
fn entered(existing: Option<Mark>, user: &str, is_machine: bool, second: i64) -> Mark {
    let extra = if is_machine { [(POD_NAME.to_owned(), vec!["p".to_owned()])].into() } else { BTreeMap::new() };
    let interaction = Interaction {
        at: at(second),
        operation: Operation::Exec,
        container: "c".into(),
        command: vec![],
        stdin: false,
        tty: false,
        user: User { name: user.into(), extra, ..User::default() },
        review: format!("{user}{is_machine}{second}"),
        rule: "default".into(),
    };
    let ttl = Disposition::Evict(Duration::from_secs(TTL.unsigned_abs()));
    Mark::after(existing.clone(), "u", interaction, ttl).or(existing).unwrap()
}

/// The eviction of a pod that was created at `created`, entered `after` seconds later and evicted at its deadline. Returns
/// when that was, and the loops that were noticed.
fn round(loops: &mut Loops, is_machine: bool, created: i64, after: i64) -> (i64, Vec<Row>) {
    let mark = entered(None, SA, is_machine, created + after);
    let evicted = created + after + TTL;
    (evicted, loops.evicted(&web(), &pod(created), &mark, at(evicted)))
}

/// A machine, or a person, that enters each new pod after five seconds.
fn looping(is_machine: bool, rounds: u32) -> (Loops, i64, Vec<Row>) {
    let (mut loops, mut now, mut noticed) = (Loops::default(), 0, Vec::new());
    for _ in 0..rounds {
        let (evicted, found) = round(&mut loops, is_machine, now + 1, 5);
        noticed.extend(found);
        now = evicted;
    }
    (loops, now, noticed)
}

#[test]
fn the_third_eviction_in_a_row_is_a_loop_and_ends_the_deadlines_of_its_machine() {
    let (loops, _, noticed) = looping(true, 2);
    assert!(noticed.is_empty() && loops.sparing(&web(), &entered(None, SA, true, 1300)).is_empty());
    let (loops, now, noticed) = looping(true, 3);
    assert_eq!((noticed.len(), noticed[0].rounds, noticed[0].until), (1, 3, Some(at(now + 86_400))));
    let mark = entered(None, SA, true, now + 5);
    let rows = loops.sparing(&web(), &mark);
    assert_eq!(rows.len(), 1);
    assert_eq!(mark.without(|claim| rows[0].spares(claim)).evict_at, None);
    let elsewhere = Workload { name: "other".into(), ..web() };
    assert!(loops.sparing(&elsewhere, &mark).is_empty());
    assert!(loops.sparing(&web(), &entered(None, &format!("{SA}2"), true, now + 5)).is_empty());
}

#[test]
fn only_a_pod_of_a_machine_in_a_loop_of_its_namespace_may_be_spared() {
    let may_spare = |loops: &Loops, mark: &Mark, namespace: &str| {
        let mut found = serde_json::to_value(pod(0)).unwrap();
        let mut written = mark.patch("1", true)["metadata"]["annotations"].clone();
        written.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        found["metadata"]["annotations"] = written;
        found["metadata"]["namespace"] = json!(namespace);
        loops.may_spare(&serde_json::from_value(found).unwrap())
    };
    let (loops, end, _) = looping(true, 3);
    let machine = entered(None, SA, true, end + 10);
    assert!(may_spare(&loops, &machine, "data"));
    assert!(may_spare(&loops, &entered(Some(machine.clone()), "alice", false, end + 20), "data"));
    assert!(!may_spare(&loops, &entered(None, SA, false, end + 10), "data"), "a person of the same account");
    assert!(!may_spare(&loops, &entered(None, "other", true, end + 10), "data"));
    assert!(!may_spare(&loops, &machine, "elsewhere"));
    assert!(!may_spare(&loops, &entered(None, SA, true, end + 25 * 3600), "data"), "after the loop");
    assert!(!may_spare(&looping(true, 2).0, &machine, "data"));
    assert!(!may_spare(&Loops::default(), &machine, "data"));
}

#[test]
fn a_loop_of_a_person_is_noticed_and_never_spared() {
    let (loops, now, noticed) = looping(false, 3);
    assert_eq!((noticed.len(), noticed[0].machine), (1, false));
    assert!(noticed[0].describe().ends_with("evicted as before"), "{}", noticed[0].describe());
    assert!(loops.sparing(&web(), &entered(None, SA, false, now + 5)).is_empty());
    let (more, _, noticed) = looping(false, 10);
    assert_eq!((noticed.len(), more.active(at(now)).count()), (1, 1), "one Warning for one loop");
}

#[test]
fn a_person_in_the_pod_of_a_loop_keeps_the_deadline() {
    let (loops, now, _) = looping(true, 3);
    let mark = entered(Some(entered(None, SA, true, now + 5)), SA, false, now + 50);
    let rows = loops.sparing(&web(), &mark);
    assert_eq!(mark.evict_at, Some(at(now + 5 + TTL)));
    assert_eq!(mark.without(|claim| rows[0].spares(claim)).evict_at, Some(at(now + 50 + TTL)));
}

#[test]
fn a_machine_is_recorded_for_a_day_and_evicts_again_afterwards() {
    let (loops, now, _) = looping(true, 3);
    for (second, is_spared) in [(1, true), (86_399, true), (86_400, false), (90_000, false)] {
        let mark = entered(None, SA, true, now + second);
        assert_eq!(!loops.sparing(&web(), &mark).is_empty(), is_spared, "{second} s after the third eviction");
    }
    // What was only recorded at the exec stays so, and the row is there for as long as such a pod may be due.
    let mut kept = loops;
    kept.sweep(at(now + 8 * 86_400 - 1));
    assert_eq!(kept.sparing(&web(), &entered(None, SA, true, now + 86_399)).len(), 1);
    assert_eq!(kept.active(at(now + 2 * 86_400)).count(), 0);
    kept.sweep(at(now + 8 * 86_400));
    assert_eq!(kept, Loops::default(), "a week after the end of the loop");
}

#[test]
fn the_replicas_of_one_generation_count_once() {
    let mut loops = Loops::default();
    for n in 0..5 {
        let mark = entered(None, SA, true, 5);
        assert_eq!(loops.evicted(&web(), &pod(0), &mark, at(605 + 30 * n)), [], "replica {n}");
    }
    assert!(loops.0.values().all(|row| row.rounds == 1));
}

#[test]
fn a_pod_that_is_no_successor_or_is_entered_late_begins_a_new_row() {
    let begins = |created: i64, after: i64| {
        let (mut loops, now, _) = looping(true, 2);
        let found = round(&mut loops, true, now + created, after).1;
        assert_eq!(found.is_empty(), loops.0.values().all(|row| row.rounds == 1));
        !found.is_empty()
    };
    assert!(begins(1, 5) && begins(0, 5) && begins(1, TTL) && begins(600, 5), "successors that are entered in time");
    assert!(begins(-2, 5), "clocks differ by two seconds");
    assert!(!begins(1, TTL + 10), "entered after more than a TTL");
    assert!(!begins(650, 5), "created for another reason: a deployment");
    // Its image was pulled for five minutes.
    let (mut loops, now, _) = looping(true, 2);
    let mut slow = pod(now + 1);
    let statuses = slow.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
    statuses[0].state.as_mut().unwrap().running.as_mut().unwrap().started_at.as_mut().unwrap().0 = at(now + 301);
    let mark = entered(None, SA, true, now + 301 + TTL);
    assert_eq!(loops.evicted(&web(), &slow, &mark, at(now + 301 + 2 * TTL)).len(), 1);
}

#[test]
fn a_new_leader_knows_what_was_stored_and_needs_one_round_more_without_it() {
    let (loops, now, _) = looping(true, 3);
    let next = Loops::default().adopt(Loops::parse(&loops.data(), at(now)));
    assert_eq!(next, loops);
    let (loops, now, _) = looping(true, 1);
    assert_eq!(loops.data()[KEY], "[]", "an eviction costs no write");
    let (second, later, _) = looping(true, 2);
    assert_eq!(Loops::parse(&second.data(), at(later)), second);
    let mut next = Loops::parse(&loops.data(), at(now));
    let (now, _) = round(&mut next, true, now + 1, 5);
    let (now, found) = round(&mut next, true, now + 1, 5);
    assert!(found.is_empty());
    assert_eq!(round(&mut next, true, now + 1, 5).1.len(), 1);
}

#[test]
fn an_administrator_can_end_a_loop_and_can_write_none_that_lasts_longer_than_a_day() {
    let (loops, now, _) = looping(true, 3);
    assert_eq!(loops.adopt(Loops::parse(&BTreeMap::new(), at(now))), Loops::default());
    let row = json!([{"namespace": "data", "kind": "StatefulSet", "name": "web", "user": SA, "machine": true, "rounds": 9,
        "last": at(9_000_000), "until": at(99_000_000)}]);
    let written = Loops::parse(&[(KEY.to_owned(), row.to_string())].into(), at(now));
    assert_eq!(written.active(at(now + 86_399)).count(), 1);
    assert_eq!(written.active(at(now + 86_400)).count(), 0);
    for broken in ["", "{}", "[1]", "not JSON"] {
        assert_eq!(Loops::parse(&[(KEY.to_owned(), broken.to_owned())].into(), at(0)), Loops::default(), "{broken}");
    }
}

#[test]
fn the_advice_for_a_machine_is_a_rule_that_can_be_pasted() {
    let (_, _, noticed) = looping(true, 3);
    let advice = noticed[0].advice();
    let rule = advice.strip_prefix("to record it always, add the rule ").unwrap();
    assert_eq!(
        rule,
        r#"{name: "machine-operator", match: {users: ["system:serviceaccount:data:operator"], namespaces: ["data"], podToken: true, tty: false}, action: Record}"#
    );
    let described = noticed[0].describe();
    assert!(described.starts_with("eviction loop: StatefulSet web was evicted 3 times in a row"), "{described}");
    assert!(described.ends_with("Z its interactions with this workload are only recorded"), "{described}");
    assert!(described.len() + advice.len() < 900, "an Event has 1024 bytes, and the message of the condition too");
}

#[test]
fn the_workload_is_the_top_of_the_owner_chain() {
    let deployment =
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "d"}));
    assert_eq!(Workload::of(&pod(0), None), Some(web()));
    let top = Workload::of(&pod(0), Some(&deployment.unwrap())).unwrap();
    assert_eq!((top.kind.as_str(), top.name.as_str(), top.namespace.as_str()), ("Deployment", "d", "data"));
    assert_eq!(Workload::of(&Pod::default(), None), None);
}

proptest! {
    /// Whatever is evicted, and in whatever order: no person and no machine with fewer than three evictions is spared, and
    /// memory and the ConfigMap are bounded.
    #[test]
    fn only_a_machine_with_three_evictions_is_spared(
        evictions in proptest::collection::vec((0..3_u8, any::<bool>(), 0..2_000_i64, 0..1_500_i64, 0..4_000_i64), 1..60),
        is_leader_changed in any::<bool>(),
    ) {
        let (mut loops, mut counts) = (Loops::default(), BTreeMap::<(String, bool), u32>::new());
        let mut now = 0;
        for (user, is_machine, created, after, pause) in evictions {
            now += pause;
            let user = format!("{SA}{user}");
            let mark = entered(None, &user, is_machine, now - created + after.min(created));
            let _ = loops.evicted(&web(), &pod(now - created), &mark, at(now));
            *counts.entry((user, is_machine)).or_default() += 1;
            loops.sweep(at(now));
            if is_leader_changed {
                loops = Loops::parse(&loops.data(), at(now));
            }
        }
        for ((user, is_machine), count) in counts {
            let is_spared = !loops.sparing(&web(), &entered(None, &user, is_machine, now)).is_empty();
            prop_assert!(!is_spared || (is_machine && count >= ROUNDS), "{user} {is_machine} {count}");
        }
    }

    #[test]
    fn memory_and_the_config_map_are_bounded(names in proptest::collection::vec("[a-z]{250}", 1..4)) {
        let mut loops = Loops::default();
        for n in 0..1_500 {
            let workload = Workload { namespace: names[0].clone(), kind: "K".into(), name: format!("{}{n}", names[0]) };
            let row = Row { workload, user: names[0].clone(), machine: true, rounds: 2, last: at(n), until: None };
            loops.0.insert(key(&row), row);
        }
        loops.sweep(at(1_500));
        prop_assert_eq!(loops.0.len(), MAX_ROWS);
        prop_assert!(loops.data()[KEY].len() < 300_000, "{}", loops.data()[KEY].len());
    }
}
