//! What is a permission to bypass Pristine, and who has it.

use serde_json::json;

use super::{
    PERMISSIONS,
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
    let role = json!({"metadata": {"name": "r"}, "rules": [
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
        ..Rbac::default()
    };
    let found: Vec<_> = PERMISSIONS.iter().flat_map(|it| rbac.holders(it)).collect();
    assert_eq!(found, [Holder { subject: "User eve".into(), binding: "-n pristine-system rolebinding/b".into() }]);
}
