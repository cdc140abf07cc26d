//! The moves of the model: time, API servers, crashes and suspensions, and the adversary.

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Move {
    /// A replica observes both objects.
    Observe(usize),
    /// A replica executes the step planned from its last observation, however old that is.
    Act(usize),
    /// A replica observes and executes until its plan is idle.
    Settle(usize),
    /// So many seconds pass. Every 30 s each running replica settles, beginning with the given one.
    Pass(u64, usize),
    /// An API server receives the newest webhook configuration.
    Receive(usize),
    /// A replica is killed, and starts again without memory.
    Crash(usize),
    Suspend(usize),
    Resume(usize),
    /// A replica's clock jumps, to so many seconds ahead or behind. At most one is wrong: the others' are set right.
    Jump(usize, i64),
    /// From now on, this replica alone does not learn the API servers' time.
    Deafen(usize),
    /// Every replica learns the API servers' time again.
    Hear,
    /// The Secret is deleted (0), damaged (1), or restored as it was so many writes ago.
    Secret(usize),
    /// caBundle is emptied (0), or restored as it was so many writes ago.
    Bundle(usize),
}

impl World {
    pub(super) fn make(&mut self, step: &Move) {
        self.note_wrong_clocks();
        let n = self.replicas.len();
        let stored = |back: usize, all: &[Stored]| all[all.len().saturating_sub(back)].clone();
        match *step {
            Move::Observe(r) if !self.replicas[r % n].suspended => self.observe(r % n),
            Move::Act(r) if !self.replicas[r % n].suspended => drop(self.act(r % n)),
            Move::Observe(_) | Move::Act(_) => {}
            Move::Settle(r) => self.settle(r % n),
            Move::Pass(seconds, first) => {
                // A running replica observes at least every 30 s, after it has executed the step that it had planned.
                let end = after(self.now, Duration::from_secs(seconds));
                while self.now < end {
                    self.now = after(self.now, Duration::from_secs(30)).min(end);
                    self.hear();
                    for r in 0..n {
                        if !self.replicas[(first + r) % n].suspended {
                            self.act((first + r) % n);
                        }
                        self.settle((first + r) % n);
                    }
                }
            }
            Move::Receive(v) => {
                let v = v % self.views.len();
                self.views[v].0 = self.configurations.len() - 1;
            }
            Move::Jump(r, ahead) => {
                for (other, replica) in self.replicas.iter_mut().enumerate() {
                    if other == r % n {
                        replica.ahead = ahead;
                    } else if replica.ahead.abs() > SMALL && ahead.abs() > SMALL {
                        replica.ahead = 0;
                    }
                }
            }
            Move::Deafen(r) => {
                self.replicas.iter_mut().enumerate().for_each(|(other, replica)| replica.deaf = other == r % n);
            }
            Move::Hear => self.replicas.iter_mut().for_each(|replica| replica.deaf = false),
            Move::Crash(r) => {
                // Its node's clock stays as it was.
                let Replica { ahead, deaf, .. } = self.replicas[r % n];
                self.replicas[r % n] = Replica { ahead, deaf, able_since: self.now, ..Replica::default() };
            }
            Move::Suspend(r) => {
                // Its endpoint is removed from the Service first, and added again when it has resumed and observed.
                self.replicas[r % n].suspended = true;
                self.replicas[r % n].ready = false;
            }
            Move::Resume(r) => {
                // It executes the step that it had planned, and then observes, because its timer has long expired.
                if std::mem::take(&mut self.replicas[r % n].suspended) {
                    self.act(r % n);
                    self.settle(r % n);
                }
            }
            Move::Secret(0) => self.secrets.push(Stored::Absent),
            Move::Secret(1) => self.secrets.push(Stored::Unreadable("garbage".into())),
            Move::Secret(back) => {
                let old = stored(back, &self.secrets);
                self.secrets.push(old);
            }
            Move::Bundle(back) => self.damage_bundle(back),
        }
        self.note_wrong_clocks();
        if matches!(step, Move::Secret(_) | Move::Bundle(_)) {
            self.disturbed_at = self.now;
        }
        let last = self.configurations.len() - 1;
        for view in &mut self.views {
            if self.configurations[view.0].broken || after(view.1, LAG) <= self.now {
                *view = (last, self.now);
            }
        }
        self.check();
        self.check_recovery();
    }

    /// Notes which replicas cannot be expected to do everything right from now on.
    fn note_wrong_clocks(&mut self) {
        for r in 0..self.replicas.len() {
            let is_confirmed = self.knows(r).is_confirmed;
            let replica = &mut self.replicas[r];
            let is_wrong = replica.ahead.abs() > SMALL;
            if replica.suspended || replica.deaf || is_wrong {
                replica.able_since = self.now;
            }
            if is_wrong && (replica.deaf || !is_confirmed) {
                replica.misled_at = Some(self.now);
            }
        }
    }

    fn damage_bundle(&mut self, back: usize) {
        let old = match back {
            0 => Configuration {
                bundle: vec![],
                generation: self.configurations.last().unwrap().generation,
                broken: true,
            },
            back => self.configurations[self.configurations.len().saturating_sub(back)].clone(),
        };
        let serving = self.replicas.iter().filter(|r| r.ready).filter_map(|r| r.serving.as_ref());
        let trusting = serving.into_iter().all(|serving| self.accepts(&old.bundle, serving));
        // Only the bytes change: no manifest contains Pristine's annotation with the generation.
        let generation = self.configurations.last().unwrap().generation;
        self.publish(Configuration { broken: old.broken || !trusting, generation, ..old });
        if self.configurations.last().unwrap().broken {
            // Running replicas repair it at once. Admissions that fail in between are the adversary's doing.
            for r in 0..self.replicas.len() {
                self.settle(r);
            }
        }
    }
}

/// Draws 100 to 300 moves.
pub(super) fn moves(adversary: bool) -> impl Strategy<Value = Vec<Move>> {
    let replica = 0_usize..3;
    let calm = prop_oneof![
        6 => (1_u64..30, replica.clone()).prop_map(|(s, r)| Move::Pass(s, r)),
        4 => replica.clone().prop_map(Move::Observe),
        4 => replica.clone().prop_map(Move::Act),
        2 => replica.clone().prop_map(Move::Settle),
        3 => (0_usize..2).prop_map(Move::Receive),
        1 => replica.clone().prop_map(Move::Crash),
        1 => replica.clone().prop_map(Move::Suspend),
        2 => replica.clone().prop_map(Move::Resume),
        // Two clocks differ by less than the tenth of a serving certificate's life (90 s) by which it is backdated.
        1 => (replica.clone(), -SMALL..=SMALL).prop_map(|(r, ahead)| Move::Jump(r, ahead)),
        // Any clock can be wrong by any amount: here by up to two lives of a CA.
        2 => (replica.clone(), -18_000_i64..=18_000).prop_map(|(r, ahead)| Move::Jump(r, ahead)),
        1 => replica.prop_map(Move::Deafen),
        1 => Just(Move::Hear),
        4 => (200_u64..500, 0_usize..3).prop_map(|(s, r)| Move::Pass(s, r)),
    ];
    let all = prop_oneof![
        12 => calm.boxed(),
        u32::from(adversary) => prop_oneof![
            (0_usize..6).prop_map(Move::Secret),
            (0_usize..3).prop_map(Move::Bundle),
        ].boxed(),
    ];
    proptest::collection::vec(all, 100..300)
}
