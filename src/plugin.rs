//! `kubectl pristine`: the command line and its dispatch. Each command has a file of its own.
//!
//! The plugin has the permissions of its user, and writes only the keys that a policy in the API server protects. The
//! webhook trusts nothing here.

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{clock::Clock, config};
use connection::{Connection, Global};
use output::{Failure, emit, emit_stderr};

pub mod bypass;
pub mod certs;
pub mod completion;
pub mod connection;
pub mod describe;
pub mod doctor;
pub mod evict;
pub mod exec;
pub mod extend;
pub mod format;
pub mod get;
pub mod log;
pub mod output;
pub mod report;
pub mod row;
pub mod summary;
pub mod suspend;
pub mod targets;
pub mod version;

/// List the pods that users have exec'd into, manage their eviction, and check that Pristine works.
///
/// Exit codes are kubectl's: 0 if everything succeeded, 1 if anything failed.
#[derive(Debug, Parser)]
#[command(name = "kubectl pristine", bin_name = "kubectl pristine", version, max_term_width = 100)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
    /// kubectl's global flags.
    #[command(flatten)]
    pub global: Global,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List marked pods: who interacted with them, and when they are evicted.
    Get(get::Arguments),
    /// Show the interactions with a pod, what blocks its eviction, and which volumes outlive it.
    Describe(describe::Arguments),
    /// Run kubectl exec, and say until when the pod lives, before the session and after it.
    Exec(exec::Arguments),
    /// Extend the eviction deadline of pods.
    Extend(extend::Extend),
    /// Hold pods: do not evict them until they are released, or until the limit (eviction.maxExtension).
    Hold(extend::Hold),
    /// Cancel the extension or the hold of pods.
    Release(extend::Release),
    /// Evict marked pods now, respecting PodDisruptionBudgets.
    Evict(evict::Arguments),
    /// Report that you were in pods past the API server, for example on the node: the rules decide as about an exec.
    Report(report::Arguments),
    /// Summarize who execs where, what the rules do about it, and which rules to add.
    Summary(summary::Arguments),
    /// Show what happened to pods, also to those that are gone: interactions, decisions, extensions, evictions.
    Log(log::Arguments),
    /// Suspend all evictions in the cluster until a time.
    Suspend(suspend::Suspend),
    /// End the suspension of evictions.
    Resume(suspend::Resume),
    /// Show the CAs, the serving certificate of each replica, and whether caBundle trusts them.
    Certs,
    /// Check that the webhook is reachable and trusted, and list who can bypass it.
    Doctor,
    /// Print the configuration that is in force until you write your own.
    DefaultConfig,
    /// Print the versions of the plugin, Pristine and Kubernetes.
    Version,
    /// Print a completion script.
    Completion {
        /// The shell to complete in; `kubectl` prints the program that kubectl runs to complete `kubectl pristine`.
        shell: completion::Shell,
    },
}

/// kubectl's completion protocol: the words behind it were typed so far, and the last one is completed.
const COMPLETE: &str = "__complete";

/// Runs the program. `words` are the command line, beginning with the name that the program was called by.
#[must_use]
pub fn main(mut words: Vec<OsString>) -> ExitCode {
    // kubectl completes `kubectl NAME` with a program `kubectl_complete-NAME`, which may be a link to this one.
    let called = words.first().and_then(|path| Path::new(path).file_name());
    if called.is_some_and(|name| name.to_string_lossy().starts_with("kubectl_complete-")) {
        words.insert(1, COMPLETE.into());
    }
    // Not a command of clap, which would take the flags that were typed for its own.
    let typed = words.get(1).is_some_and(|word| word == COMPLETE).then(|| words.split_off(2));
    if let Some(typed) = typed {
        let typed: Vec<String> = typed.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        return exit(completion::complete(&typed, &Cli::command()));
    }
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // --help and --version are not errors. A usage error exits with 1, as in kubectl, and not with clap's 2.
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    exit(run(cli))
}

/// Runs a command to its end. A completion prints no error, which would appear in the middle of the line that the user is
/// typing: it has none to print.
fn exit(command: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => Err(Failure::new(format!("cannot start the async runtime: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            emit_stderr(&failure.show());
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::DefaultConfig => return emit(config::BUILT_IN),
        Command::Completion { shell } => return completion::script(shell),
        _ => {}
    }
    let (connection, clock) = (Connection::new(&cli.global).await?, Clock::system());
    match cli.command {
        Command::Get(arguments) => get::run(&connection, &clock, arguments).await,
        Command::Describe(arguments) => describe::run(&connection, &clock, &arguments).await,
        Command::Exec(arguments) => exec::run(&connection, &clock, &cli.global, &arguments).await,
        Command::Extend(arguments) => extend::extend(&connection, &clock, &arguments).await,
        Command::Hold(arguments) => extend::hold(&connection, &clock, &arguments).await,
        Command::Release(arguments) => extend::release(&connection, &clock, &arguments).await,
        Command::Evict(arguments) => evict::run(&connection, &clock, &arguments).await,
        Command::Report(arguments) => report::run(&connection, &clock, &arguments).await,
        Command::Summary(arguments) => summary::run(&connection, &arguments).await,
        Command::Log(arguments) => log::run(&connection, &clock, &arguments).await,
        Command::Suspend(arguments) => suspend::suspend(&connection, &clock, &arguments).await,
        Command::Resume(arguments) => suspend::resume(&connection, &arguments).await,
        Command::Certs => certs::run(&connection, &clock).await,
        Command::Doctor => doctor::run(&connection, &clock).await,
        Command::Version => version::run(&connection).await,
        Command::DefaultConfig | Command::Completion { .. } => Ok(()),
    }
}
