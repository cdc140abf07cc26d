use std::collections::BTreeMap;

use super::*;
use crate::eviction::{
    pacing::{Owner, permit::Pacer},
    queue::Queue,
};
use crate::mark::owner::Counts;
use proptest::prelude::*;

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

fn entry(name: String, deadline: Timestamp) -> Entry {
    Entry {
        namespace: "n".into(),
        name,
        owner: None,
        next: deadline,
        deadline,
        asked: Extension::default(),
        refusals: 0,
        queued: 0,
        state: State::Marked,
        is_answered: false,
        is_shown_queued: false,
        is_in_surge: false,
    }
}

fn any_requeue() -> impl Strategy<Value = Requeue> {
    prop_oneof![
        Just(Requeue::Done),
        (0_i64..1_000_000).prop_map(|later| Requeue::Again(at(1_000_000 + later))),
        Just(Requeue::Queued),
        (0_u64..61_000).prop_map(|wait| Requeue::Limited(Duration::from_millis(wait))),
        Just(Requeue::Accepted),
        Just(Requeue::Suspended),
        (0_i64..1_000_000).prop_map(|later| Requeue::Terminating(at(1_000_000 + later))),
        proptest::option::of(0_u64..600).prop_map(|after| Requeue::Refused(after.map(Duration::from_secs))),
    ]
}

#[test]
fn refused_evictions_back_off_and_wait_as_long_as_the_api_server_requests() {
    let mut pod = entry("a".into(), at(0));
    let mut waits = Vec::new();
    for _ in 0..7 {
        pod = pod.after(&Requeue::Refused(None), |_| 0, at(0), 0.5).unwrap();
        waits.push(pod.next.as_second());
    }
    assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30]);
    let refused = pod.after(&Requeue::Refused(Some(Duration::from_secs(90))), |_| 0, at(0), 0.5).unwrap();
    assert_eq!((refused.next, refused.refusals, refused.state), (at(90_000), 8, State::EvictionBlocked));
    // An accepted eviction resets the backoff.
    let evicted = refused.after(&Requeue::Accepted, |_| 0, at(0), 0.5).unwrap();
    assert_eq!((evicted.next, evicted.refusals, evicted.state), (at(60_000), 0, State::Evicting));
}

#[test]
fn all_blocked_pods_together_are_tried_again_twenty_times_a_second() {
    let pod = entry("a".into(), at(0));
    let next = |random| pod.after(&Requeue::Refused(None), |_| 1000, at(0), random).unwrap().next.as_millisecond();
    assert_eq!([0.0, 0.5, 0.9].map(next), [37_500, 50_000, 60_000]);
}

#[test]
fn a_wait_resets_no_backoff_and_only_a_failure_leaves_a_request_unanswered() {
    let waits = [Requeue::Queued, Requeue::Limited(Duration::from_secs(1)), Requeue::Suspended];
    for (is_answered, requeue) in [false, true].into_iter().flat_map(|is| waits.iter().map(move |wait| (is, wait))) {
        let refused = Entry { refusals: 3, is_answered, ..entry("a".into(), at(0)) };
        let waiting = refused.after(requeue, |_| 0, at(0), 0.5).unwrap();
        assert_eq!((waiting.refusals, waiting.is_answered), (3, true), "{requeue:?}");
        let again = refused.after(&Requeue::Refused(None), |_| 0, at(0), 0.5).unwrap();
        assert_eq!((again.refusals, again.is_answered), (4, is_answered));
    }
}

#[test]
fn pods_that_the_rate_limit_delays_are_reconciled_a_few_at_a_time() {
    let pod = entry("a".into(), at(0));
    let limited = |waiting, random| {
        let requeue = Requeue::Limited(Duration::from_millis(100));
        pod.after(&requeue, |_| waiting, at(0), random).unwrap().next.as_millisecond()
    };
    assert_eq!((limited(0, 0.0), limited(0, 0.5)), (100, 150));
    assert_eq!((limited(20, 0.0), limited(20, 0.5)), (100, 1150));
    assert_eq!(limited(9000, 0.9), 5000);
}

