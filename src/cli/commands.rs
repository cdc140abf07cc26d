//! The subcommands that only read files and print.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the output of a command")]

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::CommandFactory as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde::de::DeserializeOwned;

use crate::{
    certs::{rotation::STEPS, secret::PHASES},
    cli::{
        args::{Cli, Command, Page},
        docgen, simulate,
    },
    clock::Clock,
    config::{
        self,
        explain::explain,
        policy::{conditions, overlap},
        source::Source,
    },
    plugin,
    telemetry::Metrics,
};

/// Runs one of these subcommands.
///
/// # Errors
/// What failed, and why.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(_) => unreachable!("serve is not a command that only prints"),
        Command::DefaultConfig => print!("{}", config::BUILT_IN),
        Command::Schema => print!("{}", config::schema()),
        Command::Docs { page: Page::Configuration } => print!("{}", docgen::configuration(&config::schema())),
        Command::Docs { page: Page::Metrics } => {
            print!("{}", docgen::metrics(&Metrics::complete(&PHASES, &STEPS).render()));
        }
        Command::Docs { page: Page::Flags } => {
            print!("{}", docgen::flags(&mut Cli::command(), &mut plugin::Cli::command()));
        }
        Command::CheckConfig { file } => {
            let policy = config::load(&file)?.policy;
            for dead in overlap::dead(&policy.rules) {
                eprintln!("{}: warning: rule {:?} never decides: {}", file.display(), dead.rule, dead.why);
            }
            for rule in overlap::evicts_every_kind(&policy.rules) {
                eprintln!(
                    "{}: warning: rule {rule:?} also evicts bare pods, which nothing recreates, and pods of Jobs, which \
                     then count as failed; the default only records them. Name ownerKinds in the rule, or record \
                     ownerKinds [None, Job] in an earlier one",
                    file.display()
                );
            }
            println!("{}: ok, {} rules and a default", file.display(), policy.rules.len());
        }
        Command::Simulate(flags) => simulate::run(&flags)?,
        Command::MatchConditions { file } => println!("{}", conditions::patch(&config::load(&file)?.policy)),
        Command::Explain { config, review, pod, namespace } => {
            let policy = Source::new(config).load()?.policy;
            let text = read(&review)?;
            let pod = pod.map(|path| object::<Pod>("pod", &path)).transpose()?;
            let namespace = namespace.map(|path| object::<Namespace>("namespace", &path)).transpose()?;
            let labels = namespace.map(|namespace| namespace.metadata.labels.unwrap_or_default());
            let explained = explain(&policy, &text, pod.as_ref(), labels.as_ref(), Clock::system().now());
            print!("{}", explained.with_context(|| format!("cannot explain {}", review.display()))?);
        }
    }
    Ok(())
}

fn object<T: DeserializeOwned>(kind: &str, path: &Path) -> anyhow::Result<T> {
    serde_json::from_slice(&read(path)?).with_context(|| format!("{} is not a {kind} in JSON", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
