//! Splits a shell script into simple commands and these into words, as positions in the script. Pure.
//!
//! It reads quotes, escapes and separators. It does not need to be a shell: text that is no script (SQL, JSON, prose
//! with an apostrophe) is split somehow, and masked in pieces.

use std::ops::Range;

/// One word of a script.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Word {
    /// Where the word is.
    pub range: Range<usize>,
    /// What is inside of quotes in it.
    pub quoted: Vec<Range<usize>>,
}

/// The simple commands of a script, each with its words. A separator between commands is never part of a word.
pub(super) fn commands(script: &str) -> Vec<Vec<Word>> {
    let bytes = script.as_bytes();
    let (mut commands, mut words) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b' ' | b'\t' | b'\r' | b'<' | b'>' => at += 1,
            b'\\' if bytes.get(at + 1) == Some(&b'\n') => at += 2,
            b'&' if is_redirection(bytes, at) => at += 1,
            byte if ends_word(byte) => {
                commands.push(std::mem::take(&mut words));
                at += 1;
            }
            _ => {
                let word = word(bytes, at);
                at = word.range.end;
                words.push(word);
            }
        }
    }
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

/// Whether the `&` belongs to `2>&1` or `&>file`.
fn is_redirection(bytes: &[u8], at: usize) -> bool {
    let before = at.checked_sub(1).map(|before| bytes[before]);
    matches!(before, Some(b'<' | b'>')) || bytes.get(at + 1) == Some(&b'>')
}

const fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b';' | b'|' | b'&' | b'(' | b')' | b'`' | b'<' | b'>')
}

fn word(bytes: &[u8], start: usize) -> Word {
    let mut quoted = Vec::new();
    let mut at = start;
    while at < bytes.len() && !ends_word(bytes[at]) {
        match bytes[at] {
            b'\\' => at += 2,
            quote @ (b'"' | b'\'') => {
                let end = closing(bytes, at + 1, quote);
                quoted.push(at + 1..end);
                at = end + 1;
            }
            _ => at += 1,
        }
    }
    // An escaped character may have more than one byte, and a quote may not be closed.
    Word { range: start..at.min(bytes.len()), quoted }
}

/// Where the quote is closed, or the end.
fn closing(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' && quote == b'"' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(script: &str) -> Vec<Vec<&str>> {
        let words = |words: Vec<Word>| words.into_iter().map(|word| &script[word.range]).collect();
        commands(script).into_iter().map(words).collect()
    }

    #[test]
    fn quotes_and_escapes_hold_a_word_together() {
        assert_eq!(split(r#"a 'b c' "d \" e"f g\ h"#), [["a", "'b c'", r#""d \" e"f"#, r"g\ h"]]);
        assert_eq!(split("it's open; a"), [["it's open; a"]]);
        assert_eq!(commands("a'b c'd\"e")[0][0].quoted, [2..5, 8..9]);
    }

    #[test]
    fn separators_end_a_command_and_redirections_do_not() {
        assert_eq!(split("a|b;c&&d\ne"), [["a"], ["b"], ["c"], ["d"], ["e"]]);
        assert_eq!(split("a 2>&1 <b &>c \\\n d"), [["a", "2", "1", "b", "c", "d"]]);
        assert_eq!(split("A=$(b c)"), [vec!["A=$"], vec!["b", "c"]]);
        assert!(split(" ; \n").is_empty());
    }

    proptest! {
        #[test]
        fn any_script_is_split_between_characters(script in "(\\PC|[\\\\'\" ;é\n]){0,40}") {
            for word in commands(&script).into_iter().flatten() {
                prop_assert!(script.get(word.range).is_some());
                prop_assert!(word.quoted.into_iter().all(|range| script.get(range).is_some()));
            }
        }
    }
}