#[test]
fn a_blocked_pod_does_not_hide_another_one_that_is_overdue() {
    let mut queue = Queue::default();
    for (name, deadline, state) in
        [("a", 5, State::EvictionBlocked), ("b", 9, State::Marked), ("c", 7, State::Marked), ("d", 1, State::Evicting)]
    {
        queue.put(name.into(), Entry { state, ..entry(name.into(), at(deadline)) });
    }
    let earliest = queue.earliest();
    assert_eq!((earliest[&State::EvictionBlocked], earliest[&State::Marked]), (at(5), at(7)));
    assert!(waiting_states().all(|(state, _)| state != State::Evicting), "an accepted eviction is not overdue");
    let counts =
        |queue: &Queue| [State::EvictionBlocked, State::Marked, State::Suspended].map(|state| queue.count(state));
    assert_eq!(counts(&queue), [1, 2, 0]);
    queue.put("a".into(), entry("a".into(), at(5)));
    queue.remove("b");
    assert_eq!(counts(&queue), [0, 2, 0]);
}

proptest! {
    #[test]
    fn a_pod_is_reconciled_again_soon_unless_there_is_nothing_more_to_do(
        results in proptest::collection::vec((any_requeue(), 0_i64..10_000, 0.0..1.0), 1..50),
    ) {
        let (now, mut pod) = (at(1_000_000), entry("a".into(), at(0)));
        for (requeue, waiting, random) in results {
            let Some(after) = pod.after(&requeue, |_| waiting, now, random) else {
                prop_assert_eq!(requeue, Requeue::Done);
                return Ok(());
            };
            prop_assert!(after.next >= now);
            let wait = after.next.duration_since(now).unsigned_abs();
            let longest = match &requeue {
                Requeue::Again(_) => Duration::from_secs(1000),
                Requeue::Queued => Duration::from_secs(2),
                Requeue::Limited(wait) => (*wait).max(Duration::from_secs(5)),
                Requeue::Accepted | Requeue::Suspended => Duration::from_secs(60),
                Requeue::Terminating(at) => at.duration_since(now).unsigned_abs(),
                // Ten thousand blocked pods make 20 attempts a second together at most.
                Requeue::Refused(_) => Duration::from_millis(300_000.max(63 * u64::try_from(waiting).unwrap())),
                Requeue::Done => unreachable!(),
            };
            prop_assert!(wait <= longest, "{wait:?} after {requeue:?}");
            // At most 60 reconciliations a minute for each pod, except where the plan or the rate limit names the time.
            let is_named = matches!(requeue, Requeue::Limited(_) | Requeue::Again(_) | Requeue::Terminating(_));
            let shortest = if is_named { 0 } else { 1000 };
            prop_assert!(wait >= Duration::from_millis(shortest), "{wait:?} after {requeue:?}");
            prop_assert_eq!((after.deadline, &after.name), (pod.deadline, &pod.name));
            pod = after;
        }
    }

    /// Many pods of some owners are due at once, the API server refuses some evictions, and every replacement takes a
    /// while. Each pod is evicted once, no second pod of an owner while one is missing, and with few reconciliations.
    #[test]
    fn every_pod_is_evicted_exactly_once(
        owners in 1_usize..4, pods in 1_usize..6, start in 0_u64..20_000, refused in 0.0..0.7, seed in any::<u64>(),
    ) {
        use rand::{Rng as _, SeedableRng as _};
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let (mut queue, pacer, mut now) = (Queue::default(), Pacer::default(), at(0));
        let per_minute = Settings::default().per_minute;
        // Of each owner: the version of its status, and until when one of its pods is missing.
        let mut world: BTreeMap<String, (u64, Timestamp)> = BTreeMap::new();
        let mut reconciles = 0;
        for n in 0..owners * pods {
            let owner = format!("o{}", n % owners);
            queue.put(format!("p{n}"), Entry { owner: Some(owner), ..entry(format!("p{n}"), at(0)) });
        }
        while queue.uids().next().is_some() {
            now = queue.next().unwrap().max(now);
            prop_assert!(now < at(3_600_000), "{queue:?}");
            let uid = queue.take_due(now).unwrap();
            let pod = queue.get(&uid).unwrap().clone();
            let owner = pod.owner.clone().unwrap();
            reconciles += 1;
            let (version, missing) = world.entry(owner.clone()).or_insert_with(|| (0, at(0)));
            let is_fully_ready = *missing <= now;
            let counts = Some(Counts { wanted: 5, ready: if is_fully_ready { 5 } else { 4 }, is_shared: true });
            let text = format!("{version}-{is_fully_ready}");
            let seen = Owner { uid: &owner, group: None, counts, version: &text, seen: None };
            let turn = pacer.turn(Some(&owner), &uid, now);
            let permit = turn.as_ref().and_then(|turn| turn.begin(Some(seen), true, now));
            let requeue = if let Some(wait) = pacer.limit(per_minute, now) {
                Requeue::Limited(wait)
            } else if let Some(mut permit) = permit {
                prop_assert!(permit.spend(per_minute, now).is_ok());
                let sent = permit.send(now);
                if random.random_bool(refused) {
                    sent.refused();
                    Requeue::Refused(None)
                } else {
                    prop_assert!(is_fully_ready, "{uid} is evicted at {now}, and {owner} lacks a pod until {missing}");
                    (*version, *missing) = (*version + 1, now + Duration::from_millis(start));
                    sent.is_released(now);
                    // As after the watch event of the deletion.
                    Requeue::Done
                }
            } else {
                Requeue::Queued
            };
            queue.done(&uid);
            match pod.after(&requeue, |state| queue.count(state), now, random.random()) {
                Some(after) => queue.put(uid, after),
                None => drop(queue.remove(&uid)),
            }
        }
        let most = owners * pods * 400;
        prop_assert!(reconciles <= most, "{reconciles} reconciliations, {most} at most");
    }
}

