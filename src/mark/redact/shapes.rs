//! Secrets that are known by what they look like or by what stands before them, wherever they are in a text: tokens,
//! keys, URLs, headers, pairs of JSON. Pure.

use std::ops::Range;

use super::names;

/// What well-known tokens begin with, and how many characters follow at least.
const TOKENS: [(&str, usize); 27] = [
    ("ghp_", 16),
    ("gho_", 16),
    ("ghu_", 16),
    ("ghs_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 16),
    ("xoxa-", 10),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("xoxr-", 10),
    ("xoxs-", 10),
    ("xapp-", 10),
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 30),
    ("sk-", 20),
    ("sk_live_", 16),
    ("rk_live_", 16),
    ("hvs.", 20),
    ("hvb.", 20),
    ("hvr.", 20),
    ("s.", 24),
    ("npm_", 30),
    ("dckr_pat_", 16),
    // The header of a JSON Web Token, or any other JSON in Base64.
    ("eyJ", 16),
    ("ya29.", 20),
];

/// Characters of a name that are looked at, and characters between it and its separator.
const MAX_NAME: usize = 64;
const MAX_GAP: usize = 8;

/// The secrets in a text.
pub(super) fn find(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<_> = words(text).filter_map(|range| token(text, range)).collect();
    found.extend(private_keys(text));
    found.extend(text.match_indices("://").filter_map(|(at, _)| userinfo(text, at)));
    let separators = text.match_indices([':', '=']).filter(|(at, _)| !text[..*at].ends_with([':', '=']));
    found.extend(separators.filter_map(|(at, _)| named(text, at)));
    found
}

/// The runs of characters that tokens consist of.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let separates = |c: char| !c.is_ascii_alphanumeric() && !"_-.".contains(c);
    let mut at = 0;
    text.split_inclusive(separates).map(move |word| {
        let start = at;
        at += word.len();
        start..start + word.trim_end_matches(separates).len()
    })
}

/// What is behind the prefix of a well-known token: the prefix says which secret was used.
fn token(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let word = text[range.clone()].trim_start_matches(['-', '_', '.']);
    let rests = TOKENS.iter().filter_map(|(prefix, least)| Some((word.strip_prefix(prefix)?, least)));
    // Long words without a digit are names.
    let rest = rests.filter(|(rest, least)| rest.len() >= **least && rest.contains(|c: char| c.is_ascii_digit()));
    rest.map(|(rest, _)| range.end - rest.len()..range.end).next()
}

/// What is between the BEGIN and END of private keys in PEM.
fn private_keys(text: &str) -> Vec<Range<usize>> {
    const BEGIN: &str = "-----BEGIN ";
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(begin) = text[at..].find(BEGIN) {
        at += begin + BEGIN.len();
        let Some(label) = text[at..].split_once("-----").map(|(label, _)| label) else { break };
        if label.contains("PRIVATE KEY") {
            let start = at + label.len() + "-----".len();
            at = text[start..].find("-----END").map_or(text.len(), |end| start + end);
            found.push(start..at);
        }
    }
    found
}

/// The user and the password of the URL whose `://` is here. HTTP has no user without a secret: a name alone is a token.
fn userinfo(text: &str, at: usize) -> Option<Range<usize>> {
    let (scheme, rest) = (&text[..at], &text[at + "://".len()..]);
    let authority = rest.split(|c: char| c.is_whitespace() || "/?#\"'`<>".contains(c)).next()?;
    let (userinfo, _) = authority.rsplit_once('@')?;
    let is_http = [&b"http"[..], b"https"].iter().any(|http| {
        let start = scheme.len().checked_sub(http.len());
        start.is_some_and(|start| scheme.as_bytes()[start..].eq_ignore_ascii_case(http))
    });
    let start = at + "://".len();
    ((is_http && !userinfo.is_empty()) || userinfo.contains(':')).then(|| start..start + userinfo.len())
}

/// The value that belongs to a secret name, with the separator here: `"password": "X"`, `?token=X`, `password = X`,
/// `Authorization: Bearer X`.
fn named(text: &str, at: usize) -> Option<Range<usize>> {
    let before = &text[text.floor_char_boundary(at.saturating_sub(MAX_NAME + MAX_GAP))..at];
    let until_name = before.trim_end_matches([' ', '\t', '"', '\'', '\\', ']']);
    let name_start = until_name.rfind(|c: char| !c.is_alphanumeric() && !"_-.".contains(c));
    let is_path = name_start.is_some_and(|start| until_name[start..].starts_with('/'));
    let name = &until_name
        [name_start.map_or(0, |start| start + until_name[start..].chars().next().map_or(0, char::len_utf8))..];
    if is_path || !names::is_secret(name) {
        return None;
    }
    let behind = text[at..].trim_start_matches([':', '=', '>']);
    let value = behind.trim_start_matches([' ', '\t']);
    let (is_assignment, is_compact) = (text[at..].starts_with('='), value.len() == behind.len());
    // `TOKEN= command` is an empty value, and `secret:/path` a mount.
    let is_other = if is_assignment {
        !is_compact && !before.ends_with([' ', '\t', ':'])
    } else {
        is_compact && value.starts_with('/')
    };
    if is_other {
        return None;
    }
    let start = text.len() - value.len();
    let range = match quote(value) {
        Some(quote) => start + quote.len()..start + quote.len() + quoted(&value[quote.len()..], quote),
        None if (is_compact || is_assignment) && !has_scheme(value) => start..start + bare(value),
        // A header or a line of YAML.
        None => start..start + value.find(['\n', '"', '\'']).unwrap_or(value.len()),
    };
    let end = range.start + text[range.clone()].trim_end_matches('\\').len();
    (range.start < end).then_some(range.start..end)
}

/// The quote that the value begins with, with the backslashes before it.
fn quote(value: &str) -> Option<&str> {
    let backslashes = value.len() - value.trim_start_matches('\\').len();
    value[backslashes..].starts_with(['"', '\'']).then(|| &value[..=backslashes])
}

/// Bytes before the same quote again.
fn quoted(value: &str, quote: &str) -> usize {
    let mut ends = value.match_indices(quote).map(|(at, _)| at);
    ends.find(|at| !value[..*at].ends_with('\\')).unwrap_or(value.len())
}

/// Bytes before the end of a value without quotes.
fn bare(value: &str) -> usize {
    let mut is_escaped = false;
    let ends = |c: char| {
        let ends = !is_escaped && (c.is_whitespace() || "&;,|<>(){}#\"'`".contains(c));
        is_escaped = c == '\\' && !is_escaped;
        ends
    };
    value.find(ends).unwrap_or(value.len())
}

/// Whether the value is that of an Authorization header, which has a space in it.
fn has_scheme(value: &str) -> bool {
    let scheme = value.split(' ').next().unwrap_or_default();
    scheme.len() < value.len()
        && ["basic", "bearer", "digest", "token"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
}
