//! Whether a name says that its value is a secret: the name of an option, a variable, a header or a key. Pure.
//!
//! A name is compared part by part (`MYSQL_PWD`, `--api-key`, `db.password`, `authToken`), so that `tokenizer` and
//! `--author` are no secrets.

/// A part that ends with one of these is secret, as in `PGPASSWORD`. The plural too.
const ENDINGS: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "apikey",
    "privatekey",
    "credential",
    "cookie",
    "authorization",
];

/// What stands before `key` in the name of a secret. A key alone may be any key.
const KEYS: [&str; 9] = ["access", "account", "api", "auth", "encryption", "master", "private", "shared", "signing"];

/// The name of something else about the secret ends with one of these, as in `--password-file`.
const HARMLESS_ENDINGS: [&str; 17] = [
    "dir", "enabled", "file", "host", "jar", "length", "mode", "name", "path", "policy", "prompt", "ref", "stdin",
    "ttl", "type", "uri", "url",
];

/// Words that end with `pass` and are no secret.
const NO_PASS: [&str; 2] = ["bypass", "compass"];

/// Whether the value of this name is a secret.
pub(super) fn is_secret(name: &str) -> bool {
    let parts = parts(name);
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return false };
    if first == "no" || HARMLESS_ENDINGS.contains(&last.as_str()) {
        return false;
    }
    let is_last_word = match last.as_str() {
        "auth" => true,
        // `PWD` is the working directory.
        "pwd" => parts.len() > 1,
        last => last.ends_with("pass") && !NO_PASS.contains(&last),
    };
    is_last_word || parts.iter().any(|part| is_secret_part(part)) || has_secret_key(&parts)
}

fn is_secret_part(part: &str) -> bool {
    let singular = part.strip_suffix('s').unwrap_or(part);
    ENDINGS.iter().any(|ending| part.ends_with(ending) || singular.ends_with(ending))
}

fn has_secret_key(parts: &[String]) -> bool {
    // An id such as AWS_ACCESS_KEY_ID is the name of a key.
    let is_id = parts.last().is_some_and(|last| last == "id");
    !is_id && parts.windows(2).any(|pair| pair[1] == "key" && KEYS.contains(&pair[0].as_str()))
}

/// The parts of a name in lower case, without the digits at their ends.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut was_lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() || (was_lower && c.is_uppercase()) {
            parts.push(String::new());
        }
        if c.is_alphanumeric() {
            parts.last_mut().expect("there is a part").extend(c.to_lowercase());
        }
        was_lower = c.is_lowercase();
    }
    let parts = parts.iter().map(|part| part.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned());
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_secret_if_one_of_its_parts_is() {
        for name in [
            "password",
            "PGPASSWORD",
            "MYSQL_PWD",
            "REDISCLI_AUTH",
            "api-key",
            "apikey",
            "apiKey",
            "api_key",
            "auth",
            "auth-token",
            "private-key",
            "PRIVATE-TOKEN",
            "X-Api-Key",
            "db.password",
            "DB_PASSWORD1",
            "clientSecret",
            "AWS_SECRET_ACCESS_KEY",
            "credentials",
            "storepass",
            "PASS",
            "Cookie",
            "secret_id",
            "SECRET_KEY_BASE",
        ] {
            assert!(is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_name_that_only_resembles_a_secret_is_not() {
        for name in [
            "",
            "PWD",
            "OLDPWD",
            "key",
            "tokenizer",
            "author",
            "AWS_ACCESS_KEY_ID",
            "token-file",
            "password-stdin",
            "no-password",
            "secretName",
            "bypass",
            "auth-type",
            "cookie-jar",
            "pass-through",
            "--",
            "é",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
