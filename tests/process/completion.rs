//! The completion scripts of the plugin, in the shells that they are for, as a user types.

use std::path::Path;

use tokio::process::Command;

use crate::plugin::{Plugin, marked};

const SHELLS: [(&str, &str); 3] = [
    ("bash", "source <(kubectl-pristine completion bash)"),
    ("zsh", "autoload -Uz compinit; compinit -u -D; source <(kubectl-pristine completion zsh)"),
    ("fish", "kubectl-pristine completion fish | source"),
];

/// What each shell makes of the line that is typed with a Tab behind it.
async fn completes(plugin: &Plugin, cases: &[(&str, &str)]) {
    let folder = Path::new(env!("CARGO_BIN_EXE_kubectl-pristine")).parent().unwrap();
    #[allow(clippy::disallowed_methods, reason = "the shells are on it")]
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let typed = cases.iter().map(|(typed, _)| typed);
    let expected = cases.iter().map(|(_, completed)| *completed).collect::<Vec<_>>().join("\n") + "\n";
    for (shell, setup) in SHELLS {
        let mut command = Command::new("python3");
        command.args(["tests/process/completion.py", shell, setup]).args(typed.clone());
        let output = command.env("PATH", &path).env("KUBECONFIG", &plugin.kubeconfig).output().await.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(out, expected, "{shell} {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_completes_commands_flags_and_their_values() {
    let plugin = Plugin::with([]).await;
    completes(
        &plugin,
        &[
            ("kubectl-pristine ext", "kubectl-pristine extend"),
            ("kubectl-pristine get --no-h", "kubectl-pristine get --no-headers"),
            ("kubectl-pristine get -o wi", "kubectl-pristine get -o wide"),
            ("kubectl-pristine evict web-0 --dry-run=cl", "kubectl-pristine evict web-0 --dry-run=client"),
            ("kubectl-pristine completion fi", "kubectl-pristine completion fish"),
            // No file of this folder, although some begin like that.
            ("kubectl-pristine get Cargo.l", "kubectl-pristine get Cargo.l"),
            ("kubectl-pristine __comp", "kubectl-pristine __comp"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_completes_the_names_of_marked_pods() {
    let plugin = Plugin::with([marked("web-0", true), marked("api-0", true), marked("api-1", false)]).await;
    completes(
        &plugin,
        &[
            ("kubectl-pristine extend we", "kubectl-pristine extend web-0"),
            ("kubectl-pristine describe -n n api-1", "kubectl-pristine describe -n n api-1"),
            (
                "kubectl-pristine release --all --dry-run server w",
                "kubectl-pristine release --all --dry-run server web-0",
            ),
            // As far as both begin alike; and one that is on the line is not offered again.
            ("kubectl-pristine get a", "kubectl-pristine get api-"),
            ("kubectl-pristine get api-0 a", "kubectl-pristine get api-0 api-1"),
            ("kubectl-pristine get -n other we", "kubectl-pristine get -n other we"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_namespace_before_the_command_is_that_of_the_offered_pods() {
    let plugin = Plugin::with([marked("web-0", true)]).await;
    for typed in ["-n other extend", "extend -n other", "--namespace=other extend --for=1m"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-pristine"));
        command.arg("__complete").args(typed.split(' ')).arg("we").env("KUBECONFIG", &plugin.kubeconfig);
        // That of the kubeconfig has the pod web-0.
        let offered = command.output().await.unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&offered), ":4\n", "{typed}");
    }
}
