//! Whether this replica can reach the API server, from the calls that it makes anyway: the Lease is read every two
//! seconds.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

/// Calls for reviews at the same time. Each needs a connection of its own, and a burst of execs must not open hundreds of
/// them: their handshakes would take longer than a call may take. With an API server that answers in 10 ms it is 3,000
/// calls a second.
const CALLS: usize = 32;

/// What the last calls showed. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    state: Arc<watch::Sender<State>>,
    calls: Arc<Semaphore>,
}

#[derive(Clone, Copy)]
struct State {
    answered: Instant,
    /// A call since then got no answer.
    is_broken: bool,
}

impl Default for Link {
    fn default() -> Self {
        let state = State { answered: Instant::now(), is_broken: false };
        Self { state: Arc::new(watch::Sender::new(state)), calls: Arc::new(Semaphore::new(CALLS)) }
    }
}

impl Link {
    /// The API server answered, with whatever answer.
    pub fn answered(&self) {
        self.state.send_modify(|state| *state = State { answered: Instant::now(), is_broken: false });
    }

    /// A call got no answer: it failed below HTTP, or its caller stopped waiting.
    pub fn failed(&self) {
        self.state.send_modify(|state| state.is_broken = true);
    }

    /// Whether the last call got no answer.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state.borrow().is_broken
    }

    /// Waits until a call gets no answer.
    pub async fn breaks(&self) {
        let _ = self.state.subscribe().wait_for(|state| state.is_broken).await;
    }

    /// Waits until one more call may be made, and counts it until the permit is dropped.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.calls.acquire().await.expect("the semaphore is never closed")
    }

    /// How long ago the API server answered, if a call since then got no answer; else zero.
    #[must_use]
    pub fn broken_for(&self) -> Duration {
        let state = *self.state.borrow();
        if state.is_broken { state.answered.elapsed() } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_answer_ends_what_any_number_of_failures_began() {
        let link = Link::default();
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!((link.is_broken(), link.broken_for()), (false, Duration::ZERO), "no call was made");
        link.failed();
        link.failed();
        link.breaks().await;
        assert_eq!((link.is_broken(), link.broken_for()), (true, Duration::from_secs(50)));
        link.answered();
        assert_eq!((link.is_broken(), link.broken_for()), (false, Duration::ZERO));
    }
}
