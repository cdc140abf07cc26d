//! The secret path, and its key in the Secret.

use super::*;

#[test]
fn the_path_is_written_together_with_the_bundle_and_without_a_change_of_it() {
    let mut world = World::new();
    world.settle();
    world.observed.path_due = true;
    let Step::Publish(pem) = world.plan() else { panic!("{:?}", world.plan()) };
    assert_eq!(world.observed.bundles, Some(vec![pem.into_bytes()]));
}

#[test]
fn a_secret_without_a_path_key_gets_one_after_all_other_steps() {
    let mut world = World::new();
    world.settle();
    let store = Store { path_key: None, ..world.store().unwrap().clone() };
    world.write(store.clone());
    assert_eq!(world.plan(), Step::AddPathKey);
    let serving = world.observed.serving.take();
    assert_eq!(world.plan(), Step::Issue);
    world.observed.serving = serving;
    world.observed.bundles = Some(vec![vec![]]);
    assert!(matches!(world.plan(), Step::Publish(_)));
    let written = apply(&Step::AddPathKey, &store, &LIFETIMES, &Now::exact(world.now), None).unwrap();
    assert_eq!(written, Store { generation: store.generation + 1, ..store });
}
