//! What `kubectl pristine doctor` says if all replicas are on one node.

use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};

use super::{
    Finding::{self, Note, Warning},
    Trust,
};
use crate::plugin::connection::Connection;

/// The finding; none if the replicas are on several nodes, or are fewer than two.
pub(super) async fn placement(connection: &Connection, trust: &Trust) -> Option<Finding> {
    let ready = trust.replicas.iter().filter(|replica| replica.is_ready);
    let node = only(ready.map(|replica| replica.node.as_deref()))?;
    let api: Api<Node> = Api::all(connection.client.clone());
    // A user who may not list nodes still learns that the replicas are on one.
    let nodes = connection.call("list nodes", api.list(&ListParams::default())).await;
    let nodes = nodes.map(|list| list.items).unwrap_or_default();
    Some(judge(node, &nodes, &connection.pristine))
}

/// The node of all replicas, if there are several of them.
fn only<'a>(mut nodes: impl Iterator<Item = Option<&'a str>>) -> Option<&'a str> {
    let first = nodes.next()??;
    let others: Vec<_> = nodes.collect();
    (!others.is_empty() && others.iter().all(|node| *node == Some(first))).then_some(first)
}

fn judge(node: &str, nodes: &[Node], namespace: &str) -> Finding {
    let follows = "if that node fails, every exec is denied until a replica is Ready elsewhere, except for break-glass";
    let others = nodes.iter().filter(|it| it.metadata.name.as_deref() != Some(node)).filter(|it| takes_replicas(it));
    let restart = format!("kubectl -n {namespace} rollout restart deployment/pristine");
    if !nodes.is_empty() && others.count() == 0 {
        let text = format!("all Ready replicas are on node {node}, the only one that takes them; {follows}");
        return Note(text, format!("kubectl get nodes; if there is another one, {restart}"));
    }
    Warning(
        format!("all Ready replicas are on node {node}; {follows}"),
        format!("{restart} (new replicas prefer different nodes)"),
    )
}

/// Whether the scheduler can place a replica there: it has no toleration but those for nodes that are not Ready.
fn takes_replicas(node: &Node) -> bool {
    let is_ready = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready = is_ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let spec = node.spec.as_ref();
    let is_cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    let mut taints = spec.into_iter().flat_map(|spec| spec.taints.iter().flatten());
    is_ready && !is_cordoned && !taints.any(|taint| taint.effect != "PreferNoSchedule")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, ready: &str, spec: &Value) -> Node {
        let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn only_several_replicas_on_one_node_are_a_finding() {
        let (a, b) = (Some("a"), Some("b"));
        assert_eq!(only([a, a].into_iter()), a);
        assert_eq!(only([a, a, a].into_iter()), a);
        for other in [&[a, b][..], &[a, a, b], &[a], &[], &[a, None], &[None, None]] {
            assert_eq!(only(other.iter().copied()), None, "{other:?}");
        }
    }

    #[test]
    fn the_fix_depends_on_whether_another_node_takes_a_replica() {
        let (one, other) = (node("a", "True", &json!({})), node("b", "True", &json!({})));
        let Warning(text, fix) = judge("a", &[one.clone(), other], "ns") else { panic!() };
        assert!(text.starts_with("all Ready replicas are on node a; if that node fails"), "{text}");
        assert!(fix.starts_with("kubectl -n ns rollout restart deployment/pristine"), "{fix}");
        for unusable in [
            node("b", "True", &json!({"unschedulable": true})),
            node("b", "Unknown", &json!({})),
            node("b", "True", &json!({"taints": [{"key": "control-plane", "effect": "NoSchedule"}]})),
        ] {
            let Note(text, _) = judge("a", &[one.clone(), unusable], "ns") else { panic!() };
            assert!(text.contains("node a, the only one that takes them"), "{text}");
        }
        let soft = node("b", "True", &json!({"taints": [{"key": "spot", "effect": "PreferNoSchedule"}]}));
        assert!(matches!(judge("a", &[one, soft], "ns"), Warning(..)));
        assert!(matches!(judge("a", &[], "ns"), Warning(..)), "nodes that the user may not list");
    }
}
