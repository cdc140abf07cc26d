//! The manifest agrees with the code: versions, paths, numbers that stand in two places.

use serde_json::{Value, json};

use crate::read;

fn objects() -> Vec<Value> {
    let text = read("manifests/install.yaml");
    text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

fn object(kind: &str) -> Value {
    objects().into_iter().find(|object| object["kind"] == kind).unwrap()
}

#[test]
fn the_image_tag_is_the_version_of_the_crate() {
    let deployment = object("Deployment");
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap();
    assert!(image.ends_with(concat!(":v", env!("CARGO_PKG_VERSION"))), "{image}");
}

#[test]
fn no_apply_of_the_manifest_changes_the_rules() {
    // They have no data, so that applying the manifest again ends no suspension and forgets no loop.
    let maps: Vec<_> = objects().into_iter().filter(|object| object["kind"] == "ConfigMap").collect();
    let names: Vec<_> = maps.iter().map(|map| map["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pristine-suspend", "pristine-loops"]);
    assert!(maps.iter().all(|map| map.get("data").is_none()), "{maps:?}");
    let config = json!({"name": "config", "configMap": {"name": "pristine", "optional": true}});
    let volumes = template()["spec"]["volumes"].clone();
    assert!(volumes.as_array().unwrap().contains(&config), "{volumes}");
    let mounts = template()["spec"]["containers"][0]["volumeMounts"].clone();
    let mounted = json!({"name": "config", "mountPath": "/etc/pristine", "readOnly": true});
    assert!(mounts.as_array().unwrap().contains(&mounted), "{mounts}");
}

#[test]
fn every_webhook_entry_has_its_failure_policy_and_no_object_selector() {
    let configuration = object("ValidatingWebhookConfiguration");
    for entry in configuration["webhooks"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        assert_eq!(entry["clientConfig"]["caBundle"], Value::Null, "{name}: an apply would put it back each time");
        assert_eq!(entry["objectSelector"], Value::Null, "{name}: it would silently switch exec off");
        assert_eq!(entry["sideEffects"], "NoneOnDryRun", "{name}");
        let opens = name.starts_with("break-glass") || name.starts_with("connect");
        assert_eq!(entry["failurePolicy"], if opens { "Ignore" } else { "Fail" }, "{name}");
        if name.starts_with("connect") {
            continue;
        }
        let conditions = entry["matchConditions"].as_array().unwrap();
        assert!(conditions[0]["expression"].as_str().unwrap().contains("has(request.userInfo.groups) && "), "{name}");
    }
}

#[test]
fn the_webhook_configuration_is_deleted_before_the_deployment() {
    let kinds: Vec<_> = objects().iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect();
    let at = |kind: &str| kinds.iter().position(|found| found == kind).unwrap();
    assert!(at("ValidatingWebhookConfiguration") < at("Namespace"));
    assert!(at("Namespace") < at("Deployment"));
}

#[test]
fn the_grace_period_is_longer_than_the_drain() {
    let grace = object("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    // --drain, 5 s for the last answers, and something for the lease to be released.
    assert!(grace > 25 + 5 + 2, "{grace}");
}

#[test]
fn the_service_account_can_write_only_the_status_and_the_eviction_of_a_pod() {
    for object in
        objects().iter().filter(|object| object["metadata"]["name"] == "pristine" && object["kind"] == "ClusterRole")
    {
        for rule in object["rules"].as_array().unwrap() {
            let resources: Vec<_> = rule["resources"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
            let verbs: Vec<_> = rule["verbs"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
            if resources.contains(&"pods") {
                assert_eq!(verbs, ["get", "list", "watch"]);
            }
            assert!(!resources.contains(&"secrets") && !verbs.contains(&"*"), "{rule}");
        }
    }
}

/// The pods of the Deployment.
fn template() -> Value {
    object("Deployment")["spec"]["template"].clone()
}

#[test]
fn the_replicas_have_a_system_priority_and_the_quota_that_some_clusters_ask_for() {
    let class = template()["spec"]["priorityClassName"].clone();
    assert_eq!(class, "system-cluster-critical");
    let quota = object("ResourceQuota");
    let scope = json!([{"scopeName": "PriorityClass", "operator": "In", "values": [class]}]);
    assert_eq!(quota["spec"]["scopeSelector"]["matchExpressions"], scope);
    assert_eq!(quota["metadata"]["namespace"], object("Deployment")["metadata"]["namespace"]);
    let pods: u64 = quota["spec"]["hard"]["pods"].as_str().unwrap().parse().unwrap();
    // Twice the replicas that anybody would run, for those that drain during a rollout.
    assert!(pods >= 50, "{pods}: no replica is created beyond it");
    let kinds: Vec<_> = objects().iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect();
    let at = |kind: &str| kinds.iter().position(|found| found == kind).unwrap();
    assert!(at("Namespace") < at("ResourceQuota") && at("ResourceQuota") < at("Deployment"));
}

#[test]
fn the_replicas_spread_over_hosts_and_zones_where_there_are_several() {
    let spec = template()["spec"].clone();
    let zones = &spec["topologySpreadConstraints"][0];
    assert_eq!(zones["topologyKey"], "topology.kubernetes.io/zone");
    assert_eq!(zones["whenUnsatisfiable"], "ScheduleAnyway", "a cluster with one zone");
    let rules = &spec["affinity"]["podAntiAffinity"];
    assert_eq!(rules["requiredDuringSchedulingIgnoredDuringExecution"], Value::Null, "a cluster with one node");
    let hosts = &rules["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
    assert_eq!(hosts["topologyKey"], "kubernetes.io/hostname");
    for selector in [&zones["labelSelector"]["matchLabels"], &hosts["labelSelector"]["matchLabels"]] {
        assert_eq!(*selector, object("Deployment")["spec"]["selector"]["matchLabels"]);
    }
}

#[test]
fn a_replica_on_a_lost_node_is_replaced_within_half_a_minute_of_its_taint() {
    let spec = template()["spec"].clone();
    let tolerations = spec["tolerations"].as_array().unwrap();
    for taint in ["not-ready", "unreachable"] {
        let key = format!("node.kubernetes.io/{taint}");
        let found = tolerations.iter().find(|toleration| toleration["key"] == key).unwrap();
        assert_eq!((&found["operator"], &found["effect"]), (&json!("Exists"), &json!("NoExecute")), "{found}");
        assert!((10..=30).contains(&found["tolerationSeconds"].as_u64().unwrap()), "{found}");
    }
}

#[test]
fn no_mesh_adds_a_container_to_a_replica() {
    let (pod, namespace) = (template()["metadata"].clone(), object("Namespace")["metadata"].clone());
    for (metadata, field, key, value) in [
        (&pod, "labels", "sidecar.istio.io/inject", "false"),
        (&pod, "labels", "kuma.io/sidecar-injection", "disabled"),
        (&pod, "annotations", "linkerd.io/inject", "disabled"),
        (&pod, "annotations", "consul.hashicorp.com/connect-inject", "false"),
        (&namespace, "labels", "istio-injection", "disabled"),
        (&namespace, "labels", "kuma.io/sidecar-injection", "disabled"),
        (&namespace, "labels", "config.linkerd.io/admission-webhooks", "disabled"),
        (&namespace, "annotations", "linkerd.io/inject", "disabled"),
    ] {
        assert_eq!(metadata[field][key], value, "{key} in the {field}");
    }
}

#[test]
fn the_api_server_serves_the_replicas_before_the_workloads() {
    let schema = object("FlowSchema");
    assert_eq!(schema["apiVersion"], "flowcontrol.apiserver.k8s.io/v1");
    assert_eq!(schema["spec"]["priorityLevelConfiguration"]["name"], "workload-high");
    // Kubernetes' own are at 900 and below, except service-accounts (9000) and what matches everybody.
    let precedence = schema["spec"]["matchingPrecedence"].as_u64().unwrap();
    assert!(900 < precedence && precedence < 9000, "{precedence}");
    let account = json!({"name": "pristine", "namespace": "pristine-system"});
    let rule = &schema["spec"]["rules"][0];
    assert_eq!(rule["subjects"], json!([{"kind": "ServiceAccount", "serviceAccount": account}]));
    let every =
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]);
    assert_eq!(rule["resourceRules"], every);
}

#[test]
fn the_network_policy_lets_a_replica_reach_every_api_server_and_no_dns() {
    let policy: Value = serde_saphyr::from_str(&read("manifests/components/network-policy/policy.yaml")).unwrap();
    let rules = policy["spec"]["egress"].as_array().unwrap();
    let is_open = |protocol: &str, port: u64| {
        rules.iter().any(|rule| {
            let ports = rule["ports"].as_array().unwrap().iter();
            let mut ports = ports.filter(|open| open["protocol"].as_str().unwrap_or("TCP") == protocol);
            rule["to"].is_null() && ports.any(|open| open["port"].is_null() || open["port"] == port)
        })
    };
    // Of kubeadm, managed clusters, MicroK8s, minikube and IBM Cloud.
    for port in [6443, 443, 16443, 8443, 20001, 31_234] {
        assert!(is_open("TCP", port), "{port}");
    }
    assert!(!is_open("UDP", 53));
}
