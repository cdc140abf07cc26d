//! Pristine: marks a pod before it admits an exec into the pod, and evicts the pod after a time to live, so that the
//! workload runs again as it was reviewed and deployed.
//!
//! ```text
//!                   Secret ⇄ certs::controller ── rotation::plan(observed, now) ── CA (rcgen)
//!                                │ caBundle            │ serving certificate
//!                                ▼                     ▼
//! kube-apiserver ─ AdmissionReview ─▶ server (TLS) ─▶ admission ─▶ policy ─▶ pods.mark ─▶ the pod: label, annotations,
//!                                                                                         condition
//!                                                    eviction::controller ◀─ watch ───────────┘
//!                                                    │ eviction::plan(pod, now)
//!                                                    └─▶ pods.evict, by UID ─▶ kube-apiserver
//! ```
//!
//! The pod stores everything about interactions, and the Secret stores everything about certificates. Memory is only a
//! cache: a process that is killed at any moment loses nothing.
//!
//! Imports point one way: pure modules decide and take `now` ← I/O modules carry it out and log each decision once ←
//! [`run`] wires them. `tests/repository/layering.rs` has the table of imports and checks it.
//!
//! [`run`] and [`server::listen`] need Unix. They are the feature `server`, which is on by default and which the plugin is
//! built without, so that it runs on macOS and Windows too; `tests/repository/portable.rs` checks that.
//!
//! | folder | purpose | pure modules | I/O modules |
//! |---|---|---|---|
//! | [`cli`] | the command line | [`cli::args`], [`cli::docgen`], all below [`cli::simulate`] | [`cli::commands`], [`cli::simulate`] |
//! | [`config`] | the configuration file and its rules | [`config::policy`], [`config::explain`] | [`config::reload`] |
//! | [`admission`] | the answer to one admission review | [`admission::review`], [`admission::validate`] | [`admission::http`], [`admission::handler`], [`admission::marking`] |
//! | [`mark`] | the mark and the status on a pod | [`mark::status`], [`mark::claims`], [`mark::extension`], [`mark::owner`], [`mark::redact`] | |
//! | [`eviction`] | when a marked pod is evicted | [`eviction::plan`](mod@eviction::plan), [`eviction::pacing`], [`eviction::queue`], [`eviction::entry`], [`eviction::quarantine`], [`eviction::successor`], [`eviction::loops`] | [`eviction::controller`], [`eviction::reconcile`], [`eviction::mark_successor`], [`eviction::leadership`], [`eviction::loop_store`] |
//! | [`certs`] | the CA, serving certificates, caBundle | [`certs::rotation`], [`certs::secret`], [`certs::bundle`], [`certs::ca`], [`certs::replica_status`] | [`certs::controller`], [`certs::objects`], [`certs::mounted`], [`certs::resolver`] |
//! | [`api`] | the Kubernetes API | | [`api::pods`], [`api::owners`], [`api::events`] |
//! | [`server`] | the webhook port and the probes port | | [`server`], [`server::probes`], [`server::readiness`] |
//! | [`plugin`] | `kubectl pristine` | [`plugin::row`], [`plugin::format`], [`plugin::bypass`] | [`plugin::output`], and one file for each command |
//! | top level | used everywhere | [`duration`], [`error`] | [`audit_log`], [`telemetry`], [`clock`], [`dir_watch`], [`run`] |

pub mod admission;
pub mod api;
pub mod audit_log;
pub mod certs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dir_watch;
pub mod duration;
pub mod error;
pub mod eviction;
pub mod mark;
pub mod plugin;
#[cfg(feature = "server")]
pub mod run;
pub mod server;
pub mod telemetry;