/// A pod as the watch reports it: marked at second 1000, with a deadline a minute later.
fn pod(annotations: serde_json::Value, state: Option<&str>) -> Pod {
    let first = serde_json::json!({
        "at": "1970-01-01T00:16:40Z", "operation": "exec", "container": "c", "user": {"name": "a"},
        "review": "r", "rule": "d",
    });
    let mut all = serde_json::json!({
        "pristine/interactions": serde_json::json!({"pod": "u", "total": 1, "first": first}).to_string(),
        "pristine/evict-at": "1970-01-01T00:17:40Z",
    });
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    if let Some(state) = state {
        all["pristine/status"] = serde_json::json!({ "state": state }).to_string().into();
    }
    serde_json::from_value(serde_json::json!({
        "metadata": {"uid": "u", "name": "p", "namespace": "n", "annotations": all},
        "status": {"phase": "Running"},
    }))
    .unwrap()
}

fn track(pod: &Pod, known: Option<&Entry>, now: i64) -> Option<Entry> {
    let settings = Settings { warn_before: Some(Duration::from_secs(10)), ..Settings::default() };
    match observe(pod, known, &settings, at(now * 1000)) {
        Observed::Track(entry) => Some(*entry),
        Observed::Nothing | Observed::Forget(_) => None,
    }
}

#[test]
fn a_marked_pod_is_reconciled_when_the_warning_is_due_and_our_own_writes_change_nothing() {
    let marked = pod(serde_json::json!({}), Some("Interacted"));
    let known = track(&marked, None, 1001).unwrap();
    assert_eq!((known.next, known.deadline, known.state), (at(1_050_000), at(1_060_000), State::Marked));
    assert_eq!(track(&marked, None, 1055).unwrap().next, at(1_060_000), "too late to warn");
    assert_eq!(track(&marked, None, 1050).unwrap().next, at(1_060_000), "now it is due");
    let blocked = known.after(&Requeue::Refused(None), |_| 0, at(1_060_000), 0.5).unwrap();
    assert_eq!(track(&pod(serde_json::json!({}), Some("EvictionBlocked")), Some(&blocked), 1061), None);
}

#[test]
fn a_queued_pod_is_written_to_once_and_only_if_it_waits_for_some_seconds() {
    let marked = pod(serde_json::json!({}), Some("Interacted"));
    let mut known = track(&marked, None, 1060).unwrap();
    for looks in 0..QUEUED_UNSHOWN {
        assert!(!known.must_show_queued(), "after {looks} looks");
        known = known.after(&Requeue::Queued, |_| 0, at(1_060_000), 0.5).unwrap();
    }
    assert!(known.must_show_queued());
    // Our own write comes back, and changes nothing about when the pod is reconciled.
    let written = pod(serde_json::json!({}), Some("EvictionQueued"));
    let shown = track(&written, Some(&known), 1066).unwrap();
    assert_eq!((shown.next, shown.queued, shown.must_show_queued()), (known.next, known.queued, false));
    assert_eq!(track(&written, Some(&shown), 1067), None);
    // A new leader finds it written.
    let mut found = track(&written, None, 1067).unwrap();
    for _ in 0..2 * QUEUED_UNSHOWN {
        found = found.after(&Requeue::Queued, |_| 0, at(1_067_000), 0.5).unwrap();
    }
    assert!(!found.must_show_queued());
}

