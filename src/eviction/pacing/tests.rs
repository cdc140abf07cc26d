use std::collections::HashMap;

use proptest::prelude::*;

use super::{permit::Pacer, *};
use crate::mark::owner::Seen;

mod in_flight;

const FULLY_READY: Option<Counts> = Some(Counts { wanted: 5, ready: 5, is_shared: true });
const ONE_MISSING: Option<Counts> = Some(Counts { wanted: 5, ready: 4, is_shared: true });
const ONE_LEFT: Option<Counts> = Some(Counts { wanted: 5, ready: 1, is_shared: true });

fn owner(uid: &str, counts: Option<Counts>, version: i64) -> Owner<'_> {
    Owner { uid, group: None, counts, version: version.to_string().leak(), seen: None }
}

/// As `owner`, if its pods were read: until when one terminates, and since when one is not Ready.
fn by_pods(ready: i32, leaving_until: Option<i64>, starting_since: Option<i64>) -> Owner<'static> {
    let seen = Seen { leaving_until: leaving_until.map(at), starting_since: starting_since.map(at) };
    let counts = Some(Counts { wanted: 3, ready, is_shared: true });
    Owner { uid: "o", group: None, counts, version: "1", seen: Some(seen) }
}

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

#[test]
fn one_pod_per_owner_is_evicted_until_the_owner_is_fully_ready_again() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    assert!(!pacing.begin(owner("o", FULLY_READY, 1), "b", true, at(500)), "its status is from before the eviction");
    assert!(!pacing.ask(Some("o"), "b", at(500)) && pacing.ask(Some("o"), "a", at(500)));
    assert!(pacing.begin(owner("other", FULLY_READY, 1), "c", true, at(500)));
    pacing.asked(Some("o"), "a");
    assert!(!pacing.ask(Some("o"), "b", at(29_999)), "it is not gone yet");
    pacing.gone(Some("o"), "a", at(1000));
    assert!(pacing.ask(Some("o"), "b", at(2000)));
    pacing.asked(Some("o"), "b");
    assert!(!pacing.ask(Some("o"), "c", at(2900)) && pacing.ask(Some("o"), "c", at(3000)));
    pacing.asked(Some("o"), "c");
    assert!(!pacing.begin(owner("o", FULLY_READY, 1), "b", true, at(2000)), "its status still counts a");
    assert!(!pacing.begin(owner("o", ONE_MISSING, 2), "b", true, at(2000)));
    assert!(pacing.begin(owner("o", FULLY_READY, 3), "b", true, at(2000)));
}

#[test]
fn while_one_pod_is_reconciled_no_other_pod_of_its_owner_is() {
    let mut pacing = Pacing::default();
    assert!(pacing.ask(Some("o"), "a", at(0)) && !pacing.ask(Some("o"), "b", at(0)));
    assert!(pacing.ask(Some("other"), "c", at(0)) && pacing.ask(None, "d", at(0)));
    pacing.asked(Some("o"), "b");
    assert!(!pacing.ask(Some("o"), "b", at(60_000)), "only the pod that asked can end it");
    pacing.asked(Some("o"), "a");
    assert!(pacing.ask(Some("o"), "b", at(0)));
}

#[test]
fn a_pod_is_quarantined_only_after_the_last_one_was_replaced_without_a_timeout() {
    let mut pacing = Pacing::default();
    let is_quarantined = |pacing: &mut Pacing, pod, counts, version| {
        pacing.begin_quarantine(owner("o", counts, version), pod, at(3_600_000))
    };
    assert!(pacing.begin_quarantine(owner("o", FULLY_READY, 1), "a", at(0)));
    assert!(!is_quarantined(&mut pacing, "b", FULLY_READY, 3), "a still counts");
    pacing.gone(Some("o"), "a", at(1000));
    assert!(!is_quarantined(&mut pacing, "b", FULLY_READY, 1), "its status still counts a");
    assert!(!is_quarantined(&mut pacing, "b", ONE_MISSING, 2));
    assert!(is_quarantined(&mut pacing, "b", FULLY_READY, 3));
}

