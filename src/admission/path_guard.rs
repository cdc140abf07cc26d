//! Checks the path of each request (I/O). What is accepted is decided in [`crate::api::webhook::path`].

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

use crate::api::webhook::{
    path::{GRACE, Key},
    watch::Seen,
};

/// How long a request with an unknown path waits until this replica learns it. The watch is some milliseconds behind
/// an API server, or ahead of it. Then another replica gets the request: eleven attempts wait for 3.3 s of 5 s.
const PATIENCE: Duration = Duration::from_millis(300);

/// Checks whether a request knows the secret path.
#[derive(Clone)]
pub struct PathGuard {
    seen: watch::Receiver<Seen>,
    key: watch::Receiver<Option<Key>>,
}

impl PathGuard {
    /// A guard that knows the live paths, and the key of those that it has not seen yet.
    #[must_use]
    pub const fn new(seen: watch::Receiver<Seen>, key: watch::Receiver<Option<Key>>) -> Self {
        Self { seen, key }
    }

    /// Whether the path is a secret one.
    pub async fn admits(&self, path: &str) -> bool {
        let (mut seen, mut key) = (self.seen.clone(), self.key.clone());
        let learns = async {
            while !accepts(&seen.borrow_and_update(), key.borrow_and_update().as_ref(), path) {
                tokio::select! {
                    Ok(()) = seen.changed() => {}
                    Ok(()) = key.changed() => {}
                    else => return std::future::pending().await,
                }
            }
        };
        timeout(PATIENCE, learns).await.is_ok()
    }
}

fn accepts(seen: &Seen, key: Option<&Key>, path: &str) -> bool {
    let recent = seen.replaced.iter().filter(|(_, at)| at.elapsed() < GRACE).map(|(path, _)| path);
    seen.paths.accepts(path, recent, key)
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::api::webhook::path::Paths;

    const KEY: Key = Key::new([7; 32]);

    fn seen(path: &str) -> Seen {
        Seen { paths: Paths { live: vec![path.to_owned()], renewed_at: None }, ..Seen::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_path_waits_until_the_watch_or_the_secret_shows_it() {
        let (sender, watched) = watch::channel(seen("/old"));
        let (learns, key) = watch::channel(None);
        let guard = PathGuard::new(watched, key);
        assert!(guard.admits("/old").await);

        let start = Instant::now();
        assert!(!guard.admits("/new").await);
        assert_eq!(start.elapsed(), PATIENCE);

        let later = async {
            sleep(Duration::from_millis(60)).await;
            sender.send_replace(seen("/new"));
        };
        assert!(tokio::join!(guard.admits("/new"), later).0, "shown by the watch");

        let path = KEY.path(1);
        assert!(!guard.admits(&path).await);
        let later = async {
            sleep(Duration::from_millis(60)).await;
            learns.send_replace(Some(KEY));
        };
        assert!(tokio::join!(guard.admits(&path), later).0, "shown by the key");

        drop((sender, learns));
        assert!(!guard.admits("/other").await, "and no end of the channels is an endless loop");
    }

    #[tokio::test(start_paused = true)]
    async fn a_path_is_accepted_for_a_minute_after_it_was_replaced() {
        let mut replaced = seen("/new");
        replaced.replaced.push(("/old".to_owned(), Instant::now()));
        let (_sees, watched) = watch::channel(replaced);
        let (_learns, key) = watch::channel(None);
        let guard = PathGuard::new(watched, key);
        sleep(Duration::from_secs(59)).await;
        assert!(guard.admits("/old").await);
        sleep(Duration::from_secs(1)).await;
        assert!(!guard.admits("/old").await);
    }
}