#[test]
fn a_request_for_an_extension_is_answered_at_once_also_after_another_interaction() {
    let held = serde_json::json!({"pristine/hold": "why"});
    let known = track(&pod(held.clone(), Some("Interacted")), None, 1001).unwrap();
    assert_eq!(known.next, at(1_001_000));
    let answered = known.after(&Requeue::Again(known.deadline), |_| 0, at(1_001_000), 0.5).unwrap();
    assert_eq!(track(&pod(held.clone(), Some("Extended")), Some(&answered), 1002), None);
    let overwritten = track(&pod(held.clone(), Some("Interacted")), Some(&answered), 1010).unwrap();
    assert_eq!((overwritten.next, overwritten.is_answered), (at(1_010_000), false), "the mark overwrote the status");
    let due = known.deadline.as_second();
    let early = track(&pod(held.clone(), Some("EvictionQueued")), Some(&known), due - 1).unwrap();
    assert_eq!(early.next.as_second(), due - 1);
    assert_eq!(track(&pod(held, Some("Evicting")), Some(&known), due), None, "it has another state from then on");
    let released = track(&pod(serde_json::json!({}), Some("Extended")), Some(&answered), 1020).unwrap();
    assert_eq!((released.next, released.deadline), (at(1_020_000), at(1_060_000)));
}

#[test]
fn a_request_that_is_not_granted_is_answered_once() {
    let invalid = serde_json::json!({"pristine/extend-to": "tomorrow"});
    let known = track(&pod(invalid.clone(), Some("Interacted")), None, 1001).unwrap();
    assert_eq!(known.next, at(1_001_000));
    let answered = known.after(&Requeue::Again(known.deadline), |_| 0, at(1_001_000), 0.5).unwrap();
    assert_eq!(track(&pod(invalid, Some("Interacted")), Some(&answered), 1002), None);
}

#[test]
fn a_pod_is_quarantined_at_once_if_that_is_configured_and_possible() {
    let mut of_replica_set = pod(serde_json::json!({}), Some("Interacted"));
    let owner = serde_json::json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    of_replica_set.metadata.owner_references = serde_json::from_value(owner).unwrap();
    let bare = pod(serde_json::json!({}), Some("Interacted"));
    for (quarantine, pod, expected) in
        [(true, &of_replica_set, 1001), (false, &of_replica_set, 1060), (true, &bare, 1060), (false, &bare, 1060)]
    {
        let settings = Settings { quarantine, ..Settings::default() };
        let Observed::Track(entry) = observe(pod, None, &settings, at(1_001_000)) else { panic!() };
        assert_eq!(entry.next.as_second(), expected, "{quarantine}");
    }
}

#[test]
fn a_terminating_pod_is_tracked_until_it_is_gone_and_a_finished_pod_until_its_status_is_written() {
    let mut terminating = pod(serde_json::json!({}), Some("EvictionBlocked"));
    let known = track(&terminating, None, 1100).unwrap();
    terminating.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1_130_000)));
    let tracked = track(&terminating, Some(&known), 1100).unwrap();
    assert_eq!((tracked.next, tracked.state), (at(1_105_000), State::Terminating));
    assert_eq!(track(&terminating, Some(&tracked), 1101), None);
    // It is overdue from the end of its grace period on, for as long as it exists and on every leader.
    assert_eq!(tracked.deadline, at(1_130_000));
    assert_eq!(track(&terminating, None, 90_000).unwrap().deadline, at(1_130_000));
    let later = tracked.after(&Requeue::Terminating(at(90_061_000)), |_| 0, at(90_000_000), 0.5).unwrap();
    assert_eq!((later.deadline, later.state), (at(1_130_000), State::Terminating));
    assert!(waiting_states().any(|(state, _)| state == State::Terminating));
    let unwritten = tracked.after(&Requeue::Refused(None), |_| 0, at(1_105_000), 0.5).unwrap();
    assert_eq!(unwritten.state, State::Terminating, "the pod is terminating all the same");
    let mut finished = pod(serde_json::json!({}), None);
    finished.status.as_mut().unwrap().phase = Some("Succeeded".into());
    assert_eq!(track(&finished, Some(&known), 1101).unwrap().next, at(1_101_000));
    finished.metadata = pod(serde_json::json!({}), Some("Finished")).metadata;
    finished.status.as_mut().unwrap().phase = Some("Failed".into());
    assert!(matches!(observe(&finished, Some(&known), &Settings::default(), at(0)), Observed::Forget(None)));
}

#[test]
fn a_static_pod_gets_its_status_at_once_and_not_at_its_deadline() {
    let mirror = |state| pod(serde_json::json!({"kubernetes.io/config.mirror": "x"}), state);
    assert_eq!(track(&mirror(Some("Interacted")), None, 1001).unwrap().next, at(1_001_000));
    assert_eq!(track(&mirror(Some("NotEvictable")), None, 1001), None, "it has its status");
}
