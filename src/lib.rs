//! Pristine: a pod that somebody has exec'd into is marked before the exec is admitted, and evicted after a time to
//! live, so that what runs is again what was reviewed and deployed.
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
//! The pod is the store of everything about interactions, the Secret of everything about certificates. Memory is a
//! cache: a process that is killed at any moment forgets nothing.
//!
//! Imports point one way: pure modules decide and take `now` ← I/O modules do it and log once ← [`run`] wires
//! them. `tests/layering.rs` holds the table and checks it.
//!
//! | folder | what for | decides (pure) | does (I/O) |
//! |---|---|---|---|
//! | [`cli`] | the command line | [`cli::args`], [`cli::docgen`] | [`cli::commands`] |
//! | [`config`] | the configuration file and its rules | [`config::policy`], [`config::explain`] | [`config::reload`] |
//! | [`admission`] | the answer to one admission review | [`admission::review`], [`admission::validate`], [`admission::secret_path`] | [`admission::http`], [`admission::handler`], [`admission::locks`] |
//! | [`mark`] | what is written on a pod | [`mark::extension`], [`mark::redact`], [`mark::owner`] | |
//! | [`eviction`] | when a marked pod is evicted | [`eviction::plan`], [`eviction::pacing`], [`eviction::queue`], [`eviction::entry`], [`eviction::quarantine`] | [`eviction::controller`], [`eviction::reconcile`], [`eviction::mark_successor`], [`eviction::leadership`] |
//! | [`certs`] | the CA, serving certificates, caBundle | [`certs::rotation`], [`certs::secret`], [`certs::bundle`], [`certs::ca`], [`certs::replica_status`] | [`certs::controller`], [`certs::objects`], [`certs::mounted`], [`certs::resolver`] |
//! | [`api`] | the Kubernetes API | | [`api::pods`], [`api::owners`], [`api::events`] |
//! | [`server`] | the two ports | | [`server`], [`server::probes`] |
//! | [`plugin`] | `kubectl pristine` | [`plugin::row`], [`plugin::format`], [`plugin::bypass`] | one file a command |
//! | around | used by all | [`duration`], [`error`] | [`audit_log`], [`telemetry`], [`clock`], [`dir_watch`], [`run`] |

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
pub mod run;
pub mod server;
pub mod telemetry;
