//! Completion: scripts for shells, and kubectl's protocol, with which `kubectl pristine get <TAB>` offers live names.
//!
//! kubectl (1.26 and later) runs `kubectl_complete-pristine` with the words typed so far, and reads one candidate per
//! line, with an optional description after a tab. The last line is `:` and a number, the directive of cobra's
//! `__complete`.

use std::time::Duration;

use clap::{ArgAction, FromArgMatches as _, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::ListParams};

use super::{
    connection::{Connection, Global},
    output::{Failure, emit},
};
use crate::mark::INTERACTED;

/// A user who pressed Tab does not wait longer than this.
const TIMEOUT: Duration = Duration::from_secs(3);
/// `ShellCompDirectiveNoFileComp` of cobra: the shell offers only what is listed, and no file names.
const NO_FILES: &str = ":4\n";

/// What to print a script for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// Completes `kubectl-pristine`, called by that name.
    Bash,
    /// Completes `kubectl-pristine`, called by that name.
    Fish,
    /// Completes `kubectl-pristine`, called by that name.
    Zsh,
    /// Completes `kubectl pristine`, in every shell with kubectl's own completion.
    Kubectl,
}

/// Prints a script that completes with [`complete`]. clap's own generator does not know the names of pods, and for a name
/// with a space, `kubectl pristine`, its script for bash offers nothing after a command.
///
/// # Errors
/// If standard output cannot be written.
pub fn script(shell: Shell) -> Result<(), Failure> {
    emit(match shell {
        Shell::Bash => include_str!("completion/kubectl-pristine.bash"),
        Shell::Fish => include_str!("completion/kubectl-pristine.fish"),
        Shell::Zsh => include_str!("completion/kubectl-pristine.zsh"),
        Shell::Kubectl if cfg!(windows) => {
            "@rem Install this on the PATH as kubectl_complete-pristine.cmd.\r\n@kubectl-pristine __complete %*\r\n"
        }
        Shell::Kubectl => {
            "#!/bin/sh\n# Install this on the PATH as kubectl_complete-pristine, and make it executable.\n\
             exec kubectl-pristine __complete \"$@\"\n"
        }
    })
}

/// What the last word can be completed to.
#[derive(Debug, Eq, PartialEq)]
enum Wanted {
    /// One of these words.
    Words(Vec<String>),
    /// A marked pod.
    Pods,
    /// A namespace.
    Namespaces,
}

