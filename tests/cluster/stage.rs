//! `kubectl pristine` as a user runs it, and what they see of it.

use std::{os::unix::fs::symlink, process::Output};

use jiff::Timestamp;
use tokio::process::Command;

use crate::{
    common::{SYSTEM, eventually, setting},
    kubectl::{Namespace, annotation, apply, kubectl, run},
};

/// A namespace, and the plugin on a PATH.
pub struct Stage {
    pub ns: Namespace,
    programs: tempfile::TempDir,
}

impl Stage {
    pub async fn new(prefix: &str) -> Self {
        let programs = tempfile::tempdir().unwrap();
        // kubectl completes a plugin by a program of this other name.
        for name in ["kubectl-pristine", "kubectl_complete-pristine"] {
            symlink(env!("CARGO_BIN_EXE_kubectl-pristine"), programs.path().join(name)).unwrap();
        }
        Self { ns: Namespace::new(prefix).await, programs }
    }

    /// The same with `web-0` and so on, which are not marked.
    pub async fn with_pods(prefix: &str, replicas: usize) -> Self {
        let this = Self::new(prefix).await;
        // A StatefulSet, because its pods' names are the same in each run.
        this.ns.workload("StatefulSet", replicas).await;
        this
    }

    pub fn kubectl(&self, words: &[&str]) -> Command {
        let path = format!("{}:{}", self.programs.path().display(), setting("PATH").unwrap());
        let mut command = kubectl(words);
        command.env("PATH", path);
        command
    }

    /// `kubectl pristine` with these words, in this namespace.
    pub async fn pristine(&self, words: &str) -> Output {
        let words: Vec<&str> = words.split_whitespace().collect();
        let words = [&["pristine"][..], &words, &["-n", &self.ns.name]].concat();
        self.kubectl(&words).output().await.unwrap()
    }

    /// What its user sees of that, masked.
    pub async fn sees(&self, words: &str) -> String {
        let output = self.pristine(words).await;
        mask(&shown(&output).replace(&self.ns.name, "<NAMESPACE>"))
    }

    /// The same of a command that names the replicas.
    pub async fn sees_of_replicas(&self, words: &str) -> String {
        let text = shown(&self.pristine(words).await);
        let names = run(&["-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]).await;
        mask(&names.split_whitespace().fold(text, |text, name| text.replace(name, "<REPLICA>")))
    }

    /// Marks `web-0`.
    pub async fn exec_into(&self, user: &str, command: &[&str]) {
        // system:masters, because these users are in no binding.
        let by = format!("--as={user}");
        self.ns.run(&[&["exec", "web-0", &by, "--as-group=system:masters", "--"][..], command].concat()).await;
    }

    /// A budget that lets no pod go, once its controller has counted: until then the API server says 429 for another
    /// reason.
    pub async fn budget(&self) {
        let budget = "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: keep-all}\nspec: {maxUnavailable: 0, selector: {matchLabels: {app: web}}}\n";
        apply(&self.ns.name, budget).await;
        self.ns.run(&["wait", "--timeout=20s", "--for=jsonpath={.status.observedGeneration}=1", "pdb/keep-all"]).await;
    }

    /// Binds the user to this role here, and waits until that is in force.
    pub async fn bind(&self, user: &str, role: &str, verb: &str) {
        self.ns.run(&["create", "rolebinding", user, role, &format!("--user={user}")]).await;
        let by = format!("--as={user}");
        eventually("the binding in force", 10, || async {
            self.ns.attempt(&["auth", "can-i", verb, "pods", &by]).await.status.success().then_some(())
        })
        .await;
    }

    /// The users' keys of `web-0`, if any.
    pub async fn extension_annotations(&self) -> Vec<&'static str> {
        let pod = self.ns.pod("web-0").await;
        let keys = ["pristine/extend-to", "pristine/hold", "pristine/extended-by", "pristine/extend-reason"];
        keys.into_iter().filter(|key| annotation(&pod, key).is_some()).collect()
    }
}

/// Standard output; then standard error with `!` before each line; then the exit code, if it is not 0.
pub fn shown(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let complaints: String = err.lines().map(|line| format!("! {line}").trim_end().to_owned() + "\n").collect();
    let code = match output.status.code() {
        Some(0) => String::new(),
        code => format!("exit {}\n", code.map_or_else(|| "by a signal".to_owned(), |code| code.to_string())),
    };
    format!("{out}{complaints}{code}")
}

/// Puts a word for what differs from run to run, and three spaces between columns, whose width that changes.
pub fn mask(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-:.".contains(c);
    let (mut masked, mut rest) = (String::new(), text);
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()));
        let bare = word.trim_end_matches(['.', ':']);
        masked.push_str(kind(bare, after).unwrap_or(bare));
        masked.push_str(&word[bare.len()..]);
        let gap = after.find(is_word).unwrap_or(after.len());
        masked.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    masked.split_inclusive('\n').map(narrow).collect()
}

/// A line with three spaces between its columns.
fn narrow(line: &str) -> String {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let mut columns = line[indent..].to_owned();
    while columns.contains("    ") {
        columns = columns.replace("    ", "   ");
    }
    format!("{}{columns}", &line[..indent])
}

fn kind(word: &str, after: &str) -> Option<&'static str> {
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_amount = |part: &str| part.strip_suffix(['s', 'm', 'h', 'd', 'y']).is_some_and(is_number);
    let is_version = |text: &str| text.contains('.') && text.split('.').all(is_number);
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    let pairs: Vec<&str> = word.split(':').collect();
    if lengths == [8, 4, 4, 4, 12] && word.split('-').all(is_hex) {
        Some("<UID>")
    } else if word.parse::<Timestamp>().is_ok() {
        Some("<TIME>")
    } else if pairs.len() > 7 && pairs.iter().all(|pair| pair.len() == 2 && is_hex(pair)) {
        Some("<SERIAL>")
    } else if !word.is_empty() && word.split_inclusive(|c: char| c.is_ascii_alphabetic()).all(is_amount) {
        Some("<AGE>")
    } else if word.strip_prefix('v').is_some_and(is_version) {
        Some("<VERSION>")
    } else if is_number(word) && (after.starts_with(" ms") || after.starts_with(" rules")) {
        Some("<N>")
    } else {
        None
    }
}

/// The expected text may begin on the line after its quote.
#[track_caller]
pub fn assert_output(found: &str, expected: &str) {
    let expected = expected.strip_prefix('\n').unwrap_or(expected);
    assert!(found == expected, "expected:\n{expected}\nfound:\n{found}");
}