#[test]
fn a_replacement_that_never_becomes_ready_delays_others_for_five_minutes_at_most() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    assert!(!pacing.begin(owner("o", ONE_MISSING, 1), "b", true, at(299_999)));
    assert!(pacing.begin(owner("o", ONE_MISSING, 1), "b", true, at(300_000)));
    // The readiness is unknown: half a minute, and not before the last pod is gone.
    assert!(!pacing.begin(owner("o", None, 1), "c", true, at(330_000)), "it is not gone yet");
    pacing.gone(Some("o"), "b", at(300_000));
    assert!(!pacing.begin(owner("o", None, 1), "c", true, at(329_999)));
    assert!(pacing.begin(owner("o", None, 1), "c", true, at(330_000)));
    assert!(!pacing.begin(owner("o", None, 1), "d", true, at(629_999)));
    assert!(pacing.begin(owner("o", None, 1), "d", true, at(630_000)), "also if the last pod is never gone");
}

#[test]
fn the_last_ready_pod_of_several_waits_without_a_timeout() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    assert!(!pacing.begin(owner("o", ONE_LEFT, 2), "b", true, at(500_000)));
    assert!(pacing.begin(owner("o", ONE_LEFT, 2), "c", false, at(500_000)), "it is not Ready");
    pacing.gone(Some("o"), "c", at(500_000));
    assert!(!pacing.begin(owner("o", ONE_LEFT, 3), "b", true, at(900_000)), "as many are Ready as before");
    assert!(pacing.begin(owner("o", ONE_MISSING, 3), "b", true, at(900_000)));
    // Also if nothing was ever evicted.
    assert!(!Pacing::default().begin(by_pods(1, None, None), "b", true, at(0)));
    // A single replica: its eviction interrupts the service at any time.
    let only = Some(Counts { wanted: 1, ready: 1, is_shared: true });
    assert!(pacing.begin(owner("single", only, 1), "a", true, at(0)));
}

#[test]
fn the_second_member_of_a_quorum_waits_while_the_first_one_terminates() {
    const MINUTE: i64 = 60_000;
    let mut pacing = Pacing::default();
    assert!(pacing.begin(by_pods(3, None, None), "a", true, at(0)));
    pacing.sent(Some("o"), "a", at(6 * MINUTE));
    for minute in 1..7 {
        pacing.sweep(at(minute * MINUTE));
        let as_counted = owner("o", Some(Counts { wanted: 3, ready: 2, is_shared: true }), minute);
        assert!(!pacing.begin(as_counted, "b", true, at(minute * MINUTE)), "after {minute} minutes");
        assert!(!pacing.begin(by_pods(2, Some(6 * MINUTE), None), "b", true, at(minute * MINUTE)));
    }
    // Its replacement has five minutes from then on.
    pacing.gone(Some("o"), "a", at(7 * MINUTE));
    assert!(!pacing.begin(by_pods(2, None, Some(7 * MINUTE)), "b", true, at(12 * MINUTE - 1)));
    assert!(pacing.begin(by_pods(2, None, Some(7 * MINUTE)), "b", true, at(12 * MINUTE)));
    // One that is never gone delays the others for five minutes after its grace period.
    pacing.sent(Some("o"), "b", at(18 * MINUTE));
    assert!(!pacing.begin(by_pods(2, Some(18 * MINUTE), None), "c", true, at(23 * MINUTE - 1)));
    assert!(pacing.begin(by_pods(2, Some(18 * MINUTE), None), "c", true, at(23 * MINUTE)));
}

#[test]
fn a_long_grace_period_is_remembered_although_no_other_pod_is_due() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(by_pods(3, None, None), "a", true, at(0)));
    pacing.sent(Some("o"), "a", at(3_600_000));
    pacing.sweep(at(3_000_000));
    assert!(!pacing.begin(by_pods(2, Some(3_600_000), None), "b", true, at(3_000_000)));
    assert!(!pacing.begin(by_pods(2, Some(3_600_000), None), "b", true, at(3_400_000)));
    pacing.sweep(at(3_900_000));
    pacing.sweep(at(4_100_000));
    assert!(pacing.owners.is_empty());
}

