use super::*;

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

fn owner(counts: Option<Counts>, seen: Option<Seen>) -> Owner<'static> {
    Owner { uid: "o", group: None, counts, version: "1", seen }
}

#[test]
fn a_pod_that_is_stuck_counts_as_leaving_for_five_minutes_after_its_grace_period() {
    let leaving = |until| owner(None, Some(Seen { leaving_until: until, starting_since: None }));
    let until = Some(at(10_000));
    for (now, expected) in [(0, true), (10_000, true), (309_999, true), (310_000, false), (900_000, false)] {
        assert_eq!(leaving(until).is_leaving(at(now)), expected, "{now}");
        assert_eq!(leaving(until).is_settled(at(now)), Some(!expected), "{now}");
    }
    assert!(!leaving(None).is_leaving(at(0)) && !owner(None, None).is_leaving(at(0)));
}

#[test]
fn an_owner_is_settled_when_a_pod_was_not_ready_for_five_minutes() {
    let starting = owner(None, Some(Seen { leaving_until: None, starting_since: Some(at(0)) }));
    for (now, expected) in [(0, false), (299_999, false), (300_000, true)] {
        assert_eq!(starting.is_settled(at(now)), Some(expected), "{now}");
    }
    assert_eq!(owner(None, None).is_settled(at(0)), None, "its pods were not read");
}

#[test]
fn the_eviction_of_another_replica_is_waited_for_from_the_end_of_its_grace_period() {
    let flight = Flight::of_other("a", at(30_000), at(0));
    let short = owner(Some(Counts { wanted: 3, ready: 2, is_shared: true }), None);
    assert!(!flight.is_timed_out(short, at(329_999)) && flight.is_timed_out(short, at(330_000)));
    assert!(!flight.is_timed_out(owner(None, None), at(329_999)), "it may not be gone");
    assert!(!flight.is_replaced(Owner { version: "2", ..short }, at(60_000)));
}

#[test]
fn without_a_count_from_before_the_pod_was_replaced_if_its_owner_is_whole_or_settled() {
    let flight = Flight { gone: Some(at(1000)), ..Flight::of_other("a", at(1000), at(0)) };
    for (ready, starting_since, expected) in
        [(3, None, true), (3, Some(at(5000)), true), (2, None, true), (2, Some(at(5000)), false)]
    {
        let seen = Seen { leaving_until: None, starting_since };
        let owner = owner(Some(Counts { wanted: 3, ready, is_shared: true }), Some(seen));
        assert_eq!(flight.is_replaced(owner, at(10_000)), expected, "{ready} {starting_since:?}");
    }
}
