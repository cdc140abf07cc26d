//! The audit log of the API servers of `hack/cluster`.
#![allow(clippy::expect_used, reason = "what hack/cluster makes")]

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use serde_json::Value;

/// The requests that name this namespace, at each of their stages, of every API server whose logs are beside this kubeconfig.
pub fn requests(kubeconfig: &str, namespace: &str) -> Vec<Value> {
    let folder = Path::new(kubeconfig).parent().unwrap().join("logs");
    let files = std::fs::read_dir(folder).expect("the logs of hack/cluster").map(|file| file.unwrap().path());
    // Also what was rotated away.
    let logs = files.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("audit"));
    let mut found = Vec::new();
    for log in logs {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains(namespace));
        // The last line may be half written.
        found.extend(lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()));
    }
    found.retain(|line| line["objectRef"]["namespace"] == namespace);
    found
}

/// The eviction requests, by pod: when each came in, and the code of its answer.
pub fn evictions(kubeconfig: &str, namespace: &str) -> BTreeMap<String, Vec<(Timestamp, u64)>> {
    let mut found: BTreeMap<String, Vec<(Timestamp, u64)>> = BTreeMap::new();
    for line in requests(kubeconfig, namespace) {
        let object = &line["objectRef"];
        if object["subresource"] == "eviction" && line["stage"] == "ResponseComplete" {
            let at = line["requestReceivedTimestamp"].as_str().unwrap().parse().unwrap();
            let code = line["responseStatus"]["code"].as_u64().unwrap();
            found.entry(object["name"].as_str().unwrap().to_owned()).or_default().push((at, code));
        }
    }
    for requests in found.values_mut() {
        requests.sort_unstable();
    }
    found
}