#[test]
fn a_pod_that_is_not_ready_for_another_reason_delays_no_eviction() {
    // 50 nodes, one of them not Ready; the pods of a DaemonSet do not replace each other.
    let daemon = |ready| Some(Counts { wanted: 50, ready, is_shared: false });
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", daemon(49), 1), "a", true, at(0)));
    pacing.gone(Some("o"), "a", at(2000));
    assert!(!pacing.begin(owner("o", daemon(48), 2), "b", true, at(3000)));
    assert!(pacing.begin(owner("o", daemon(49), 3), "b", true, at(4000)));
    // A Deployment with a pod that is pending for an hour.
    let mut pacing = Pacing::default();
    let pending = |ready, now: i64| by_pods(ready, None, Some(now - 3_600_000));
    assert_eq!(pacing.look("o", at(0)), Look::PodsIfShort);
    assert!(pacing.begin(pending(2, 0), "a", true, at(0)));
    assert_eq!(pacing.look("o", at(1000)), Look::Status);
    pacing.gone(Some("o"), "a", at(1000));
    let two_of_three = |ready, version| owner("o", Some(Counts { wanted: 3, ready, is_shared: true }), version);
    assert!(!pacing.begin(two_of_three(1, 2), "b", true, at(3000)));
    assert!(pacing.begin(two_of_three(2, 3), "b", true, at(4000)));
    // One that has just been created may be about to be Ready.
    let mut pacing = Pacing::default();
    assert!(!pacing.begin(by_pods(2, None, Some(0)), "a", true, at(1000)));
    assert!(!pacing.begin(by_pods(2, None, Some(0)), "a", true, at(299_999)));
    assert!(pacing.begin(by_pods(2, None, Some(0)), "a", true, at(300_000)));
}

#[test]
fn fewer_replicas_are_waited_for_after_the_owner_was_scaled_down() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(0)));
    pacing.gone(Some("o"), "a", at(1000));
    let scaled = |ready| owner("o", Some(Counts { wanted: 2, ready, is_shared: true }), 2);
    assert!(!pacing.begin(scaled(1), "b", true, at(2000)));
    assert!(pacing.begin(scaled(2), "b", true, at(2000)));
}

#[test]
fn a_daemon_set_whose_replacement_is_not_ready_loses_one_pod_an_hour() {
    let daemon = |ready, version| owner("o", Some(Counts { wanted: 5, ready, is_shared: false }), version);
    let mut pacing = Pacing::default();
    assert!(pacing.begin(daemon(5, 1), "a", true, at(0)));
    pacing.gone(Some("o"), "a", at(0));
    assert!(!pacing.begin(daemon(4, 2), "b", true, at(3_599_999)));
    assert!(pacing.begin(daemon(4, 2), "b", true, at(3_600_000)));
}

#[test]
fn a_new_leader_evicts_no_second_pod_while_the_replacement_of_the_first_one_starts() {
    // Another replica evicted a. This one sees that a terminates.
    let mut pacing = Pacing::default();
    pacing.terminates("o", None, "a", at(40_000), at(0));
    pacing.took_over(at(10_000));
    assert_eq!(pacing.look("o", at(10_000)), Look::Pods);
    assert!(!pacing.begin(by_pods(2, Some(40_000), None), "b", true, at(39_000)));
    pacing.gone(Some("o"), "a", at(40_000));
    assert!(!pacing.begin(by_pods(2, None, Some(41_000)), "b", true, at(45_000)));
    assert!(pacing.begin(by_pods(3, None, None), "b", true, at(46_000)));
    // It was started after a was gone, and sees only the replacement.
    let mut pacing = Pacing::default();
    pacing.took_over(at(0));
    assert_eq!(pacing.look("o", at(1000)), Look::Pods);
    assert!(!pacing.begin(by_pods(2, None, Some(500)), "b", true, at(1000)));
    assert!(pacing.begin(by_pods(3, None, None), "b", true, at(2000)));
    // An owner that cannot be counted.
    assert!(!pacing.begin(owner("unknown", None, 1), "c", true, at(29_999)));
    assert!(pacing.begin(owner("unknown", None, 1), "c", true, at(30_000)));
    // What it knew as the leader before is out of date.
    assert!(pacing.begin(owner("other", FULLY_READY, 1), "d", true, at(400_000)));
    pacing.gone(Some("other"), "d", at(401_000));
    pacing.took_over(at(500_000));
    assert_eq!(pacing.look("other", at(500_000)), Look::Pods);
    assert!(!pacing.begin(owner("other", FULLY_READY, 2), "e", true, at(500_000)));
}

#[test]
fn the_two_replica_sets_of_a_rollout_are_paced_together_through_a_change_of_leader() {
    let mut pacing = Pacing::default();
    pacing.terminates("old", Some("deployment"), "a", at(30_000), at(0));
    pacing.gone(Some("old"), "a", at(0));
    pacing.took_over(at(1000));
    let new = Owner { uid: "new", group: Some("deployment"), ..by_pods(3, None, None) };
    assert!(!pacing.begin(new, "b", true, at(29_999)));
    assert!(pacing.begin(new, "b", true, at(30_000)));
}

