//! Any bytes as an audit log: no panic, each request counts at most once, a terminal obeys nothing of what is printed, and
//! the suggested rules are a valid configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pristine::{
    cli::simulate::{
        event::{self, Decoded},
        print,
        read::Read,
        records::Records,
        summary::Summary,
        workload::Pods,
    },
    config,
};
use serde_json::Value;

const RULES: &str = "apiVersion: pristine/v1alpha1
kind: PristineConfiguration
default: {action: Evict, ttl: 10m}
rules:
- {name: labels, match: {podSelector: {matchLabels: {tier: db}}}, action: Exempt}
- {name: terminals, match: {tty: true, operations: [exec, proxy]}, action: Evict, ttl: 8784h}
";

fuzz_target!(|data: &[u8]| {
    let policy = config::parse("rules", RULES).expect("rules").policy;
    let mut summary = Summary::new(policy, Pods::default());
    let mut records = Records::new(data);
    let (mut count, mut are_names) = (0, true);
    while let Some(record) = records.read() {
        event::decode(record, &mut |decoded| {
            let Decoded::Event(event) = decoded else { return };
            count += 1;
            // An API server has no namespaces with other names.
            are_names &= event.namespace.bytes().all(|byte| byte.is_ascii_lowercase());
            are_names &= !event.namespace.is_empty();
            summary.add(*event);
        });
    }
    assert!(records.error.is_none(), "{:?}", records.error);
    assert!(summary.count() + summary.refused <= count);
    let read = Read::default();
    let source = read.source(&summary, "f", RULES, false);
    let table = print::table(&summary, &source);
    assert!(table.chars().all(|c| c == '\n' || !c.is_control()), "{table:?}");
    let json = print::json(&summary, &source);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    if let Some(suggested) = json["suggestedRules"].as_str().filter(|_| are_names) {
        assert_eq!(json["suggestedRulesAreWholeConfiguration"], true, "{suggested}");
        let rules = config::parse("suggested", suggested).expect("suggested rules").policy.rules;
        assert!(rules.len() > 2);
    }
});
