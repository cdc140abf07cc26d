//! Rules about what only a real API server knows: the token of a user, and the labels of a namespace.

use std::io::Write as _;

use serde_json::{Value, json};
use serial_test::parallel;

use crate::kubectl::{IMAGE, Namespace, record, run};

/// A kubeconfig of this cluster without credentials, so that only `--token` counts.
pub async fn without_credentials() -> tempfile::NamedTempFile {
    let config = run(&["config", "view", "--raw", "--minify", "-o", "json"]).await;
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["users"][0]["user"] = json!({});
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(config.to_string().as_bytes()).unwrap();
    file
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn only_the_token_of_a_pod_is_a_machine() {
    let ns = Namespace::new("t-machine-").await;
    let account = format!("system:serviceaccount:{}:default", ns.name);
    let subject = format!("--serviceaccount={}:default", ns.name);
    ns.run(&["create", "rolebinding", "edit", "--clusterrole=edit", &subject]).await;
    ns.run(&["run", "runner", &format!("--image={IMAGE}"), "--", "sleep", "1000"]).await;
    ns.workload("StatefulSet", 5).await;
    let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let of_the_pod = ns.run(&["exec", "runner", "--", "cat", path]).await;
    let created = ns.run(&["create", "token", "default"]).await;
    let bound = ["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name=runner"];
    let bound = ns.run(&bound).await;
    let config = without_credentials().await;
    let config = format!("--kubeconfig={}", config.path().display());
    let token = |token: &str| vec![config.clone(), format!("--token={}", token.trim())];
    for (number, flags, tty, rule) in [
        (0, token(&of_the_pod), false, "machines"),
        (1, token(&of_the_pod), true, "default"),
        (2, token(&created), false, "default"),
        (3, vec![format!("--as={account}")], false, "default"),
        // What the threat model says: a token that its user bound to a pod.
        (4, token(&bound), false, "machines"),
    ] {
        let name = format!("web-{number}");
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        // kubectl asks for a terminal only if it has one. A POST is reviewed, and then fails because it is no upgrade.
        let path = format!("/api/v1/namespaces/{}/pods/{name}/exec?command=true&stdout=true&tty={tty}", ns.name);
        ns.attempt(&[&flags[..], &["create", "--raw", &path, "-f", "/dev/null"]].concat()).await;
        let pod = ns.pod(&name).await;
        assert_eq!(record(&pod)["first"]["rule"], rule, "{name}: {}", record(&pod));
        assert_eq!(record(&pod)["first"]["user"]["name"], account, "{name}");
        let evicts = pod.metadata.annotations.unwrap().contains_key("pristine/evict-at");
        assert_eq!(evicts, rule == "default", "{name}");
    }
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[parallel]
async fn a_label_of_the_namespace_decides_from_the_next_exec_on() {
    let ns = Namespace::new("t-label-").await;
    ns.workload("StatefulSet", 1).await;
    ns.run(&["exec", "web-0", "--", "true"]).await;
    run(&["label", "namespace", &ns.name, "exec=denied"]).await;
    let denied = ns.attempt(&["exec", "web-0", "--", "true"]).await;
    let message = String::from_utf8_lossy(&denied.stderr);
    assert!(!denied.status.success() && message.contains("rule \"labelled\": not here"), "{message}");
    run(&["label", "namespace", &ns.name, "exec-"]).await;
    ns.run(&["exec", "web-0", "--", "true"]).await;
}
