//! What is recorded of a command and of a user: bounded, and without secrets, because every `view` can read it.
//!
//! Pure. Masking covers the common shapes (`--password=…`, `TOKEN=…`, `--token …`, `https://user:pass@…`) and is not a
//! proof: a secret that a user types as a plain word is recorded, as it is in the API server's own audit log.

use crate::mark::{EXEC_REQUEST_UID, User, shorten};

const MASK: &str = "•••";
/// Words of a command that are kept. The script of `sh -c` is one word.
const MAX_WORDS: usize = 32;
/// Bytes of one word.
const MAX_WORD: usize = 256;
/// Bytes of all words together.
const MAX_BYTES: usize = 1024;

const SECRET: [&str; 9] =
    ["password", "passwd", "secret", "token", "apikey", "api-key", "api_key", "credential", "private"];

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
    "authentication.kubernetes.io/pod-name",
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

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|secret| name.contains(secret))
}

/// The command with secrets masked, at most 1 KiB in 32 words.
#[must_use]
pub fn command(argv: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut bytes = 0;
    let mut value_is_secret = false;
    for word in argv {
        let shown = if value_is_secret && !word.starts_with('-') { MASK.to_owned() } else { self::word(word) };
        value_is_secret = word.starts_with('-') && !word.contains('=') && names_a_secret(word);
        let shown = shorten(&shown, MAX_WORD);
        bytes += shown.len();
        if kept.len() == MAX_WORDS || bytes > MAX_BYTES {
            kept.push(format!("… {} more", argv.len() - kept.len()));
            break;
        }
        kept.push(shown);
    }
    kept
}

/// Masks inside one word, which may be a whole shell script.
fn word(word: &str) -> String {
    // Masking is linear, but there is no need to mask a megabyte of which 256 bytes are kept.
    let word = shorten(word, 4 * MAX_WORD);
    let mut previous_is_secret = false;
    let mut out = String::with_capacity(word.len());
    for part in word.split_inclusive(char::is_whitespace) {
        let text = part.trim_end();
        let masked = match text.split_once('=') {
            _ if previous_is_secret && !text.is_empty() && !text.starts_with('-') => MASK.to_owned(),
            Some((name, value)) if names_a_secret(name) && !value.is_empty() => format!("{name}={MASK}"),
            _ => without_userinfo(text),
        };
        previous_is_secret = text.starts_with('-') && !text.contains('=') && names_a_secret(text);
        out.push_str(&masked);
        out.push_str(&part[text.len()..]);
    }
    out
}

fn without_userinfo(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((userinfo, _)) if userinfo.contains(':') => format!("{scheme}://{MASK}{}", &rest[userinfo.len()..]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redacted(argv: &[&str]) -> String {
        command(&argv.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).join(" ")
    }

    #[test]
    fn secrets_are_masked_and_the_rest_is_kept() {
        for (argv, expected) in [
            (&["ls", "-l", "/tmp"][..], "ls -l /tmp"),
            (&["mysql", "--password=hunter2", "-e", "select 1"], "mysql --password=••• -e select 1"),
            (&["vault", "login", "--token", "s.abc"], "vault login --token •••"),
            (&["env", "API_TOKEN=abc", "PORT=80"], "env API_TOKEN=••• PORT=80"),
            (
                &["sh", "-c", "export DB_PASSWORD=x; run --secret y -v"],
                "sh -c export DB_PASSWORD=••• run --secret ••• -v",
            ),
            (&["curl", "https://bob:pw@example.com/a?b"], "curl https://•••@example.com/a?b"),
            (&["curl", "https://example.com/@x:y"], "curl https://example.com/@x:y"),
            (&["tool", "--token", "-v"], "tool --token -v"),
        ] {
            assert_eq!(redacted(argv), expected);
        }
    }

    proptest! {
        #[test]
        fn any_command_is_bounded(argv in proptest::collection::vec(any::<String>(), 0..100)) {
            let kept = command(&argv);
            prop_assert!(kept.len() <= MAX_WORDS + 1);
            prop_assert!(kept.iter().map(String::len).sum::<usize>() <= MAX_BYTES + 32);
        }
    }

    #[test]
    fn a_user_is_bounded_and_keeps_the_chosen_extra() {
        let extra = [("reason", "INC-42"), ("scopes", "x"), (EXEC_REQUEST_UID, "da83c434")];
        let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        let many = User {
            name: "é".repeat(9_999),
            uid: "u".into(),
            groups: vec!["g".repeat(999); 10_000],
            extra: extra.into(),
        };
        let kept = user(&many);
        assert_eq!(
            (kept.groups.len(), kept.extra.keys().map(String::as_str).collect::<Vec<_>>()),
            (32, vec!["reason", EXEC_REQUEST_UID])
        );
        assert!(serde_json::to_string(&kept).unwrap().len() < 8 * 1024);
        let arn = User { name: format!("arn:aws:sts::1:assumed-role/{}", "r".repeat(1000)), ..User::default() };
        assert_eq!(user(&arn), arn);
    }

    #[test]
    fn a_megabyte_of_command_is_bounded() {
        let kept = command(&["x".repeat(1 << 20), "y=".repeat(1 << 19)]);
        assert!(kept.iter().map(String::len).sum::<usize>() <= 2 * MAX_WORD);
    }
}
