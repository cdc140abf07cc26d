//! The replica that evicts notices loops, stores them, and ends them, with a fake API server behind it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use pristine::{
    api::{Context, pods::Pods},
    audit_log::AuditLog,
    clock::Clock,
    eviction::{
        Settings,
        entry::{Entry, Observed, Requeue, observe},
        leadership::{LeaderElector, Leadership},
        loop_store::LoopStore,
        pacing::{Pacing, permit::Pacer},
        reconcile::{Reconcile, SurgeGate},
        suspension::Suspended,
    },
    mark::{Interaction, Operation, POD_NAME, State, Status, User},
    telemetry::{By, Metrics},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::fake::{Fake, pod};

const SYSTEM: &str = "pristine-system";
const MAPS: &str = "/api/v1/namespaces/pristine-system/configmaps";
const TTL: Duration = Duration::from_secs(600);

/// One replica, its clock, and the tasks that keep its leadership and its loops.
struct Replica {
    fake: Fake,
    pods: Pods,
    context: Context,
    now: Arc<Mutex<Timestamp>>,
    leadership: Leadership,
    suspended: Suspended,
    loops: LoopStore,
    pacer: Pacer,
    _stop: watch::Sender<bool>,
}

/// An API server with the ConfigMaps of the manifest, a Deployment and its ReplicaSet.
fn cluster() -> Fake {
    let fake = Fake::default();
    let empty = |name: &str| json!({"metadata": {"name": name, "resourceVersion": "1"}});
    let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true}]);
    let set = json!({"metadata": {"name": "r", "uid": "r", "resourceVersion": "1", "ownerReferences": owner},
        "spec": {"replicas": 1, "selector": {}}, "status": {"replicas": 1, "readyReplicas": 1}});
    let objects = &mut fake.state().objects;
    for name in ["pristine-suspend", "pristine-loops"] {
        objects.insert(format!("{MAPS}/{name}"), empty(name));
    }
    objects.insert("/apis/apps/v1/namespaces/n/replicasets/r".to_owned(), set);
    fake.clone()
}

impl Replica {
    async fn leading(fake: &Fake, name: &str) -> Self {
        let now = Arc::new(Mutex::new("2026-01-01T00:00:00Z".parse().unwrap()));
        let (clock, client, metrics) = (now.clone(), fake.client(), Arc::new(Metrics::default()));
        let clock = Clock::of(move || *clock.lock().unwrap());
        let (context, publish) =
            Context::new(client.clone(), name, clock, AuditLog::of(|_| ()), metrics, fake.link.clone());
        tokio::spawn(publish);
        let (leadership, suspended, loops) = (Leadership::default(), Suspended::default(), LoopStore::default());
        let elector = LeaderElector {
            client: client.clone(),
            namespace: SYSTEM.to_owned(),
            name: "pristine".to_owned(),
            identity: name.to_owned(),
            context: context.clone(),
            suspended: suspended.clone(),
        };
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(elector.run(leadership.clone(), stopping));
        tokio::spawn(loops.clone().run(client.clone(), SYSTEM.to_owned(), leadership.clone(), context.clone()));
        let (pods, pacer) = (Pods::new(client), Pacer::default());
        let this = Self { fake: fake.clone(), pods, context, now, leadership, suspended, loops, pacer, _stop: stop };
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(this.leadership.is_held());
        this
    }

    fn pass(&self, time: Duration) -> Timestamp {
        let mut now = self.now.lock().unwrap();
        *now = now.checked_add(SignedDuration::try_from(time).unwrap()).unwrap();
        *now
    }

