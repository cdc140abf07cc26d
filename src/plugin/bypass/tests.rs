//! What is a permission to bypass Pristine, and who has it.

use serde_json::{Value, json};

use super::{
    PERMISSIONS,
    impersonation::IMPERSONATIONS,
    rbac::{Holder, Rbac},
};

fn cluster_of(grant: serde_json::Value, subject: serde_json::Value) -> Rbac {
    let one = json!({"metadata": {"name": "r"}, "rules": [grant]});
    let binding = json!({
        "metadata": {"name": "b"}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"},
    });
    Rbac {
        cluster_roles: vec![serde_json::from_value(one).unwrap()],
        cluster_role_bindings: vec![serde_json::from_value(binding).unwrap()],
        ..Rbac::default()
    }
}

fn found(rule: serde_json::Value, subject: serde_json::Value) -> Vec<&'static str> {
    let rbac = cluster_of(rule, subject);
    PERMISSIONS.iter().filter(|it| !rbac.holders(it).is_empty()).map(|it| it.resource).collect()
}

#[test]
fn every_way_to_write_a_permission_is_recognized() {
    let sre = json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "sre"});
    for (resources, expected) in [
        (json!(["nodes/proxy"]), vec!["nodes/proxy"]),
        (json!(["*/proxy"]), vec!["nodes/proxy"]),
        (json!(["nodes"]), vec![]),
        (json!(["nodes/metrics"]), vec![]),
        (json!(["secrets"]), vec!["secrets"]),
    ] {
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": resources});
        assert_eq!(found(rule, sre.clone()), expected);
    }
    let named = |name| {
        let verbs = ["impersonate"];
        json!({"verbs": verbs, "apiGroups": [""], "resources": ["groups"], "resourceNames": [name]})
    };
    assert_eq!(found(named("pristine:break-glass"), sre.clone()), ["groups"]);
    assert_eq!(found(named("other"), sre.clone()), [""; 0]);
    let other_group = json!({"verbs": ["*"], "apiGroups": ["storage.k8s.io"], "resources": ["*"]});
    assert_eq!(found(other_group, sre.clone()), [""; 0]);
    let any = json!({"verbs": ["*"], "apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"]});
    assert_eq!(
        found(any, sre),
        ["validatingwebhookconfigurations", "validatingadmissionpolicybindings", "validatingadmissionpolicies",]
    );
}

#[test]
fn cluster_admins_and_the_control_plane_are_not_holders_of_single_permissions() {
    let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
    let group = json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "admins"});
    let all = cluster_of(everything, group);
    assert_eq!(all.cluster_admins()[0].subject, "Group admins");
    assert!(PERMISSIONS.iter().all(|it| all.holders(it).is_empty()), "reported once, not eight times");
    for account in [("kube-system", "namespace-controller"), ("pristine-system", "pristine")] {
        let subject = json!({"kind": "ServiceAccount", "namespace": account.0, "name": account.1});
        assert_eq!(found(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}), subject), [""; 0]);
    }
}

