//! One writer at a time for each pod, and a queue of what waits for it. Every mark is a compare-and-swap: of eight
//! concurrent writers, seven would lose and read the pod again, so a flood of execs into one pod would cause ten times
//! the requests. The one that has the turn writes what waits, so 200 execs at once are some 20 writes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Mutex as Lock, MutexGuard};

/// A [`Writer`] for each pod that is being written.
pub struct Writers<T>(Mutex<HashMap<String, Weak<Writer<T>>>>);

/// The turn to write one pod, and what waits for it.
pub struct Writer<T> {
    turn: Lock<Option<Pod>>,
    waiting: Mutex<VecDeque<T>>,
}

impl<T> Default for Writers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Writers<T> {
    /// The writer of this pod. It is forgotten when no task has it any more.
    pub fn of(&self, namespace: &str, pod: &str) -> Arc<Writer<T>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, writer| writer.strong_count() > 0);
        let key = format!("{namespace}/{pod}");
        all.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let new = Arc::new(Writer { turn: Lock::default(), waiting: Mutex::default() });
            all.insert(key, Arc::downgrade(&new));
            new
        })
    }
}

impl<T> Writer<T> {
    /// Waits for the turn, which lasts until the guard is dropped. It holds the pod as the last turn left it, if known.
    pub async fn turn(&self) -> MutexGuard<'_, Option<Pod>> {
        self.turn.lock().await
    }

    /// Adds to what waits, at the front if it is urgent.
    pub fn wait(&self, item: T, is_urgent: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if is_urgent { waiting.push_front(item) } else { waiting.push_back(item) }
    }

    /// Takes at most `count` of what waits, oldest first.
    pub fn take(&self, count: usize) -> VecDeque<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = count.min(waiting.len());
        waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_reviews_of_one_pod_wait_for_one_turn_and_the_urgent_ones_go_first() {
        let writers = Writers::<u8>::default();
        let (one, same, other) = (writers.of("n", "p"), writers.of("n", "p"), writers.of("n", "q"));
        for item in 1..=4 {
            one.wait(item, false);
        }
        same.wait(9, true);
        let turn = one.turn().await;
        assert!(same.turn.try_lock().is_err() && other.turn.try_lock().is_ok());
        assert_eq!((same.take(3), same.take(9), other.take(9)), ([9, 1, 2].into(), [3, 4].into(), [].into()));
        drop(turn);
        drop((one, same));
        assert!(writers.of("n", "p").take(9).is_empty());
        assert!(writers.0.lock().unwrap().len() <= 2);
    }
}