#[test]
fn a_pod_that_terminates_for_any_reason_delays_the_others_of_its_owner() {
    let mut pacing = Pacing::default();
    pacing.terminates("o", None, "a", at(30_000), at(0));
    assert!(
        !pacing.begin(owner("o", FULLY_READY, 1), "b", true, at(5000)),
        "the status of a StatefulSet is fully Ready while the pod terminates"
    );
    pacing.gone(Some("o"), "a", at(6000));
    assert_eq!(pacing.look("o", at(6000)), Look::Pods, "its status may be from before the deletion");
    assert!(!pacing.begin(owner("o", FULLY_READY, 2), "b", true, at(6000)));
    assert!(!pacing.begin(by_pods(2, None, Some(6000)), "b", true, at(6000)));
    assert!(pacing.begin(by_pods(3, None, None), "b", true, at(6000)));
    // A late event about an earlier pod changes nothing.
    pacing.terminates("o", None, "a", at(30_000), at(7000));
    pacing.gone(Some("o"), "a", at(7000));
    assert!(!pacing.begin(owner("o", FULLY_READY, 4), "c", true, at(9000)), "b is not gone");
}

#[test]
fn a_pod_that_terminates_for_long_is_noted_once() {
    let mut pacing = Pacing::default();
    for (pod, now) in [("a", 0), ("b", 5000)] {
        assert!(pacing.begin(owner("o", FULLY_READY, now), pod, true, at(now)));
        pacing.terminates("o", None, pod, at(90_000), at(now));
        pacing.gone(Some("o"), pod, at(now));
    }
    // The status of a is written meanwhile.
    pacing.terminates("o", None, "a", at(90_000), at(6000));
    assert_eq!(pacing.look("o", at(6000)), Look::Status, "the eviction of b is in flight");
    pacing.sweep(at(700_000));
    assert!(pacing.leaving.is_empty());
}

#[test]
fn the_two_replica_sets_of_a_rollout_are_paced_together() {
    let mut pacing = Pacing::default();
    let of = |set| Owner { group: Some("deployment"), ..owner(set, FULLY_READY, 1) };
    assert!(pacing.begin(of("old"), "a", true, at(0)));
    assert!(!pacing.begin(of("new"), "b", true, at(0)) && !pacing.begin_quarantine(of("new"), "b", at(0)));
    assert!(pacing.begin(Owner { group: Some("other"), ..of("third") }, "c", true, at(0)));
    pacing.gone(Some("old"), "a", at(0));
    assert!(!pacing.begin(of("new"), "b", true, at(29_999)), "the status of the old one is unknown");
    assert!(pacing.begin(of("new"), "b", true, at(30_000)));
    // And the other way round, while b is not gone.
    let replaced = Owner { version: "2", ..of("old") };
    assert!(!pacing.begin(replaced, "d", true, at(329_999)));
    assert!(pacing.begin(replaced, "d", true, at(330_000)));
    // A refused eviction delays no other.
    pacing.refused(Some("old"), "d");
    pacing.gone(Some("new"), "b", at(300_000));
    assert!(pacing.begin(Owner { version: "2", ..of("new") }, "e", true, at(330_000)));
}

#[test]
fn a_clock_that_is_set_back_delays_no_eviction() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", FULLY_READY, 1), "a", true, at(3_600_000)));
    pacing.gone(Some("o"), "a", at(3_600_000));
    while pacing.rate.spend(10, at(3_600_000)).is_ok() {}
    pacing.sweep(at(0));
    assert!(pacing.begin(owner("o", FULLY_READY, 2), "b", true, at(1000)));
    assert_eq!(pacing.rate.spend(10, at(6000)), Ok(()));
}

#[test]
fn an_owner_that_lacks_ready_pods_loses_only_pods_that_are_not_ready() {
    let mut pacing = Pacing::default();
    assert!(!pacing.begin(owner("o", ONE_MISSING, 1), "a", true, at(1000)));
    assert_eq!(pacing.look("o", at(1000)), Look::PodsIfShort);
    assert!(pacing.begin(owner("o", ONE_MISSING, 1), "b", false, at(1000)));
    pacing.refused(Some("o"), "b");
    // Counted from the first reconciliation and not from the deadline: a new leader does not know what is in flight.
    assert!(!pacing.begin(owner("o", ONE_MISSING, 1), "a", true, at(300_999)));
    assert!(pacing.begin(owner("o", ONE_MISSING, 1), "a", true, at(301_000)));
    // A budget refused the eviction, most likely for the same reason. The timeout does not start again.
    pacing.refused(Some("o"), "a");
    for second in [331, 700, 1100] {
        pacing.sweep(at(second * 1000));
        assert!(pacing.ask(Some("o"), "a", at(second * 1000)), "{second}");
        assert!(pacing.begin(owner("o", ONE_MISSING, 1), "a", true, at(second * 1000)), "{second}");
        pacing.refused(Some("o"), "a");
        pacing.asked(Some("o"), "a");
    }
    pacing.sweep(at(1_700_000));
    assert!(!pacing.begin(owner("o", ONE_MISSING, 1), "a", true, at(1_700_000)), "the sweep forgot the flight");
}

