use super::*;
use proptest::prelude::*;

const WHOLE: Option<Counts> = Some(Counts { wanted: 5, ready: 5, is_shared: true });
const SHORT: Option<Counts> = Some(Counts { wanted: 5, ready: 4, is_shared: true });
const LAST: Option<Counts> = Some(Counts { wanted: 5, ready: 1, is_shared: true });

fn owner(uid: &str, counts: Option<Counts>, version: i64) -> Owner<'_> {
    Owner { uid, group: None, counts, version: version.to_string().leak() }
}

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

#[test]
fn one_of_an_owner_at_a_time_until_it_is_whole_again() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", WHOLE, 1), "a", true, at(0)));
    assert!(!pacing.begin(owner("o", WHOLE, 1), "b", true, at(500)), "its status is of the time before");
    assert!(!pacing.ask(Some("o"), "b", at(500)) && pacing.ask(Some("o"), "a", at(500)));
    assert!(pacing.begin(owner("other", WHOLE, 1), "c", true, at(500)));
    pacing.asked(Some("o"), "a");
    assert!(!pacing.ask(Some("o"), "b", at(29_000)), "it is not gone yet");
    pacing.gone(Some("o"), "a");
    assert!(pacing.ask(Some("o"), "b", at(2000)));
    pacing.asked(Some("o"), "b");
    assert!(!pacing.ask(Some("o"), "c", at(2900)) && pacing.ask(Some("o"), "c", at(3000)));
    pacing.asked(Some("o"), "c");
    assert!(!pacing.begin(owner("o", WHOLE, 1), "b", true, at(2000)), "its status does not know yet");
    assert!(!pacing.begin(owner("o", SHORT, 2), "b", true, at(2000)));
    assert!(pacing.begin(owner("o", WHOLE, 3), "b", true, at(2000)));
}

#[test]
fn while_one_is_looked_at_nobody_asks_about_another_of_its_owner() {
    let mut pacing = Pacing::default();
    assert!(pacing.ask(Some("o"), "a", at(0)) && !pacing.ask(Some("o"), "b", at(0)));
    assert!(pacing.ask(Some("other"), "c", at(0)) && pacing.ask(None, "d", at(0)));
    pacing.asked(Some("o"), "b");
    assert!(!pacing.ask(Some("o"), "b", at(60_000)), "only the one who asks can end it");
    pacing.asked(Some("o"), "a");
    assert!(pacing.ask(Some("o"), "b", at(0)));
}

#[test]
fn nothing_is_taken_out_of_service_before_the_last_one_is_replaced_however_long_that_takes() {
    let mut pacing = Pacing::default();
    let is_taken = |pacing: &mut Pacing, pod, counts, version| {
        pacing.begin_quarantine(owner("o", counts, version), pod, at(3_600_000))
    };
    assert!(pacing.begin_quarantine(owner("o", WHOLE, 1), "a", at(0)));
    assert!(!is_taken(&mut pacing, "b", WHOLE, 3), "the first one still counts");
    pacing.gone(Some("o"), "a");
    assert!(!is_taken(&mut pacing, "b", WHOLE, 1), "its status does not know yet");
    assert!(!is_taken(&mut pacing, "b", SHORT, 2));
    assert!(is_taken(&mut pacing, "b", WHOLE, 3));
}

#[test]
fn until_the_budget_allows_one_nobody_needs_to_look() {
    let mut pacing = Pacing::default();
    for _ in 0..60 {
        assert_eq!(pacing.wait(600, at(0)), None);
        pacing.spend(600, at(0)).unwrap();
    }
    assert_eq!(pacing.wait(600, at(0)), Some(Duration::from_millis(100)));
    assert_eq!(pacing.wait(600, at(60)), Some(Duration::from_millis(40)));
    assert_eq!(pacing.wait(600, at(100)), None);
}

#[test]
fn a_replacement_that_never_comes_holds_nobody_up_for_ever() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", WHOLE, 1), "a", true, at(0)));
    assert!(!pacing.begin(owner("o", SHORT, 1), "b", true, at(299_999)));
    assert!(pacing.begin(owner("o", SHORT, 1), "b", true, at(300_000)));
    // Nobody can tell: half a minute after the last one is gone.
    assert!(!pacing.begin(owner("o", None, 1), "c", true, at(330_000)), "it is not gone yet");
    pacing.gone(Some("o"), "b");
    assert!(!pacing.begin(owner("o", None, 1), "c", true, at(329_999)));
    assert!(pacing.begin(owner("o", None, 1), "c", true, at(330_000)));
    assert!(!pacing.begin(owner("o", None, 1), "d", true, at(629_999)));
    assert!(pacing.begin(owner("o", None, 1), "d", true, at(630_000)), "nor does one that never goes");
}

