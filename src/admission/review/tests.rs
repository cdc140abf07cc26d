use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn review(operation: &str, subresource: &str, object: Value, old: Value) -> Vec<u8> {
    serde_json::to_vec(&json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "r1", "kind": {"group": "", "version": "v1", "kind": "Whatever"},
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "subResource": subresource,
            "operation": operation, "name": "p", "namespace": "n",
            "userInfo": {"username": "a\u{1F600}", "groups": ["g"], "extra": {"reason": ["INC-42"]}, "future": 1},
            "object": object, "oldObject": old, "dryRun": false, "options": null, "future": {"x": []},
        },
    }))
    .unwrap()
}

#[test]
fn an_exec_review_is_parsed() {
    let body = review(
        "CONNECT",
        "exec",
        json!({"kind": "PodExecOptions", "stdin": true, "tty": true, "container": "c", "command": ["sh", "-i"]}),
        Value::Null,
    );
    let request = parse(&body).unwrap();
    let act = Act {
        operation: Operation::Exec,
        container: "c".into(),
        command: vec!["sh".into(), "-i".into()],
        stdin: true,
        tty: true,
    };
    assert_eq!((request.uid.as_str(), request.namespace.as_str(), request.pod.as_str()), ("r1", "n", "p"));
    assert_eq!((request.user.name.as_str(), &request.acts), ("a\u{1F600}", &vec![act]));
    assert_eq!(request.user.extra["reason"], ["INC-42"]);
}

#[test]
fn the_command_and_the_container_may_be_absent() {
    for (subresource, object) in
        [("attach", json!({"stdout": true})), ("exec", json!({"command": null})), ("exec", Value::Null)]
    {
        let request = parse(&review("CONNECT", subresource, object, Value::Null)).unwrap();
        assert_eq!((request.acts[0].container.as_str(), request.acts[0].command.len()), ("", 0));
    }
}

#[test]
fn each_ephemeral_container_that_an_update_adds_or_changes_is_a_debug_interaction() {
    let spec = |ephemeral: Value| json!({"containers": [], "ephemeralContainers": ephemeral});
    let pod = |ephemeral: Value| json!({"metadata": {"name": "p"}, "spec": spec(ephemeral)});
    let a = json!({"name": "a", "image": "i", "command": ["sh"], "args": ["-c", "id"], "tty": true});
    let b = json!({"name": "b", "image": "i"});
    let acts =
        |old: Value, new: Value| parse(&review("UPDATE", "ephemeralcontainers", pod(new), pod(old))).unwrap().acts;
    assert!(acts(json!([a]), json!([a])).is_empty());
    assert!(acts(Value::Null, Value::Null).is_empty());
    let one = acts(Value::Null, json!([a]));
    assert_eq!((one.len(), one[0].operation, one[0].command.join(" ")), (1, Operation::Debug, "sh -c id".into()));
    assert_eq!(acts(json!([a]), json!([a, b]))[0].container, "b");
    let mut changed = a.clone();
    changed["image"] = json!("other");
    assert_eq!(acts(json!([a]), json!([changed]))[0].container, "a");
    let many: Value = (0..33).map(|n| json!({"name": n.to_string()})).collect();
    assert!(parse(&review("UPDATE", "ephemeralcontainers", pod(many.clone()), pod(Value::Null))).is_err());
    assert!(acts(many.clone(), many).is_empty());
}

#[test]
fn three_megabytes_of_containers_are_not_compared_pair_by_pair() {
    let object = |item: &str, count: usize| {
        format!(r#"{{"spec":{{"ephemeralContainers":[{}{item}]}}}}"#, format!("{item},").repeat(count))
    };
    let body = String::from_utf8(review("UPDATE", "ephemeralcontainers", json!("NEW"), json!("OLD"))).unwrap();
    let body = body.replace(r#""NEW""#, &object("{}", 500_000)).replace(r#""OLD""#, &object("0", 700_000));
    // A comparison pair by pair would take minutes.
    assert!(parse(body.as_bytes()).is_err());
}

#[test]
fn a_body_that_is_not_a_review_is_an_error_with_the_reason() {
    for (body, expected) in [
        (&b""[..], "not an AdmissionReview: EOF"),
        (b"hello", "not an AdmissionReview: expected value"),
        (b"[]", "not an AdmissionReview: "),
        (b"{}", "not an AdmissionReview that Pristine supports: \"\" \"\" without a request"),
        (br#"{"apiVersion":"v1","kind":"Pod"}"#, "without a request"),
    ] {
        let error = parse(body).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = parse(&review("CREATE", "", Value::Null, Value::Null)).unwrap_err();
    assert!(error.to_string().ends_with(": a review of CREATE pods/"), "{error}");
}

#[test]
fn the_answer_contains_the_uid_and_the_denial() {
    let denial = Denial { code: 403, reason: "Forbidden", message: "no".into() };
    let answer =
        Answer { denial: Some(denial), audit: [("rule", "r".to_owned())].into(), warnings: vec!["w".to_owned()] };
    let rendered: Value = serde_json::from_slice(&render("r1", &answer)).unwrap();
    assert_eq!(
        rendered["response"],
        json!({"uid": "r1", "allowed": false, "auditAnnotations": {"rule": "r"}, "warnings": ["w"],
               "status": {"status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"}})
    );
    let rendered: Value = serde_json::from_slice(&render("r2", &Answer::default())).unwrap();
    assert_eq!(rendered["response"], json!({"uid": "r2", "allowed": true}));
}

proptest! {
    #[test]
    fn parse_never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn parse_never_panics_on_any_objects(object in arbitrary_json(), old in arbitrary_json(), debug in any::<bool>()) {
        let (operation, subresource) = if debug { ("UPDATE", "ephemeralcontainers") } else { ("CONNECT", "exec") };
        let _ = parse(&review(operation, subresource, object, old));
    }
}

fn arbitrary_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,9}".prop_map(Value::from)
    ];
    let key = prop_oneof![
        Just("spec".to_owned()),
        Just("command".to_owned()),
        Just("ephemeralContainers".to_owned()),
        Just("container".to_owned())
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

#[test]
fn the_record_of_the_largest_review_is_bounded() {
    let groups: Vec<String> = (0..10_000).map(|n| format!("group-{n}")).collect();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "future": {"field": [1]},
        "request": {
            "uid": "r", "operation": "CONNECT", "resource": {"resource": "pods", "future": true}, "subResource": "exec",
            "namespace": "n", "name": "p", "userInfo": {"username": "a", "groups": groups, "future": null},
            "object": {"kind": "PodExecOptions", "container": "c", "command": ["x".repeat(1024 * 1024)], "future": {}},
        },
    });
    let request = parse(review.to_string().as_bytes()).unwrap();
    assert_eq!((request.user.groups.len(), request.acts[0].command[0].len()), (10_000, MAX_COMMANDS));
    // `redact` bounds the record, and the mark bounds the annotation.
    let recorded = serde_json::to_string(&crate::mark::redact::user(&request.user)).unwrap();
    assert!(recorded.len() < 8 * 1024 && crate::mark::redact::command(&request.acts[0].command).concat().len() <= 1024);
}

fn without_user_info() -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "r", "operation": "CONNECT", "resource": {"resource": "pods"}, "subResource": "exec", "object": {},
        },
    })
}

