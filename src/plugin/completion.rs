//! Completion: a shell's own scripts, and kubectl's protocol, by which `kubectl pristine get <TAB>` offers live names.
//!
//! kubectl (1.26 and later) runs `kubectl_complete-pristine` with the words typed so far, and reads candidates, one a line,
//! with an optional description after a tab; the last line is `:` and a number, the directive of cobra's `__complete`.

use std::time::Duration;

use clap::{ArgAction, CommandFactory as _, FromArgMatches as _, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::ListParams};

use super::{
    Cli,
    connection::{Connection, Global},
    output::{Failure, emit},
};
use crate::mark::INTERACTED;

/// Nobody waits for longer after pressing a key.
const LIMIT: Duration = Duration::from_secs(3);
/// `ShellCompDirectiveNoFileComp` of cobra: what is not listed is not offered, and file names least of all.
const NO_FILES: &str = ":4\n";

/// Who is to complete.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// For `kubectl-pristine` called by that name.
    Bash,
    /// For `kubectl-pristine` called by that name.
    Fish,
    /// For `kubectl-pristine` called by that name.
    Zsh,
    /// For `kubectl pristine`, in any shell in which kubectl is completed.
    Kubectl,
}

/// Prints a script.
///
/// # Errors
/// When it cannot be written.
pub fn script(shell: Shell) -> Result<(), Failure> {
    let shell = match shell {
        Shell::Kubectl => {
            return emit(
                "#!/bin/sh\n# Put this on the PATH as kubectl_complete-pristine, and make it executable.\nexec kubectl-pristine __complete \"$@\"\n",
            );
        }
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Zsh => clap_complete::Shell::Zsh,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-pristine", &mut text);
    emit(&String::from_utf8_lossy(&text))
}

/// What the last word may become.
#[derive(Debug, Eq, PartialEq)]
enum Wanted {
    /// These, as they are.
    Words(Vec<String>),
    /// A marked pod.
    Pods,
    /// A namespace.
    Namespaces,
}

/// Prints the candidates. Whatever goes wrong, there are none.
///
/// # Errors
/// When they cannot be written.
pub async fn complete(words: &[String]) -> Result<(), Failure> {
    let (typed, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let candidates = match wanted(before, typed) {
        Wanted::Words(words) => words,
        live => tokio::time::timeout(LIMIT, names(before, &live)).await.ok().flatten().unwrap_or_default(),
    };
    // A flag is typed together with its value: --namespace=kube<TAB>
    let prefix = typed.split_once('=').filter(|_| typed.starts_with('-')).map(|(flag, _)| format!("{flag}="));
    let prefix = prefix.unwrap_or_default();
    let offered = candidates.into_iter().map(|word| format!("{prefix}{word}"));
    let text: String = offered.filter(|word| word.starts_with(typed)).map(|word| word + "\n").collect();
    emit(&(text + NO_FILES))
}

/// By the words alone.
fn wanted(before: &[String], typed: &str) -> Wanted {
    let all = Cli::command();
    let position = before.iter().position(|word| all.find_subcommand(word).is_some());
    let command = position.and_then(|at| all.find_subcommand(&before[at]));
    let flags = || all.get_arguments().chain(command.into_iter().flat_map(clap::Command::get_arguments));
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
        let commands = all.get_subcommands().filter(|command| !command.is_hide_set());
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

/// What is in the cluster that the words typed so far point to.
async fn names(before: &[String], wanted: &Wanted) -> Option<Vec<String>> {
    let connection = Connection::new(&global(before)).await.ok()?;
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
    // Those that are on the line already are not offered again.
    Some(pods.filter(|name| !before.contains(name)).collect())
}

/// The global flags on a line that is not complete, and may not make sense yet.
fn global(before: &[String]) -> Global {
    let words = std::iter::once("kubectl-pristine").chain(before.iter().map(String::as_str));
    let found = Cli::command().ignore_errors(true).try_get_matches_from(words).ok();
    found.and_then(|matches| Global::from_arg_matches(&matches).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(before: &[&str], typed: &str) -> Wanted {
        wanted(&before.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), typed)
    }

    fn words(wanted: Wanted) -> Vec<String> {
        let Wanted::Words(words) = wanted else { panic!("{wanted:?}") };
        words.iter().map(|word| word.split('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_word_is_completed_by_what_it_can_be() {
        assert!(words(ask(&[], "")).contains(&"describe".to_owned()));
        assert!(!words(ask(&[], "")).contains(&"__complete".to_owned()));
        assert_eq!(ask(&["get"], ""), Wanted::Pods);
        assert_eq!(ask(&["-n", "x", "extend"], "we"), Wanted::Pods);
        assert_eq!(ask(&["get", "-n"], "ku"), Wanted::Namespaces);
        assert_eq!(ask(&["get"], "--namespace=ku"), Wanted::Namespaces);
        assert_eq!(words(ask(&["get", "-o"], "")), ["table", "wide", "json", "yaml", "name"]);
        assert_eq!(words(ask(&["completion"], "")), ["bash", "fish", "zsh", "kubectl"]);
        assert!(words(ask(&["get"], "-")).contains(&"--all-namespaces".to_owned()));
        assert!(words(ask(&["evict"], "--d")).contains(&"--dry-run".to_owned()));
        assert_eq!(words(ask(&["certs"], "")), [""; 0]);
    }

    #[test]
    fn global_flags_are_found_on_an_unfinished_line() {
        let line = ["get", "-n", "prod", "--context=c", "web", "--as", "alice"].map(str::to_owned);
        let global = global(&line);
        assert_eq!(global.namespace.as_deref(), Some("prod"));
        assert_eq!((global.context.as_deref(), global.impersonate.as_deref()), (Some("c"), Some("alice")));
        let of_others = super::global(&["extend", "--for", "30m", "-n", "prod"].map(str::to_owned));
        assert_eq!(of_others.namespace.as_deref(), Some("prod"));
    }
}
