//! `kubectl pristine`: what a person asks about marked pods, and does about them. One file a command.
//!
//! It only uses what its user may do, and the keys that the API server guards; nothing here is trusted by the webhook.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::clock::Clock;
use connection::{Connection, Global};
use output::{Failure, complain};

pub mod bypass;
pub mod certs;
pub mod completion;
pub mod connection;
pub mod describe;
pub mod doctor;
pub mod evict;
pub mod extend;
pub mod format;
pub mod get;
pub mod output;
pub mod row;
pub mod version;

/// Pods that somebody has exec'd into: who, when they are evicted, and whether that can be relied on.
///
/// Exit codes are kubectl's: 0 if all went well, 1 if anything did not.
#[derive(Debug, Parser)]
#[command(name = "kubectl pristine", bin_name = "kubectl pristine", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// kubectl's own flags.
    #[command(flatten)]
    pub global: Global,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List pods that somebody interacted with.
    Get(get::Arguments),
    /// Show every interaction with a pod, what holds up its eviction, and what outlives it.
    Describe(describe::Arguments),
    /// Put the eviction of pods off.
    Extend(extend::Extend),
    /// Keep pods until they are released, for as long as the configuration allows.
    Hold(extend::Hold),
    /// Take back an extension or a hold.
    Release(extend::Release),
    /// Evict marked pods now, within their disruption budgets.
    Evict(evict::Arguments),
    /// Show CAs, the serving certificate of each replica, and whether the API server is told to trust them.
    Certs,
    /// Check whether the webhook is reachable and trusted, and find who can get around it.
    Doctor,
    /// Print the versions of the plugin, of Pristine and of Kubernetes.
    Version,
    /// Print a completion script.
    Completion {
        /// For which shell; `kubectl` is the program by which kubectl completes `kubectl pristine`.
        shell: completion::Shell,
    },
    /// The words typed so far, the last one to be completed.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// The whole program. `words` are the command line, with the name that the program was called by.
#[must_use]
pub fn main(mut words: Vec<OsString>) -> ExitCode {
    // kubectl completes `kubectl NAME` by a program `kubectl_complete-NAME`, which may be a link to this one.
    let called = words.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if called.rsplit('/').next().is_some_and(|name| name.starts_with("kubectl_complete-")) {
        words.insert(1, "__complete".into());
    }
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // --help and --version are no errors; a word that is not understood is 1, as with kubectl, and not 2.
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Failure::new(format!("cannot start: {error}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.show());
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Completion { shell } => return completion::script(shell),
        // Whatever goes wrong, a completion says nothing: it would be mixed into what is being typed.
        Command::Complete { words } => return completion::complete(&words).await,
        _ => {}
    }
    let (connection, clock) = (Connection::new(&cli.global).await?, Clock::system());
    match cli.command {
        Command::Get(arguments) => get::run(&connection, &clock, arguments).await,
        Command::Describe(arguments) => describe::run(&connection, &clock, &arguments).await,
        Command::Extend(arguments) => extend::extend(&connection, &clock, &arguments).await,
        Command::Hold(arguments) => extend::hold(&connection, &clock, &arguments).await,
        Command::Release(arguments) => extend::release(&connection, &clock, &arguments).await,
        Command::Evict(arguments) => evict::run(&connection, &arguments).await,
        Command::Certs => certs::run(&connection, &clock).await,
        Command::Doctor => doctor::run(&connection, &clock).await,
        Command::Version => version::run(&connection).await,
        Command::Completion { .. } | Command::Complete { .. } => Ok(()),
    }
}
