//! Logs and metrics.
//!
//! No label has a value from a request (user, pod, command), so the code and the names of the rules determine the number
//! of series.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
pub use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

mod process;
pub mod rules;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line, for a cluster.
    Json,
    /// For people at a terminal.
    Text,
}

/// Writes log lines to stderr.
///
/// # Errors
/// If the filter is invalid.
pub fn init_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|error| anyhow::anyhow!("--log-level {filter:?}: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()?;
        }
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr)).try_init()?,
    }
    Ok(())
}

/// How an admission review was answered.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, EncodeLabelValue)]
pub enum AdmissionOutcome {
    /// Admitted with a mark on the pod.
    Marked,
    /// Admitted; the pod already had the same interaction.
    Folded,
    /// Admitted without a mark, by a rule, in a dry run, or because no container is affected.
    Exempt,
    /// Denied by a rule, or because the pod or container does not exist, or the user lacks the permission.
    Denied,
    /// Denied because the mark could not be written, and would not be at another attempt.
    Failed,
    /// Not answered: the mark was not written in time, and the API server sends the review again.
    HandedOver,
    /// Admitted although the mark could not be written, because Pristine must not block it: break-glass, port-forward,
    /// proxy.
    Unrecorded,
}

impl AdmissionOutcome {
    /// Every variant.
    pub const ALL: [Self; 7] =
        [Self::Marked, Self::Folded, Self::Exempt, Self::Denied, Self::Failed, Self::HandedOver, Self::Unrecorded];

    /// The word in the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Marked | Self::Folded => "marked",
            Self::Exempt => "exempt",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::HandedOver => "handed-over",
            Self::Unrecorded => "unrecorded",
        }
    }
}

/// Labels of `pristine_admission_requests_total`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct Admission {
    /// `exec`, `attach`, `debug`, `port-forward`, `proxy`, `report`, or `none`.
    pub operation: &'static str,
    /// How it was answered.
    pub decision: AdmissionOutcome,
}

/// Why a request was rejected; a constant of the code.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct Reason {
    /// The value of the label.
    pub reason: &'static str,
}

/// The result of an action; a constant of the code.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct Outcome {
    /// The value of the label.
    pub result: &'static str,
}

/// Labels of the certificate gauges.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct Certificate {
    /// `active`, `next` or `serving`.
    pub certificate: &'static str,
}

/// Label of `pristine_marked_pods`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct StateLabel {
    /// `marked`, `queued`, `blocked`, `evicting` or `terminating`.
    pub state: &'static str,
}

/// Label of `pristine_eviction_loops`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct By {
    /// `machine` or `person`.
    pub by: &'static str,
}

/// Label of `pristine_ca_phase`.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct Phase {
    /// `steady`, `staged`, `held` or `overlap`.
    pub phase: &'static str,
}

