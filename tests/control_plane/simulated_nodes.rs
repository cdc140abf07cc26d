//! Nodes that do not exist, and the pods on them: kwok plays their kubelets. The scheduler and the DaemonSet controller are
//! those of Kubernetes.

use std::{path::Path, process::Stdio};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{
    common::{eventually, setting},
    replicas::{client, kubeconfig},
};

/// Nodes with a label of their own, so that those of a test that failed do not count; and what runs them, until this is
/// dropped.
pub struct SimulatedNodes {
    nodes: Api<Node>,
    /// Value of the label `fleet`.
    pub fleet: String,
    processes: Vec<Child>,
    folder: tempfile::TempDir,
}

impl SimulatedNodes {
    /// So many Ready nodes, with the label `kubelet: kwok`.
    pub async fn start(count: u32) -> Self {
        let fleet = format!("{:08x}", rand::random::<u32>());
        let client: Client = client(1).await;
        let folder = tempfile::tempdir().unwrap();
        let stages = setting("PRISTINE_KWOK_STAGES").expect("run by hack/test rotation with the name of a slow test");
        let kwok = [
            format!("--config={stages}"),
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake".to_owned(),
            "--node-lease-duration-seconds=40".to_owned(),
            // More addresses than pods, which no client calls.
            "--cidr=10.200.0.1/16".to_owned(),
        ];
        let mut this = Self { nodes: Api::all(client), fleet, processes: Vec::new(), folder };
        let process = this.spawn(Path::new(&setting("PRISTINE_KWOK").unwrap()), &kwok);
        this.processes.push(process);
        join_all((0..count).map(|n| this.node(n, true))).await;
        let labels = ListParams::default().labels(&format!("fleet={}", this.fleet));
        eventually("the nodes are Ready", 60, async || {
            let nodes = this.nodes.list(&labels).await.unwrap().items;
            (nodes.iter().filter(|node| is_ready(node)).count() == count as usize).then_some(())
        })
        .await;
        this
    }

    /// Adds a node whose kubelet has not answered for an hour, and returns its name.
    pub async fn add_one_that_is_not_ready(&self) -> String {
        let name = self.node(9_999, false).await;
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}],
        }});
        self.nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        name
    }

    async fn node(&self, n: u32, is_managed: bool) -> String {
        let name = format!("{}-{n}", self.fleet);
        let (annotations, kubelet) =
            if is_managed { (json!({"kwok.x-k8s.io/node": "fake"}), "kwok") } else { (json!({}), "none") };
        let node = json!({
            "metadata": {"name": name, "labels": {"fleet": self.fleet, "kubelet": kubelet}, "annotations": annotations},
        });
        self.nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        name
    }

    /// Starts the scheduler, and the controller of DaemonSets alone.
    pub fn run_daemon_sets(&mut self) {
        let folder = setting("PRISTINE_CONTROLLERS").expect("run by hack/test rotation with the name of a slow test");
        let common = ["--leader-elect=false", "--secure-port=0", "--kube-api-qps=200", "--kube-api-burst=400"];
        for (program, own) in
            [("kube-scheduler", None), ("kube-controller-manager", Some("--controllers=daemonset-controller"))]
        {
            let arguments: Vec<String> = common.into_iter().chain(own).map(str::to_owned).collect();
            let process = self.spawn(&Path::new(&folder).join(program), &arguments);
            self.processes.push(process);
        }
    }

    fn spawn(&self, program: &Path, arguments: &[String]) -> Child {
        let name = program.file_name().unwrap().to_str().unwrap();
        let log = std::fs::File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        Command::new(program)
            .arg(format!("--kubeconfig={}", kubeconfig(1)))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Removes the nodes.
    pub async fn end(self) {
        let labels = ListParams::default().labels(&format!("fleet={}", self.fleet));
        self.nodes.delete_collection(&DeleteParams::default(), &labels).await.unwrap();
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
