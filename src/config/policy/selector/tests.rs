use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn selector(value: Value) -> Selector {
    serde_json::from_value(value).unwrap()
}

fn labels(value: Value) -> Labels {
    serde_json::from_value(value).unwrap()
}

#[test]
fn expressions_match_as_in_kubernetes() {
    let one = |operator: &str, values: &[&str]| {
        let values = if values.is_empty() { json!([]) } else { json!(values) };
        selector(json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}))
    };
    let (absent, a, b) = (labels(json!({"other": "a"})), labels(json!({"k": "a"})), labels(json!({"k": "b"})));
    for (selector, expected) in [
        (one("In", &["a", "c"]), [false, true, false]),
        (one("NotIn", &["a", "c"]), [true, false, true]),
        (one("Exists", &[]), [false, true, true]),
        (one("DoesNotExist", &[]), [true, false, false]),
        (Selector::default(), [true, true, true]),
    ] {
        assert_eq!([&absent, &a, &b].map(|labels| selector.matches(labels)), expected, "{selector:?}");
    }
    let both = selector(
        json!({"matchLabels": {"k": "a"}, "matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}),
    );
    assert!(both.matches(&a) && !both.matches(&b) && !both.matches(&labels(json!({"k": "a", "other": "x"}))));
}

#[test]
fn keys_and_values_have_the_syntax_of_kubernetes() {
    let is_key = |text: &str| serde_json::from_value::<Key>(json!(text)).is_ok();
    let is_value = |text: &str| serde_json::from_value::<LabelValue>(json!(text)).is_ok();
    let long = "a".repeat(63);
    for good in ["a", "A-_.9", "app.kubernetes.io/name", &long, &format!("{}/a", ["a"; 126].join("."))] {
        assert!(is_key(good), "{good}");
    }
    for bad in
        ["", "-a", "a-", "a b", "é", "/a", "a/", "a/b/c", "A.b/c", "a_b/c", "-a/b", "a..b/c", &format!("a{long}")]
    {
        assert!(!is_key(bad), "{bad}");
    }
    assert!(!is_key(&format!("{}/a", ["a"; 128].join("."))));
    for good in ["", "a", "A-_.9", &long] {
        assert!(is_value(good), "{good}");
    }
    for bad in ["-a", "a.", "a b", "a/b", &format!("a{long}")] {
        assert!(!is_value(bad), "{bad}");
    }
}

fn requirement() -> impl Strategy<Value = Value> {
    let values = proptest::sample::subsequence(vec!["x", "y", "z"], 1..=3);
    let operator = proptest::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    ("[kl]", operator, values).prop_map(|(key, operator, values)| {
        let values = if operator.ends_with("In") { values } else { vec![] };
        json!({"key": key, "operator": operator, "values": values})
    })
}

pub(in crate::config::policy) fn selectors() -> impl Strategy<Value = Selector> {
    let label = proptest::option::of("[xyz]");
    (label, proptest::collection::vec(requirement(), 0..3)).prop_map(|(label, expressions)| {
        let labels = label.map_or_else(|| json!({}), |value| json!({ "k": value }));
        selector(json!({"matchLabels": labels, "matchExpressions": expressions}))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_selector_that_contains_another_matches_all_that_the_other_matches(
        (wide, narrow) in (selectors(), selectors()),
        (k, l) in (proptest::option::of("[wxyz]"), proptest::option::of("[wxyz]")),
    ) {
        let labels: Labels = [("k", k), ("l", l)].into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        if wide.contains(&narrow) && narrow.matches(&labels) {
            prop_assert!(wide.matches(&labels), "{wide:?} {narrow:?} {labels:?}");
        }
        if narrow.impossible().is_some() {
            prop_assert!(!narrow.matches(&labels), "{narrow:?} {labels:?}");
        }
        prop_assert!(wide.contains(&wide));
    }
}