    /// The ReplicaSet creates this pod, and a user enters it after three seconds.
    async fn entered(&self, uid: &str, is_machine: bool) {
        let mut next = pod("n", "p", uid);
        next["metadata"]["creationTimestamp"] = json!(self.pass(Duration::from_secs(2)));
        next["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        self.fake.state().pods.insert("n/p".to_owned(), next);
        self.enter(is_machine).await;
    }

    async fn enter(&self, is_machine: bool) {
        let extra = if is_machine { [(POD_NAME.to_owned(), vec!["o".to_owned()])].into() } else { <_>::default() };
        let name = "system:serviceaccount:n:operator".to_owned();
        let at = self.pass(Duration::from_secs(3));
        let interaction = Interaction {
            at,
            operation: Operation::Exec,
            container: "app".into(),
            command: vec![],
            stdin: false,
            tty: false,
            user: User { name, extra, ..User::default() },
            review: at.to_string(),
            rule: "all".into(),
        };
        let pod = self.pods.get("n", "p").await.unwrap();
        self.pods.mark(&pod, vec![(interaction, Some(TTL).into())]).await.unwrap();
    }

    /// Reconciles the pod after its TTL.
    async fn due(&self) -> Requeue {
        self.pass(TTL);
        self.reconcile().await
    }

    async fn reconcile(&self) -> Requeue {
        let now = self.pass(Duration::ZERO);
        let pod: Pod = self.pods.get("n", "p").await.unwrap();
        let Observed::Track(entry) = observe(&pod, None, &Settings::default(), now) else { panic!("not tracked") };
        let (uid, entry) = (pod.metadata.uid.unwrap(), Entry { next: now, ..*entry });
        let reconcile = Reconcile {
            pods: &self.pods,
            context: &self.context,
            settings: Settings::default(),
            pacer: &self.pacer,
            leadership: &self.leadership,
            suspended: &self.suspended,
            loops: &self.loops,
            surges: &SurgeGate::default(),
            uid: &uid,
            entry: &entry,
        };
        let requeue = reconcile.run().await;
        // Its ReplicaSet replaces it.
        *self.pacer.lock() = Pacing::default();
        // The loops are stored within two seconds.
        tokio::time::sleep(Duration::from_secs(5)).await;
        requeue
    }

    fn warnings(&self) -> Vec<String> {
        let state = self.fake.state();
        let of_loops = state.events.iter().filter(|event| event["reason"] == "EvictionLoop");
        of_loops.map(|event| event["regarding"]["kind"].as_str().unwrap().to_owned()).collect()
    }

    fn stored(&self) -> Value {
        let data = self.fake.state().objects[&format!("{MAPS}/pristine-loops")]["data"]["loops.json"].clone();
        data.as_str().map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
    }

    fn status(&self) -> Status {
        Status::on(&serde_json::from_value(self.fake.pod("n/p")).unwrap()).unwrap()
    }

    fn gauge(&self, by: &'static str) -> i64 {
        self.context.metrics.eviction_loops.get_or_create(&By { by }).get()
    }
}

#[tokio::test(start_paused = true)]
async fn the_fourth_pod_of_a_machine_is_recorded_and_its_workload_says_so() {
    let replica = Replica::leading(&cluster(), "a").await;
    for uid in ["u1", "u2", "u3"] {
        replica.entered(uid, true).await;
        assert_eq!(replica.due().await, Requeue::Accepted, "{uid}");
    }
    assert_eq!(replica.warnings(), ["Pod", "Deployment"]);
    assert_eq!((replica.gauge("machine"), replica.gauge("person")), (1, 0));
    assert_eq!(replica.stored()[0]["rounds"], 3);
    assert_eq!((&replica.stored()[0]["kind"], &replica.stored()[0]["name"]), (&json!("Deployment"), &json!("web")));

    replica.entered("u4", true).await;
    assert_eq!(replica.due().await, Requeue::Done);
    let live = replica.fake.pod("n/p");
    assert_eq!(
        (&live["metadata"]["uid"], &live["metadata"]["annotations"]["pristine/evict-at"]),
        (&json!("u4"), &Value::Null)
    );
    let Status { state, evict_at, cause, .. } = replica.status();
    assert_eq!((state, evict_at), (State::EvictionLoop, None));
    assert!(cause.unwrap().contains("eviction loop: Deployment web was evicted 3 times in a row"));

    // A person of the same account still has it evicted.
    replica.enter(true).await;
    replica.enter(false).await;
    let at = replica.pass(Duration::ZERO).checked_add(TTL).unwrap();
    assert_eq!(replica.due().await, Requeue::Again(at), "the deadline of the person");
    assert_eq!(replica.status(), Status::due(State::Marked, Some(at), None));
    assert_eq!(replica.reconcile().await, Requeue::Accepted);
    // After a day, the machine evicts again.
    replica.entered("u5", true).await;
    assert_eq!(replica.due().await, Requeue::Done);
    replica.pass(Duration::from_secs(24 * 60 * 60));
    assert_eq!(replica.gauge("machine"), 1);
    replica.entered("u6", true).await;
    assert_eq!(replica.due().await, Requeue::Accepted);
    assert_eq!(replica.gauge("machine"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_machine_in_a_loop_loses_its_deadline_before_it_is_due() {
    let replica = Replica::leading(&cluster(), "a").await;
    for uid in ["u1", "u2", "u3"] {
        replica.entered(uid, true).await;
        assert_eq!(replica.due().await, Requeue::Accepted, "{uid}");
    }
    replica.entered("u4", true).await;
    assert_eq!(replica.reconcile().await, Requeue::Done);
    assert_eq!((replica.status().state, replica.status().evict_at), (State::EvictionLoop, None));
    // One Event for the loop, and not one for each exec of the machine.
    assert_eq!(replica.warnings(), ["Pod", "Deployment"]);

    // The deadline of a person is left, and is not touched by a second look.
    replica.enter(false).await;
    let at = replica.pass(Duration::ZERO).checked_add(TTL).unwrap();
    replica.enter(true).await;
    assert_eq!(replica.reconcile().await, Requeue::Again(at));
    let calls = replica.fake.count("PATCH");
    assert_eq!(replica.reconcile().await, Requeue::Again(at));
    assert_eq!(replica.fake.count("PATCH"), calls);
    // A machine of another workload in this namespace waits for its deadline.
    replica.fake.state().objects.get_mut("/apis/apps/v1/namespaces/n/replicasets/r").unwrap()["metadata"]["ownerReferences"]
        [0]["name"] = json!("api");
    replica.entered("u5", true).await;
    let at = replica.pass(Duration::ZERO).checked_add(TTL).unwrap();
    assert_eq!(replica.reconcile().await, Requeue::Again(at));
    assert_eq!(replica.fake.count("eviction"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_loop_of_a_person_is_reported_and_does_not_end() {
    let replica = Replica::leading(&cluster(), "a").await;
    for uid in ["u1", "u2", "u3", "u4", "u5"] {
        replica.entered(uid, false).await;
        assert_eq!(replica.due().await, Requeue::Accepted, "{uid}");
    }
    assert_eq!(replica.warnings(), ["Pod", "Deployment"], "once");
    assert_eq!((replica.gauge("machine"), replica.gauge("person")), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_next_leader_knows_the_loop_and_evicts_no_pod_of_a_machine_before_it_does() {
    let fake = cluster();
    {
        let first = Replica::leading(&fake, "a").await;
        for uid in ["u1", "u2", "u3"] {
            first.entered(uid, true).await;
            assert_eq!(first.due().await, Requeue::Accepted);
        }
    }
    fake.state().objects.retain(|path, _| !path.contains("leases"));
    let map = fake.state().objects.remove(&format!("{MAPS}/pristine-loops")).unwrap();
    fake.state().refuse_maps = true;
    let next = Replica::leading(&fake, "b").await;
    next.pass(TTL * 3);
    next.entered("u4", true).await;
    assert!(matches!(next.due().await, Requeue::Again(_)));
    assert_eq!(fake.count("eviction"), 3);
    fake.state().refuse_maps = false;
    fake.state().objects.insert(format!("{MAPS}/pristine-loops"), map);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(next.due().await, Requeue::Done);
    assert_eq!((fake.count("eviction"), next.status().state), (3, State::EvictionLoop));
}

#[tokio::test(start_paused = true)]
async fn without_the_config_map_a_loop_ends_all_the_same() {
    let fake = cluster();
    fake.state().objects.remove(&format!("{MAPS}/pristine-loops"));
    let replica = Replica::leading(&fake, "a").await;
    for uid in ["u1", "u2", "u3"] {
        replica.entered(uid, true).await;
        assert_eq!(replica.due().await, Requeue::Accepted, "{uid}");
    }
    replica.entered("u4", true).await;
    assert_eq!(replica.due().await, Requeue::Done);
}
