//! One writer at a time for each pod. Every mark is a compare-and-swap: of eight concurrent writers, seven would lose
//! and read the pod again, so a flood of execs into one pod would cause ten times the requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

/// A lock for each pod that has a writer.
#[derive(Default)]
pub struct PodLocks(Mutex<HashMap<String, Weak<Lock<()>>>>);

impl PodLocks {
    /// Waits for the lock of this pod, which is held until the guard is dropped.
    pub async fn lock(&self, namespace: &str, pod: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, lock| lock.strong_count() > 0);
            let key = format!("{namespace}/{pod}");
            let lock = all.get(&key).and_then(Weak::upgrade).unwrap_or_default();
            all.insert(key, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_blocks_only_writers_of_the_same_pod_and_is_removed_when_it_is_free() {
        let locks = PodLocks::default();
        let first = locks.lock("n", "a").await;
        let other = locks.lock("n", "b").await;
        assert!(futures_util::poll!(Box::pin(locks.lock("n", "a"))).is_pending());
        drop(first);
        drop(locks.lock("n", "a").await);
        drop(other);
        drop(locks.lock("n", "c").await);
        assert_eq!(locks.0.lock().unwrap().len(), 1, "only the last lock");
    }
}
