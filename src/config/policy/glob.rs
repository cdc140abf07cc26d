//! Patterns for namespaces: `*` matches any text, `?` one character, every other character itself. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

/// `*` matches any text, `?` one character.
#[derive(Clone, Debug, Eq, JsonSchema, PartialEq)]
pub struct Glob(#[schemars(with = "String", regex(pattern = r"^[a-z0-9.*?-]+$"))] Vec<char>);

impl Glob {
    /// Rejects a pattern that cannot match a Kubernetes name: otherwise a typo such as `Prod-*` would be a rule that
    /// never applies, without an error.
    ///
    /// # Errors
    /// A sentence that names the character.
    pub fn new(pattern: &str) -> Result<Self, String> {
        if pattern.is_empty() {
            return Err("namespace pattern: must not be empty; use `*` for every namespace".to_owned());
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '*' | '?');
        match pattern.chars().find(|&c| !allowed(c)) {
            Some(bad) => Err(format!(
                "namespace pattern {pattern:?}: {bad:?} is not allowed in a namespace name; use lower-case letters, \
                 digits, `-`, `.`, `*` and `?`"
            )),
            None => Ok(Self(pattern.chars().collect())),
        }
    }

    /// Whether this character is part of the pattern.
    pub(super) fn has(&self, c: char) -> bool {
        self.0.contains(&c)
    }

    /// The pattern.
    pub(super) fn text(&self) -> String {
        self.0.iter().collect()
    }

    /// Whether the name matches. Each `*` costs at most the length of the name, so no pattern is exponential.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (&self.0, name.chars().collect::<Vec<_>>());
        let (mut p, mut n) = (0, 0);
        let mut star = None;
        while n < name.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(&c) if c == '?' || c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    // The last `*` matches one more character, and the rest is matched again.
                    Some((at, taken)) => {
                        star = Some((at, taken + 1));
                        p = at + 1;
                        n = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == '*')
    }
}

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
