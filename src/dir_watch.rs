//! Watches a mounted directory. The only module that uses notify.
//!
//! It watches the directory and not its files: the kubelet swaps the symlink `..data`, and a watch on a file would end
//! with the first swap. An event is only a hint: the caller reads the files and compares them.

use std::{path::Path, sync::Arc, time::Duration};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// In case events are missing: the number of inotify instances is limited, and some file systems do not support it.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// One swap causes several events.
const SETTLE: Duration = Duration::from_millis(100);

/// Reports changes in a directory.
pub struct DirWatch {
    changed: Arc<Notify>,
    _watcher: Option<RecommendedWatcher>,
}

impl DirWatch {
    /// Starts to watch a directory.
    #[must_use]
    pub fn watch(path: &Path) -> Self {
        let changed = Arc::new(Notify::new());
        let hint = changed.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            // Pristine's own reads of the files cause events too.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                hint.notify_one();
            }
        };
        let watching = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watching {
            let path = path.display();
            tracing::warn!(%path, %error, "cannot watch the directory, polling it every {POLL_INTERVAL:?}");
        }
        Self { changed, _watcher: watching.ok() }
    }

    /// Returns after the next change, and after 10 s without one.
    pub async fn changed(&self) {
        if timeout(POLL_INTERVAL, self.changed.notified()).await.is_ok() {
            sleep(SETTLE).await;
        }
    }
}
