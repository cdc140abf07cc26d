//! The commands that change something: extend, hold, release, evict.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serial_test::parallel;
use tokio::time::sleep;

use crate::{
    common::{eventually, now},
    kubectl::{deadline, is_marked, uid_of},
    stage::{Stage, assert_output, shown},
};

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn extend_delays_an_eviction_up_to_the_maximum_and_release_undoes_it() {
    let stage = Stage::with_pods("t-fast-", 1).await;
    // Or it may be gone before all is asked.
    stage.budget().await;
    stage.bind("ed", "--clusterrole=edit", "patch").await;
    stage.exec_into("alice", &["true"]).await;
    let own = deadline(&stage.ns.pod("web-0").await);
    let ed = "extend web-0 --for=8s --reason=look --as=ed";
    let extended = "pod/web-0 extended until <TIME> (in <AGE>)";
    assert_output(&stage.sees(&format!("{ed} --dry-run=client")).await, &format!("{extended} (dry run)\n"));
    assert_output(&stage.sees(&format!("{ed} --dry-run=server")).await, &format!("{extended} (server dry run)\n"));
    assert_eq!(stage.extension_annotations().await, [""; 0]);
    assert_output(&stage.sees(ed).await, &format!("{extended}\n"));
    assert_eq!(
        stage.extension_annotations().await,
        ["pristine/extend-to", "pristine/extended-by", "pristine/extend-reason"]
    );
    assert_output(
        &stage.sees("get --no-headers -o wide").await,
        "<NAMESPACE>   node   web-0   1   alice   <AGE>   <AGE>   Extended   extended by ed: look\n",
    );
    // 20 s after the first interaction, by the rules of the tests.
    let longest = "pod/web-0 extended to the limit (eviction.maxExtension), until <TIME> (in <AGE>)\n";
    assert_output(&stage.sees("extend web-0 --for=1h").await, longest);
    let beyond = stage.pristine("extend web-0 --for=1h").await;
    let said = shown(&beyond);
    assert!(
        said.starts_with("! error: pod/web-0: extension not granted, still due at ") && said.ends_with("exit 1\n"),
        "{said}"
    );
    assert!(said.contains("eviction.maxExtension"), "{said}");
    let left = own.duration_since(now()).as_millis() + 1000;
    sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0))).await;
    assert_output(&stage.sees("release web-0 --as=ed").await, "pod/web-0 released, due now\n");
    assert_output(
        &stage.sees("release web-0 --as=ed").await,
        "! error: pod/web-0 is neither held nor extended\nexit 1\n",
    );
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn hold_keeps_a_pod_until_release() {
    let stage = Stage::with_pods("t-held-", 1).await;
    stage.bind("ed", "--clusterrole=edit", "patch").await;
    stage.exec_into("alice", &["true"]).await;
    let (asked, held) = ("hold web-0 --reason=look --as=ed", "pod/web-0 held until <TIME> (in <AGE>)");
    assert_output(&stage.sees(&format!("{asked} --dry-run=client")).await, "pod/web-0 held (dry run)\n");
    assert_output(&stage.sees(&format!("{asked} --dry-run=server")).await, "pod/web-0 held (server dry run)\n");
    assert_eq!(stage.extension_annotations().await, [""; 0]);
    assert_output(&stage.sees(asked).await, &format!("{held}\n"));
    assert_eq!(stage.extension_annotations().await, ["pristine/hold", "pristine/extended-by"]);
    assert_output(
        &stage.sees("get --no-headers -o wide").await,
        "<NAMESPACE>   node   web-0   1   alice   <AGE>   <AGE>   Held   held by ed: look\n",
    );
    let longer =
        "! error: pod/web-0 is already held until the limit (eviction.maxExtension); release it first\nexit 1\n";
    assert_output(&stage.sees("extend web-0 --for=1m --as=ed").await, longer);
    let released = "pod/web-0 released, due at <TIME> (in <AGE>)";
    assert_output(&stage.sees("release web-0 --as=ed --dry-run=client").await, &format!("{released} (dry run)\n"));
    assert_output(
        &stage.sees("release web-0 --as=ed --dry-run=server").await,
        &format!("{released} (server dry run)\n"),
    );
    assert_eq!(stage.extension_annotations().await, ["pristine/hold", "pristine/extended-by"]);
    assert_output(&stage.sees("release web-0 --as=ed").await, &format!("{released}\n"));
    assert_eq!(stage.extension_annotations().await, ["pristine/extended-by"]);
    assert_output(&stage.sees("get --no-headers").await, "web-0   1   alice   <AGE>   <AGE>   Marked\n");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_hold_that_gains_no_time_is_an_error_that_names_the_limit() {
    // Its deadline is later than the maximum extension of the rules of the tests.
    let stage = Stage::with_pods("t-late-", 1).await;
    stage.exec_into("alice", &["true"]).await;
    let said = shown(&stage.pristine("hold web-0 --reason=look").await);
    assert!(said.starts_with("! error: pod/web-0: extension not granted, still due at "), "{said}");
    assert!(said.contains("the limit is eviction.maxExtension") && said.ends_with("exit 1\n"), "{said}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_forbidden_command_prints_the_error_of_the_api_server() {
    let stage = Stage::with_pods("t-mark-", 1).await;
    stage.exec_into("alice", &["true"]).await;
    for (user, verbs) in [("carol", "get,list"), ("mallory", "get,list,patch")] {
        stage.ns.run(&["create", "role", user, &format!("--verb={verbs}"), "--resource=pods"]).await;
        stage.bind(user, &format!("--role={user}"), "list").await;
    }
    let forbidden = "! Error from server (Forbidden): pods \"web-0\" is forbidden: ";
    let patch =
        "User \"carol\" cannot patch resource \"pods\" in API group \"\" in the namespace \"<NAMESPACE>\"\nexit 1\n";
    let policy = "ValidatingAdmissionPolicy 'mark.pods.pristine' with binding 'mark.pods.pristine' denied request: to extend, hold or release a pod, you need the verb 'extend' on 'interactions.pristine' in this namespace (the roles edit and admin include it), and pristine/extended-by must be your own user name\nexit 1\n";
    for command in ["extend web-0 --for=1m", "hold web-0 --reason=look", "extend web-0 --for=1m --dry-run=server"] {
        assert_output(&stage.sees(&format!("{command} --as=carol")).await, &format!("{forbidden}{patch}"));
        assert_output(&stage.sees(&format!("{command} --as=mallory")).await, &format!("{forbidden}{policy}"));
    }
    assert_eq!(stage.extension_annotations().await, [""; 0]);
    let evict =
        "User \"carol\" cannot create resource \"pods/eviction\" in API group \"\" in the namespace \"<NAMESPACE>\"";
    assert_output(&stage.sees("evict web-0 --as=carol").await, &format!("{forbidden}{evict}\nexit 1\n"));
    // Whoever may not evict can still read the rest.
    let described = stage.sees("describe web-0 --as=carol").await;
    assert!(described.contains(&format!("unknown (dry run failed): {}{evict}\n", &forbidden[2..])), "{described}");
    let all = "! Error from server (Forbidden): pods is forbidden: User \"carol\" cannot list resource \"pods\" in API group \"\" at the cluster scope\nexit 1\n";
    assert_output(&stage.sees("get -A --as=carol").await, all);
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn evict_respects_budgets_and_rejects_unmarked_pods() {
    let stage = Stage::with_pods("t-mark-", 2).await;
    stage.budget().await;
    stage.exec_into("alice", &["true"]).await;
    let before = stage.ns.pod("web-0").await;
    let refused = "! error: pod/web-0 not evicted: Cannot evict pod as it would violate the pod's disruption budget";
    for command in ["evict web-0", "evict web-0 --dry-run=server"] {
        let said = stage.sees(command).await;
        assert!(said.starts_with(refused) && said.ends_with("\nexit 1\n") && said.lines().count() == 2, "{said}");
    }
    stage.ns.run(&["delete", "pdb", "keep-all"]).await;
    assert_output(&stage.sees("evict web-0 --dry-run=client").await, "pod/web-0 evicted (dry run)\n");
    assert_output(&stage.sees("evict web-0 --dry-run=server").await, "pod/web-0 evicted (server dry run)\n");
    let after = stage.ns.pod("web-0").await;
    assert_eq!((uid_of(&after), after.metadata.deletion_timestamp.is_none()), (uid_of(&before), true));
    assert_output(
        &stage.sees("evict web-1").await,
        "! error: no interaction is recorded on pod \"web-1\" in namespace \"<NAMESPACE>\"; to replace the pod anyway, use `kubectl delete pod`\nexit 1\n",
    );
    assert_output(&stage.sees("evict web-0").await, "pod/web-0 evicted\n");
    eventually("the eviction", 10, || async {
        let found = stage.ns.pods().get_opt("web-0").await.unwrap();
        let is_gone = |pod: &Pod| uid_of(pod) != uid_of(&before) || pod.metadata.deletion_timestamp.is_some();
        found.as_ref().is_none_or(is_gone).then_some(())
    })
    .await;
    assert!(!is_marked(&stage.ns.pod("web-1").await));
}
