//! Plans the secret path for the loop that writes the webhook configuration, and passes its key to the server (I/O).
//! What is due is decided in [`path`].

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    api::webhook::path::{Key, Paths, Renewal, Write},
    clock::Now,
    telemetry::Metrics,
};

/// The secret path, as this replica plans it.
pub struct SecretPath {
    renewal: Renewal,
    started: Instant,
    /// Notified when an error may have shown the path to a user.
    broken: Arc<Notify>,
    key: watch::Sender<Option<Key>>,
    /// The write that is due.
    due: Option<Write>,
    /// How long until one can become due.
    next: Duration,
}

impl SecretPath {
    /// A path of this lifetime, and its key for those who check requests; none until it is known.
    #[must_use]
    pub fn new(lifetime: Duration, broken: Arc<Notify>) -> (Self, watch::Receiver<Option<Key>>) {
        let (sender, key) = watch::channel(None);
        let (renewal, started) = (Renewal::new(lifetime), Instant::now());
        (Self { renewal, started, broken, key: sender, due: None, next: Duration::MAX }, key)
    }

    /// Plans the write that is due. Without a key there is none.
    pub fn plan(&mut self, paths: &Paths, key: Option<Key>, now: &Now) {
        // Not awaited: any client can break a connection, and would make this replica read three objects each time.
        if self.broken.notified().now_or_never().is_some() {
            self.renewal.leaked();
        }
        self.key.send_if_modified(|known| std::mem::replace(known, key) != key);
        let at = self.started.elapsed();
        (self.due, self.next) = key.map_or((None, Duration::MAX), |key| self.renewal.plan(paths, &key, now, at));
    }

    /// The write that is due.
    #[must_use]
    pub const fn due(&self) -> Option<&Write> {
        self.due.as_ref()
    }

    /// How long until a write can become due.
    #[must_use]
    pub const fn next(&self) -> Duration {
        self.next
    }

    /// What was due is written.
    pub fn written(&mut self, metrics: &Metrics) {
        if self.due.take().is_some_and(|write| write.renewed_at.is_some()) {
            self.renewal.renewed();
            metrics.secret_path_renewals.inc();
            tracing::info!("the secret URL path of the webhook was renewed");
        }
    }
}
