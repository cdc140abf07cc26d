//! How long an eviction is in flight, to the millisecond.

use super::*;

#[test]
fn a_flight_is_forgotten_when_no_pod_waits_for_it_any_more() {
    let mut pacing = Pacing::default();
    let known = |pacing: &mut Pacing, now| {
        pacing.sweep(at(now));
        (pacing.owners.len(), pacing.groups.len(), pacing.leaving.len())
    };
    assert!(pacing.begin(Owner { group: Some("g"), ..owner("o", FULLY_READY, 1) }, "a", true, at(0)));
    pacing.terminates("o", Some("g"), "a", at(1000), at(0));
    pacing.gone(Some("o"), "a", at(2000));
    assert_eq!(known(&mut pacing, 599_999), (1, 1, 1));
    assert_eq!(known(&mut pacing, 600_000), (0, 0, 1));
    assert_eq!(known(&mut pacing, 600_999), (0, 0, 1));
    assert_eq!(known(&mut pacing, 601_000), (0, 0, 0));
    // One that is not gone five minutes after its grace period.
    pacing.terminates("o", None, "b", at(1_100_000), at(700_000));
    assert_eq!(known(&mut pacing, 1_399_999).0, 1);
    assert_eq!(known(&mut pacing, 1_400_000).0, 0);
}

#[test]
fn a_pod_is_reconciled_while_another_one_is_not_gone_after_half_a_minute() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    assert!(!pacing.ask(Some("o"), "b", at(29_999)));
    assert!(pacing.ask(Some("o"), "b", at(30_000)));
}

#[test]
fn another_pod_that_terminates_delays_an_eviction_although_the_last_one_was_replaced() {
    let terminating = by_pods(3, Some(30_000), None);
    let mut pacing = Pacing::default();
    assert!(pacing.begin(by_pods(3, None, None), "a", true, at(0)));
    assert!(pacing.begin(terminating, "a", true, at(1000)), "it may be a that terminates");
    pacing.gone(Some("o"), "a", at(2000));
    assert!(!pacing.begin(terminating, "b", true, at(5000)));
    assert!(pacing.begin(terminating, "b", false, at(5000)), "it is not Ready, so it changes nothing");
}

#[test]
fn the_end_of_a_grace_period_counts_for_its_own_pod_alone() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    pacing.terminates("o", None, "a", at(30_000), at(1000));
    pacing.terminates("o", None, "b", at(200_000), at(1000));
    assert!(!pacing.begin(owner("o", ONE_MISSING, 2), "c", true, at(329_999)));
    assert!(pacing.begin(owner("o", ONE_MISSING, 2), "c", true, at(330_000)));
}

#[test]
fn a_pod_that_terminates_after_the_last_one_was_gone_is_waited_for_next() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    pacing.gone(Some("o"), "a", at(1000));
    pacing.terminates("o", None, "b", at(60_000), at(2000));
    assert!(!pacing.begin(owner("o", FULLY_READY, 2), "c", true, at(3000)));
}

#[test]
fn a_pod_that_is_gone_first_does_not_end_the_wait_for_another_one() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(by_pods(3, None, None), "a", true, at(0)));
    pacing.sent(Some("o"), "a", at(600_000));
    pacing.terminates("o", None, "b", at(10_000), at(1000));
    pacing.gone(Some("o"), "b", at(2000));
    assert!(!pacing.begin(by_pods(3, None, None), "c", true, at(5000)), "a is not gone");
}

#[test]
fn what_was_ready_before_an_eviction_counts_for_the_next_pod_that_terminates() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(by_pods(2, None, Some(-3_600_000)), "a", true, at(0)));
    pacing.gone(Some("o"), "a", at(1000));
    pacing.terminates("o", None, "b", at(60_000), at(2000));
    pacing.gone(Some("o"), "b", at(3000));
    assert!(!pacing.begin(by_pods(1, None, Some(3000)), "c", true, at(9000)));
    assert!(pacing.begin(by_pods(2, None, Some(3000)), "c", true, at(9000)));
}

#[test]
fn only_the_last_attempt_before_an_eviction_is_remembered() {
    let mut pacing = Pacing::default();
    for second in 0..4 {
        assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(second * 1000)));
    }
    let before = pacing.owners["o"].before.as_deref().unwrap();
    assert_eq!((before.since, &before.before), (at(2000), &None));
}