#[test]
fn a_namespaced_binding_counts_only_for_permissions_in_pristines_namespace() {
    let role = json!({"metadata": {"name": "r", "namespace": "pristine-system"}, "rules": [
        {"verbs": ["get", "create"], "apiGroups": [""], "resources": ["secrets", "nodes/proxy"]},
    ]});
    let binding = json!({
        "metadata": {"name": "b", "namespace": "pristine-system"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
    });
    let rbac = Rbac {
        roles: vec![serde_json::from_value(role).unwrap()],
        role_bindings: vec![serde_json::from_value(binding).unwrap()],
        ours: "pristine-system".into(),
        ..Rbac::default()
    };
    let found: Vec<_> = PERMISSIONS.iter().flat_map(|it| rbac.holders(it)).collect();
    assert_eq!(found, [Holder { subject: "User eve".into(), binding: "-n pristine-system rolebinding/b".into() }]);
}

fn rule(verb: &str, group: &str, resource: &str, names: &[&str]) -> Value {
    json!({"verbs": [verb], "apiGroups": [group], "resources": [resource], "resourceNames": names})
}

/// Each grant is a subject, a namespace or "" for the whole cluster, and a rule.
fn bound(grants: &[(&str, &str, Value)]) -> Rbac {
    let mut rbac = Rbac { ours: "pristine-system".into(), ..Rbac::default() };
    for (number, (subject, namespace, rule)) in grants.iter().enumerate() {
        let name = format!("b{number}");
        let (kind, subject) = subject.split_once(' ').unwrap();
        let subject = match subject.split_once('/') {
            Some((namespace, name)) => json!({"kind": kind, "namespace": namespace, "name": name}),
            None => json!({"kind": kind, "name": subject}),
        };
        let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
        let metadata = json!({"name": name, "namespace": if namespace.is_empty() { None } else { Some(namespace) }});
        let role = json!({"metadata": metadata, "rules": [rule]});
        let binding = json!({
            "metadata": metadata, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        });
        if namespace.is_empty() {
            rbac.cluster_roles.push(serde_json::from_value(role).unwrap());
            rbac.cluster_role_bindings.push(serde_json::from_value(binding).unwrap());
        } else {
            rbac.roles.push(serde_json::from_value(role).unwrap());
            rbac.role_bindings.push(serde_json::from_value(binding).unwrap());
        }
    }
    rbac
}

/// Who can act as Pristine's account, and who as the break-glass group.
fn impersonators(grants: &[(&str, &str, Value)]) -> [Vec<String>; 2] {
    let rbac = bound(grants);
    let text = |holder: Holder| format!("{} ({})", holder.subject, holder.binding);
    [0, 1].map(|number| rbac.impersonators(&IMPERSONATIONS[number]).into_iter().map(text).collect())
}

const NO_ONE: [Vec<String>; 2] = [Vec::new(), Vec::new()];

#[test]
fn constrained_impersonation_takes_both_permissions() {
    let identity = || rule("impersonate:serviceaccount", "authentication.k8s.io", "serviceaccounts", &["pristine"]);
    let request = || rule("impersonate-on:serviceaccount:patch", "", "pods/status", &[]);
    let eve = |namespace, rule| ("User eve", namespace, rule);
    let both = impersonators(&[eve("pristine-system", identity()), eve("shop", request())]);
    assert_eq!(both[0], ["User eve (-n pristine-system rolebinding/b0 with -n shop rolebinding/b1)"]);
    assert!(both[1].is_empty());
    for alone in [
        vec![eve("", identity())],
        vec![eve("", request())],
        // Another identity, another namespace, the group of legacy impersonation, a request that does not matter.
        vec![eve("shop", identity()), eve("", request())],
        vec![
            eve("", rule("impersonate:serviceaccount", "authentication.k8s.io", "serviceaccounts", &["other"])),
            eve("", request()),
        ],
        vec![eve("", rule("impersonate:serviceaccount", "", "serviceaccounts", &[])), eve("", request())],
        vec![eve("", identity()), eve("", rule("impersonate-on:serviceaccount:get", "", "pods", &[]))],
        vec![eve("", identity()), eve("", rule("impersonate-on:user-info:patch", "", "pods/status", &[]))],
        vec![eve("", identity()), eve("shop", rule("impersonate-on:serviceaccount:get", "", "secrets", &[]))],
        vec![eve("", identity()), ("User bob", "", request())],
    ] {
        assert_eq!(impersonators(&alone), NO_ONE, "{alone:?}");
    }
}

#[test]
fn the_verb_for_everything_contains_constrained_impersonation_of_break_glass() {
    let identity = rule("*", "authentication.k8s.io", "*", &[]);
    for (verb, resource) in [
        ("impersonate-on:user-info:get", "pods/exec"),
        ("*", "pods/attach"),
        ("impersonate-on:user-info:patch", "*/ephemeralcontainers"),
    ] {
        let request = rule(verb, "", resource, &["web-0"]);
        let [_, found] = impersonators(&[("User eve", "", identity.clone()), ("User eve", "shop", request)]);
        assert_eq!(found, ["User eve (clusterrolebinding/b0 with -n shop rolebinding/b1)"], "{verb} {resource}");
    }
}

#[test]
fn a_user_can_have_one_half_and_a_group_of_theirs_the_other() {
    let identity = || rule("impersonate:serviceaccount", "authentication.k8s.io", "serviceaccounts", &[]);
    let request = || rule("impersonate-on:serviceaccount:patch", "", "pods/status", &[]);
    let found = |one, other| impersonators(&[(one, "", identity()), (other, "", request())])[0].join(", ");
    let text = "User eve (clusterrolebinding/b0 with clusterrolebinding/b1 of Group devs)";
    assert_eq!(found("User eve", "Group devs"), text);
    assert!(!found("Group devs", "User eve").is_empty() && !found("Group devs", "Group ops").is_empty());
    // The groups of a ServiceAccount are known.
    assert!(!found("ServiceAccount ci/bot", "Group system:serviceaccounts:ci").is_empty());
    assert_eq!(found("ServiceAccount ci/bot", "Group devs"), "");
}

#[test]
fn who_may_impersonate_without_constraint_is_reported_once() {
    let any = ["impersonate", "impersonate:serviceaccount", "impersonate-on:serviceaccount:patch"];
    let everything = json!({"verbs": any, "apiGroups": ["*"], "resources": ["*"]});
    let rbac = bound(&[("User eve", "", everything)]);
    assert!(rbac.impersonators(&IMPERSONATIONS[0]).is_empty());
    let legacy = PERMISSIONS.iter().filter(|it| !rbac.holders(it).is_empty()).map(|it| it.resource);
    assert_eq!(legacy.collect::<Vec<_>>(), ["groups", "groups", "serviceaccounts"]);
}

#[test]
fn a_resource_name_narrows_a_permission_and_does_not_hide_it() {
    let holders = |resource, verb| {
        let rbac = bound(&[("User eve", "pristine-system", rule(verb, "apps", resource, &["pristine"]))]);
        PERMISSIONS.iter().filter(|it| !rbac.holders(it).is_empty()).count()
    };
    assert_eq!(holders("deployments", "patch"), 1);
    assert_eq!(holders("deployments", "create"), 0, "no name is known before the object exists");
    let rbac = bound(&[("User eve", "", rule("get", "", "nodes/proxy", &["node-1"]))]);
    assert_eq!(rbac.holders(&PERMISSIONS[0]).len(), 1);
}

#[test]
fn who_may_get_an_exec_and_not_create_it_there_is_found() {
    let found = |grants: &[(&str, &str, Value)]| {
        let all = bound(grants).get_only("pods/exec").into_iter();
        all.map(|holder| format!("{} ({})", holder.subject, holder.binding)).collect::<Vec<_>>().join(", ")
    };
    let on = |verb, names: &[&str]| rule(verb, "", "pods/exec", names);
    let get = || ("User eve", "shop", on("get", &[]));
    assert_eq!(found(&[get()]), "User eve (-n shop rolebinding/b0)");
    assert_eq!(found(&[get(), ("User eve", "shop", on("create", &[]))]), "");
    assert_eq!(found(&[get(), ("User eve", "", on("*", &[]))]), "");
    for other in [
        ("User eve", "bank", on("create", &[])),
        ("User eve", "shop", on("create", &["web-0"])),
        ("User bob", "shop", on("create", &[])),
    ] {
        assert_eq!(found(&[get(), other]), "User eve (-n shop rolebinding/b0)");
    }
    let get_one = ("User eve", "shop", on("get", &["web-0"]));
    assert_eq!(found(&[get_one, ("User eve", "shop", on("create", &["web-0", "web-1"]))]), "");
    assert_eq!(found(&[("ServiceAccount kube-system/x", "", on("get", &[]))]), "");
    assert_eq!(found(&[get(), ("User eve", "", json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}))]), "");
}
