use proptest::prelude::*;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
const KEY: Key = Key::new([7; 32]);
const OTHER: Key = Key::new([8; 32]);
const START: u64 = 1_800_000_000;

fn second(at: u64) -> Now {
    Now::exact(Timestamp::from_second(i64::try_from(START + at).unwrap()).unwrap())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn live(path: &str) -> Paths {
    Paths { live: vec![path.to_owned(); 3], renewed_at: None }
}

fn after(write: Write) -> Paths {
    Paths { live: vec![write.path; 3], renewed_at: write.renewed_at }
}

/// A replica that has run for long enough to have renewed the path.
fn calm() -> Renewal {
    Renewal { leaked: false, ..Renewal::new(DAY) }
}

fn first() -> Paths {
    after(calm().plan(&live(""), &KEY, &second(0), seconds(0)).0.unwrap())
}

fn accepts(paths: &Paths, path: &str, key: Option<&Key>) -> bool {
    paths.accepts(path, [], key)
}

#[test]
fn the_root_is_accepted_until_the_first_path_is_written() {
    assert!(accepts(&live(""), "/", None) && !accepts(&live(""), "/x", Some(&KEY)));
    let renewed = first();
    assert!(!accepts(&renewed, "/", Some(&KEY)), "the root is not secret");
    assert!(!accepts(&Paths::default(), "/", Some(&KEY)), "no entry calls Pristine");
    assert_eq!(calm().plan(&Paths::default(), &KEY, &second(0), seconds(0)), (None, Duration::MAX));
}

#[test]
fn a_path_is_accepted_by_a_replica_that_has_not_learnt_it() {
    let paths = live(&KEY.path(START));
    for (path, accepted) in [
        (KEY.path(START + 1), true),
        (KEY.path(START + 1_000_000), true),
        (KEY.path(START - 1), true),
        (KEY.path(START - 2), false),
        (OTHER.path(START + 1), false),
        (KEY.path(START + 1).replace('-', "-0"), false),
        (KEY.path(START + 1).replace("/review/", "/review/0"), false),
        (KEY.path(START + 1).to_uppercase(), false),
        (format!("{}0", KEY.path(START + 1)), false),
        (String::new(), false),
    ] {
        assert_eq!(accepts(&paths, &path, Some(&KEY)), accepted, "{path}");
        assert!(!accepts(&paths, &path, None), "{path}");
    }
}

#[test]
fn a_path_of_the_live_configuration_is_accepted_whoever_wrote_it() {
    for path in ["/validate", "/review/6b49d200-0123456789abcdef0123456789abcdef", "/review/zz"] {
        assert!(accepts(&live(path), path, None) && accepts(&live(path), path, Some(&KEY)), "{path}");
    }
    let (old, new) = (OTHER.path(START), KEY.path(START + 1));
    assert!(live(&new).accepts(&old, [&old], Some(&KEY)), "replaced a moment ago");
    assert!(!accepts(&live(&new), &old, Some(&KEY)));
    assert!(accepts(&live(&old), &new, Some(&KEY)), "a new key is used before this replica has seen its first path");
}

#[test]
fn a_path_is_renewed_after_its_lifetime_by_the_clock_or_by_how_long_it_is_known() {
    let paths = first();
    let mut replica = calm();
    assert_eq!(replica.plan(&paths, &KEY, &second(0), seconds(0)), (None, DAY));
    assert_eq!(replica.plan(&paths, &KEY, &second(86_399), HOUR), (None, seconds(1)));
    let renewed = replica.plan(&paths, &KEY, &second(86_400), HOUR).0.unwrap();
    assert_eq!(renewed, Write { path: KEY.path(START + 1), renewed_at: Some(second(86_400).corrected) });
    assert!(replica.plan(&paths, &KEY, &second(0), DAY).0.is_some(), "by the monotonic clock");
    let unknown = Paths { renewed_at: None, ..paths };
    assert_eq!(calm().plan(&unknown, &KEY, &second(9_999_999), seconds(0)).0, None);
}

#[test]
fn a_leaked_path_is_renewed_once_it_is_known_for_an_hour() {
    let paths = first();
    let mut replica = Renewal::new(DAY);
    assert_eq!(replica.plan(&paths, &KEY, &second(9), seconds(100)), (None, HOUR));
    assert_eq!(replica.plan(&paths, &KEY, &second(9), seconds(3_699)), (None, seconds(1)));
    assert!(replica.plan(&paths, &KEY, &second(9), seconds(3_700)).0.is_some());
    replica.renewed();
    assert_eq!(replica.plan(&paths, &KEY, &second(9), seconds(3_700)).0, None);
    replica.leaked();
    assert!(replica.plan(&paths, &KEY, &second(9), seconds(3_700)).0.is_some());
}

#[test]
fn an_entry_that_lost_its_path_gets_the_same_path_back() {
    let mut paths = first();
    let path = std::mem::take(&mut paths.live[1]);
    let write = calm().plan(&paths, &KEY, &second(1), seconds(1)).0;
    assert_eq!(write, Some(Write { path, renewed_at: None }));
}

#[test]
fn a_path_that_pristine_did_not_create_is_replaced() {
    let absurd = format!("/review/{:x}-{}", u64::MAX, "0".repeat(32));
    for path in ["/review/", "/review/zz-00", "/validate", "/review/6b49d200-123", "review/1-1", &absurd] {
        let write = calm().plan(&live(path), &KEY, &second(5), seconds(0)).0.unwrap();
        assert_eq!(write.path, KEY.path(START + 5), "{path}");
    }
}

#[test]
fn a_path_that_is_written_anew_is_newer_than_every_earlier_one() {
    let mut paths = first();
    let mut replica = calm();
    for hour in 0..1000 {
        replica.leaked();
        if let Some(write) = replica.plan(&paths, &KEY, &second(hour * 3600), HOUR * u32::try_from(hour).unwrap()).0 {
            paths = after(write);
            replica.renewed();
        }
    }
    let last = paths.live[0].clone();
    let rewritten = after(replica.plan(&live(""), &KEY, &second(1000 * 3600), seconds(0)).0.unwrap());
    assert!(!accepts(&rewritten, &last, Some(&KEY)), "the old path is not valid again after the object was replaced");
}

#[test]
fn a_key_is_read_as_it_was_written_and_anything_else_is_an_error() {
    let key = Key::new(std::array::from_fn(|at| u8::try_from(at * 7).unwrap()));
    assert_eq!(Key::parse(key.to_text().as_bytes()), Ok(key));
    let text = key.to_text();
    for bad in [&text[1..], &text.to_uppercase(), &format!("{text}0"), "", &"é".repeat(32), &"-1".repeat(32)] {
        assert!(Key::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    assert_eq!(format!("{key:?}"), "Key(…)");
    assert_ne!(Key::derive(b"a"), Key::derive(b"b"));
}

/// Two replicas, one with a clock that is ahead by this: how often they renew within two days.
fn renewals(ahead: i64) -> usize {
    let mut paths = first();
    let mut replicas = [calm(), calm()];
    let mut renewed = 0;
    for at in (0..2 * 86_400).step_by(10) {
        for (index, replica) in replicas.iter_mut().enumerate() {
            let own = Timestamp::from_second(1_800_000_000 + at + if index == 1 { ahead } else { 0 }).unwrap();
            let elapsed = seconds(u64::try_from(at).unwrap());
            if let Some(write) = replica.plan(&paths, &KEY, &Now::unconfirmed(own), elapsed).0 {
                paths = after(write);
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

proptest! {
    #[test]
    fn a_client_without_the_key_is_not_admitted(path in "/(review/[0-9a-f]{0,16}-[0-9a-f]{30,34}|.*)", counter: u64) {
        let paths = live(&KEY.path(counter & MAX_COUNTER));
        prop_assert_eq!(accepts(&paths, &path, Some(&KEY)), paths.live[0] == path);
    }

    #[test]
    fn what_is_planned_is_written_once(path in "(/review/[0-9a-f]{1,16}-[0-9a-f]{32}|.*)", leaked: bool) {
        let mut replica = Renewal { leaked, ..calm() };
        if let Some(write) = replica.plan(&live(&path), &KEY, &second(0), DAY).0 {
            let next = after(write);
            prop_assert!(accepts(&next, &next.live[0], None));
            prop_assert_eq!(replica.plan(&next, &KEY, &second(1), DAY + seconds(1)).0, None);
        }
    }
}
