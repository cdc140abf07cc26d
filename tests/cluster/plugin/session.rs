//! Sessions: what kubectl prints about the deadline, and what the history says afterwards.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use serial_test::parallel;
use tokio::io::AsyncWriteExt as _;

use crate::{
    common::{audit, eventually, setting},
    kubectl::{IMAGE, deadline, is_marked, record, uid_of},
    stage::{Stage, shown},
};

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn kubectl_debug_prints_until_when_the_pod_lives_and_how_to_extend() {
    let stage = Stage::with_pods("t-mark-", 1).await;
    let image = format!("--image={IMAGE}");
    let debug = ["-n", &stage.ns.name, "debug", "web-0", &image, "--", "true"];
    let text = shown(&stage.kubectl(&debug).output().await.unwrap());
    let at = deadline(&stage.ns.pod("web-0").await);
    let extend = format!("kubectl pristine extend -n {} web-0 --for 30m", stage.ns.name);
    let expected = format!("Warning: pod web-0 is due for eviction at {at}; to keep it longer: {extend}");
    assert_eq!(text.matches(&expected).count(), 1, "{text}");
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn exec_prints_the_deadline_before_and_after_and_keeps_kubectls_exit_code() {
    let stage = Stage::with_pods("t-mark-", 1).await;
    let exec = ["pristine", "-n", &stage.ns.name, "exec", "web-0", "--reason=INC-7"];
    let output = stage.kubectl(&[&exec[..], &["-i", "--", "sh", "-c", "cat; exit 7"]].concat());
    let mut session = { output }.stdin(Stdio::piped()).spawn().unwrap();
    session.stdin.take().unwrap().write_all(b"typed\n").await.unwrap();
    let output = session.wait_with_output().await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &*output.stdout), (Some(7), &b"typed\n"[..]), "{err}");
    let pod = stage.ns.pod("web-0").await;
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines[0], "pod/web-0 is not marked yet, the rules decide about this session", "{err}");
    let due = format!("pod/web-0 is due for eviction at {} (in ", deadline(&pod));
    assert!(lines.last().unwrap().starts_with(&due), "{err}");
    if record(&pod)["first"]["user"]["extra"]["reason"][0] != "INC-7" {
        // kubectl before 1.35 has no flag for it.
        assert!(err.contains("unknown flag: --as-user-extra"), "{err} {}", record(&pod));
    }
    // A user who may not impersonate itself gets a warning, and the session.
    let subject = format!("--serviceaccount={}:default", stage.ns.name);
    stage.ns.run(&["create", "rolebinding", "edit", "--clusterrole=edit", &subject]).await;
    let token = stage.ns.run(&["create", "token", "default"]).await;
    let config = crate::rules::without_credentials().await;
    let flags = [format!("--kubeconfig={}", config.path().display()), format!("--token={}", token.trim())];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = stage.kubectl(&[&exec[..], &flags, &["--", "true"]].concat()).output().await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && err.contains("warning: the reason is not recorded: "), "{err}");
    assert!(err.starts_with(&due) || err.contains(&due), "{err}");
    let quiet = stage.kubectl(&[&exec[..5], &["-q", "--", "true"]].concat()).output().await.unwrap();
    assert_eq!(shown(&quiet), "", "quiet");
}

/// The entries of the history about this namespace.
async fn history(stage: &Stage, more: &str) -> Vec<Value> {
    let output = stage.pristine(&format!("log --since 15m -o json{more}")).await;
    assert!(output.status.success(), "{}", shown(&output));
    let mut list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["entries"].as_array_mut().unwrap().drain(..).collect()
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn the_log_agrees_with_the_api_servers_audit_log_for_pods_that_are_gone() {
    let stage = Stage::with_pods("t-held-", 1).await;
    let pod = stage.ns.pod("web-0").await;
    stage.exec_into("alice", &["sh", "-c", "exit 0"]).await;
    stage.exec_into("bob", &["true"]).await;
    let image = format!("--image={IMAGE}");
    let debug = ["-n", &stage.ns.name, "debug", "web-0", &image, "--", "true"];
    assert!(stage.kubectl(&debug).output().await.unwrap().status.success());
    stage.ns.run(&["label", "pod", "web-0", "pristine/reported=falco"]).await;
    stage.ns.run(&["create", "rolebinding", "view", "--clusterrole=view", "--user=mallory"]).await;
    let forbidden = stage.ns.attempt(&["exec", "web-0", "--as=mallory", "--", "true"]).await;
    assert!(!forbidden.status.success());
    assert!(shown(&stage.pristine("extend web-0 --for 2s --reason=INC-7").await).contains("extended"));
    let due = eventually("the extension", 10, async || {
        Some(stage.ns.pod("web-0").await).filter(is_marked).map(|pod| deadline(&pod))
    })
    .await;
    stage.ns.evicted("web-0", uid_of(&pod), due).await;
    let lines = eventually("the line of the eviction", 20, async || {
        let lines = history(&stage, "").await;
        lines.iter().any(|one| one["action"] == "evict").then_some(lines)
    })
    .await;
    let what = |one: &Value| {
        let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", word("action"), word("user"), word("decision"))
    };
    let mut seen: Vec<String> = lines.iter().map(what).collect();
    seen.dedup();
    let me = stage.ns.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await;
    for expected in [
        "exec alice marked",
        "exec bob marked",
        &format!("debug {me} marked"),
        "report falco marked",
        &format!("extend {me} extended"),
        "evict pristine evicted",
    ] {
        assert_eq!(seen.iter().filter(|line| *line == expected).count(), 1, "{expected}: {seen:#?}");
    }
    assert!(lines.iter().all(|one| one["podUid"] == uid_of(&pod)), "{lines:#?}");
    // Each request of the API server's audit log that was admitted has its line, and no line is without a request.
    let kubeconfig = setting("KUBECONFIG").unwrap();
    let log = Path::new(&kubeconfig).with_file_name("logs").join("audit.log");
    let both = history(&stage, &format!(" -f {}", log.display())).await;
    let alone: Vec<&Value> = both.iter().filter(|one| one["decision"] == "admitted").collect();
    assert!(alone.is_empty(), "admitted, and not in the log of a replica: {alone:#?}");
    let refused: Vec<String> = both.iter().filter(|one| one["decision"] == "refused").map(what).collect();
    assert!(refused.iter().all(|line| line == "exec mallory refused") && !refused.is_empty(), "{refused:?}");
    let requests = audit::requests(&kubeconfig, &stage.ns.name);
    for one in lines.iter().filter(|one| one["action"] == "exec") {
        let is_of = |request: &&Value| {
            request["objectRef"]["subresource"] == "exec"
                && (request["impersonatedUser"]["username"] == one["user"]
                    || request["user"]["username"] == one["user"])
        };
        assert!(requests.iter().any(|request| is_of(&request)), "{one:#?}");
    }
    // A table for people, with the other filters.
    let table = shown(&stage.pristine("log --by alice --pod web-0").await);
    assert!(table.contains("TIME") && table.contains("exec     alice") && !table.contains("bob"), "{table}");
}
