//! Keeps what the leader knows of loops in the ConfigMap `pristine-loops` (I/O). What a loop is, is decided in
//! [`super::loops`].
//!
//! The leader is the only writer. It reads the ConfigMap when it begins to lead, and every half minute, so that an
//! administrator can end a loop by removing its row. Until the first read it evicts no pod of a machine.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    leadership::Leadership,
    loops::{CONFIG_MAP, Loops, Row, Workload},
};
use crate::{
    api::{Context, call, pods::MANAGER},
    error::chain,
    mark::Mark,
    telemetry::By,
};

/// How soon a loop is stored: a leader that is killed within this time loses an eviction of the row.
const WRITE_AFTER: Duration = Duration::from_secs(2);
/// The pause after an error, beside [`WRITE_AFTER`].
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// How soon the leader obeys a change of the ConfigMap by an administrator.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// The loops that this replica knows of. Cheap to clone.
#[derive(Clone, Default)]
pub struct LoopStore(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    loops: Loops,
    /// Whether this replica has read the ConfigMap since it leads.
    is_read: bool,
    /// Whether something must be written.
    is_dirty: bool,
}

impl LoopStore {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the ConfigMap was read, and whether it must be written.
    fn state(&self) -> (bool, bool) {
        let known = self.lock();
        (known.is_read, known.is_dirty)
    }

    /// The rows because of which deadlines of this mark do not count; none if the ConfigMap was not read yet.
    #[must_use]
    pub fn sparing(&self, workload: &Workload, mark: &Mark) -> Option<Vec<Row>> {
        let known = self.lock();
        known.is_read.then(|| known.loops.sparing(workload, mark).into_iter().cloned().collect())
    }

    /// See [`Loops::may_spare`]. False if the ConfigMap was not read yet: then the pod is looked at when it is due.
    #[must_use]
    pub fn may_spare(&self, pod: &Pod) -> bool {
        self.lock().loops.may_spare(pod)
    }

    /// Notes an eviction, and returns the loops that were noticed.
    #[must_use]
    pub fn evicted(&self, workload: &Workload, pod: &Pod, mark: &Mark, now: Timestamp) -> Vec<Row> {
        let mut known = self.lock();
        let before = known.loops.data();
        let noticed = known.loops.evicted(workload, pod, mark, now);
        known.is_dirty |= known.loops.data() != before;
        noticed
    }

    /// Runs until the process ends.
    pub async fn run(self, client: Client, namespace: String, leadership: Leadership, context: Context) {
        let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let (mut version, mut read_at) = (String::new(), Instant::now());
        loop {
            let now = context.clock.never_ahead();
            if leadership.is_held() {
                let (is_read, is_dirty) = self.state();
                let done = if is_read && is_dirty {
                    self.write(&api, &mut version).await
                } else if !is_read || read_at.elapsed() >= READ_AGAIN {
                    read_at = Instant::now();
                    self.read(&api, &mut version, now).await
                } else {
                    Ok(())
                };
                if let Err(error) = done {
                    let error = chain(&error);
                    tracing::warn!(error, "cannot read or write the ConfigMap {CONFIG_MAP}, retrying");
                    sleep(RETRY_AFTER).await;
                }
                self.lock().loops.sweep(now);
            } else {
                *self.lock() = Known::default();
                version.clear();
            }
            for (by, is_machine) in [("machine", true), ("person", false)] {
                let count = self.lock().loops.active(now).filter(|row| row.machine == is_machine).count();
                context.metrics.eviction_loops.get_or_create(&By { by }).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            sleep(WRITE_AFTER).await;
        }
    }

    /// Reads the ConfigMap. If there is none, loops are noticed all the same and known to this leader only.
    async fn read(&self, api: &Api<ConfigMap>, version: &mut String, now: Timestamp) -> Result<(), call::Error> {
        let found = call::call("get configmaps", api.get_opt(CONFIG_MAP)).await?;
        let mut known = self.lock();
        known.is_read = true;
        let Some(found) = found else { return Ok(()) };
        let new = found.metadata.resource_version.unwrap_or_default();
        if new != *version {
            let stored = Loops::parse(&found.data.unwrap_or_default(), now);
            known.loops = std::mem::take(&mut known.loops).adopt(stored);
            *version = new;
        }
        Ok(())
    }

    async fn write(&self, api: &Api<ConfigMap>, version: &mut String) -> Result<(), call::Error> {
        let data = {
            let mut known = self.lock();
            known.is_dirty = false;
            known.loops.data()
        };
        // Without the version, a leader that was suspended would overwrite what the next one wrote.
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": *version }, "data": data }));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match call::call("patch configmaps", api.patch(CONFIG_MAP, &params, &patch)).await {
            Ok(written) => *version = written.metadata.resource_version.unwrap_or_default(),
            // What the other writer wrote counts.
            Err(call::Error::Conflict) => self.lock().is_read = false,
            Err(error) => {
                self.lock().is_dirty = true;
                return Err(error);
            }
        }
        Ok(())
    }
}