/// No label: in a [`Family`], a series without labels that does not exist until its value is known.
pub type NoLabel = [(&'static str, &'static str); 0];

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    /// Admission reviews answered.
    pub admissions: Family<Admission, Counter>,
    /// Time from the last byte of a review to its answer.
    pub admission_seconds: Histogram,
    /// Interactions through break-glass.
    pub break_glass: Counter,
    /// HTTP requests answered with an error, by reason.
    pub rejected: Family<Reason, Counter>,
    /// TLS handshakes, by result.
    pub handshakes: Family<Outcome, Counter>,
    /// Open connections on the webhook port.
    pub connections: Gauge,
    /// Eviction attempts, by result.
    pub evictions: Family<Outcome, Counter>,
    /// Surges begun and ended, by result.
    pub surges: Family<Outcome, Counter>,
    /// From the deadline to the moment the eviction was accepted.
    pub lateness_seconds: Histogram,
    /// How long the most overdue pod in each state has been due, on the leader.
    pub overdue_seconds: Family<StateLabel, Gauge<f64, AtomicU64>>,
    /// Marked pods on this replica's queue, by state.
    pub marked: Family<StateLabel, Gauge>,
    /// Seconds that this replica's clock is ahead of the API server's.
    pub clock_ahead: Gauge<f64, AtomicU64>,
    /// Whether evictions are suspended.
    pub evictions_suspended: Gauge,
    /// Workloads that are evicted again and again because of one user, on the leader.
    pub eviction_loops: Family<By, Gauge>,
    /// Whether this replica is the leader, which evicts.
    pub leader: Gauge,
    /// When each certificate expires.
    pub not_after: Family<Certificate, Gauge<f64, AtomicU64>>,
    /// Whether caBundle in the webhook configuration is as intended.
    pub bundle_in_sync: Gauge,
    /// Whether the webhook configuration is as strict as the shipped one, once that is known.
    pub enforcement_intact: Family<NoLabel, Gauge>,
    /// How often this replica created the deleted webhook configuration again.
    pub configuration_restores: Counter,
    /// 1 for the current phase of the CA rotation.
    pub phase: Family<Phase, Gauge>,
    /// How often another client changed caBundle and Pristine restored it.
    pub bundle_repairs: Counter,
    /// Renewals of the secret path by this replica.
    pub secret_path_renewals: Counter,
    /// Steps taken by the certificate controller.
    pub certificate_steps: Family<Outcome, Counter>,
    /// Decisions of each rule in force.
    pub rules: rules::Rules,
    /// Reloads of a changed configuration, by result.
    pub reloads: Family<Outcome, Counter>,
    /// Whether the current content of the configuration file is in use.
    pub configuration_valid: Gauge,
    /// Events that could not be published.
    pub events_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Self {
            registry: Registry::default(),
            admissions: Family::default(),
            admission_seconds: Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]),
            break_glass: Counter::default(),
            rejected: Family::default(),
            handshakes: Family::default(),
            connections: Gauge::default(),
            evictions: Family::default(),
            surges: Family::default(),
            lateness_seconds: Histogram::new([0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0]),
            overdue_seconds: Family::default(),
            marked: Family::default(),
            clock_ahead: Gauge::default(),
            evictions_suspended: Gauge::default(),
            eviction_loops: Family::default(),
            leader: Gauge::default(),
            not_after: Family::default(),
            bundle_in_sync: Gauge::default(),
            enforcement_intact: Family::default(),
            configuration_restores: Counter::default(),
            phase: Family::default(),
            bundle_repairs: Counter::default(),
            secret_path_renewals: Counter::default(),
            certificate_steps: Family::default(),
            rules: rules::Rules::default(),
            reloads: Family::default(),
            configuration_valid: Gauge::default(),
            events_dropped: Counter::default(),
        };
        all.registry.register_collector(Box::new(process::Process));
        let r = all.registry.sub_registry_with_prefix("pristine");
        r.register("build", "The version of this process", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("admission_requests", "Admission reviews answered", all.admissions.clone());
        let help = "Time from reading a review to answering it";
        r.register_with_unit("admission_duration", help, Unit::Seconds, all.admission_seconds.clone());
        r.register("break_glass", "Interactions through break-glass", all.break_glass.clone());
        r.register("http_requests_rejected", "HTTP requests answered with an error", all.rejected.clone());
        r.register("tls_handshakes", "TLS handshakes on the webhook port", all.handshakes.clone());
        r.register("connections", "Open connections on the webhook port", all.connections.clone());
        r.register("evictions", "Eviction attempts", all.evictions.clone());
        r.register(
            "surges",
            "Evictions whose replacement is created first: begun, and how they ended",
            all.surges.clone(),
        );
        let help = "Time from a deadline to the accepted eviction";
        r.register_with_unit("eviction_lateness", help, Unit::Seconds, all.lateness_seconds.clone());
        let help = "How long the most overdue marked pod in this state has been due, on the leader; if terminating, how long its \
                    grace period has been over";
        r.register_with_unit("eviction_overdue", help, Unit::Seconds, all.overdue_seconds.clone());
        r.register("marked_pods", "Marked pods with a deadline, by state", all.marked.clone());
        let help = "How far this replica's clock is ahead of the API server's, to within a second";
        r.register_with_unit("clock_ahead", help, Unit::Seconds, all.clock_ahead.clone());
        let help = "1 while evictions are suspended, by `kubectl pristine suspend` or the configuration";
        r.register("evictions_suspended", help, all.evictions_suspended.clone());
        let help = "Eviction loops of the last 24 hours, on the leader: workloads that were evicted three times in a row \
                    because the same user entered each new pod";
        r.register("eviction_loops", help, all.eviction_loops.clone());
        r.register("leader", "1 on the leader, the replica that evicts", all.leader.clone());
        let help = "When the certificate expires, in seconds since 1970";
        r.register_with_unit("certificate_not_after_timestamp", help, Unit::Seconds, all.not_after.clone());
        let help = "1 while caBundle of the webhook configuration is as intended";
        r.register("ca_bundle_in_sync", help, all.bundle_in_sync.clone());
        let help = "1 while the webhook configuration is as strict as the shipped one, 0 while it is weakened or missing; no value until the API server has answered";
        r.register("enforcement_intact", help, all.enforcement_intact.clone());
        let help = "How often this replica created the webhook configuration again after another client had deleted it";
        r.register("webhook_configuration_restores", help, all.configuration_restores.clone());
        r.register("ca_phase", "1 for the current phase of the CA rotation", all.phase.clone());
        r.register(
            "ca_bundle_repairs",
            "Changes of caBundle by other clients that were reverted",
            all.bundle_repairs.clone(),
        );
        let help = "Renewals of the secret URL path by this replica";
        r.register("secret_path_renewals", help, all.secret_path_renewals.clone());
        r.register("certificate_steps", "Steps taken by the certificate controller", all.certificate_steps.clone());
        all.rules.register(r);
        r.register("configuration_reloads", "Reloads of a changed configuration", all.reloads.clone());
        let help = "1 while the current content of the configuration file is in use";
        r.register("configuration_valid", help, all.configuration_valid.clone());
        r.register("events_dropped", "Events that could not be published", all.events_dropped.clone());
        all.init_series();
        all
    }
}

