use proptest::prelude::*;

use super::*;
use crate::certs::{before, ca::Ca};

pub(super) const LIFETIMES: Lifetimes =
    Lifetimes { ca: Duration::from_secs(9000), serving: Duration::from_secs(900), hold: Duration::from_secs(60) };

pub(super) fn names() -> Vec<String> {
    vec!["pristine.pristine-system.svc".to_owned()]
}

/// One replica, the two objects, and the history of caBundle for an API server that lags behind.
struct World {
    now: Timestamp,
    observed: Observed,
    history: Vec<(Timestamp, Vec<u8>)>,
    generations: usize,
}

impl World {
    fn new() -> Self {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let observed = Observed {
            stored: Stored::Absent,
            memory: None,
            bundles: Some(vec![vec![]]),
            serving: None,
            missing_since: Some(now),
            owned: true,
            namespace_terminating: false,
            rotate: false,
            published_generation: 0,
        };
        Self { now, observed, history: vec![(now, vec![])], generations: 0 }
    }

    fn store(&self) -> Option<&Store> {
        match &self.observed.stored {
            Stored::Store(store) => Some(store),
            _ => None,
        }
    }

    fn write(&mut self, store: Store) {
        self.observed.memory = Some(store.clone());
        self.observed.stored = Stored::Store(Box::new(store));
    }

    fn execute(&mut self, step: &Step) {
        let generation = self.store().map_or(0, |store| store.generation) + 1;
        match step {
            Step::Idle { .. } => {}
            Step::Withdraw => self.observed.bundles = None,
            Step::Publish(pem) => {
                self.observed.bundles = Some(vec![pem.clone().into_bytes()]);
                self.history.push((self.now, pem.clone().into_bytes()));
                self.observed.published_generation = self.store().unwrap().generation;
            }
            Step::Issue => {
                let store = self.store().unwrap();
                let cross = store.served_cross().cloned();
                let leaf =
                    store.active.issue(&names(), LIFETIMES.serving, self.now, cross.as_ref()).unwrap().certificate;
                let issuer = store.active.certificate.clone();
                self.observed.serving = Some(Serving { leaf, issuer, cross });
            }
            Step::Create => {
                let (active, _) = Ca::create(generation, &names(), LIFETIMES.ca, self.now, None).unwrap();
                self.generations += 1;
                self.write(Store { generation, ..Store::first(active) });
            }
            Step::Restore => {
                let memory = self.observed.memory.clone().unwrap();
                self.write(Store { generation: memory.generation + 1, ..memory });
            }
            step => {
                let store = self.store().unwrap().clone();
                let fresh = (*step == Step::Stage)
                    .then(|| Ca::create(generation, &names(), LIFETIMES.ca, self.now, Some(&store.active)).unwrap());
                self.generations += usize::from(*step == Step::Activate);
                self.write(apply(step, &store, &LIFETIMES, self.now, fresh).unwrap());
            }
        }
    }

    /// Executes steps until the plan is idle, and returns until when.
    fn settle(&mut self) -> Timestamp {
        for _ in 0..20 {
            match plan(&self.observed, &LIFETIMES, self.now) {
                Step::Idle { until } => {
                    assert!(until > self.now);
                    return until;
                }
                step => self.execute(&step),
            }
        }
        panic!("the plan is never idle: {:?}", plan(&self.observed, &LIFETIMES, self.now));
    }

    /// Whether an API server with this bundle accepts what is served.
    fn accepted(&self, bundle: &[u8]) -> bool {
        let (serving, store) = (self.observed.serving.as_ref().unwrap(), self.store().unwrap());
        trusted(&[bundle.to_vec()], serving, store, self.now)
    }
}

#[test]
fn a_new_installation_creates_issues_and_publishes() {
    let mut world = World::new();
    let mut steps = Vec::new();
    while let step = plan(&world.observed, &LIFETIMES, world.now)
        && !matches!(step, Step::Idle { .. })
    {
        world.execute(&step);
        steps.push(step.as_str());
    }
    assert_eq!(steps, ["create", "issue", "publish"]);
    assert!(world.accepted(&world.observed.bundles.as_ref().unwrap()[0]));
}

#[test]
fn an_api_server_that_lags_behind_trusts_every_certificate_of_five_cas() {
    let mut world = World::new();
    world.settle();
    let start = world.now;
    while world.generations < 5 {
        let until = world.settle();
        // Every bundle that an API server may have: the current one, and until the lag has passed the one before it.
        let lag = Duration::from_secs(300);
        let recent = world.history.iter().rev().take(2);
        for (n, (written, bundle)) in recent.enumerate() {
            let replaced = n > 0 && after(world.history.last().unwrap().0, lag) < world.now;
            assert!(replaced || bundle.is_empty() || world.accepted(bundle), "at {} bundle of {written}", world.now);
        }
        world.now = until.min(after(world.now, Duration::from_secs(120)));
        assert!(world.now < after(start, 6 * LIFETIMES.ca));
    }
}

