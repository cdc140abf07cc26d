//! Execs while one replica cannot handle them: cut off, killed, or on a node that vanished.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use serial_test::serial;
use tokio::time::{Instant, sleep};

use crate::{
    common::{SYSTEM, eventually, figures, name_of, setting, skip},
    kubectl::{Namespace, apply, is_marked, is_ready, run},
    outage::{kill_nine, replicas},
};

/// Packets that are dropped until this is.
struct Dropped(Vec<Vec<String>>);

impl Dropped {
    fn add(rules: &[&str]) -> Self {
        let rules: Vec<Vec<String>> = rules.iter().map(|rule| rule.split(' ').map(str::to_owned).collect()).collect();
        for rule in &rules {
            iptables("-I", rule);
        }
        Self(rules)
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        for rule in &self.0 {
            iptables("-D", rule);
        }
    }
}

fn iptables(action: &str, rule: &[String]) {
    let done = Command::new("iptables").args(["-w", action]).args(rule).status().unwrap();
    assert!(done.success(), "iptables {action} {rule:?}");
}

fn ip(pod: &Pod) -> String {
    pod.status.as_ref().unwrap().pod_ip.clone().unwrap()
}

/// One exec as the API server admits it, without a stream; the error if it was not admitted.
pub async fn exec(client: &kube::Client, namespace: &str, pod: &str, word: &str) -> Result<(), String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec?command=echo&command={word}");
    let answer = client.request_text(http::Request::post(path).body(vec![]).unwrap()).await;
    match answer {
        // The kubelet's answer: only what was admitted reaches it.
        Err(kube::Error::Api(status)) if status.message.to_lowercase().contains("upgrade") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// How long each of them took, and those that were refused.
async fn hundred(ns: &Namespace, pod: &str, round: &str) -> (Vec<Duration>, Vec<(Duration, String)>) {
    let (mut times, mut refused) = (Vec::new(), Vec::new());
    for n in 0..25 {
        let four = (0..4).map(|worker| async move {
            let start = Instant::now();
            (exec(&ns.client, &ns.name, pod, &format!("{round}-{n}-{worker}")).await, start.elapsed())
        });
        for (answer, time) in futures_util::future::join_all(four).await {
            times.push(time);
            refused.extend(answer.err().map(|why| (time, why)));
        }
    }
    (times, refused)
}

/// With two replicas, all eleven attempts of one exec in 2,048 meet the one that is cut off. Three in a hundred are no chance.
fn assert_only_by_chance(refused: &[(Duration, String)]) {
    let used_up = |(time, why): &(Duration, String)| {
        *time > Duration::from_secs(3) && why.contains("this replica cannot reach the API server")
    };
    assert!(refused.len() < 3 && refused.iter().all(used_up), "{} of 100: {refused:?}", refused.len());
}

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn execs_are_handed_over_by_a_replica_that_cannot_reach_the_api_server() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let server = run(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"]).await;
    let port = server.rsplit(':').next().unwrap().to_owned();
    let (times, refused) = hundred(&ns, &name, "before").await;
    assert!(refused.is_empty(), "{refused:?}");
    println!("TOTALS: undisturbed: {}", figures(times));
    for (n, replica) in replicas().await.into_iter().enumerate() {
        let cut_off = Dropped::add(&[&format!("INPUT -s {} -p tcp --dport {port} -j DROP", ip(&replica))]);
        let (times, refused) = hundred(&ns, &name, &format!("cut-off-{n}")).await;
        println!("TOTALS: one replica cut off: {}, {} refused", figures(times), refused.len());
        assert_only_by_chance(&refused);
        let pods: kube::Api<Pod> = kube::Api::namespaced(ns.client.clone(), SYSTEM);
        let is = async |ready: bool| {
            let pod = pods.get(name_of(&replica)).await.unwrap();
            (is_ready(&pod) == ready).then_some(())
        };
        eventually("the replica is not Ready without the API server", 60, || is(false)).await;
        drop(cut_off);
        eventually("the replica is Ready again", 20, || is(true)).await;
    }
}

/// Ten execs a second until told to stop; when each began, and the error of those that were refused.
type Execs = Arc<Mutex<Vec<(Instant, Option<String>)>>>;

fn load(ns: &Namespace, pod: &str) -> (Execs, Arc<AtomicBool>) {
    let (all, stop): (Execs, Arc<AtomicBool>) = <_>::default();
    let (into, until) = (all.clone(), stop.clone());
    let (client, namespace, pod) = (ns.client.clone(), ns.name.clone(), pod.to_owned());
    tokio::spawn(async move {
        for n in 0_u32.. {
            if until.load(Ordering::Relaxed) {
                return;
            }
            let (client, namespace, pod, into) = (client.clone(), namespace.clone(), pod.clone(), into.clone());
            tokio::spawn(async move {
                let start = Instant::now();
                let refused = exec(&client, &namespace, &pod, &n.to_string()).await.err();
                into.lock().unwrap().push((start, refused));
            });
            sleep(Duration::from_millis(100)).await;
        }
    });
    (all, stop)
}

/// Until no slice names the address, or names it as ready.
async fn until_out(address: &str) {
    let query = "jsonpath={range .items[*].endpoints[*]}{.addresses[0]}={.conditions.ready}{\"\\n\"}{end}";
    eventually("the endpoint is out", 60, || async {
        let slices = ["-n", SYSTEM, "get", "endpointslices", "-l", "kubernetes.io/service-name=pristine", "-o", query];
        (!run(&slices).await.lines().any(|line| line == format!("{address}=true"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn a_lost_replica_costs_execs_only_until_its_endpoint_is_out() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    for count in [2, 3] {
        run(&["-n", SYSTEM, "scale", "deployment/pristine", &format!("--replicas={count}")]).await;
        run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=60s"]).await;
        for fault in ["killed", "its node vanished"] {
            eventually("all replicas", 60, || async {
                let all = replicas().await;
                (all.len() == count && all.iter().all(is_ready)).then_some(())
            })
            .await;
            sleep(Duration::from_secs(2)).await;
            let lost = replicas().await.remove(0);
            let (execs, stop) = load(&ns, &name);
            sleep(Duration::from_secs(2)).await;
            let struck = Instant::now();
            let dropped = if fault == "killed" {
                kill_nine(std::slice::from_ref(&lost)).await;
                None
            } else {
                let address = ip(&lost);
                let rules =
                    ["INPUT -s", "OUTPUT -d", "FORWARD -s", "FORWARD -d"].map(|way| format!("{way} {address} -j DROP"));
                let dropped = Dropped::add(&rules.each_ref().map(String::as_str));
                until_out(&address).await;
                Some(dropped)
            };
            // kube-proxy writes its rules at most once a second.
            let out = Instant::now() + Duration::from_secs(2);
            sleep(Duration::from_secs(8)).await;
            stop.store(true, Ordering::Relaxed);
            sleep(Duration::from_secs(6)).await;
            drop(dropped);
            let execs = std::mem::take(&mut *execs.lock().unwrap());
            let refused: Vec<_> = execs.iter().filter_map(|(at, why)| why.as_ref().map(|why| (*at, why))).collect();
            let last = refused.iter().map(|(at, _)| at.duration_since(struck)).max().unwrap_or_default();
            let during = execs.iter().filter(|(at, _)| (struck..out).contains(at)).count();
            println!(
                "TOTALS: one of {count} replicas, {fault}: {} of {during} execs refused, the last {last:?} after it",
                refused.len()
            );
            let early = refused.iter().filter(|(at, _)| *at < struck).count();
            let late: Vec<_> = refused.iter().filter(|(at, _)| *at > out).collect();
            assert!(early == 0 && (late.is_empty() || fault == "killed" && last < Duration::from_secs(6)), "{late:?}");
        }
    }
    run(&["-n", SYSTEM, "scale", "deployment/pristine", "--replicas=2"]).await;
    run(&["-n", SYSTEM, "rollout", "status", "deployment/pristine", "--timeout=60s"]).await;
}

const STRIPPER: &str = r#"
apiVersion: admissionregistration.k8s.io/VERSION
kind: MutatingAdmissionPolicy
metadata: {name: strips-the-mark}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [pods/status]}
  matchConditions:
  - {name: ours, expression: "object.metadata.namespace == 'NAMESPACE' && has(object.metadata.labels) && 'pristine/interacted' in object.metadata.labels"}
  mutations:
  - patchType: JSONPatch
    jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/metadata/labels/pristine~1interacted'}]"}
---
apiVersion: admissionregistration.k8s.io/VERSION
kind: MutatingAdmissionPolicyBinding
metadata: {name: strips-the-mark}
spec: {policyName: strips-the-mark}
"#;

#[tokio::test]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn an_exec_whose_mark_another_plugin_removes_is_denied_and_the_message_says_so() {
    let versions = run(&["api-versions"]).await;
    let known = ["v1", "v1beta1", "v1alpha1"];
    let kinds = async |version: &str| {
        let path = format!("/apis/admissionregistration.k8s.io/{version}");
        versions.contains(&path[6..]) && run(&["get", "--raw", &path]).await.contains("mutatingadmissionpolicies")
    };
    let mut version = None;
    for one in known {
        if version.is_none() && kinds(one).await {
            version = Some(one);
        }
    }
    let Some(version) = version else {
        return skip("no MutatingAdmissionPolicy removes a mark: they are off by default before Kubernetes 1.36");
    };
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    apply(&ns.name, &STRIPPER.replace("VERSION", version).replace("NAMESPACE", &ns.name)).await;
    let refused = eventually("the policy is in force", 30, || async {
        let output = ns.attempt(&["exec", &name, "--", "echo", &rand::random::<u32>().to_string()]).await;
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    })
    .await;
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        run(&["delete", kind, "strips-the-mark"]).await;
    }
    assert!(refused.contains("without the label pristine/interacted"), "{refused}");
    assert!(refused.contains("kubectl get mutatingwebhookconfigurations,mutatingadmissionpolicies"), "{refused}");
    eventually("execs are admitted again", 30, || async {
        let output = ns.attempt(&["exec", &name, "--", "echo", &rand::random::<u32>().to_string()]).await;
        output.status.success().then_some(())
    })
    .await;
    assert!(is_marked(&ns.pod(&name).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: hack/test"]
#[serial]
async fn two_hundred_execs_at_once_are_all_admitted_and_break_glass_among_them_is_recorded() {
    let ns = Namespace::new("t-mark-").await;
    let name = name_of(&ns.workload("Deployment", 1).await[0]).to_owned();
    let count: usize = setting("PRISTINE_BURST").map_or(200, |text| text.parse().unwrap());
    let execs = (0..count).map(|n| {
        let (client, namespace, name) = (ns.client.clone(), ns.name.clone(), name.clone());
        tokio::spawn(async move {
            let start = Instant::now();
            (exec(&client, &namespace, &name, &format!("at-once-{n}")).await, start.elapsed())
        })
    });
    let execs: Vec<_> = execs.collect();
    let glass = ["exec", "--as=pristine:break-glass", "--as-group=pristine:break-glass", &name, "--", "true"];
    ns.run(&glass).await;
    let mut times = Vec::new();
    let mut refused = Vec::new();
    for one in execs {
        let (answer, time) = one.await.unwrap();
        times.push(time);
        refused.extend(answer.err());
    }
    println!("TOTALS: at once into one pod: {}", figures(times));
    assert!(refused.is_empty(), "{} refused: {refused:?}", refused.len());
    let record = crate::kubectl::record(&ns.pod(&name).await);
    // One that was handed over while ten others followed it is no longer listed, and counts again: more of them on a slower
    // machine, and never fewer than there were.
    let total = usize::try_from(record["total"].as_u64().unwrap()).unwrap();
    println!("TOTALS: {total} recorded");
    assert!((count + 1..2 * count).contains(&total), "{total}");
}
