//! The successors of deleted pods are marked by the replica that leads, in few requests, with a fake API server behind it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use pristine::{
    api::{Context, pods::Pods},
    audit_log::AuditLog,
    clock::Clock,
    eviction::{
        leadership::{LeaderElector, Leadership},
        mark_successor::SuccessorMarker,
        suspension::Suspended,
    },
    mark::{Found, Interaction, Operation, User},
    telemetry::Metrics,
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::fake::{Fake, pod};

/// A replica and its clock, which is that of tokio.
struct Replica {
    fake: Fake,
    pods: Pods,
    successors: SuccessorMarker,
    clock: Clock,
    _stop: watch::Sender<bool>,
}

impl Replica {
    async fn new(fake: &Fake, leads: bool) -> Self {
        let (begin, zero): (Timestamp, _) = ("2026-01-01T00:00:00Z".parse().unwrap(), Instant::now());
        let passed = move || SignedDuration::try_from(zero.elapsed()).unwrap();
        let clock = Clock::of(move || begin.checked_add(passed()).unwrap());
        let (audit, metrics) = (AuditLog::of(|_| ()), Arc::new(Metrics::default()));
        let client = fake.client();
        let (context, publish) = Context::new(client.clone(), "a", clock.clone(), audit, metrics, fake.link.clone());
        tokio::spawn(publish);
        let leadership = Leadership::default();
        let (stop, stopping) = watch::channel(false);
        if leads {
            let elector = LeaderElector {
                client: client.clone(),
                namespace: "pristine-system".to_owned(),
                name: "pristine".to_owned(),
                identity: "a".to_owned(),
                context: context.clone(),
                suspended: Suspended::default(),
            };
            tokio::spawn(elector.run(leadership.clone(), stopping));
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(leadership.is_held(), leads);
        let pods = Pods::new(client);
        let successors = SuccessorMarker::new(pods.clone(), context);
        tokio::spawn(successors.clone().run(leadership));
        Self { fake: fake.clone(), pods, successors, clock, _stop: stop }
    }

    /// A bare pod that a user entered now, as the watch shows it.
    async fn entered(&self, name: &str) -> Pod {
        let mut bare = pod("n", name, &format!("{name}-first"));
        bare["metadata"]["ownerReferences"] = json!([]);
        bare["metadata"]["creationTimestamp"] = json!(self.clock.now());
        self.fake.state().pods.insert(format!("n/{name}"), bare.clone());
        let interaction = Interaction {
            at: self.clock.now(),
            operation: Operation::Exec,
            container: "app".into(),
            command: vec![],
            stdin: false,
            tty: false,
            user: User { name: "ann".into(), ..User::default() },
            review: name.to_owned(),
            rule: "default".into(),
        };
        let bare = serde_json::from_value(bare).unwrap();
        let ttl = Some(Duration::from_secs(600)).into();
        let marked = self.pods.mark(&bare, vec![(interaction, ttl)]).await.unwrap().pod;
        self.successors.observe(&marked);
        marked
    }

    fn delete(&self, marked: &Pod) {
        self.fake.state().pods.remove(&format!("n/{}", marked.metadata.name.as_ref().unwrap()));
        self.successors.delete(marked);
    }

    fn recreate(&self, name: &str) {
        let mut next = pod("n", name, &format!("{name}-second"));
        next["metadata"]["creationTimestamp"] = json!(self.clock.now());
        self.fake.state().pods.insert(format!("n/{name}"), next);
    }

    /// Whether the pod of this name is the second one, with the mark.
    fn is_successor_marked(&self, name: &str) -> bool {
        let live: Pod = serde_json::from_value(self.fake.pod(&format!("n/{name}"))).unwrap();
        let mark = Found::on(&live).mark();
        mark.is_some_and(|mark| mark.pod == format!("{name}-second") && mark.first.user.name == "ann")
    }

    /// The requests about pods since the last call of this.
    fn requests(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.fake.state().calls);
        calls.into_iter().filter(|call| call.contains("/pods")).collect()
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("p{n:04}")).collect()
}

