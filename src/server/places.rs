//! The places for connections. If all are taken, the connection that has waited longest without a request loses its
//! place to the new one: a client that only holds connections open cannot keep out an API server.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A fixed number of places.
pub struct Places {
    free: Arc<Semaphore>,
    count: usize,
    /// The connections without a request, oldest first; also some that have ended or been kept since.
    waiting: Mutex<VecDeque<Arc<Waiting>>>,
}

/// One connection's place, until it is dropped.
pub struct Place {
    state: Arc<Waiting>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Waiting {
    /// It has a request, or it has ended: it cannot be displaced.
    settled: AtomicBool,
    lost: Notify,
}

impl Places {
    /// All of them free.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), count, waiting: Mutex::default() }
    }

    /// The number of places that are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.count - self.free.available_permits()
    }

    /// Takes a place. If none is free, the oldest connection without a request has to give up its own; if all have
    /// a request, this waits for the first answer.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub async fn take(&self) -> Place {
        if self.free.available_permits() == 0
            && let Some(oldest) = self.oldest()
        {
            oldest.lost.notify_one();
        }
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        let state = Arc::new(Waiting::default());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.front().is_some_and(|first| first.settled.load(Ordering::Relaxed)) {
            waiting.pop_front();
        }
        waiting.push_back(state.clone());
        Place { state, _permit: permit }
    }

    fn oldest(&self) -> Option<Arc<Waiting>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = waiting.pop_front() {
            if !first.settled.load(Ordering::Relaxed) {
                return Some(first);
            }
        }
        None
    }
}

impl Place {
    /// The connection has a request, and keeps its place until it is answered.
    pub fn keep(&self) {
        self.state.settled.store(true, Ordering::Relaxed);
    }

    /// Returns when another connection needs this place.
    pub async fn lost(&self) {
        loop {
            self.state.lost.notified().await;
            if !self.state.settled.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.settled.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_connection_without_a_request_loses_its_place() {
        let places = Arc::new(Places::new(3));
        let (first, second, third) = (places.take().await, places.take().await, places.take().await);
        first.keep();
        let (all, mut next) = (places.clone(), tokio::spawn(async move { third.lost().await }));
        let new = tokio::spawn(async move { all.take().await });
        second.lost().await;
        drop(second);
        new.await.unwrap().keep();
        assert!(!next.is_finished(), "a newer one stays");
        next.abort();
        let _ = (&mut next).await;
    }

    #[tokio::test]
    async fn a_connection_with_a_request_keeps_its_place() {
        let places = Arc::new(Places::new(1));
        let first = places.take().await;
        first.keep();
        let all = places.clone();
        let new = tokio::spawn(async move { all.take().await });
        let lost = tokio::time::timeout(std::time::Duration::from_millis(50), first.lost()).await;
        assert!(lost.is_err() && places.taken() == 1);
        drop(first);
        drop(new.await.unwrap());
        assert_eq!(places.taken(), 0);
    }
}
