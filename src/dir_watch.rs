//! A mounted directory, watched. The only door to notify.
//!
//! The directory, not its files: kubelet swaps the symlink `..data`, and a watch on a file would go dead with the first
//! swap. Events are hints only; who is woken reads the files and compares.

use std::{path::Path, sync::Arc, time::Duration};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// Should the hints fail: inotify instances are limited, and some file systems have none.
const POLL: Duration = Duration::from_secs(10);
/// A swap is several events.
const SETTLE: Duration = Duration::from_millis(100);

/// Wakes when something in a directory changes, and now and then.
pub struct DirWatch {
    changed: Arc<Notify>,
    _watcher: Option<RecommendedWatcher>,
}

impl DirWatch {
    /// Begins to watch.
    #[must_use]
    pub fn watch(path: &Path) -> Self {
        let changed = Arc::new(Notify::new());
        let hint = changed.clone();
        let notice = move |event: notify::Result<notify::Event>| {
            // Our own reading of the files is an event too.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                hint.notify_one();
            }
        };
        let watching = notify::recommended_watcher(notice).and_then(|mut watcher| {
            watcher.watch(path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watching {
            tracing::warn!(path = %path.display(), %error, "cannot be watched, and is looked at every {POLL:?}");
        }
        Self { changed, _watcher: watching.ok() }
    }

    /// Returns after the next change, or when it is time to look anyway.
    pub async fn changed(&self) {
        if timeout(POLL, self.changed.notified()).await.is_ok() {
            sleep(SETTLE).await;
        }
    }
}