#[test]
fn the_last_ready_one_of_several_does_not_go_however_long_that_takes() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", WHOLE, 1), "a", true, at(0)));
    assert!(!pacing.begin(owner("o", LAST, 2), "b", true, at(500_000)));
    assert!(pacing.begin(owner("o", LAST, 2), "c", false, at(500_000)), "it does not serve");
    assert!(pacing.begin(owner("o", SHORT, 3), "b", true, at(900_000)));
    // On each node for itself.
    let daemon = Some(Counts { wanted: 2, ready: 1, is_shared: false });
    assert!(pacing.begin(owner("daemon", WHOLE, 1), "a", true, at(0)));
    assert!(pacing.begin(owner("daemon", daemon, 2), "b", true, at(300_000)));
    // The only one that is wanted: nobody can keep it serving.
    let only = Some(Counts { wanted: 1, ready: 1, is_shared: true });
    assert!(pacing.begin(owner("single", only, 1), "a", true, at(0)));
}

#[test]
fn what_terminates_is_waited_for_whoever_began_it() {
    let mut pacing = Pacing::default();
    pacing.terminates("o", "a", at(0));
    assert!(!pacing.begin(owner("o", WHOLE, 1), "b", true, at(5000)), "a StatefulSet says so while the pod terminates");
    pacing.gone(Some("o"), "a");
    assert!(!pacing.begin(owner("o", SHORT, 2), "b", true, at(6000)));
    assert!(pacing.begin(owner("o", WHOLE, 3), "b", true, at(6000)));
    // A late word of an old one changes nothing.
    pacing.terminates("o", "a", at(7000));
    pacing.gone(Some("o"), "a");
    assert!(!pacing.begin(owner("o", WHOLE, 4), "c", true, at(9000)), "b is not gone");
}

#[test]
fn the_two_replica_sets_of_a_rollout_are_paced_together() {
    let mut pacing = Pacing::default();
    let of = |set| Owner { group: Some("deployment"), ..owner(set, WHOLE, 1) };
    assert!(pacing.begin(of("old"), "a", true, at(0)));
    assert!(!pacing.begin(of("new"), "b", true, at(0)) && !pacing.begin_quarantine(of("new"), "b", at(0)));
    assert!(pacing.begin(Owner { group: Some("other"), ..of("third") }, "c", true, at(0)));
    pacing.gone(Some("old"), "a");
    assert!(!pacing.begin(of("new"), "b", true, at(29_999)), "nobody has asked the old one");
    assert!(pacing.begin(of("new"), "b", true, at(30_000)));
    // And the other way round, for as long as it is not gone.
    let replaced = Owner { version: "2", ..of("old") };
    assert!(!pacing.begin(replaced, "d", true, at(329_999)));
    assert!(pacing.begin(replaced, "d", true, at(330_000)));
    // One that was refused holds up nobody.
    pacing.abandon(Some("old"), "d");
    pacing.gone(Some("new"), "b");
    assert!(pacing.begin(Owner { version: "2", ..of("new") }, "e", true, at(330_000)));
}

#[test]
fn a_clock_that_is_set_back_stops_nothing() {
    let mut pacing = Pacing::default();
    assert!(pacing.begin(owner("o", WHOLE, 1), "a", true, at(3_600_000)));
    pacing.gone(Some("o"), "a");
    while pacing.spend(10, at(3_600_000)).is_ok() {}
    pacing.sweep(at(0));
    assert!(pacing.begin(owner("o", WHOLE, 2), "b", true, at(1000)));
    assert_eq!(pacing.spend(10, at(6000)), Ok(()));
}

#[test]
fn what_was_refused_is_given_back_and_no_more_than_that() {
    let mut pacing = Pacing::default();
    while pacing.spend(20, at(0)).is_ok() {}
    pacing.refund();
    assert_eq!(pacing.spend(20, at(0)), Ok(()));
    assert!(pacing.spend(20, at(0)).is_err());
    for _ in 0..100 {
        pacing.refund();
    }
    assert_eq!((0..100).take_while(|_| pacing.spend(20, at(0)).is_ok()).count(), 2, "a tenth of a minute's at once");
}

#[test]
fn an_owner_that_is_short_already_loses_only_what_is_not_ready() {
    let mut pacing = Pacing::default();
    assert!(!pacing.begin(owner("o", SHORT, 1), "a", true, at(1000)));
    assert!(pacing.begin(owner("o", SHORT, 1), "b", false, at(1000)));
    pacing.abandon(Some("o"), "b");
    // Since it was first seen, and not since the pod is due: a new leader does not know what the last one has begun.
    assert!(!pacing.begin(owner("o", SHORT, 1), "a", true, at(300_999)));
    assert!(pacing.begin(owner("o", SHORT, 1), "a", true, at(301_000)));
    // Refused by a budget, most likely because of that: the patience is over all the same.
    pacing.abandon(Some("o"), "a");
    for second in [331, 700, 1100] {
        pacing.sweep(at(second * 1000));
        assert!(pacing.ask(Some("o"), "a", at(second * 1000)), "{second}");
        assert!(pacing.begin(owner("o", SHORT, 1), "a", true, at(second * 1000)), "{second}");
        pacing.abandon(Some("o"), "a");
        pacing.asked(Some("o"), "a");
    }
    pacing.sweep(at(1_700_000));
    assert!(!pacing.begin(owner("o", SHORT, 1), "a", true, at(1_700_000)), "long forgotten");
}

