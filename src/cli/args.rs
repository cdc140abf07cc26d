//! The command line of `pristine`: subcommands and flags.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{api::webhook::Names, certs::Lifetimes, telemetry::LogFormat};

/// Marks a pod before an exec into it is admitted, and evicts the pod after a TTL.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the webhook, renew its certificates, evict due pods.
    Serve(Box<Serve>),
    /// Check a configuration file, and warn of rules that never decide.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
    /// Print which rule decides about an admission review, and why the rules before it do not match.
    Explain {
        /// The configuration file [default: /etc/pristine/pristine.yaml, or the built-in configuration if there is none].
        #[arg(long)]
        config: Option<PathBuf>,
        /// The AdmissionReview, JSON.
        #[arg(long)]
        review: PathBuf,
        /// The pod, as `kubectl get pod NAME -o json` prints it.
        #[arg(long)]
        pod: Option<PathBuf>,
        /// The pod's namespace, as `kubectl get namespace NAME -o json` prints it, for rules with a namespaceSelector.
        #[arg(long)]
        namespace: Option<PathBuf>,
    },
    /// Print a patch of the webhook configuration with which the API server itself exempts users and groups.
    ///
    /// It contains the rules at the top of the file that exempt by user or group alone, and works even while no replica
    /// runs.
    MatchConditions {
        /// The configuration file.
        file: PathBuf,
    },
    /// Print what rules would have done about the execs in audit logs: who execs where, and which pods are evicted.
    ///
    /// It needs no cluster and no installation. Nothing is sent anywhere. The rules decide with the code of the webhook.
    Simulate(Simulate),
    /// Print the configuration that is in force until you write your own.
    DefaultConfig,
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Print a generated page of docs/.
    #[command(hide = true)]
    Docs {
        /// The page.
        page: Page,
    },
}

/// The pages of docs/ that the program generates.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Page {
    /// docs/configuration.md
    Configuration,
    /// docs/metrics.md
    Metrics,
    /// docs/flags.md
    Flags,
}

/// Flags of `simulate`.
#[derive(Args, Debug)]
pub struct Simulate {
    /// Audit logs of API servers, in any order, also compressed with gzip. `-` is standard input. Exports of CloudWatch
    /// (EKS) and of Cloud Logging (GKE) are understood too.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub audit_log: Vec<PathBuf>,
    /// The configuration file [default: the built-in configuration].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The pods, as `kubectl get pods -A -o json` prints them: their labels and owners are not in an audit log.
    #[arg(long, value_name = "FILE")]
    pub pods: Option<PathBuf>,
    /// Output for people, or for programs.
    #[arg(long, short, default_value = "table", value_enum)]
    pub output: Output,
}

/// The format of the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Output {
    /// Tables, and rules in YAML.
    Table,
    /// One JSON object.
    Json,
}

/// Flags of `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The configuration file [default: /etc/pristine/pristine.yaml, or the built-in configuration if there is none].
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Address of the webhook, which API servers call. The firewalls of private clusters admit port 10250 and one
    /// other.
    #[arg(long, default_value = "[::]:10250")]
    pub listen: SocketAddr,
    /// Address of /livez, /readyz and /metrics, without TLS.
    #[arg(long, default_value = "[::]:8080")]
    pub probes: SocketAddr,
    /// The namespace of the Service, the Secret and the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "pristine-system")]
    pub namespace: String,
    /// The name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "pristine")]
    pub pod_name: String,
    /// The UID of this replica's pod, by which `kubectl describe` finds the Events about it.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// The Service that the webhook configuration names.
    #[arg(long, default_value = "pristine")]
    pub service: String,
    /// The Secret that holds the CA.
    #[arg(long, default_value = "pristine-ca")]
    pub secret: String,
    /// The Lease of the replica that evicts.
    #[arg(long, default_value = "pristine")]
    pub lease: String,
    /// The ValidatingWebhookConfiguration whose caBundle Pristine writes.
    #[arg(long, default_value = "pristine")]
    pub webhook_configuration: String,
    /// Lifetime of a CA. Pristine renews it after two thirds.
    #[arg(long, default_value = "8760h", value_parser = duration)]
    pub ca_lifetime: Duration,
    /// Lifetime of a serving certificate. Pristine renews it after two thirds.
    #[arg(long, default_value = "168h", value_parser = duration)]
    pub serving_lifetime: Duration,
    /// How long API servers trust the next CA before it signs.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub hold: Duration,
    /// A directory with tls.crt, tls.key and optionally ca.crt, to use instead of Pristine's own CA. With ca.crt,
    /// Pristine writes it into caBundle. Without ca.crt, another tool must.
    #[arg(long)]
    pub tls_dir: Option<PathBuf>,
    /// Lifetime of the secret URL path that API servers call. After an error that may have shown the path to a user,
    /// Pristine renews it earlier, but not within an hour.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub secret_path_lifetime: Duration,
    /// How long Pristine answers requests after SIGTERM.
    #[arg(long, default_value = "25s", value_parser = duration)]
    pub drain: Duration,
    /// Format of log lines.
    #[arg(long, default_value = "json", value_enum)]
    pub log_format: LogFormat,
    /// Filter of log lines, for example `info` or `info,pristine=debug`.
    #[arg(long, default_value = "info")]
    pub log_level: String,
}

impl Serve {
    /// The lifetimes, checked against each other.
    ///
    /// # Errors
    /// Which flag to change.
    pub fn lifetimes(&self) -> Result<Lifetimes, String> {
        Lifetimes::new(self.ca_lifetime, self.serving_lifetime, self.hold)
    }

    /// The names of the webhook configuration and of our entries in it.
    #[must_use]
    pub fn names(&self) -> Names {
        Names {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            configuration: self.webhook_configuration.clone(),
        }
    }
}

/// A duration in Go's notation, of at most a century.
fn duration(text: &str) -> Result<Duration, String> {
    const CENTURY: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
    let duration = crate::duration::parse(text)?;
    if duration.is_zero() || duration > CENTURY {
        return Err("must be more than zero and at most a century".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(flags: &[&str]) -> Serve {
        let Command::Serve(serve) = Cli::try_parse_from(["pristine", "serve"].iter().chain(flags)).unwrap().command
        else {
            panic!()
        };
        *serve
    }

    #[test]
    fn the_defaults_hold_their_own_relations() {
        serve(&[]).lifetimes().unwrap();
    }

    #[test]
    fn lifetimes_that_cannot_overlap_are_refused_and_the_flags_named() {
        let error =
            serve(&["--ca-lifetime", "90s", "--serving-lifetime", "30s", "--hold", "3s"]).lifetimes().unwrap_err();
        assert!(
            error.starts_with("--ca-lifetime 90s is too short: a third of it, 30s, must be longer than"),
            "{error}"
        );
        serve(&["--ca-lifetime", "90s", "--serving-lifetime", "12s", "--hold", "3s"]).lifetimes().unwrap();
    }

    #[test]
    fn impossible_durations_are_refused() {
        for value in ["0s", "-1h", "1d", "x", "", "99999999999999999999h", "900000000h"] {
            assert!(Cli::try_parse_from(["pristine", "serve", "--hold", value]).is_err(), "{value}");
        }
    }
}
