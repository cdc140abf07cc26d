//! Reads the switch that stops all evictions (I/O). What follows from it is decided in [`super::switch`].

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::sync::watch;

use super::switch::{CONFIG_MAP, Read, Switch};
use crate::error::chain;

/// The switch as this replica has read it last. Cheap to clone.
#[derive(Clone)]
pub struct Suspended(Arc<watch::Sender<Switch>>);

impl Default for Suspended {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Switch::default()).0))
    }
}

impl Suspended {
    /// Why no pod is evicted now; none if pods are. `configured` is `eviction.suspend` of the configuration.
    #[must_use]
    pub fn why(&self, configured: bool, now: Timestamp) -> Option<String> {
        self.0.borrow().why(configured, now)
    }

    /// Whether the ConfigMap was read.
    #[must_use]
    pub fn is_known(&self) -> bool {
        *self.0.borrow() != Switch::Unknown
    }

    /// Reads the ConfigMap. Every replica does so every two seconds, with the Lease, so the next leader knows it already.
    pub async fn refresh(&self, client: &Client, namespace: &str) {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let read = match api.get_opt(CONFIG_MAP).await {
            Ok(Some(found)) => Read::Found(found.data.unwrap_or_default()),
            Ok(None) => Read::Absent,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "cannot read the ConfigMap {CONFIG_MAP}, retrying");
                Read::Failed
            }
        };
        self.0.send_if_modified(|known| {
            let next = known.after(&read);
            std::mem::replace(known, next.clone()) != next
        });
    }
}