#[test]
fn activation_erases_the_key_of_the_old_ca() {
    let mut world = World::new();
    while world.generations < 2 {
        world.now = world.settle();
    }
    let store = world.store().unwrap();
    assert_eq!((store.previous.len(), store.next.is_none()), (1, true));
    let text = format!("{:?}", crate::certs::secret::encode(store).keys());
    assert_eq!(text, r#"["active.crt", "active.key", "cross.crt", "previous.crt", "state.json"]"#);
}

#[test]
fn a_changed_bundle_is_repaired_and_a_removed_next_ca_restarts_the_hold() {
    let mut world = World::new();
    world.settle();
    world.observed.bundles = Some(vec![b"garbage".to_vec()]);
    assert!(matches!(plan(&world.observed, &LIFETIMES, world.now), Step::Publish(_)));
    world.settle();
    world.now = stage_at(world.store().unwrap());
    world.settle();
    assert!(world.store().unwrap().published_at.is_some());
    world.observed.bundles = Some(vec![bundle::pem([&world.store().unwrap().active.certificate]).into_bytes()]);
    assert_eq!(plan(&world.observed, &LIFETIMES, world.now), Step::BreakHold);
    world.now = after(world.now, Duration::from_secs(50));
    world.settle();
    assert_eq!(world.store().unwrap().published_at, Some(world.now));
}

#[test]
fn a_deleted_damaged_or_older_secret_is_restored_from_memory() {
    let mut world = World::new();
    world.settle();
    let before = world.store().unwrap().clone();
    let older = Store { generation: 0, ..before.clone() };
    for stored in [Stored::Absent, Stored::Unreadable("garbage".into()), Stored::Store(Box::new(older))] {
        world.observed.stored = stored;
        assert_eq!(plan(&world.observed, &LIFETIMES, world.now), Step::Restore);
        world.settle();
        assert_eq!(world.store().unwrap().active, before.active);
    }
}

#[test]
fn a_replica_suspended_during_a_rotation_never_restores_its_old_ca() {
    let mut world = World::new();
    world.settle();
    world.observed.stored = Stored::Absent;
    world.observed.published_generation = 9;
    world.observed.missing_since = Some(world.now);
    assert!(matches!(plan(&world.observed, &LIFETIMES, world.now), Step::Idle { .. }));
    assert_eq!(plan(&world.observed, &LIFETIMES, after(world.now, RESTORE_WAIT)), Step::Create);
}

#[test]
fn a_new_replica_waits_for_the_others_to_restore_the_secret() {
    let mut world = World::new();
    world.settle();
    world.observed.memory = None;
    world.observed.stored = Stored::Absent;
    world.observed.missing_since = Some(world.now);
    assert!(matches!(plan(&world.observed, &LIFETIMES, world.now), Step::Idle { .. }));
    assert_eq!(plan(&world.observed, &LIFETIMES, after(world.now, RESTORE_WAIT)), Step::Create);
}

#[test]
fn the_webhook_configuration_is_deleted_when_the_namespace_terminates() {
    let mut world = World::new();
    world.settle();
    world.observed.namespace_terminating = true;
    assert_eq!(plan(&world.observed, &LIFETIMES, world.now), Step::Withdraw);
    world.settle();
    assert_eq!(world.observed.bundles, None);
}

#[test]
fn a_missing_owner_reference_is_written_again() {
    let mut world = World::new();
    world.settle();
    world.observed.owned = false;
    assert!(matches!(plan(&world.observed, &LIFETIMES, world.now), Step::Publish(_)));
}

#[test]
fn a_requested_rotation_takes_the_same_steps() {
    let mut world = World::new();
    world.settle();
    world.observed.rotate = true;
    assert_eq!(plan(&world.observed, &LIFETIMES, world.now), Step::Stage);
    world.execute(&Step::Stage);
    // The write of the staged CA removes the request.
    world.observed.rotate = false;
    world.settle();
    assert!(world.store().unwrap().published_at.is_some(), "the hold comes before it signs, as always");
}

#[test]
fn a_renewal_never_waits_for_a_rejected_write() {
    let mut world = World::new();
    world.settle();
    world.now = renew_at(&world.observed.serving.as_ref().unwrap().leaf);
    world.observed.bundles = Some(vec![vec![]]);
    assert_eq!(plan(&world.observed, &LIFETIMES, world.now), Step::Issue);
}

#[test]
fn a_replica_whose_clock_is_behind_changes_nothing() {
    let mut world = World::new();
    world.settle();
    world.now = before(world.now, Duration::from_secs(7200));
    assert!(matches!(plan(&world.observed, &LIFETIMES, world.now), Step::Idle { .. }));
}

#[test]
fn without_a_webhook_configuration_a_replica_serves_and_never_rotates() {
    let mut world = World::new();
    world.observed.bundles = None;
    world.settle();
    assert!(world.observed.serving.is_some());
    world.now = stage_at(world.store().unwrap());
    world.settle();
    assert!(world.store().unwrap().next.is_none());
}

proptest! {
    #[test]
    fn every_pause_and_damage_is_repaired(jumps in proptest::collection::vec((0_u64..20_000, 0_u8..7), 1..12)) {
        let mut world = World::new();
        for (seconds, damage) in jumps {
            world.settle();
            world.now = after(world.now, Duration::from_secs(seconds));
            match damage {
                0 => world.observed.stored = Stored::Absent,
                1 => world.observed.stored = Stored::Unreadable("x".into()),
                2 => world.observed.bundles = Some(vec![vec![], vec![1, 2]]),
                3 => {
                    world.observed.memory = None;
                    world.observed.serving = None;
                }
                4 => {
                    world.observed.memory = None;
                    world.observed.stored = Stored::Absent;
                    world.observed.missing_since = None;
                }
                _ => {}
            }
        }
        world.settle();
        prop_assert!(world.accepted(&world.observed.bundles.as_ref().unwrap()[0]));
    }
}
