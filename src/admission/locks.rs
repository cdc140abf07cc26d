//! One at a time for each pod. Every mark is a compare-and-swap: of eight writers at once, seven would lose and ask the
//! API server again, and a flood of execs into one pod would be ten times the work.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Whose turn it is, by pod.
#[derive(Default)]
pub struct PodLocks(Mutex<HashMap<String, Weak<Turn<()>>>>);

impl PodLocks {
    /// Waits for this pod's turn, and holds it until the guard is dropped.
    pub async fn lock(&self, namespace: &str, pod: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, turn| turn.strong_count() > 0);
            let key = format!("{namespace}/{pod}");
            let turn = all.get(&key).and_then(Weak::upgrade).unwrap_or_default();
            all.insert(key, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_pod_waits_for_itself_and_for_no_other_and_nothing_is_left_behind() {
        let locks = PodLocks::default();
        let first = locks.lock("n", "a").await;
        let other = locks.lock("n", "b").await;
        assert!(futures_util::poll!(Box::pin(locks.lock("n", "a"))).is_pending());
        drop(first);
        drop(locks.lock("n", "a").await);
        drop(other);
        drop(locks.lock("n", "c").await);
        assert_eq!(locks.0.lock().unwrap().len(), 1, "only the last one asked for");
    }
}
