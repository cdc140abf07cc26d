//! What must hold in the model after every move.

use super::*;

impl World {
    /// Whether an API server with this bundle accepts what is served.
    pub(super) fn accepts(&self, bundle: &[u8], serving: &Serving) -> bool {
        let stores = self.secrets.iter().filter_map(|stored| match stored {
            Stored::Store(store) => Some(store),
            _ => None,
        });
        // The issuer's predecessor, which signed the cross-signed certificate.
        let crossing =
            stores.filter(|store| serving.cross.is_some() && store.next.is_none() && store.cross == serving.cross);
        let roots: Vec<_> =
            std::iter::once(&serving.issuer).chain(crossing.flat_map(|store| &store.previous)).collect();
        serving.leaf.is_valid(self.now) && bundle::trusts(bundle, &roots, self.now)
    }

    /// Asserts that no running replica could restore the CA that this step gives up.
    pub(super) fn assert_lost(&self, step: &Step, published_generation: u64) {
        let kept = self.replicas.iter().filter(|replica| !replica.suspended).filter_map(|r| r.memory.as_ref());
        let kept: Vec<_> = kept
            .filter(|store| store.active.certificate.is_valid(self.now))
            .filter(|store| store.generation >= published_generation)
            .collect();
        // If nothing was ever published, no API server trusts the CA.
        assert!(
            kept.is_empty() || published_generation == 0,
            "{step:?}, although a running replica has the CA in memory"
        );
    }

    /// Asserts that the CA could expire only because no replica had the time to replace it.
    pub(super) fn assert_nobody_could_rotate(&self) {
        for (r, replica) in self.replicas.iter().enumerate() {
            let since = replica.able_since.max(self.disturbed_at);
            let had_time = after(since, LIFETIMES.ca / 4) < self.now && !replica.suspended;
            assert!(!had_time, "replica {r} let the CA expire at {}", self.now);
        }
    }

    /// Each API server accepts each Ready replica, and trust ends only after the last certificate that depends on it.
    pub(super) fn check(&self) {
        for (r, replica) in self.replicas.iter().enumerate().filter(|(_, replica)| replica.ready && !replica.suspended)
        {
            // A wrong clock that nothing corrects may let a replica's own certificate expire, never another's.
            if replica.misled_at.is_some_and(|at| self.now <= after(at, CORRECTION))
                || (replica.deaf && replica.ahead.abs() > SMALL)
            {
                continue;
            }
            let (serving, store) = (replica.serving.as_ref().unwrap(), replica.memory.as_ref().unwrap());
            for (v, (view, _)) in self.views.iter().enumerate() {
                let configuration = &self.configurations[*view];
                if configuration.broken {
                    continue;
                }
                // Without the cross-signed certificate, only API servers that are up to date accept a new CA.
                let is_behind = *view + 1 < self.configurations.len();
                let is_uncrossed = serving.cross.as_ref().is_some_and(|cross| cross.not_after <= self.now);
                let accepted = self.accepts(&configuration.bundle, serving);
                if !accepted && (serving.issuer.not_after <= self.now || (is_behind && is_uncrossed)) {
                    self.assert_nobody_could_rotate();
                    continue;
                }
                assert!(
                    accepted,
                    "API server {v} rejects replica {r} at {}: it serves {:?} by {:?} with cross {}, generation {}",
                    self.now,
                    serving.leaf,
                    serving.issuer,
                    serving.cross.is_some(),
                    store.generation
                );
            }
        }
        let published = self.configurations.last().unwrap();
        for (root, end) in self.leaves.iter().filter(|(_, end)| !published.broken && *end > self.now) {
            let in_use = self.replicas.iter().any(|r| {
                r.ready
                    && r.serving
                        .as_ref()
                        .is_some_and(|s| s.issuer == *root && s.cross.is_none() && s.leaf.not_after == *end)
            });
            assert!(!in_use || bundle::trusts(&published.bundle, &[root], self.now), "retired while in use");
        }
    }

    /// Every replica that has had the time to recover is Ready, and API servers with the newest webhook configuration
    /// accept it, whatever a replica with a wrong clock did.
    pub(super) fn check_recovery(&self) {
        let published = self.configurations.last().unwrap();
        for (r, replica) in self.replicas.iter().enumerate() {
            let since = replica.able_since.max(self.disturbed_at);
            let is_able = !replica.suspended && !replica.deaf && replica.ahead.abs() <= SMALL;
            if !is_able || self.now <= after(since, RECOVERY) {
                continue;
            }
            let accepted = replica.serving.as_ref().is_some_and(|serving| self.accepts(&published.bundle, serving));
            assert!(
                replica.ready && accepted,
                "replica {r}, which could do every step for {} s, is not accepted at {}: ready {}, serving {:?}",
                self.now.duration_since(since).as_secs(),
                self.now,
                replica.ready,
                replica.serving
            );
        }
    }
}
