use proptest::prelude::*;

use super::*;
use crate::{
    api::webhook::path::Key,
    certs::{before, ca::Ca},
    clock::Sightings,
};

mod path;

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
            missing_for: Some(RESTORE_WAIT),
            owned: true,
            namespace_terminating: false,
            rotate: false,
            path_due: false,
            published_generation: 0,
        };
        Self { now, observed, history: vec![(now, vec![])], generations: 0 }
    }

    /// The plan, when every clock shows the same.
    fn plan(&self) -> Step {
        plan(&self.observed, &LIFETIMES, &Now::exact(self.now))
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
        // As the controller counts: a new CA is newer than all that was ever seen.
        let known = self.store().into_iter().chain(&self.observed.memory).map(|store| store.generation).max();
        let generation = known.unwrap_or(0).max(self.observed.published_generation) + 1;
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
                self.observed.serving = Some(Serving { leaf, issuer, cross, issued_at: self.now });
            }
            Step::Create => {
                let (active, _) = Ca::create(generation, &names(), LIFETIMES.ca, self.now, None).unwrap();
                self.generations += 1;
                self.write(Store { generation, ..Store::first(active, Key::new([7; 32])) });
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
                self.write(apply(step, &store, &LIFETIMES, &Now::exact(self.now), fresh).unwrap());
            }
        }
    }

    /// Executes steps until the plan is idle, and returns until when.
    fn settle(&mut self) -> Timestamp {
        for _ in 0..20 {
            match self.plan() {
                Step::Idle { until } => {
                    assert!(until > self.now);
                    return until;
                }
                step => self.execute(&step),
            }
        }
        panic!("the plan is never idle: {:?}", self.plan());
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
    while let step = world.plan()
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
    assert_eq!(text, r#"["active.crt", "active.key", "cross.crt", "path.key", "previous.crt", "state.json"]"#);
}

#[test]
fn a_changed_bundle_is_repaired_and_a_removed_next_ca_restarts_the_hold() {
    let mut world = World::new();
    world.settle();
    world.observed.bundles = Some(vec![b"garbage".to_vec()]);
    assert!(matches!(world.plan(), Step::Publish(_)));
    world.settle();
    world.now = stage_at(world.store().unwrap());
    world.settle();
    assert!(world.store().unwrap().published_at.is_some());
    world.observed.bundles = Some(vec![bundle::pem([&world.store().unwrap().active.certificate]).into_bytes()]);
    assert_eq!(world.plan(), Step::BreakHold);
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
        assert_eq!(world.plan(), Step::Restore);
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
    world.observed.missing_for = Some(Duration::ZERO);
    assert!(matches!(world.plan(), Step::Idle { .. }));
    world.observed.missing_for = Some(RESTORE_WAIT);
    assert_eq!(world.plan(), Step::Create);
}

#[test]
fn a_new_replica_waits_for_the_others_to_restore_the_secret() {
    let mut world = World::new();
    world.settle();
    world.observed.memory = None;
    world.observed.stored = Stored::Absent;
    world.observed.missing_for = Some(Duration::ZERO);
    assert!(matches!(world.plan(), Step::Idle { .. }));
    world.observed.missing_for = Some(RESTORE_WAIT);
    assert_eq!(world.plan(), Step::Create);
}

#[test]
fn the_webhook_configuration_is_deleted_when_the_namespace_terminates() {
    let mut world = World::new();
    world.settle();
    world.observed.namespace_terminating = true;
    assert_eq!(world.plan(), Step::Withdraw);
    world.settle();
    assert_eq!(world.observed.bundles, None);
}

#[test]
fn a_missing_owner_reference_is_written_again() {
    let mut world = World::new();
    world.settle();
    world.observed.owned = false;
    assert!(matches!(world.plan(), Step::Publish(_)));
}

#[test]
fn a_requested_rotation_takes_the_same_steps() {
    let mut world = World::new();
    world.settle();
    world.observed.rotate = true;
    assert_eq!(world.plan(), Step::Stage);
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
    world.now = renew_at(world.observed.serving.as_ref().unwrap());
    world.observed.bundles = Some(vec![vec![]]);
    assert_eq!(world.plan(), Step::Issue);
}

/// A replica's own clock is ahead or behind by so many seconds, and an API server's is right, or has not been seen.
fn jumped(world: &World, seconds: i64, is_confirmed: bool) -> Now {
    let own = Timestamp::from_second(world.now.as_second() + seconds).unwrap();
    let mut seen = Sightings::default();
    if is_confirmed {
        seen.add(world.now, Duration::ZERO, Duration::ZERO);
    }
    seen.now(own, Duration::ZERO)
}

#[test]
fn a_replica_alone_with_a_wrong_clock_writes_no_ca() {
    let mut world = World::new();
    world.settle();
    for seconds in [-31_536_000, -7200, 3600, 7200, 31_536_000] {
        for is_confirmed in [false, true] {
            let step = plan(&world.observed, &LIFETIMES, &jumped(&world, seconds, is_confirmed));
            assert!(matches!(step, Step::Idle { .. } | Step::Issue), "{seconds} {is_confirmed}: {step:?}");
        }
    }
}

#[test]
fn an_expired_ca_is_replaced_only_if_an_api_server_confirms_the_time() {
    let mut world = World::new();
    world.settle();
    world.now = after(world.now, 2 * LIFETIMES.ca);
    assert!(matches!(plan(&world.observed, &LIFETIMES, &jumped(&world, 0, false)), Step::Issue | Step::Idle { .. }));
    assert_eq!(plan(&world.observed, &LIFETIMES, &jumped(&world, 0, true)), Step::Create);
}

#[test]
fn a_ca_from_the_far_future_is_replaced_after_a_wait_if_an_api_server_confirms_the_time() {
    let mut world = World::new();
    let right = world.now;
    world.now = after(world.now, Duration::from_secs(31_536_000));
    world.settle();
    world.now = right;
    world.observed.missing_for = Some(Duration::from_secs(30));
    assert!(matches!(world.plan(), Step::Idle { until } if until == after(right, Duration::from_secs(35))));
    world.observed.missing_for = Some(RESTORE_WAIT);
    assert!(matches!(plan(&world.observed, &LIFETIMES, &jumped(&world, 0, false)), Step::Idle { .. }));
    assert_eq!(world.plan(), Step::Create);
    world.settle();
    assert!(world.accepted(&world.observed.bundles.as_ref().unwrap()[0]));
    // A CA that is valid a little later is not lost.
    world.now = before(world.now, Duration::from_secs(1000));
    assert!(matches!(world.plan(), Step::Idle { .. }));
}

#[test]
fn a_next_ca_or_a_hold_from_the_far_future_is_replaced() {
    let mut world = World::new();
    world.settle();
    world.now = stage_at(world.store().unwrap());
    world.settle();
    let late = after(world.now, Duration::from_secs(31_536_000));
    let held = world.store().unwrap().clone();
    world.write(Store { published_at: Some(late), ..held.clone() });
    assert_eq!(world.plan(), Step::BeginHold);
    let (next, cross) = Ca::create(9, &names(), LIFETIMES.ca, late, Some(&held.active)).unwrap();
    world.write(Store { next: Some(next), cross, ..held });
    world.observed.bundles = Some(vec![bundle::pem(world.store().unwrap().roots()).into_bytes()]);
    assert_eq!(world.plan(), Step::Stage);
    world.settle();
    assert!(world.store().unwrap().published_at.is_some_and(|at| at == world.now));
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_replaced() {
    let mut world = World::new();
    world.settle();
    let store = world.store().unwrap().clone();
    let ahead = after(world.now, Duration::from_secs(7200));
    let leaf = store.active.issue(&names(), LIFETIMES.serving, ahead, None).unwrap().certificate;
    assert!(leaf.is_valid(world.now), "it is as old as its issuer");
    world.observed.serving = Some(Serving { leaf, issuer: store.active.certificate, cross: None, issued_at: ahead });
    assert_eq!(world.plan(), Step::Issue);
    world.execute(&Step::Issue);
    assert!(matches!(world.plan(), Step::Idle { .. }));
}

#[test]
fn a_wrong_clock_renews_its_certificate_once_and_not_without_a_pause() {
    let mut world = World::new();
    world.settle();
    for seconds in [-31_536_000, -3600, 3600, 31_536_000] {
        let now = jumped(&world, seconds, true);
        world.now = now.corrected;
        world.execute(&Step::Issue);
        let Step::Idle { until } = plan(&world.observed, &LIFETIMES, &now) else { panic!("{seconds}") };
        assert!(until > now.corrected);
    }
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
                    world.observed.missing_for = None;
                }
                _ => {}
            }
        }
        world.settle();
        prop_assert!(world.accepted(&world.observed.bundles.as_ref().unwrap()[0]));
    }
}