proptest! {
    /// A reconciliation ends in one of four ways: before the request, accepted, refused, or without an answer.
    #[test]
    fn an_owner_loses_one_pod_per_second_at_most_and_the_rate_limit_holds(
        steps in proptest::collection::vec((0_u8..3, 0_u8..6, 0_i64..3000, any::<bool>(), 0_usize..3, 0_u8..4), 1..200),
        per_minute in 1_u32..1000,
    ) {
        let (pacer, mut now, mut last, mut started) = (Pacer::default(), 0, HashMap::new(), Vec::new());
        for (owner, pod, passed, ready, state, end) in steps {
            now += passed;
            let (owner, pod) = (owner.to_string(), format!("{owner}-{pod}"));
            let counts = [FULLY_READY, ONE_MISSING, None][state];
            let seen = Owner { uid: &owner, group: None, counts, version: &now.to_string(), seen: None };
            let Some(turn) = pacer.turn(Some(&owner), &pod, at(now)) else { continue };
            let Some(mut permit) = turn.begin(Some(seen), ready, at(now)) else { continue };
            if permit.spend(per_minute, at(now)).is_err() || end == 0 {
                continue;
            }
            let sent = permit.send(at(now));
            if end == 1 {
                sent.refused();
                // It also answers an earlier attempt for this pod: the pod is not terminating.
                if last.get(&owner).is_some_and(|(other, _, end)| *other == pod && *end == 3) {
                    last.remove(&owner);
                }
                continue;
            }
            sent.keep();
            started.push(now);
            if let Some((other, since, _)) = last.insert(owner.clone(), (pod.clone(), now, end)) {
                prop_assert!(other == pod || now - since >= 1000, "{other} and {pod}");
            }
            if end == 2 {
                pacer.lock().gone(Some(&owner), &pod, at(now));
            }
        }
        for (n, first) in started.iter().enumerate() {
            let minute = started[n..].iter().take_while(|at| **at < first + 60_000).count();
            prop_assert!(minute <= per_minute as usize + (per_minute as usize / 10).max(1) + 1, "{minute}");
        }
    }

    /// Five replicas of a Deployment without a budget, all due. While the last replacement is not Ready, no pod is
    /// evicted, no matter how late the status shows that. In the end all are evicted.
    #[test]
    fn an_owner_never_lacks_two_pods_even_if_its_status_is_late(
        start in 0_i64..60_000, lag in 0_i64..60_000, notice in 0_i64..5000, interval in 100_i64..3000,
    ) {
        let pacer = Pacer::default();
        // Each change of the status: when it can be read, and whether it says that all are Ready.
        let mut statuses = vec![(0, true)];
        let (mut left, mut notices, mut ready_at, mut now) = (vec!["a", "b", "c", "d", "e"], Vec::new(), 0, 0);
        while !left.is_empty() {
            now += interval;
            prop_assert!(now < 5 * 300_000, "{left:?} were never evicted");
            for (_, pod) in notices.extract_if(.., |(at, _)| *at <= now) {
                pacer.lock().gone(Some("o"), pod, at(now));
            }
            let pod = *left.last().unwrap();
            let Some(turn) = pacer.turn(Some("o"), pod, at(now)) else { continue };
            let version = statuses.iter().rposition(|(at, _)| *at <= now).unwrap();
            let counts = if statuses[version].1 { FULLY_READY } else { ONE_MISSING };
            let seen = owner("o", counts, i64::try_from(version).unwrap());
            if let Some(permit) = turn.begin(Some(seen), true, at(now)) {
                permit.send(at(now)).keep();
                prop_assert!(ready_at <= now, "{pod} evicted at {now}, the last replacement is Ready at {ready_at}");
                left.pop();
                notices.push((now + notice, pod));
                ready_at = now + start;
                statuses.extend([(now + lag, false), (ready_at + lag, true)]);
            }
        }
    }
}