/// Label values whose series start at zero, so that Prometheus sees the first event as an increase.
const EVICTIONS: [&str; 12] = [
    "evicted",
    "blocked",
    "queued",
    "quarantined",
    "extended",
    "replaced",
    "successor_marked",
    "not_evictable",
    "stuck",
    "suspended",
    "spared",
    "error",
];
const SURGES: [&str; 14] = [
    "started",
    "replaced",
    "timed_out",
    "not_created",
    "create_failed",
    "unschedulable",
    "owner_changed",
    "owner_lost",
    "not_due",
    "suspended",
    "disabled",
    "eviction_failed",
    "uninstalled",
    "unreadable",
];
const REJECTIONS: [&str; 9] =
    ["api_server", "path", "method", "busy", "slow", "too_large", "broken_body", "not_a_review", "panic"];

impl Metrics {
    fn init_series(&self) {
        for operation in ["exec", "attach", "debug", "port-forward", "proxy", "report"] {
            for decision in AdmissionOutcome::ALL {
                drop(self.admissions.get_or_create(&Admission { operation, decision }));
            }
        }
        for result in EVICTIONS {
            drop(self.evictions.get_or_create(&Outcome { result }));
        }
        for by in ["machine", "person"] {
            drop(self.eviction_loops.get_or_create(&By { by }));
        }
        for result in SURGES {
            drop(self.surges.get_or_create(&Outcome { result }));
        }
        for reason in REJECTIONS {
            drop(self.rejected.get_or_create(&Reason { reason }));
        }
        for result in ["refused", "unreadable"] {
            drop(self.certificate_steps.get_or_create(&Outcome { result }));
        }
        for result in ["accepted", "refused"] {
            drop(self.reloads.get_or_create(&Outcome { result }));
        }
        for result in ["ok", "alert", "invalid", "closed", "timeout", "displaced"] {
            drop(self.handshakes.get_or_create(&Outcome { result }));
        }
    }
}

impl Metrics {
    /// Metrics with a series for every value of every label, for the generated docs/metrics.md.
    #[must_use]
    pub fn complete(phases: &[&'static str], steps: &[&'static str]) -> Self {
        let all = Self::default();
        for state in ["marked", "queued", "blocked", "suspended", "evicting", "terminating"] {
            drop(all.marked.get_or_create(&StateLabel { state }));
        }
        for state in ["marked", "queued", "blocked", "terminating"] {
            drop(all.overdue_seconds.get_or_create(&StateLabel { state }));
        }
        for certificate in ["active", "next", "serving"] {
            drop(all.not_after.get_or_create(&Certificate { certificate }));
        }
        drop(all.enforcement_intact.get_or_create(&[]));
        let rule = "the name of each rule";
        all.rules.load([(rule, rules::IsUnchanged(false))], Timestamp::UNIX_EPOCH);
        all.rules.decided(rule, Timestamp::UNIX_EPOCH);
        all.rules.decided("default", Timestamp::UNIX_EPOCH);
        for phase in phases {
            drop(all.phase.get_or_create(&Phase { phase }));
        }
        for result in steps {
            drop(all.certificate_steps.get_or_create(&Outcome { result }));
        }
        all
    }

    /// The `OpenMetrics` text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String succeeds");
        text
    }
}
