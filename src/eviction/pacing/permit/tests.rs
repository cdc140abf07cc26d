use proptest::prelude::*;

use super::*;
use crate::mark::owner::Counts;

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

fn owner(ready: i32, version: &str) -> Owner<'_> {
    Owner { uid: "o", group: None, counts: Some(Counts { wanted: 3, ready, is_shared: true }), version, seen: None }
}

/// The permit of this turn, at the start, counted by a rate limit of one eviction at once.
fn spent(turn: &Turn) -> Permit<'_> {
    let mut permit = turn.begin(Some(owner(3, "1")), true, at(0)).unwrap();
    permit.spend(10, at(0)).unwrap();
    permit
}

#[test]
fn a_dropped_turn_lets_another_pod_of_the_workload_through() {
    let pacer = Pacer::default();
    let turn = pacer.turn(Some("o"), "a", at(0)).unwrap();
    assert!(pacer.turn(Some("o"), "b", at(0)).is_none());
    assert!(pacer.turn(Some("other"), "c", at(0)).is_some() && pacer.turn(None, "d", at(0)).is_some());
    drop(turn);
    assert!(pacer.turn(Some("o"), "b", at(0)).is_some());
}

#[test]
fn a_permit_that_is_dropped_before_the_request_gives_everything_back() {
    let pacer = Pacer::default();
    let turn = pacer.turn(Some("o"), "a", at(0)).unwrap();
    let permit = spent(&turn);
    assert!(pacer.limit(10, at(0)).is_some());
    drop(permit);
    drop(turn);
    assert_eq!(pacer.limit(10, at(0)), None);
    let turn = pacer.turn(Some("o"), "b", at(0)).unwrap();
    assert!(turn.begin(Some(owner(3, "1")), true, at(0)).is_some(), "a is not in flight");
}

#[test]
fn a_request_without_an_answer_counts_as_accepted() {
    let pacer = Pacer::default();
    let turn = pacer.turn(Some("o"), "a", at(0)).unwrap();
    let permit = spent(&turn);
    // The reconciliation is cancelled by its timeout.
    drop(permit.send(at(30_000)));
    drop(turn);
    assert!(pacer.limit(10, at(0)).is_some());
    // The next attempt for a is not sent, because of the rate limit: the first one is still in flight.
    let turn = pacer.turn(Some("o"), "a", at(1000)).unwrap();
    drop(turn.begin(Some(owner(3, "1")), true, at(1000)).unwrap());
    drop(turn);
    assert!(pacer.turn(Some("o"), "b", at(2000)).is_none(), "a may be terminating");
    // The API server refuses the attempt after that, so a is not terminating.
    let turn = pacer.turn(Some("o"), "a", at(3000)).unwrap();
    turn.begin(Some(owner(3, "1")), true, at(3000)).unwrap().send(at(33_000)).refused();
    drop(turn);
    let turn = pacer.turn(Some("o"), "b", at(3000)).unwrap();
    assert!(turn.begin(Some(owner(3, "1")), true, at(3000)).is_some());
}

#[test]
fn a_quarantine_needs_a_workload_that_is_whole() {
    let pacer = Pacer::default();
    let turn = pacer.turn(Some("o"), "a", at(0)).unwrap();
    assert!(turn.begin_quarantine(owner(2, "1"), at(0)).is_none());
    assert!(turn.begin_quarantine(owner(3, "1"), at(0)).is_some());
}

#[test]
fn a_surge_counts_against_the_rate_limit_if_its_pod_was_evicted() {
    let pacer = Pacer::default();
    drop(pacer.spend(10, at(0)).unwrap());
    pacer.spend(10, at(0)).unwrap().keep();
    assert!(pacer.spend(10, at(0)).is_err());
}

#[test]
fn when_a_surge_ends_without_an_eviction_the_others_do_not_wait_for_its_pod() {
    let pacer = Pacer::default();
    let turn = pacer.turn(Some("o"), "a", at(0)).unwrap();
    turn.begin(Some(owner(3, "1")), true, at(0)).unwrap().send(at(30_000)).keep();
    drop(turn);
    let others = |now| {
        let turn = pacer.turn(Some("o"), "b", now)?;
        turn.begin(Some(owner(3, "1")), true, now).map(drop)
    };
    assert_eq!(others(at(40_000)), None);
    pacer.surge_ended(Some("o"), "a");
    assert_eq!(others(at(40_000)), Some(()));
}

#[test]
fn a_pod_that_another_client_deleted_is_waited_for_and_not_counted_by_the_rate_limit() {
    let pacer = Pacer::default();
    let turn = pacer.turn(Some("o"), "a", at(0)).unwrap();
    let permit = spent(&turn);
    permit.send(at(30_000)).pod_was_gone(at(0));
    drop(turn);
    assert_eq!(pacer.limit(10, at(0)), None);
    let turn = pacer.turn(Some("o"), "b", at(2000)).unwrap();
    assert!(turn.begin(Some(owner(2, "2")), true, at(2000)).is_none());
    assert!(turn.begin(Some(owner(3, "3")), true, at(2000)).is_some());
}

proptest! {
    /// Two replicas do the same. In one of them, each reconciliation has a permit before, which it drops.
    #[test]
    fn a_dropped_permit_changes_no_later_decision(
        steps in proptest::collection::vec((0_u8..4, 0_i64..200_000, any::<bool>(), 1_i32..4, 0_u8..4), 1..60),
    ) {
        let (pacers, mut now) = ([Pacer::default(), Pacer::default()], 0);
        for (pod, passed, is_ready, ready, end) in steps {
            now += passed;
            let (pod, version) = (pod.to_string(), now.to_string());
            let seen = owner(ready, &version);
            let decisions = [0, 1].map(|replica| {
                let turn = pacers[replica].turn(Some("o"), &pod, at(now))?;
                if replica == 1 {
                    let mut dropped = turn.begin(Some(seen), is_ready, at(now));
                    let _ = dropped.as_mut().map(|permit| permit.spend(60, at(now)));
                }
                let mut permit = turn.begin(Some(seen), is_ready, at(now))?;
                permit.spend(60, at(now)).ok()?;
                match (end, permit.send(at(now))) {
                    (0, sent) => sent.refused(),
                    (1, sent) => sent.pod_was_gone(at(now)),
                    (_, sent) => sent.keep(),
                }
                Some(())
            });
            prop_assert_eq!(decisions[0], decisions[1], "{} at {}", pod, now);
        }
    }
}
