//! The binary, as a person or a container runtime starts it.

use std::{fs, process::Command};

fn pristine(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pristine")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    file
}

#[test]
fn check_config_prints_file_line_and_field() {
    let good = file("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: 10m}\n");
    let path = good.path().to_str().unwrap();
    assert_eq!(pristine(&["check-config", path]), (true, format!("{path}: ok, 0 rules and a default\n")));

    let bad = file("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: -10m}\n");
    let path = bad.path().to_str().unwrap();
    let expected = format!("pristine: {path}:3:31: duration \"-10m\" is negative\n");
    assert_eq!(pristine(&["check-config", path]), (false, expected.clone()));
    // The same at the start of the webhook, before it asks anybody for anything.
    assert_eq!(pristine(&["serve", "--config", path]), (false, expected));
}

#[test]
fn a_missing_configuration_file_is_named_in_the_error() {
    let (ok, text) = pristine(&["check-config", "/does/not/exist.yaml"]);
    assert!(
        !ok && text.starts_with("pristine: cannot read the configuration /does/not/exist.yaml: No such file"),
        "{text}"
    );
}

#[test]
fn the_built_in_configuration_is_printed_by_both_programs_and_is_valid() {
    let (ok, text) = pristine(&["default-config"]);
    assert!(
        ok && text.contains("\n- {name: machines, match: {podToken: true, tty: false}, action: Record}\n"),
        "{text}"
    );
    let (rules, review) = (file(&text), file(EXEC));
    let path = rules.path().to_str().unwrap();
    assert_eq!(pristine(&["check-config", path]), (true, format!("{path}: ok, 2 rules and a default\n")));
    let plugin = Command::new(env!("CARGO_BIN_EXE_kubectl-pristine")).arg("default-config").output().unwrap();
    assert_eq!(String::from_utf8(plugin.stdout).unwrap(), text);
    // Without a file, it is the one that decides.
    let explain = ["explain", "--review", review.path().to_str().unwrap()];
    assert!(!std::path::Path::new("/etc/pristine").exists(), "of the machine that runs the tests");
    assert_eq!(pristine(&explain), pristine(&[&explain[..], &["--config", path]].concat()));
}

#[test]
fn a_configuration_file_that_the_user_named_must_exist() {
    let review = file(EXEC);
    let missing = "pristine: cannot read the configuration /does/not/exist.yaml: No such file";
    let explain = ["explain", "--review", review.path().to_str().unwrap()];
    for command in [&["serve"][..], &explain] {
        let (ok, text) = pristine(&[command, &["--config", "/does/not/exist.yaml"]].concat());
        assert!(!ok && text.starts_with(missing), "{text}");
    }
}

const EXEC: &str = r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "r", "operation": "CONNECT",
    "resource": {"resource": "pods"}, "subResource": "exec", "namespace": "kube-system", "name": "web-0",
    "userInfo": {"username": "alice"}, "object": {"container": "app", "command": ["psql"]}}}"#;

#[test]
fn lifetimes_that_cannot_overlap_are_rejected() {
    let (ok, text) = pristine(&["serve", "--ca-lifetime", "1h", "--serving-lifetime", "1h"]);
    assert!(!ok && text.starts_with("pristine: --ca-lifetime 3600s is too short"), "{text}");
}

const RULES: &str = "apiVersion: pristine/v1alpha1
kind: PristineConfiguration
default: {action: Evict, ttl: 10m}
rules:
- {name: backups, match: {users: [velero]}, action: Exempt}
- {name: databases, match: {podSelector: {matchLabels: {tier: db}}}, action: Deny, message: use the read replica}
- {name: prod, match: {namespaces: [prod-*]}, action: Record}
- {name: eu, match: {namespaces: [prod-eu]}, action: Exempt}
";

#[test]
fn check_config_warns_of_a_rule_that_never_decides() {
    let rules = file(RULES);
    let path = rules.path().to_str().unwrap();
    let warning = "warning: rule \"eu\" never decides: the earlier rule \"prod\" matches everything that it matches, with another action";
    let expected = format!("{path}: ok, 4 rules and a default\n{path}: {warning}\n");
    assert_eq!(pristine(&["check-config", path]), (true, expected));
}

