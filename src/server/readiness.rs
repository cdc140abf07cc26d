//! The readiness of this replica: what `/readyz` answers, and the parts that it depends on.

use std::sync::Arc;

use tokio::sync::watch;

/// The readiness of the replica or of one part: ready, or the reason why not. Cheap to clone.
#[derive(Clone)]
pub struct Readiness(Arc<watch::Sender<Result<(), String>>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Err("starting".to_owned())).0))
    }
}

impl Readiness {
    /// Nothing is missing.
    pub fn set_ready(&self) {
        drop(self.0.send_replace(Ok(())));
    }

    /// Sets it not ready, even if it was ready before.
    pub fn set_unready(&self, why: String) {
        drop(self.0.send_replace(Err(why)));
    }

    /// Sets what is missing, if it was never ready. Once ready, it stays ready: a changed caBundle is repaired in
    /// milliseconds, and removing the endpoint from the Service would only delay that.
    pub fn set_missing(&self, what: String) {
        self.0.send_if_modified(|ready| match ready {
            Ok(()) => false,
            Err(known) => {
                *known = what;
                true
            }
        });
    }

    /// Returns ready, or the reason why not.
    ///
    /// # Errors
    /// What is missing.
    pub fn get(&self) -> Result<(), String> {
        self.0.borrow().clone()
    }

    /// Follows the parts until the process ends: ready while all are ready, and never again after `stopping` is true.
    pub async fn follow(self, trusted: Self, synced: Self, reachable: Self, mut stopping: watch::Receiver<bool>) {
        let (mut trusted, mut synced) = (trusted.0.subscribe(), synced.0.subscribe());
        let mut reachable = reachable.0.subscribe();
        loop {
            let is_stopping = *stopping.borrow_and_update();
            // The certificates' reason comes first: it contains the API server's answer, if that rejects our requests.
            let parts = [&mut reachable, &mut trusted, &mut synced].map(|part| part.borrow_and_update().clone());
            let missing: Vec<String> = parts.into_iter().filter_map(Result::err).collect();
            let now = match missing.as_slice() {
                _ if is_stopping => Err("stopping".to_owned()),
                [] => Ok(()),
                missing => Err(missing.join("; ")),
            };
            if now.is_ok() && self.get().is_err() {
                tracing::info!("ready");
            }
            drop(self.0.send_replace(now));
            let changed = tokio::select! {
                changed = trusted.changed() => changed,
                changed = synced.changed() => changed,
                changed = reachable.changed() => changed,
                changed = stopping.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_part_becomes_unready_by_set_unready_alone() {
        let part = Readiness::default();
        part.set_missing("no CA".to_owned());
        assert_eq!(part.get(), Err("no CA".to_owned()));
        part.set_ready();
        part.set_missing("no caBundle".to_owned());
        assert_eq!(part.get(), Ok(()));
        part.set_unready("expired".to_owned());
        assert_eq!(part.get(), Err("expired".to_owned()));
    }

    #[tokio::test]
    async fn a_replica_is_ready_while_every_part_is_ready_and_it_is_not_stopping() {
        let (all, trusted, synced) = (Readiness::default(), Readiness::default(), Readiness::default());
        let reachable = Readiness::default();
        reachable.set_ready();
        let (stop, stopping) = watch::channel(false);
        synced.set_missing("pods".to_owned());
        let task = tokio::spawn(all.clone().follow(trusted.clone(), synced.clone(), reachable.clone(), stopping));
        let mut seen = all.0.subscribe();
        let mut expect =
            async |wanted: Result<(), String>| drop(seen.wait_for(|ready| *ready == wanted).await.unwrap());
        expect(Err("starting; pods".to_owned())).await;
        trusted.set_ready();
        expect(Err("pods".to_owned())).await;
        synced.set_ready();
        expect(Ok(())).await;
        reachable.set_unready("no API server".to_owned());
        expect(Err("no API server".to_owned())).await;
        reachable.set_ready();
        expect(Ok(())).await;
        stop.send_replace(true);
        expect(Err("stopping".to_owned())).await;
        task.abort();
    }
}