/// Prints the candidates for the last word, and none if a request fails.
///
/// # Errors
/// If standard output cannot be written.
pub async fn complete(words: &[String], cli: &clap::Command) -> Result<(), Failure> {
    let (typed, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let candidates = match wanted(cli, before, typed) {
        Wanted::Words(words) => words,
        live => tokio::time::timeout(TIMEOUT, names(cli, before, &live)).await.ok().flatten().unwrap_or_default(),
    };
    // A flag can be typed together with its value: --namespace=kube<TAB>
    let prefix = typed.split_once('=').filter(|_| typed.starts_with('-')).map(|(flag, _)| format!("{flag}="));
    let prefix = prefix.unwrap_or_default();
    let offered = candidates.into_iter().map(|word| format!("{prefix}{word}"));
    let text: String = offered.filter(|word| word.starts_with(typed)).map(|word| word + "\n").collect();
    emit(&(text + NO_FILES))
}

/// Decides from the command line alone what the last word can be.
fn wanted(cli: &clap::Command, before: &[String], typed: &str) -> Wanted {
    let position = before.iter().position(|word| cli.find_subcommand(word).is_some());
    let command = position.and_then(|at| cli.find_subcommand(&before[at]));
    let flags = || cli.get_arguments().chain(command.into_iter().flat_map(clap::Command::get_arguments));
    let flag = |word: &str| {
        flags().find(|flag| {
            let long = flag.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
            long || flag.get_short().is_some_and(|short| word == format!("-{short}"))
        })
    };
    let value_of = |flag: &clap::Arg| match flag.get_id().as_str() {
        "namespace" | "pristine_namespace" => Wanted::Namespaces,
        _ => Wanted::Words(flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()),
    };
    let takes_value = |flag: &&clap::Arg| matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
    if let Some(flag) = typed.split_once('=').and_then(|(word, _)| flag(word)) {
        return value_of(flag);
    }
    if let Some(flag) = before.last().and_then(|word| flag(word)).filter(takes_value) {
        return value_of(flag);
    }
    if typed.starts_with('-') {
        let flags = flags().filter(|flag| !flag.is_hide_set());
        return Wanted::Words(
            flags.filter_map(|flag| Some(described(&format!("--{}", flag.get_long()?), flag.get_help()))).collect(),
        );
    }
    let Some(command) = command else {
        let commands = cli.get_subcommands().filter(|command| !command.is_hide_set());
        return Wanted::Words(commands.map(|command| described(command.get_name(), command.get_about())).collect());
    };
    match command.get_positionals().next() {
        Some(argument) if argument.get_id() == "pods" => Wanted::Pods,
        Some(argument) => value_of(argument),
        None => Wanted::Words(Vec::new()),
    }
}

fn described(word: &str, help: Option<&clap::builder::StyledStr>) -> String {
    let help = help.map(ToString::to_string).unwrap_or_default();
    format!("{word}\t{}", help.lines().next().unwrap_or_default())
}

/// The names in the cluster that the words typed so far refer to.
async fn names(cli: &clap::Command, before: &[String], wanted: &Wanted) -> Option<Vec<String>> {
    let connection = Connection::new(&global(cli, before)).await.ok()?;
    let name = |metadata: kube::api::ObjectMeta| metadata.name;
    if *wanted == Wanted::Namespaces {
        let api: Api<Namespace> = Api::all(connection.client.clone());
        return Some(
            api.list_metadata(&ListParams::default())
                .await
                .ok()?
                .into_iter()
                .filter_map(|it| name(it.metadata))
                .collect(),
        );
    }
    let marked = ListParams::default().labels(&format!("{INTERACTED}=true"));
    let pods = connection.pods().list_metadata(&marked).await.ok()?;
    let pods = pods.into_iter().filter_map(|pod| name(pod.metadata));
    // Pods that are already on the line are not offered again.
    Some(pods.filter(|name| !before.contains(name)).collect())
}

/// The global flags on a line that is unfinished and possibly not valid yet.
fn global(cli: &clap::Command, before: &[String]) -> Global {
    let words = std::iter::once("kubectl-pristine").chain(before.iter().map(String::as_str));
    let found = cli.clone().ignore_errors(true).try_get_matches_from(words).ok();
    found.and_then(|matches| Global::from_arg_matches(&matches).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::plugin::Cli;

    fn candidates(before: &[&str], typed: &str) -> Wanted {
        wanted(&Cli::command(), &before.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), typed)
    }

    fn words(wanted: Wanted) -> Vec<String> {
        let Wanted::Words(words) = wanted else { panic!("{wanted:?}") };
        words.iter().map(|word| word.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_argument_is_completed_with_its_own_kind_of_value() {
        assert!(words(candidates(&[], "")).contains(&"describe".to_owned()));
        assert!(!words(candidates(&[], "")).contains(&"__complete".to_owned()));
        assert_eq!(candidates(&["get"], ""), Wanted::Pods);
        assert_eq!(candidates(&["-n", "x", "extend"], "we"), Wanted::Pods);
        assert_eq!(candidates(&["get", "-n"], "ku"), Wanted::Namespaces);
        assert_eq!(candidates(&["get"], "--namespace=ku"), Wanted::Namespaces);
        assert_eq!(words(candidates(&["get", "-o"], "")), ["table", "wide", "json", "yaml", "name"]);
        assert_eq!(words(candidates(&["completion"], "")), ["bash", "fish", "zsh", "kubectl"]);
        assert!(words(candidates(&["get"], "-")).contains(&"--all-namespaces".to_owned()));
        assert!(words(candidates(&["evict"], "--d")).contains(&"--dry-run".to_owned()));
        assert_eq!(words(candidates(&["certs"], "")), [""; 0]);
    }

    #[test]
    fn global_flags_are_found_on_an_unfinished_line() {
        let line = ["get", "-n", "prod", "--context=c", "web", "--as", "alice"].map(str::to_owned);
        let found = global(&Cli::command(), &line);
        assert_eq!(found.namespace.as_deref(), Some("prod"));
        assert_eq!((found.context.as_deref(), found.impersonate.as_deref()), (Some("c"), Some("alice")));
        let found = global(&Cli::command(), &["extend", "--for", "30m", "-n", "prod"].map(str::to_owned));
        assert_eq!(found.namespace.as_deref(), Some("prod"));
    }
}