#[test]
fn check_config_warns_of_a_rule_that_evicts_bare_pods_without_naming_them() {
    let rules = "default: {action: Evict, ttl: 10m}
rules:
- {name: jobs, match: {namespaces: [batch-*], ownerKinds: [None, Job]}, action: Record}
- {name: batch, match: {namespaces: [batch-*]}, action: Evict, ttl: 5m}
- {name: prod, match: {namespaces: [prod-*]}, action: Evict, ttl: 5m}
- {name: owned, match: {ownerKinds: [ReplicaSet]}, action: Evict, ttl: 5m}
- {name: rest, action: Record}
";
    let rules = file(&format!("apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\n{rules}"));
    let (ok, text) = pristine(&["check-config", rules.path().to_str().unwrap()]);
    let warned: Vec<_> = text.lines().filter(|line| line.contains("also evicts bare pods")).collect();
    assert!(ok && warned.len() == 1 && warned[0].contains("warning: rule \"prod\""), "{text}");
}

#[test]
fn explain_prints_which_rule_decides_and_why_the_others_do_not() {
    let review = file(
        r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "r", "operation": "CONNECT",
        "resource": {"resource": "pods"}, "subResource": "exec", "namespace": "prod-us", "name": "web-0",
        "userInfo": {"username": "alice"}, "object": {"container": "app", "command": ["psql"]}}}"#,
    );
    let pod = file(
        r#"{"metadata": {"namespace": "prod-us", "name": "web-0", "labels": {"tier": "db"}},
        "spec": {"nodeName": "n", "containers": [{"name": "app"}]}}"#,
    );
    let (rules, review, pod) = (file(RULES), review.path().to_str().unwrap(), pod.path().to_str().unwrap());
    let explain = |more: &[&str]| {
        let arguments = ["explain", "--config", rules.path().to_str().unwrap(), "--review", review];
        pristine(&[&arguments, more].concat())
    };
    let expected = "pod prod-us/web-0: exec into container app by \"alice\"
  rule \"backups\" does not match: users
  rule \"databases\" matches
  rule \"databases\" decides: Deny: use the read replica
";
    assert_eq!(explain(&["--pod", pod]), (true, expected.to_owned()));
    let expected = "no --pod: assuming a pod of a ReplicaSet, without labels
pod prod-us/web-0: exec into container app by \"alice\"
  rule \"backups\" does not match: users
  rule \"databases\" does not match: podSelector
  rule \"prod\" matches
  rule \"prod\" decides: Record: admitted and marked, never evicted
";
    assert_eq!(explain(&[]), (true, expected.to_owned()));

    let (ok, text) = pristine(&["explain", "--config", rules.path().to_str().unwrap(), "--review", pod]);
    assert!(!ok && text.starts_with(&format!("pristine: cannot explain {pod}: not an AdmissionReview")), "{text}");
}

#[test]
fn explain_reads_the_labels_of_the_namespace_or_says_what_it_assumes() {
    let review = file(
        r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "r", "operation": "CONNECT",
        "resource": {"resource": "pods"}, "subResource": "exec", "namespace": "shop", "name": "web-0",
        "userInfo": {"username": "alice"}, "object": {"container": "app", "command": ["psql"], "tty": true}}}"#,
    );
    let rules = file(&format!(
        "{RULES}- {{name: machines, match: {{podToken: true, tty: false}}, action: Record}}
- {{name: scripts, match: {{tty: false}}, action: Record}}
- {{name: labelled, match: {{namespaceSelector: {{matchLabels: {{env: prod}}}}}}, action: Record}}
"
    ));
    let namespace = file(r#"{"metadata": {"name": "shop", "labels": {"env": "prod"}}}"#);
    let explain = |more: &[&str]| {
        let (rules, review) = (rules.path().to_str().unwrap(), review.path().to_str().unwrap());
        pristine(&[&["explain", "--config", rules, "--review", review], more].concat()).1
    };
    let text = explain(&["--namespace", namespace.path().to_str().unwrap()]);
    for line in [
        "  rule \"machines\" does not match: tty\n",
        "  rule \"scripts\" does not match: tty\n",
        "  rule \"labelled\" decides: Record",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("assuming a namespace"), "{text}");
    let text = explain(&[]);
    for line in [
        "  no --namespace: assuming a namespace without labels, except its name\n",
        "  rule \"labelled\" does not match: namespaceSelector\n",
        "  the default decides: ",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn match_conditions_prints_a_patch_of_the_entries_that_fail_closed() {
    let rules = file(RULES);
    let (ok, text) = pristine(&["match-conditions", rules.path().to_str().unwrap()]);
    assert!(ok && text.contains(r#""expression":"!(((request.userInfo.username in [\"velero\"])))""#), "{text}");
    let accepted = r#""metadata":{"annotations":{"pristine/accepted-deviations":"matchConditions"}}"#;
    assert!(text.contains(accepted), "{text}");
}
