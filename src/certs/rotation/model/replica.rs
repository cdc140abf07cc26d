//! What a replica does, as [`crate::certs::controller`] does it: observe, execute the planned step, observe again.

use super::*;

impl World {
    /// The running replicas learn the API servers' time, except for a deaf one.
    pub(super) fn hear(&mut self) {
        let (date, at) = (self.now, self.uptime());
        for replica in self.replicas.iter_mut().filter(|replica| !replica.deaf && !replica.suspended) {
            replica.sightings.add(date, Duration::ZERO, at);
        }
    }

    /// A clock that does not jump.
    fn uptime(&self) -> Duration {
        Duration::from_secs(self.now.as_second().unsigned_abs())
    }

    /// What this replica knows about the time.
    pub(super) fn knows(&self, r: usize) -> Now {
        self.replicas[r].sightings.now(self.local(r), self.uptime())
    }

    /// The time by this replica's clock.
    fn local(&self, r: usize) -> Timestamp {
        Timestamp::from_second(self.now.as_second() + self.replicas[r].ahead).unwrap()
    }

    pub(super) fn observe(&mut self, r: usize) {
        let (own, now) = (self.local(r), self.knows(r));
        let configuration = self.configurations.last().unwrap();
        let stored = self.secrets.last().unwrap().clone();
        let replica = &mut self.replicas[r];
        let elapsed = Duration::try_from(self.now.duration_since(replica.observed_at.unwrap_or(self.now))).unwrap();
        replica.observed_at = Some(self.now);
        let missing = is_missing(&stored, configuration.generation, &LIFETIMES, &now);
        replica.missing = Missing::observe(replica.missing, missing, own, elapsed);
        let observed = Observed {
            stored,
            memory: replica.memory.clone(),
            bundles: Some(vec![configuration.bundle.clone()]),
            serving: replica.serving.clone(),
            missing_for: replica.missing.as_ref().map(Missing::waited),
            published_generation: configuration.generation,
            owned: true,
            namespace_terminating: false,
            rotate: false,
            path_due: false,
        };
        replica.seen = Some((observed, self.secrets.len(), self.configurations.len(), own));
    }

    /// Executes the step planned from the last observation, unless the object that it writes has changed since. Returns
    /// whether there is more to do.
    pub(super) fn act(&mut self, r: usize) -> bool {
        let Some((observed, secret_version, configuration_version, at)) = self.replicas[r].seen.take() else {
            return false;
        };
        let now = self.knows(r);
        if after(at, crate::certs::MAX_SECRET_AGE) < self.local(r) {
            return true;
        }
        let step = plan(&observed, &LIFETIMES, &now);
        let known = match &observed.stored {
            Stored::Store(store) => Some((**store).clone()),
            _ => None,
        };
        if let Some(store) = &known
            && self.replicas[r].memory.as_ref().is_none_or(|memory| memory.generation < store.generation)
        {
            self.replicas[r].memory = Some(store.clone());
        }
        if let (Some(store), Some(serving), Some(bundles)) = (&known, &observed.serving, &observed.bundles)
            && may_be_ready(bundles, serving, store, &now)
        {
            self.replicas[r].ready = true;
        }
        let newest = known.iter().chain(&observed.memory).map(|store| store.generation).max().unwrap_or(0);
        let newest = newest.max(observed.published_generation);
        match &step {
            Step::Idle { .. } => return false,
            Step::Withdraw => unreachable!("the namespace is never deleted"),
            Step::Issue => {
                let store = known.unwrap();
                let cross = store.served_cross().cloned();
                let leaf = store.active.issue(&names(), LIFETIMES.serving, now.corrected, cross.as_ref()).unwrap();
                let leaf = leaf.certificate;
                let issuer = store.active.certificate;
                self.leaves.push_back((issuer.clone(), leaf.not_after));
                self.replicas[r].serving = Some(Serving { leaf, issuer, cross, issued_at: now.corrected });
            }
            Step::Publish(pem) => {
                if configuration_version == self.configurations.len() {
                    let generation = known.unwrap().generation;
                    self.publish(Configuration { bundle: pem.clone().into_bytes(), generation, broken: false });
                }
            }
            step => {
                if secret_version != self.secrets.len() {
                    return true;
                }
                self.write(r, step, &observed, known, newest, &now);
            }
        }
        self.steps += 1;
        true
    }

    /// Executes a step that writes the Secret.
    fn write(&mut self, r: usize, step: &Step, observed: &Observed, known: Option<Store>, newest: u64, now: &Now) {
        if matches!(step, Step::Create | Step::Adopt) {
            // The CA is lost, or only an older one is left of it, and with it what API servers trusted.
            self.assert_lost(step, observed.published_generation);
            self.configurations.iter_mut().for_each(|configuration| configuration.broken = true);
        }
        if matches!(step, Step::Create | Step::Activate)
            && known.as_ref().is_some_and(|store| store.active.certificate.not_after <= self.now)
        {
            self.assert_nobody_could_rotate();
            self.configurations.iter_mut().for_each(|configuration| configuration.broken = true);
        }
        let create = |generation, signer| Ca::create(generation, &names(), LIFETIMES.ca, now.earliest, signer).unwrap();
        let mut store = match step {
            Step::Create => {
                let (active, _) = create(newest + 1, None);
                Store::first(active, Key::new([7; 32]))
            }
            Step::Restore => observed.memory.clone().unwrap(),
            step => {
                let known = known.unwrap();
                let fresh = (*step == Step::Stage).then(|| create(newest + 1, Some(&known.active)));
                apply(step, &known, &LIFETIMES, now, fresh).unwrap()
            }
        };
        store.generation = generation_after(step, newest);
        self.activations += usize::from(*step == Step::Activate);
        self.replicas[r].memory = Some(store.clone());
        self.secrets.push(Stored::Store(Box::new(store)));
    }

    /// Observes and executes until the plan is idle.
    pub(super) fn settle(&mut self, r: usize) {
        for _ in 0..40 {
            if self.replicas[r].suspended {
                return;
            }
            self.observe(r);
            if !self.act(r) {
                return;
            }
            self.check();
        }
        panic!("the plan of replica {r} is never idle");
    }
}
