//! Pristine: a pod that somebody has exec'd into is marked before the exec is admitted, and evicted after a time to
//! live, so that what runs is again what was reviewed and deployed.
//!
//! ```text
//!                   Secret ⇄ certs::controller ── rotation::plan(observed, now) ── authority (rcgen)
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
//! Imports point one way: pure rooms (they decide, and take `now`) ← edges (they do, and log once) ← [`run`] (it wires).
//! Rooms do not know each other. `tests/layering.rs` holds the table and checks it.
//!
//! | room | decides (pure) | does (edge) |
//! |---|---|---|
//! | what is written on a pod | [`mark`], [`redact`] | [`pods`], [`events`], [`journal`] |
//! | what is done about an interaction | [`policy`], [`config`], [`explain`], [`admission::review`], [`admission::target`] | [`reload`], [`admission::handler`], [`admission::turns`], [`admission::http`] |
//! | when a pod goes | [`eviction`], [`eviction::pacing`], [`eviction::tracked`], [`eviction::agenda`], [`eviction::quarantine`] | [`eviction::controller`], [`eviction::attempt`], [`eviction::handover`], [`eviction::lease`] |
//! | who is trusted | [`certs`], [`certs::rotation`], [`certs::secret`], [`certs::bundle`], [`certs::authority`], [`certs::announcement`] | [`certs::controller`], [`certs::objects`], [`certs::mounted`], [`certs::resolver`], [`announce`] |
//! | the ports, and who may call | [`path`] | [`server`], [`server::probes`], [`path::keeper`] |
//! | `kubectl pristine` | [`plugin::row`], [`plugin::human`], [`plugin::bypass`] | [`plugin`]: one file a command |
//! | around | [`duration`], [`error`], [`owner`], [`reference`] | [`args`], [`commands`], [`clock`], [`folder`], [`telemetry`], [`run`] |

pub mod admission;
pub mod announce;
pub mod args;
pub mod certs;
pub mod clock;
pub mod commands;
pub mod config;
pub mod duration;
pub mod error;
pub mod events;
pub mod eviction;
pub mod explain;
pub mod folder;
pub mod journal;
pub mod mark;
pub mod owner;
pub mod path;
pub mod plugin;
pub mod pods;
pub mod policy;
pub mod redact;
pub mod reference;
pub mod reload;
pub mod run;
pub mod server;
pub mod telemetry;
