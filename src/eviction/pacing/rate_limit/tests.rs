use proptest::prelude::*;

use super::*;

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

#[test]
fn the_rate_limit_says_when_it_allows_the_next_eviction() {
    let mut rate = RateLimit::default();
    for _ in 0..60 {
        assert_eq!(rate.wait(600, at(0)), None);
        rate.spend(600, at(0)).unwrap();
    }
    assert_eq!(rate.wait(600, at(0)), Some(Duration::from_millis(100)));
    assert_eq!(rate.wait(600, at(60)), Some(Duration::from_millis(40)));
    assert_eq!(rate.wait(600, at(100)), None);
}

#[test]
fn refused_evictions_do_not_count_against_the_rate_limit() {
    let mut rate = RateLimit::default();
    while rate.spend(20, at(0)).is_ok() {}
    rate.refund();
    assert_eq!(rate.spend(20, at(0)), Ok(()));
    assert!(rate.spend(20, at(0)).is_err());
    for _ in 0..100 {
        rate.refund();
    }
    assert_eq!(
        (0..100).take_while(|_| rate.spend(20, at(0)).is_ok()).count(),
        2,
        "a tenth of the evictions per minute at once"
    );
}

proptest! {
    #[test]
    fn the_rate_limit_holds_in_every_minute(
        per_minute in 1_u32..60, steps in proptest::collection::vec(0_i64..200, 1..2000),
    ) {
        let (mut rate, mut now, mut spent) = (RateLimit::default(), 0, Vec::new());
        for passed in steps {
            now += passed;
            let wait = rate.wait(per_minute, at(now));
            prop_assert_eq!(rate.spend(per_minute, at(now)).err(), wait);
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
    fn the_rate_limit_always_allows_the_next_eviction_within_61_seconds(per_minute in 1_u32..10_000) {
        let mut rate = RateLimit::default();
        let mut now = 0;
        for _ in 0..50 {
            while let Err(wait) = rate.spend(per_minute, at(now)) {
                prop_assert!(wait <= Duration::from_secs(61));
                now += i64::try_from(wait.as_millis()).unwrap();
            }
        }
        prop_assert!(now <= 61_000 * 50);
    }
}