#[test]
fn a_review_without_user_info_has_an_empty_user() {
    assert_eq!(parse(without_user_info().to_string().as_bytes()).unwrap().user, User::default());
}

#[test]
fn null_is_an_empty_value_because_go_writes_an_absent_list_as_null() {
    let mut review = without_user_info();
    review["request"]["userInfo"] = json!({"username": "a", "uid": null, "groups": null, "extra": {"x": null}});
    let user = User { name: "a".into(), extra: [("x".into(), Vec::new())].into(), ..User::default() };
    assert_eq!(parse(review.to_string().as_bytes()).unwrap().user, user);
    review["request"]["object"] = json!({"container": null, "command": null, "stdin": null, "tty": null});
    for user in [json!({"username": null, "extra": null}), Value::Null] {
        review["request"]["userInfo"] = user;
        assert_eq!(parse(review.to_string().as_bytes()).unwrap().user, User::default());
    }
}

#[test]
fn the_words_that_the_security_profiles_operator_prepends_are_no_part_of_the_command() {
    let read = |command: Value| {
        let request = parse(&review("CONNECT", "exec", json!({"command": command}), Value::Null)).unwrap();
        let id = request.user.extra.get(EXEC_REQUEST_UID).map(|ids| ids.join(","));
        (request.acts[0].command.join(" "), id)
    };
    let id = Some("da83c434".to_owned());
    assert_eq!(read(json!(["env", "SPO_EXEC_REQUEST_UID=da83c434", "cat", "/x"])), ("cat /x".into(), id.clone()));
    assert_eq!(read(json!(["env", "SPO_EXEC_REQUEST_UID=da83c434", "env", "A=b"])), ("env A=b".into(), id));
    for other in [
        json!(["env", "SPO_EXEC_REQUEST_UID=da83c434"]),
        json!(["env", "A=b", "SPO_EXEC_REQUEST_UID=da83c434", "cat"]),
        json!(["env", "-i", "cat"]),
        json!(["/bin/env", "SPO_EXEC_REQUEST_UID=da83c434", "cat"]),
        json!(["cat", "SPO_EXEC_REQUEST_UID=da83c434"]),
    ] {
        let words: Vec<String> = serde_json::from_value(other.clone()).unwrap();
        assert_eq!(read(other), (words.join(" "), None));
    }
}

#[test]
fn a_user_cannot_name_the_id_of_the_security_profiles_operator_as_extra() {
    let mut review = without_user_info();
    review["request"]["userInfo"] = json!({"extra": {EXEC_REQUEST_UID: ["forged"]}});
    assert_eq!(parse(review.to_string().as_bytes()).unwrap().user, User::default());
}

#[test]
fn the_error_for_an_unsupported_review_names_what_is_unsupported() {
    let mut review = without_user_info();
    review["request"]["subResource"] = json!("teleport");
    assert!(parse(review.to_string().as_bytes()).unwrap_err().to_string().contains("CONNECT pods/teleport"));
    review["apiVersion"] = json!("admission.k8s.io/v2");
    assert!(parse(review.to_string().as_bytes()).unwrap_err().to_string().contains("admission.k8s.io/v2"));
}

#[test]
fn of_megabytes_of_arguments_only_the_beginning_is_kept() {
    let command = json!(["tar", "x".repeat(1_000_000), "y".repeat(1_000_000)]);
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "r", "resource": {"resource": "pods"}, "subResource": "exec", "operation": "CONNECT",
            "namespace": "n", "name": "p", "object": {"command": command},
        },
    });
    let act = parse(review.to_string().as_bytes()).unwrap().acts.remove(0);
    assert_eq!((act.command.len(), act.command[0].as_str()), (3, "tar"));
    assert!(act.command.iter().map(String::capacity).sum::<usize>() <= 2 * MAX_COMMANDS);
}
