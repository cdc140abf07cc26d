//! What was typed on the command line, and what it means.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    certs::{Lifetimes, objects::Names},
    telemetry::LogFormat,
};

/// Marks pods that somebody has exec'd into before the exec is admitted, and evicts them after a time to live.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the webhook, keep its certificates, evict what is due.
    Serve(Box<Serve>),
    /// Read a configuration file and say what is wrong with it.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
    /// Say which rule decides about an admission review, and why.
    Explain {
        /// The configuration file.
        #[arg(long, default_value = "/etc/pristine/pristine.yaml")]
        config: PathBuf,
        /// The AdmissionReview, JSON.
        #[arg(long)]
        review: PathBuf,
        /// The pod, as `kubectl get pod NAME -o json` prints it.
        #[arg(long)]
        pod: Option<PathBuf>,
    },
    /// Print the patch of the webhook configuration that lets the API server itself exempt users and groups, also when
    /// every replica is dead: the rules at the top of the file that exempt by user or group alone.
    MatchConditions {
        /// The configuration file.
        file: PathBuf,
    },
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Print a page of docs/.
    #[command(hide = true)]
    Reference {
        /// Which one.
        page: Page,
    },
}

/// The pages of docs/ that are made by the program.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Page {
    /// docs/configuration.md
    Configuration,
    /// docs/metrics.md
    Metrics,
    /// docs/flags.md
    Flags,
}

/// Flags of `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The configuration file.
    #[arg(long, default_value = "/etc/pristine/pristine.yaml")]
    pub config: PathBuf,
    /// Where the API server calls the webhook. 10250 is one of two ports that private clusters let through.
    #[arg(long, default_value = "[::]:10250")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are answered, without TLS.
    #[arg(long, default_value = "[::]:8080")]
    pub probes: SocketAddr,
    /// The namespace of the Service, the Secret and the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "pristine-system")]
    pub namespace: String,
    /// The name of this replica.
    #[arg(long, env = "POD_NAME", default_value = "pristine")]
    pub pod_name: String,
    /// The Service that the webhook configuration names.
    #[arg(long, default_value = "pristine")]
    pub service: String,
    /// The Secret that keeps the CA.
    #[arg(long, default_value = "pristine-ca")]
    pub secret: String,
    /// The Lease of the replica that evicts.
    #[arg(long, default_value = "pristine")]
    pub lease: String,
    /// The ValidatingWebhookConfiguration whose caBundle is kept.
    #[arg(long, default_value = "pristine")]
    pub webhook_configuration: String,
    /// How long a CA lives. It is replaced at two thirds.
    #[arg(long, default_value = "8760h", value_parser = duration)]
    pub ca_lifetime: Duration,
    /// How long a serving certificate lives. It is renewed at two thirds.
    #[arg(long, default_value = "168h", value_parser = duration)]
    pub serving_lifetime: Duration,
    /// How long the next CA is trusted before it signs.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub hold: Duration,
    /// A directory with tls.crt, tls.key and optionally ca.crt, instead of a CA of our own. With ca.crt, caBundle
    /// is kept; without, somebody else injects it.
    #[arg(long)]
    pub tls_dir: Option<PathBuf>,
    /// How long API servers call one and the same path, which is a secret between them and us.
    #[arg(long, default_value = "15m", value_parser = duration)]
    pub secret_path_lifetime: Duration,
    /// How many reviews one connection of an API server carries before it is asked to make a new one.
    #[arg(long, default_value_t = 1000)]
    pub requests_per_connection: usize,
    /// How long requests are still answered after SIGTERM.
    #[arg(long, default_value = "25s", value_parser = duration)]
    pub drain: Duration,
    /// How log lines are written.
    #[arg(long, default_value = "json", value_enum)]
    pub log_format: LogFormat,
    /// Which log lines are written, for example `info` or `info,pristine=debug`.
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

    /// The names of the objects.
    #[must_use]
    pub fn names(&self) -> Names {
        Names {
            namespace: self.namespace.clone(),
            secret: self.secret.clone(),
            service: self.service.clone(),
            configuration: self.webhook_configuration.clone(),
        }
    }
}

/// As Go writes durations, within reason.
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
