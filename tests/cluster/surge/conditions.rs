//! Where no surge begins: the pod is evicted as without one, or its budget refuses that as before.

use super::*;
use crate::kubectl::reason;

/// Execs into the pod, waits until it is evicted or has this condition, and looks whether a surge began.
async fn without_surge(ns: &Namespace, pod: &Pod, becomes: &str) {
    let is_evicted = becomes == "PodEvicted";
    ns.run(&["exec", name_of(pod), "--", "true"]).await;
    if is_evicted {
        gone(ns, pod, 60).await;
    } else {
        eventually(becomes, 40, async || (reason(&ns.pod(name_of(pod)).await) == becomes).then_some(())).await;
    }
    // Events are published a moment later.
    sleep(Duration::from_secs(3)).await;
    let events = ns.run(&["get", "events", "-o", "custom-columns=:.reason,:.message"]).await;
    assert!(!events.contains("SurgeStarted"), "{}: {events}", ns.name);
    if is_evicted {
        assert!(events.contains("PodEvicted"), "{events}");
    } else {
        let pod = ns.pod(name_of(pod)).await;
        assert!(annotation(&pod, "pristine/surge").is_none() && serves(&pod), "{:?}", pod.metadata);
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn no_surge_begins_where_it_could_not_end_or_is_not_wanted() {
    let before = switch_on().await;
    let service_by_hash = async {
        let ns = Namespace::new("t-fast-").await;
        let pod = single(&ns, 1, "").await;
        let hash = &pod.metadata.labels.as_ref().unwrap()["pod-template-hash"];
        ns.run(&[
            "patch",
            "service",
            "web",
            "--type=merge",
            "-p",
            &format!(r#"{{"spec":{{"selector":{{"pod-template-hash":"{hash}"}}}}}}"#),
        ])
        .await;
        without_surge(&ns, &pod, "PodEvicted").await;
    };
    let refused = async |budgets: &[&str], annotation: &str| {
        let ns = Namespace::new("t-fast-").await;
        let pod = single(&ns, 1, "").await;
        for spec in budgets {
            budget_of(&ns, spec).await;
        }
        if !annotation.is_empty() {
            ns.run(&["annotate", "deployment", "web", annotation]).await;
        }
        without_surge(&ns, &pod, "EvictionBlocked").await;
    };
    let others_serve = async {
        let ns = Namespace::new("t-fast-").await;
        let pods = several(&ns, 3, 1, "").await;
        budget_of(&ns, "maxUnavailable: 1").await;
        without_surge(&ns, &pods[0], "PodEvicted").await;
    };
    let recreate = async {
        let ns = Namespace::new("t-fast-").await;
        let pod = single(&ns, 1, "").await;
        ns.run(&[
            "patch",
            "deployment",
            "web",
            "-p",
            r#"{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}"#,
        ])
        .await;
        without_surge(&ns, &pod, "PodEvicted").await;
    };
    // A pod of the old version more would be the fifth. The pod waits until the new one is Ready.
    let rollout = async {
        let ns = Namespace::new("t-fast-").await;
        let pods = several(&ns, 3, 1, "").await;
        budget_of(&ns, "minAvailable: 3").await;
        ns.run(&[
            "patch",
            "deployment",
            "web",
            "-p",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"app","command":["sleep","1000"]}]}}}}"#,
        ])
        .await;
        let all = async || ns.pods().list(&ListParams::default()).await.unwrap().items.len();
        eventually("a pod of the new version", 20, async || (all().await == 4).then_some(())).await;
        without_surge(&ns, &pods[0], "EvictionQueued").await;
        assert_eq!(all().await, 4);
    };
    tokio::join!(
        service_by_hash,
        refused(&["minAvailable: 2"], ""),
        refused(&["minAvailable: 1", "maxUnavailable: 1"], ""),
        refused(&["maxUnavailable: 0"], ""),
        refused(&["minAvailable: 1"], "pristine/no-surge=true"),
        others_serve,
        recreate,
        rollout,
    );
    switch_off(before).await;
}
