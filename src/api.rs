//! The Kubernetes API: one module for each kind of object that is read or written, and the [`Context`] of every module
//! with I/O.

use std::sync::Arc;

use kube::Client;

use crate::{audit_log::AuditLog, clock::Clock, telemetry::Metrics};

pub mod call;
pub mod events;
pub mod kinds;
pub mod link;
pub mod owners;
pub mod persist;
pub mod pods;
pub mod surge;
pub mod webhook;

/// The label selector of the replicas' pods, as manifests/base/deployment.yaml labels them.
pub const REPLICAS: &str = "app.kubernetes.io/name=pristine,app.kubernetes.io/component=webhook";

/// The clock, the three places where a module reports what it did, and the link to the API server. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The wall clock: deadlines and certificates are wall-clock times.
    pub clock: Clock,
    /// Kubernetes Events, for `kubectl describe`.
    pub events: events::Events,
    /// One JSON line for each interaction.
    pub audit_log: AuditLog,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Whether the API server can be reached.
    pub link: link::Link,
}

impl Context {
    /// Returns the context, and the task that publishes its Events; `instance` is the name of this replica.
    pub fn new(
        client: Client,
        instance: &str,
        clock: Clock,
        audit_log: AuditLog,
        metrics: Arc<Metrics>,
        link: link::Link,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (events, publish) = events::Events::new(client, instance, clock.clone(), metrics.clone());
        (Self { clock, events, audit_log, metrics, link }, publish)
    }
}
