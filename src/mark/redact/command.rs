//! Where the secrets are in one simple command: a program and its words. Pure.

use std::ops::Range;

use super::{
    names,
    programs::{FLAGS, Part, Place, RULES, Rule, STARTERS},
};

/// What was found in a simple command.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The secrets, as the number of a word and a position in it.
    pub secrets: Vec<(usize, Range<usize>)>,
    /// The words that are a shell script, as in `sh -c`.
    pub scripts: Vec<usize>,
}

/// What the word before says about a word.
enum Expected {
    Nothing,
    Secret(Part),
    Script,
}

/// Finds the secrets in the words of a simple command.
pub(super) fn find(words: &[&str]) -> Found {
    let mut found = Found::default();
    let mut program = Program::default();
    let mut expected = Expected::Nothing;
    for (n, word) in words.iter().enumerate() {
        match std::mem::replace(&mut expected, Expected::Nothing) {
            Expected::Script => {
                found.scripts.push(n);
                continue;
            }
            // `--token -v` has no value.
            Expected::Secret(part) if !word.starts_with('-') => {
                found.secrets.extend(secret_part(word, 0, part).map(|range| (n, range)));
                continue;
            }
            Expected::Secret(_) | Expected::Nothing => {}
        }
        program.observe(word);
        if let Some(start) = named_value(word) {
            found.secrets.push((n, start..word.len()));
            continue;
        }
        for rule in program.rules(&words[..n]) {
            match rule.place {
                Place::Words | Place::Last => {}
                Place::Attached | Place::Next | Place::Either => match value(rule, program.flags(), word) {
                    Some(start) if start < word.len() => {
                        found.secrets.extend(secret_part(word, start, rule.part).map(|range| (n, range)));
                    }
                    Some(_) if rule.place != Place::Attached => expected = Expected::Secret(rule.part),
                    _ => {}
                },
            }
        }
        if matches!(expected, Expected::Nothing) {
            expected = after_option(word);
        }
    }
    whole(words, &program, &mut found);
    found
}

/// The rules about later words, whichever they are.
fn whole(words: &[&str], program: &Program<'_>, found: &mut Found) {
    let stands = |rule: &Rule, word: &&str| {
        word.eq_ignore_ascii_case(rule.option)
            || (rule.option.starts_with('-') && value(rule, program.flags(), word).is_some())
    };
    let last = words.len().saturating_sub(1);
    for rule in program.rules(words).filter(|rule| matches!(rule.place, Place::Words | Place::Last)) {
        let Some(at) = words.iter().position(|word| stands(rule, word)).filter(|at| *at < last) else { continue };
        let from = if rule.place == Place::Last { last } else { at + 1 };
        for (n, word) in words.iter().enumerate().skip(from).filter(|(_, word)| !word.starts_with('-')) {
            found.secrets.extend(secret_part(word, 0, rule.part).map(|range| (n, range)));
        }
    }
}

/// What an option says about the word behind it.
fn after_option(word: &str) -> Expected {
    let Some(name) = word.strip_prefix('-') else { return Expected::Nothing };
    if !word.contains('=') && names::is_secret(name) {
        return Expected::Secret(Part::All);
    }
    // `sh -c`, `bash -lc`, `su -c`, also `psql -c`: the word has commands and is no `name=value`.
    let is_script = name.len() <= 5 && name.contains('c') && name.bytes().all(|byte| byte.is_ascii_lowercase());
    if is_script { Expected::Script } else { Expected::Nothing }
}

/// Where the value of a name in front begins, if the name says that it is secret: `TOKEN=X`, `--password=X`,
/// `--from-literal=password=X`, `-HX-Api-Key: X`.
fn named_value(word: &str) -> Option<usize> {
    let mut start = 0;
    while let Some((name, value)) = word[start..].split_once(['=', ':']) {
        let is_name = |c: char| c.is_alphanumeric() || "_-.+[]\"'\\".contains(c);
        if !name.chars().all(is_name) {
            return None;
        }
        let end = start + name.len() + 1;
        // `secret:/path` is a mount.
        let is_mount = word[..end].ends_with(':') && value.starts_with('/');
        if names::is_secret(name) && !value.is_empty() && !is_mount {
            return Some(word.len() - value.trim_start_matches(' ').len());
        }
        start = end;
    }
    None
}

/// Where the value of the rule's option begins in the word: at its end if the value is the next word.
fn value(rule: &Rule, flags: &str, word: &str) -> Option<usize> {
    if word.eq_ignore_ascii_case(rule.option) && (word == rule.option || !word.starts_with('-')) {
        return Some(word.len());
    }
    if rule.option.starts_with("--") {
        return word.strip_prefix(rule.option)?.starts_with('=').then_some(rule.option.len() + 1);
    }
    let (letter, letters) = (rule.option.strip_prefix('-')?, word.strip_prefix('-')?);
    let rest = letters.trim_start_matches(|c| flags.contains(c) && !letter.contains(c)).strip_prefix(letter)?;
    let is_allowed = rest.is_empty() || rule.place != Place::Next;
    is_allowed.then_some(word.len() - rest.len())
}

/// Where the secret is in the value that begins at `start`.
fn secret_part(word: &str, start: usize, part: Part) -> Option<Range<usize>> {
    let value = &word[start..];
    let after = |separator| value.find(separator).map(|at| start + at + 1);
    // What closes the quote of `-u"bob:X"` is kept.
    let end = word.trim_end_matches(['"', '\'', '\\']).len().max(start);
    match part {
        Part::All => Some(start..word.len()),
        Part::AfterEquals => after('=').map(|from| from..word.len()),
        // `token:` without a password is how some services take a token.
        Part::AfterColon => after(':').map(|from| if from < end { from..end } else { start..from - 1 }),
    }
    .filter(|range| !range.is_empty())
}

/// The program of a simple command, as far as it is known.
#[derive(Default)]
struct Program<'a> {
    name: &'a str,
    is_known: bool,
    is_behind_starter: bool,
}

impl<'a> Program<'a> {
    fn observe(&mut self, word: &'a str) {
        if word == "--" {
            // As in `kubectl exec POD -- mysql`.
            (self.is_known, self.is_behind_starter) = (false, false);
        }
        if self.is_known || word.starts_with('-') || word.contains('=') {
            return;
        }
        let name = word.rsplit('/').next().unwrap_or(word);
        if RULES.iter().any(|rule| rule.programs.contains(&name)) {
            // The program that sshpass starts has options of its own.
            (self.name, self.is_known) = (name, name != "sshpass");
        } else if STARTERS.contains(&name) {
            self.is_behind_starter = true;
        } else if !self.is_behind_starter {
            // Behind `sudo -u postgres` or `timeout 5`, the program may still follow.
            (self.name, self.is_known) = (name, true);
        }
    }

    /// The rules of the program that apply after these words.
    fn rules(&self, before: &[&str]) -> impl Iterator<Item = &'static Rule> {
        let (name, before) = (self.name, before.to_vec());
        RULES.iter().filter(move |rule| {
            rule.programs.contains(&name) && (rule.after.is_empty() || before.contains(&rule.after))
        })
    }

    fn flags(&self) -> &'static str {
        FLAGS.iter().find(|(name, _)| *name == self.name).map_or("", |(_, flags)| flags)
    }
}
