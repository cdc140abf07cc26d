use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn after(renewal: Renewal) -> Paths {
    Paths { live: vec![renewal.path; 3], previous: renewal.previous }
}

fn first() -> Paths {
    let paths = Paths { live: vec![String::new()], previous: None };
    after(paths.renewal(false, DAY, Duration::ZERO, 1, at(0)).unwrap())
}

#[test]
fn the_root_is_accepted_until_the_first_path_is_written() {
    let paths = Paths { live: vec![String::new(); 3], previous: None };
    assert!(paths.accepts("/", DAY) && !paths.accepts("/x", DAY));
    let renewed = first();
    assert!(!renewed.accepts("/", Duration::ZERO), "the root is not secret");
    assert_eq!(renewed.renewal(false, DAY, seconds(1), 8, at(1)), None);
    assert_eq!(Paths::default().renewal(true, DAY, DAY, 8, at(1)), None, "no entry calls Pristine");
    assert!(!Paths::default().accepts("/", Duration::ZERO));
}

#[test]
fn the_previous_path_is_accepted_for_one_minute_after_a_renewal_by_any_clock() {
    let first = first();
    let old = first.live[0].clone();
    assert_eq!(first.renewal(false, DAY, 23 * HOUR, 2, at(86_399)), None);
    let second = after(first.renewal(false, DAY, DAY, 2, at(86_400)).unwrap());
    assert!(second.accepts(&second.live[0], DAY));
    assert!(second.accepts(&old, seconds(59)) && !second.accepts(&old, seconds(60)));
}

#[test]
fn a_leaked_path_is_renewed_once_it_is_known_for_an_hour() {
    let first = first();
    assert_eq!(first.renewal(true, DAY, seconds(3_599), 2, at(9_999)), None);
    assert_eq!(first.next(true, DAY, seconds(3_599), at(9_999)), seconds(1));
    assert!(first.renewal(true, DAY, HOUR, 2, at(9_999)).is_some());
}

#[test]
fn an_entry_that_lost_its_path_gets_the_same_path_back() {
    let mut paths = first();
    paths.live[1] = String::new();
    let renewal = paths.renewal(false, DAY, seconds(1), 2, at(1)).unwrap();
    assert_eq!(renewal.path, paths.live[0]);
}

#[test]
fn a_path_that_pristine_did_not_create_is_replaced() {
    for path in ["/review/", "/review/zz-00", "/validate", "/review/6b49d200-123", "review/1-1"] {
        let paths = Paths { live: vec![path.to_owned()], previous: None };
        assert!(paths.renewal(false, DAY, Duration::ZERO, 1, at(0)).is_some(), "{path}");
    }
}

/// Two replicas, one with a clock that is ahead by this: how often they renew within two days.
fn renewals(ahead: i64) -> usize {
    let (mut paths, mut known) = (first(), [0_i64; 2]);
    let mut renewed = 0;
    for second in (0..2 * 86_400).step_by(10) {
        for replica in 0..2 {
            let known_for = seconds(u64::try_from(second - known[replica]).unwrap());
            let now = at(second + if replica == 1 { ahead } else { 0 });
            if let Some(renewal) = paths.renewal(false, DAY, known_for, 7, now) {
                paths = after(renewal);
                known = [second; 2];
                renewed += 1;
            }
        }
    }
    renewed
}

#[test]
fn replicas_whose_clocks_differ_by_any_time_do_not_renew_against_each_other() {
    for ahead in [0, 20 * 60, 3 * 86_400, 365 * 86_400, -3 * 86_400] {
        let renewed = renewals(ahead);
        assert!((1..=48).contains(&renewed), "{ahead}: {renewed}");
    }
    assert!(renewals(20 * 60) <= 2);
}
