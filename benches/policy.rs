//! The time of a decision with 1,000 rules, as a ratio to one rule, both in one run. `hack/bench policy` runs it.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "prints figures, or fails")]

use std::{fmt::Write as _, hint::black_box};

use k8s_openapi::api::core::v1::Pod;
use pristine::{
    config::{
        self,
        policy::{Attributes, Policy},
    },
    mark::{Interaction, Operation, User},
};
use serde_json::json;
use tokio::time::Instant;

const ROUNDS: u32 = 2000;

/// `count` rules with a matcher of this kind, of which only the last one matches.
fn rules(count: usize, kind: &str) -> Policy {
    let mut text =
        "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Record}\nrules:\n".to_owned();
    for n in 1..count {
        let matches = match kind {
            "namespaces" => format!("{{namespaces: [\"team-{n}-*\", \"*-sandbox-{n}\"]}}"),
            "users" => format!("{{users: [\"user-{n}@example.com\"]}}"),
            "groups" => format!("{{groups: [team-{n}, sre-{n}]}}"),
            _ => format!(
                "{{namespaces: [\"*\"], commandPrefix: [tool-{n}], podSelector: {{matchLabels: {{app: a{n}}}}}}}"
            ),
        };
        let _ = writeln!(text, "- {{name: r{n}, match: {matches}, action: Exempt}}");
    }
    text.push_str("- {name: last, match: {namespaces: [prod]}, action: Evict, ttl: 10m}\n");
    config::parse("bench", &text).unwrap().policy
}

fn main() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "prod", "name": "web-0", "labels": {"app": "web", "tier": "front"}},
    }))
    .unwrap();
    let user = User {
        name: "alice@example.com".to_owned(),
        groups: (0..40).map(|n| format!("group-{n}")).collect(),
        ..User::default()
    };
    let argv = vec!["sh".to_owned(), "-c".to_owned(), "id".to_owned()];
    let interaction = Interaction {
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
        operation: Operation::Exec,
        container: "app".to_owned(),
        command: argv.clone(),
        stdin: true,
        tty: true,
        user: user.clone(),
        review: String::new(),
        rule: String::new(),
    };
    println!(
        "one decision           1 rule      1,000 rules   ratio   (user in 40 groups, only the last rule matches)"
    );
    for kind in ["namespaces", "users", "groups", "commands"] {
        let time = |policy: &Policy| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                let it = Attributes { interaction: &interaction, user: &user, argv: &argv, pod: &pod, namespace: None };
                assert_eq!(black_box(policy).decide(it).unwrap().rule, "last");
            }
            start.elapsed() / ROUNDS
        };
        let (one, thousand) = (rules(1, kind), rules(1000, kind));
        time(&one);
        let (few, many) = (time(&one), time(&thousand));
        println!("  by {kind:<12} {few:>12.2?} {many:>16.2?} {:>7.0}", many.as_secs_f64() / few.as_secs_f64());
    }
}
