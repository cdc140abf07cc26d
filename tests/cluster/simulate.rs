//! `pristine simulate` says of each request what the webhook decided about it.

use std::{io::Write as _, time::Duration};

use serde_json::{Value, json};
use serial_test::parallel;

use crate::{
    common::{audit, eventually, setting},
    kubectl::{IMAGE, Namespace, run},
    stage::without_credentials,
};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// The requests, and in each namespace a pod for each of them.
const PER_NAMESPACE: usize = 6;

/// Sends a request of each kind in this namespace, each with a pod of its own.
async fn requests(ns: &Namespace, machine: &[String]) {
    let pods = format!("/api/v1/namespaces/{}/pods", ns.name);
    let alice = ["--as=alice", "--as-group=system:masters"].map(str::to_owned);
    let machine = || machine.to_vec();
    for (pod, by, path) in [
        ("web-0", alice.to_vec(), "exec?command=id&stdout=true"),
        ("web-1", alice.to_vec(), "exec?command=sh&stdin=true&stdout=true&tty=true&container=app"),
        ("web-2", alice.to_vec(), "attach?stdout=true"),
        ("web-3", alice.to_vec(), "portforward?ports=80"),
        ("web-4", machine(), "exec?command=true&stdout=true"),
        ("web-5", machine(), "exec?command=true&stdin=true&stdout=true&tty=true"),
        ("bare", alice.to_vec(), "exec?command=id&stdout=true"),
    ] {
        // A POST is reviewed, and then fails because it is no upgrade.
        let path = format!("{pods}/{pod}/{path}");
        let flags: Vec<&str> = by.iter().map(String::as_str).collect();
        ns.attempt(&[&flags[..], &["create", "--raw", &path, "-f", "/dev/null"]].concat()).await;
    }
}

/// What the webhook wrote about the request into the API server's audit log: the action, and the rule.
fn decided(record: &Value) -> Option<(&'static str, String)> {
    let annotations = record["annotations"].as_object()?;
    let of_webhook = |key: &str| annotations.iter().find(|(name, _)| name.ends_with(&format!(".pods.pristine/{key}")));
    let action = match (of_webhook("decision")?.1.as_str()?, of_webhook("evict-at")) {
        ("marked", Some(_)) => "evict",
        ("marked", None) => "record",
        ("exempt", _) => "exempt",
        ("denied", _) => "deny",
        _ => return None,
    };
    Some((action, of_webhook("rule")?.1.as_str()?.to_owned()))
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn simulate_agrees_with_the_webhook_about_each_request_in_the_audit_log() {
    let config =
        file(&run(&["-n", "pristine-system", "get", "cm", "pristine", "-o", "jsonpath={.data.pristine\\.yaml}"]).await);
    let without = without_credentials().await;
    let (mut agreed, mut kinds) = (0, std::collections::BTreeSet::new());
    for prefix in ["t-late-", "t-record-", "t-exempt-", "t-deny-", "t-machine-", "t-mark-"] {
        let ns = Namespace::new(prefix).await;
        ns.run(&["run", "bare", &format!("--image={IMAGE}"), "--", "sleep", "1000"]).await;
        let subject = format!("--serviceaccount={}:default", ns.name);
        ns.run(&["create", "rolebinding", "edit", "--clusterrole=edit", &subject]).await;
        ns.workload_beside("StatefulSet", PER_NAMESPACE, 1).await;
        let bound = ["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name=bare"];
        let token = ns.run(&bound).await;
        let machine = [format!("--kubeconfig={}", without.path().display()), format!("--token={}", token.trim())];
        let pods = file(&run(&["get", "pods", "-A", "-o", "json"]).await);
        requests(&ns, &machine).await;
        let kubeconfig = setting("KUBECONFIG").unwrap();
        let records = eventually("the audit log", 20, async || {
            let mut found = audit::requests(&kubeconfig, &ns.name);
            found.retain(|record| decided(record).is_some());
            found.dedup_by_key(|record| record["auditID"].to_string());
            (found.len() > PER_NAMESPACE).then_some(found)
        })
        .await;
        for mut record in records {
            let (action, rule) = decided(&record).unwrap();
            // As it would be without Pristine, and with a client that upgrades the connection.
            record["responseStatus"]["code"] = json!(101);
            let log = file(&format!("{record}\n"));
            let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
            let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pristine"))
                .args(["simulate", "-o", "json", "--audit-log", &path(&log)])
                .args(["--config", &path(&config), "--pods", &path(&pods)])
                .output()
                .await
                .unwrap();
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            let rows = said["interactions"].as_array().unwrap();
            assert_eq!(rows.len(), 1, "{record}: {said}");
            assert_eq!(
                (&rows[0]["actions"], &rows[0]["rules"]),
                (&json!([action]), &json!([rule])),
                "{record}: {said}"
            );
            agreed += 1;
            kinds.insert((action, rule));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("TOTALS: simulate and the webhook agree about {agreed} requests: {kinds:?}");
    assert!(agreed >= 6 * (PER_NAMESPACE + 1), "{agreed}");
    let actions: std::collections::BTreeSet<&str> = kinds.iter().map(|(action, _)| *action).collect();
    assert_eq!(actions, ["deny", "evict", "exempt", "record"].into());
}
