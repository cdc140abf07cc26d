use std::time::Duration;

use proptest::prelude::*;

use super::*;

pub(in crate::certs) fn store() -> Store {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let names = ["pristine.pristine-system.svc".to_owned()];
    let create = |generation, predecessor: Option<&Ca>| {
        Ca::create(generation, &names, Duration::from_secs(9_000_000), now, predecessor).unwrap()
    };
    let (old, _) = create(1, None);
    let (active, _) = create(2, Some(&old));
    let (next, cross) = create(3, Some(&active));
    Store {
        generation: 7,
        active,
        next: Some(next),
        previous: vec![old.certificate],
        cross,
        published_at: Some(now),
        retire_at: Some(now),
        path_key: Some(path::Key::new([7; 32])),
    }
}

#[test]
fn decode_returns_the_store_that_was_encoded() {
    let full = store();
    assert_eq!(decode(&encode(&full)).unwrap(), full);
    let small = Store {
        next: None,
        previous: vec![],
        cross: None,
        published_at: None,
        retire_at: None,
        path_key: None,
        ..full
    };
    assert_eq!(decode(&encode(&small)).unwrap(), small);
}

#[test]
fn a_decode_error_names_the_wrong_key() {
    let good = encode(&store());
    let with = |key: &str, value: Option<&str>| {
        let mut data = good.clone();
        match value {
            Some(text) => data.insert(key.to_owned(), ByteString(text.into())),
            None => data.remove(key),
        };
        decode(&data).unwrap_err()
    };
    assert_eq!(with("state.json", None), "state.json is missing");
    assert_eq!(with("active.key", None), "active.key is missing");
    assert_eq!(with("state.json", Some("{}")), "state.json: missing field `schema` at line 1 column 2");
    assert!(
        with("state.json", Some(r#"{"schema":9,"generation":1}"#)).starts_with("state.json: schema 9 is not known")
    );
    assert!(with("active.crt", Some("x")).starts_with("active.crt: no certificate in PEM"));
    assert_eq!(
        with("active.key", Some(std::str::from_utf8(&good["next.key"].0).unwrap())),
        "active.key: the key does not belong to the certificate"
    );
    let absurd = with("state.json", Some(r#"{"schema":1,"generation":18446744073709551615}"#));
    assert_eq!(absurd, "state.json: generation 18446744073709551615 is higher than any number of writes");
    let long = "x".repeat(bundle::MAX_BYTES + 1);
    assert_eq!(with("cross.crt", Some(&long)), "cross.crt: 262145 bytes exceed the limit of 262144");
}

proptest! {
    #[test]
    fn decode_never_panics(
        key in proptest::sample::select(vec![
            "state.json", "active.crt", "active.key", "next.crt", "next.key", "previous.crt", "cross.crt",
        ]),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 0_usize..2000,
    ) {
        let mut data = encode(&store());
        data.insert(key.to_owned(), ByteString(bytes));
        let _ = decode(&data);
        let mut data = encode(&store());
        data.get_mut(key).unwrap().0.truncate(cut);
        let _ = decode(&data);
    }
}
