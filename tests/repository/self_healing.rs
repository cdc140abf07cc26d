//! The policy of the component self-healing is made from manifests/base: the policy there, and what is allowed on CREATE,
//! which is the shipped webhook configuration. `hack/generate manifests` writes it.

use serde_json::{Value, json};

use crate::read;

const POLICY: &str = "manifests/components/self-healing/policy.yaml";

/// The value as a CEL literal. The values of a map have different types, which Kubernetes accepts only as `dyn`.
fn cel(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(cel).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| match value {
                Value::Array(_) | Value::Object(_) | Value::Number(_) => format!("{}: dyn({})", json!(key), cel(value)),
                other => format!("{}: dyn({other})", json!(key)),
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// The shipped entry as an API server completes it, without clientConfig.
fn entry(shipped: &Value) -> Value {
    let mut entry = shipped.clone();
    entry.as_object_mut().unwrap().remove("clientConfig").unwrap();
    for (key, default) in
        [("matchPolicy", json!("Equivalent")), ("namespaceSelector", json!({})), ("objectSelector", json!({}))]
    {
        assert_eq!(entry[key], Value::Null, "a default would not be one");
        entry[key] = default;
    }
    entry
}

/// `text` with the only occurrence of `from` replaced.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

fn generated() -> String {
    let shipped: Value = serde_saphyr::from_str(&read("manifests/base/webhook.yaml")).unwrap();
    let base = read("manifests/base/webhook-guard.yaml");
    let policy = base.split("\n---\n").next().unwrap();
    let policy = &policy[policy.find("apiVersion:").unwrap()..];
    let policy = replace(
        policy,
        "  validations:\n  - expression: \"request.operation == 'UPDATE' && request.name == 'pristine'\"\n    message: \"Pristine updates the webhook configuration pristine and no other, and creates none\"\n",
        "{variables}  validations:\n  - expression: \"object.metadata.name == 'pristine' && (oldObject == null || request.name == 'pristine')\"\n    message: \"Pristine creates and updates the webhook configuration pristine and no other\"\n",
    );
    let entries = shipped["webhooks"].as_array().unwrap();
    let names: Vec<&Value> = entries.iter().map(|entry| &entry["name"]).collect();
    let literals: Vec<String> =
        entries.iter().map(|shipped| format!("{}: {}", shipped["name"], cel(&entry(shipped)))).collect();
    let service = &shipped["webhooks"][0]["clientConfig"]["service"];
    assert!(entries.iter().all(|entry| entry["clientConfig"] == json!({ "service": service })), "one literal for all");
    let variables = format!(
        "  # The shipped configuration, as an API server completes it.
  - name: names
    expression: >-
      {names}
  - name: shipped
    expression: >-
      {{{entries}}}
  - name: service
    expression: >-
      {service}
  - name: labels
    expression: >-
      {labels}
  - name: annotations
    expression: >-
      {annotations}
",
        names = cel(&json!(names)),
        entries = literals.join(",\n      "),
        service = cel(service),
        labels = cel(&shipped["metadata"]["labels"]),
        annotations = cel(&shipped["metadata"]["annotations"]),
    );
    let create = "
  # On CREATE: the shipped configuration, and nothing else.
  - expression: >-
      oldObject != null
      || variables.new.all(k, k in ['apiVersion', 'kind', 'metadata', 'webhooks'])
      && variables.new.metadata.all(k, k in ['name', 'uid', 'creationTimestamp', 'generation', 'managedFields', 'labels', 'annotations', 'ownerReferences'])
      && variables.new.metadata.?labels.orValue({}) == variables.labels
      && variables.annotations.all(k, k in variables.new.metadata.?annotations.orValue({}))
      && variables.new.metadata.?annotations.orValue({}).all(k, k in variables.keys || variables.annotations[?k] == optional.of(variables.new.metadata.annotations[k]))
      && variables.new.metadata.?ownerReferences.orValue([]).size() == 1
      && variables.new.metadata.ownerReferences.all(o, o.all(k, k in ['apiVersion', 'kind', 'name', 'uid']))
    message: \"Pristine creates its webhook configuration with the shipped labels and annotations and its namespace as the owner, and with nothing else in the metadata\"
    reason: Forbidden
  - expression: >-
      oldObject != null
      || variables.new.?webhooks.orValue([]).map(w, w.name) == variables.names
      && variables.new.webhooks.all(w, variables.shipped[w.name].all(k, k in w)
        && w.all(k, k == 'clientConfig' || variables.shipped[w.name][?k] == optional.of(w[k])))
    message: \"Pristine creates its webhook configuration with the shipped entries, unchanged and all of them\"
    reason: Forbidden
  - expression: >-
      oldObject != null
      || variables.new.?webhooks.orValue([]).all(w, has(w.clientConfig.service)
        && w.clientConfig.all(k, k in ['service', 'caBundle'])
        && variables.service.all(k, k in w.clientConfig.service)
        && w.clientConfig.service.all(k, k == 'path' || variables.service[?k] == optional.of(w.clientConfig.service[k])))
    message: \"Pristine creates entries that call its own Service\"
    reason: Forbidden
";
    let policy = replace(&policy, "{variables}", &variables);
    format!(
        "# Made by hack/generate from manifests/base/webhook-guard.yaml and manifests/base/webhook.yaml.\n{}{create}",
        policy.trim_end()
    )
}

#[test]
fn the_policy_of_self_healing_allows_creating_what_is_shipped() {
    assert!(read(POLICY) == generated(), "{POLICY} is stale; run hack/generate manifests");
}

#[test]
#[ignore = "for hack/generate"]
fn print_the_policy() {
    println!("{}---", generated());
}