/// A thousand pods are entered and deleted within a minute. `recreates` says whether another one gets the name. The
/// requests are those for successors: without the first mark of each pod.
async fn thousand_deletions(recreates: bool) -> (Replica, Vec<String>) {
    let replica = Replica::new(&Fake::default(), true).await;
    for name in names(1000) {
        let marked = replica.entered(&name).await;
        sleep(Duration::from_millis(30)).await;
        replica.delete(&marked);
        if recreates {
            replica.recreate(&name);
        }
        sleep(Duration::from_millis(30)).await;
    }
    sleep(Duration::from_secs(60)).await;
    let mut requests = replica.requests();
    let mut first_marks = 1000;
    requests.retain(|call| {
        let is_first_mark = call.starts_with("PATCH") && first_marks > 0;
        first_marks -= usize::from(is_first_mark);
        !is_first_mark
    });
    (replica, requests)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_deleted_pods_cost_some_lists() {
    let (_, requests) = thousand_deletions(false).await;
    // Of the last moment there are too few for a list.
    assert!(requests.len() < 100, "{} requests", requests.len());
    assert!(requests.iter().any(|call| call.starts_with("LIST")));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_successors_cost_at_most_two_requests_each_and_all_are_marked() {
    let (replica, requests) = thousand_deletions(true).await;
    assert!(names(1000).iter().all(|name| replica.is_successor_marked(name)));
    assert!(requests.len() <= 2000, "{} requests", requests.len());
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_looks_for_successors() {
    for (leads, expected) in [(true, 2), (false, 0)] {
        let replica = Replica::new(&Fake::default(), leads).await;
        let marked = replica.entered("p").await;
        drop(replica.requests());
        replica.delete(&marked);
        sleep(Duration::from_secs(90)).await;
        assert_eq!(replica.requests().len(), expected, "soon after the deletion, and at the end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_marked_if_it_was_created_within_the_window_and_not_later() {
    for (seconds, is_marked) in [(0, true), (20, true), (34, true), (38, false)] {
        let replica = Replica::new(&Fake::default(), true).await;
        let marked = replica.entered("p").await;
        replica.delete(&marked);
        sleep(Duration::from_secs(seconds)).await;
        replica.recreate("p");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(replica.is_successor_marked("p"), is_marked, "created {seconds} s after the exec");
    }
}

#[tokio::test(start_paused = true)]
async fn the_successor_of_a_pod_that_vanished_while_the_watch_was_interrupted_is_marked() {
    let replica = Replica::new(&Fake::default(), true).await;
    let (kept, gone) = (replica.entered("kept").await, replica.entered("gone").await);
    replica.recreate("gone");
    replica.successors.replace(&HashSet::from([kept.metadata.uid.unwrap()]));
    sleep(Duration::from_secs(15)).await;
    assert!(replica.is_successor_marked("gone"));
    drop(gone);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_is_repeated() {
    let replica = Replica::new(&Fake::default(), true).await;
    let marked = replica.entered("p").await;
    replica.delete(&marked);
    replica.recreate("p");
    replica.fake.state().conflicts = 2;
    sleep(Duration::from_secs(30)).await;
    assert!(replica.is_successor_marked("p"));
}

#[tokio::test(start_paused = true)]
async fn successors_are_found_on_every_page_of_a_large_namespace() {
    let replica = Replica::new(&Fake::default(), true).await;
    for n in 0..1500 {
        let other = pod("n", &format!("a{n:04}"), &format!("other-{n}"));
        replica.fake.state().pods.insert(format!("n/a{n:04}"), other);
    }
    let mut marked = Vec::new();
    for name in names(30) {
        marked.push(replica.entered(&name).await);
    }
    drop(replica.requests());
    for pod in &marked {
        replica.delete(pod);
        replica.recreate(pod.metadata.name.as_ref().unwrap());
    }
    sleep(Duration::from_secs(15)).await;
    assert!(names(30).iter().all(|name| replica.is_successor_marked(name)));
    let requests = replica.requests();
    assert_eq!(requests.iter().filter(|call| call.starts_with("LIST")).count(), 4, "pages of 500");
    assert_eq!(requests.len(), 34, "and a write for each");
}

#[tokio::test(start_paused = true)]
async fn many_successors_that_are_marked_already_are_read_once() {
    let (replica, mut deleted) = (Replica::new(&Fake::default(), true).await, Vec::new());
    for name in names(30) {
        let marked = replica.entered(&name).await;
        replica.delete(&marked);
        replica.recreate(&name);
        deleted.push(marked);
    }
    sleep(Duration::from_secs(15)).await;
    assert!(names(30).iter().all(|name| replica.is_successor_marked(name)));
    drop(replica.requests());
    // As a new leader, which does not know what the last one marked.
    for marked in &deleted {
        replica.successors.delete(marked);
    }
    sleep(Duration::from_secs(60)).await;
    // The list has no conditions, so each pod is read for the proof.
    let requests = replica.requests();
    let of = |verb: &str| requests.iter().filter(|call| call.starts_with(verb)).count();
    assert_eq!((of("LIST"), of("GET"), of("PATCH")), (1, 30, 0), "{requests:?}");
}
