//! What is recorded of a command and of a user: bounded, and without secrets, because every `view` can read it.
//!
//! Pure. Four things make a part of a command a secret:
//!
//! - its name, in [`names`]: `--password=…`, `TOKEN=…`, `--token …`, `Authorization: …`, `"password": "…"`, `?token=…`;
//! - the option of a known program, in [`programs`]: `mysql -p…`, `redis-cli -a …`, `curl -u user:…`;
//! - what it looks like, in [`shapes`]: `ghp_…`, JSON Web Tokens, private keys;
//! - its place in a URL: `https://user:pass@…`.
//!
//! [`lexer`] splits the script of `sh -c`, and scripts in it, into the commands that [`command`](mod@command) reads. This
//! is no proof: a secret that a user types as a plain word is recorded, as it is in the API server's own audit log.

use std::ops::Range;

use crate::mark::{EXEC_REQUEST_UID, POD_NAME, User, shorten};

mod command;
mod lexer;
mod names;
mod programs;
mod shapes;

/// Stands for a secret.
pub const MASK: &str = "•••";
/// Words of a command that are kept. The script of `sh -c` is one word.
const MAX_WORDS: usize = 32;
/// Bytes of one word.
const MAX_WORD: usize = 256;
/// Bytes of all words together.
const MAX_BYTES: usize = 1024;

/// Bytes of one word that are searched for secrets. The mask is short, so more than [`MAX_WORD`] may be shown.
const MAX_READ: usize = 4 * MAX_WORD;
/// Bytes at the end of what is searched that are not shown if the word goes on: a secret that is cut looks harmless.
const UNSURE: usize = MAX_WORD;
/// Scripts in quotes in scripts.
const MAX_DEPTH: usize = 4;

/// Bytes of a user name. Names of cloud roles have about 100, and 1 kB was seen.
const MAX_NAME: usize = 2048;
/// Groups that are recorded, and bytes of each.
const MAX_GROUPS: (usize, usize) = (32, 128);
/// The keys of `extra` that are kept: the reason given with `--as-user-extra reason=…`, the id of the Security Profiles
/// Operator, and the pod, node and credential of a ServiceAccount.
const EXTRA: [&str; 5] = [
    EXEC_REQUEST_UID,
    "reason",
    "authentication.kubernetes.io/credential-id",
    "authentication.kubernetes.io/node-name",
    POD_NAME,
];

/// The user as recorded.
#[must_use]
pub fn user(user: &User) -> User {
    let extra = user.extra.iter().filter(|(key, _)| EXTRA.contains(&key.as_str())).map(|(key, values)| {
        let values = values.iter().take(2).map(|value| shorten(value, 256)).collect();
        (key.clone(), values)
    });
    User {
        name: shorten(&user.name, MAX_NAME),
        uid: shorten(&user.uid, 128),
        groups: user.groups.iter().take(MAX_GROUPS.0).map(|group| shorten(group, MAX_GROUPS.1)).collect(),
        extra: extra.collect(),
    }
}

/// The command with secrets masked, at most 1 KiB in 32 words.
#[must_use]
pub fn command(argv: &[String]) -> Vec<String> {
    let words: Vec<&str> = argv.iter().take(MAX_WORDS).map(|word| start_of(word, MAX_READ)).collect();
    let found = command::find(&words);
    let mut secrets: Vec<Vec<Range<usize>>> = words.iter().map(|word| shapes::find(word)).collect();
    for (n, word) in words.iter().enumerate() {
        if found.scripts.contains(&n) || word.contains(char::is_whitespace) {
            script(word, 0, MAX_DEPTH, &mut secrets[n]);
        }
    }
    found.secrets.into_iter().for_each(|(n, secret)| secrets[n].push(secret));
    let mut kept = Vec::new();
    let mut bytes = 0;
    for ((word, read), secrets) in argv.iter().zip(words).zip(secrets) {
        let shown = shorten(&masked(read, secrets, read.len() < word.len()), MAX_WORD);
        bytes += shown.len();
        if bytes > MAX_BYTES {
            break;
        }
        kept.push(shown);
    }
    if kept.len() < argv.len() {
        kept.push(format!("… {} more", argv.len() - kept.len()));
    }
    kept
}

fn start_of(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// Finds the secrets in a script, which begins at `base` of a word, and in the scripts in it.
fn script(text: &str, base: usize, depth: usize, secrets: &mut Vec<Range<usize>>) {
    for words in lexer::commands(text) {
        let ranges: Vec<Range<usize>> = words.iter().map(|word| without_quotes(text, word.range.clone())).collect();
        let texts: Vec<&str> = ranges.iter().map(|range| &text[range.clone()]).collect();
        let found = command::find(&texts);
        let at = |n: usize| base + ranges[n].start;
        secrets.extend(found.secrets.into_iter().map(|(n, secret)| at(n) + secret.start..at(n) + secret.end));
        if depth == 0 {
            continue;
        }
        for (n, word) in words.iter().enumerate() {
            if found.scripts.contains(&n) {
                script(texts[n], at(n), depth - 1, secrets);
                continue;
            }
            for inner in word.quoted.iter().map(|range| (range.start, &text[range.clone()])) {
                if inner.1.contains(char::is_whitespace) {
                    script(inner.1, base + inner.0, depth - 1, secrets);
                }
            }
        }
    }
}

/// The word without a quote at its start, and without the same quote at its end.
fn without_quotes(text: &str, range: Range<usize>) -> Range<usize> {
    let word = &text[range.clone()];
    let backslashes = word.len() - word.trim_start_matches('\\').len();
    let rest = &word[backslashes..];
    let Some(quote) = ['"', '\''].into_iter().find(|quote| rest.starts_with(*quote)) else { return range };
    let inner = &rest[1..];
    let inner =
        inner.strip_suffix(quote).map_or(inner, |inner| inner.strip_suffix(&word[..backslashes]).unwrap_or(inner));
    let start = range.start + backslashes + 1;
    start..start + inner.len()
}

/// The text with the secrets masked. `is_cut` says that the text goes on.
fn masked(text: &str, mut secrets: Vec<Range<usize>>, is_cut: bool) -> String {
    let shown = if is_cut { start_of(text, MAX_READ - UNSURE) } else { text };
    secrets.sort_unstable_by_key(|secret| (secret.start, secret.end));
    let mut out = String::new();
    let mut at = 0;
    for secret in secrets.into_iter().filter(|secret| !secret.is_empty()) {
        // A secret that is in another, or goes on where another ends, has no mask of its own.
        if secret.start >= shown.len() {
            break;
        }
        if secret.start > at || out.is_empty() {
            out.push_str(&shown[at..secret.start]);
            out.push_str(MASK);
        }
        at = at.max(secret.end).min(shown.len());
    }
    out.push_str(&shown[at..]);
    if is_cut {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests;