proptest! {
    #[test]
    fn never_two_of_an_owner_within_a_second_and_never_more_than_the_budget(
        steps in proptest::collection::vec((0_u8..3, 0_u8..6, 0_i64..3000, any::<bool>(), 0_usize..3), 1..200),
        per_minute in 1_u32..1000,
    ) {
        let (mut pacing, mut now, mut last, mut started) = (Pacing::default(), 0, HashMap::new(), Vec::new());
        for (owner, pod, passed, ready, state) in steps {
            now += passed;
            let (owner, pod) = (owner.to_string(), format!("{owner}-{pod}"));
            let seen = Owner { uid: &owner, group: None, counts: [WHOLE, SHORT, None][state], version: &now.to_string() };
            if pacing.begin(seen, &pod, ready, at(now)) {
                if let Some((other, since)) = last.insert(owner.clone(), (pod.clone(), now)) {
                    prop_assert!(other == pod || now - since >= 1000, "{other} and {pod}");
                }
                if pacing.spend(per_minute, at(now)).is_ok() {
                    started.push(now);
                    pacing.gone(Some(&owner), &pod);
                } else {
                    pacing.abandon(Some(&owner), &pod);
                    last.remove(&owner);
                }
            }
        }
        for (n, first) in started.iter().enumerate() {
            let minute = started[n..].iter().take_while(|at| **at < first + 60_000).count();
            prop_assert!(minute <= per_minute as usize + (per_minute as usize / 10).max(1) + 1, "{minute}");
        }
    }

    /// Five replicas, all due, of a Deployment without a budget: as long as the last one's replacement is not Ready, none
    /// goes, however late the status says so; and all go in the end.
    #[test]
    fn an_owner_never_misses_two_however_late_its_status_is(
        start in 0_i64..60_000, lag in 0_i64..60_000, notice in 0_i64..5000, look in 100_i64..3000,
    ) {
        let mut pacing = Pacing::default();
        // Each change of the status: when it can be read, and whether it says that all are Ready.
        let mut statuses = vec![(0, true)];
        let (mut left, mut notices, mut ready_at, mut now) = (vec!["a", "b", "c", "d", "e"], Vec::new(), 0, 0);
        while !left.is_empty() {
            now += look;
            prop_assert!(now < 5 * 300_000, "{left:?} never went");
            for (_, pod) in notices.extract_if(.., |(at, _)| *at <= now) {
                pacing.gone(Some("o"), pod);
            }
            let pod = *left.last().unwrap();
            if !pacing.ask(Some("o"), pod, at(now)) {
                continue;
            }
            let version = statuses.iter().rposition(|(at, _)| *at <= now).unwrap();
            let seen = owner("o", if statuses[version].1 { WHOLE } else { SHORT }, i64::try_from(version).unwrap());
            if pacing.begin(seen, pod, true, at(now)) {
                prop_assert!(ready_at <= now, "{pod} went at {now}, and the last one is replaced at {ready_at}");
                left.pop();
                notices.push((now + notice, pod));
                ready_at = now + start;
                statuses.extend([(now + lag, false), (ready_at + lag, true)]);
            }
            pacing.asked(Some("o"), pod);
        }
    }

    #[test]
    fn never_more_than_the_budget_in_any_minute(per_minute in 1_u32..60, steps in proptest::collection::vec(0_i64..200, 1..2000)) {
        let (mut pacing, mut now, mut spent) = (Pacing::default(), 0, Vec::new());
        for passed in steps {
            now += passed;
            let wait = pacing.wait(per_minute, at(now));
            prop_assert_eq!(pacing.spend(per_minute, at(now)).err(), wait);
            if wait.is_none() {
                spent.push(now);
            }
        }
        let most = per_minute as usize + (per_minute as usize / 10).max(1);
        for (n, first) in spent.iter().enumerate() {
            let minute = spent[n..].iter().take_while(|at| **at < first + 60_000).count();
            prop_assert!(minute <= most, "{minute}");
        }
    }

    #[test]
    fn the_budget_is_never_shut_for_ever(per_minute in 1_u32..10_000) {
        let mut pacing = Pacing::default();
        let mut now = 0;
        for _ in 0..50 {
            while let Err(wait) = pacing.spend(per_minute, at(now)) {
                prop_assert!(wait <= Duration::from_secs(61));
                now += i64::try_from(wait.as_millis()).unwrap();
            }
        }
        prop_assert!(now <= 61_000 * 50);
    }
}
