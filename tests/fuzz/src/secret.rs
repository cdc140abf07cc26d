//! Any bytes in the Secret: a store, or a sentence about what is wrong.
#![no_main]

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use libfuzzer_sys::fuzz_target;
use pristine::certs::{bundle, secret};

fuzz_target!(|fields: Vec<(&str, &[u8])>| {
    let data: BTreeMap<String, ByteString> =
        fields.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
    if let Err(why) = secret::decode(&data) {
        assert!(!why.is_empty());
    }
    let now = jiff::Timestamp::from_second(1_800_000_000).expect("a time");
    for (_, value) in fields {
        let _ = bundle::merge([value], now);
    }
});
