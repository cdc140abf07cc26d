//! The output of `pristine simulate`: tables and rules for people, or one JSON object. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde_json::{Map, Value, json};

use super::{
    suggest,
    summary::{Effect, Key, Outcome, Row, Summary},
};
use crate::plugin::format;

/// Rows of a table. `-o json` has all of them.
const MAX_ROWS: usize = 50;
/// Characters of a command in a table.
const MAX_COMMAND: usize = 60;

/// Where the interactions come from, and which rules are applied to them.
#[derive(Debug)]
pub struct Source<'a> {
    /// The configuration, in errors and in the first line.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// What a reader has to know about the source.
    pub notes: Vec<String>,
    /// The same in JSON: fields of the object.
    pub fields: Map<String, Value>,
}

impl Effect {
    fn word(&self) -> String {
        match (self.outcome, self.depends_on.is_empty()) {
            (Outcome::WouldEvict, _) => "would evict".to_owned(),
            (Outcome::WouldNotEvict, true) => format!("would not evict ({})", self.actions.join(" or ")),
            (Outcome::WouldNotEvict, false) => {
                format!("would not evict ({}, depends on {})", self.actions.join(" or "), self.depends_on.join(" and "))
            }
            (Outcome::Depends, _) => format!("depends on {}", self.depends_on.join(" and ")),
        }
    }
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::WouldEvict => "would-evict",
            Self::Depends => "depends",
            Self::WouldNotEvict => "would-not-evict",
        }
    }
}

/// The interactions with one workload.
#[derive(Default)]
struct Workload<'a> {
    count: u64,
    users: BTreeSet<&'a str>,
    evictions: u64,
    evictions_at_most: u64,
    kind: Option<&'a str>,
    is_guess: bool,
}

/// The workloads, those with most evictions first.
fn workloads(rows: &BTreeMap<Key, Row>) -> Vec<((&str, &str), Workload<'_>)> {
    let mut all: BTreeMap<(&str, &str), Workload<'_>> = BTreeMap::new();
    for (key, row) in rows {
        let workload = all.entry((&key.namespace, &key.workload)).or_default();
        workload.count += row.count;
        workload.users.insert(&key.user);
        workload.evictions += row.evictions;
        workload.evictions_at_most += row.evictions_at_most;
        workload.kind = workload.kind.or(row.kind.as_deref());
        workload.is_guess |= row.is_guess;
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, it)| std::cmp::Reverse((it.evictions_at_most, it.evictions, it.count)));
    all
}

/// The rows, those with most interactions first.
fn sorted(rows: &BTreeMap<Key, Row>) -> Vec<(&Key, &Row)> {
    let mut all: Vec<_> = rows.iter().collect();
    all.sort_by_key(|(_, row)| std::cmp::Reverse(row.count));
    all
}

/// What a reader has to know about the figures.
fn notes(summary: &Summary, source: &Source<'_>) -> Vec<String> {
    let mut notes = source.notes.clone();
    if summary.refused > 0 {
        let count = suggest::times("request", "requests", summary.refused);
        notes.push(format!("not counted: {count} that the API server did not admit"));
    }
    let idle: Vec<String> = summary.idle_rules().into_iter().take(MAX_ROWS).map(|rule| format!("{rule:?}")).collect();
    if !idle.is_empty() {
        notes.push(format!("these rules decide none of the interactions: {}", idle.join(", ")));
    }
    if summary.rows.values().any(|row| row.is_guess) {
        notes.push("*: the name of the workload is a guess from the name of its pod".to_owned());
    }
    notes.push(
        "EVICTIONS counts at most one eviction of a pod name in each ttl. AT-MOST adds those that depend on what is not \
         known. Interactions with the pods that replace evicted ones are not simulated"
            .to_owned(),
    );
    notes
}

/// The configuration with suggested rules, or only the rules if they do not fit into it. None if there are none.
fn suggested(summary: &Summary, text: &str) -> Option<(String, bool)> {
    let rules = suggest::rules(&summary.rows);
    if rules.is_empty() {
        return None;
    }
    Some(suggest::configuration(text, &rules).map_or((rules, false), |whole| (whole, true)))
}

/// Tables for people.
#[must_use]
pub fn table(summary: &Summary, source: &Source<'_>) -> String {
    let Source { name, text, .. } = *source;
    let mut out = String::new();
    if let Some((first, last)) = summary.span {
        let count = suggest::times("interaction", "interactions", summary.count());
        let _ = writeln!(out, "{count} from {first:.0} to {last:.0}, under {name}\n");
    }
    let star = |is_guess: bool| if is_guess { "*" } else { "" };
    let all = sorted(&summary.rows);
    if !all.is_empty() {
        let rows: Vec<[String; 7]> =
            all.iter().take(MAX_ROWS).map(|(key, row)| row_of(key, row, star(row.is_guess))).collect();
        let header = ["USER", "WORKLOAD", "OPERATION", "COUNT", "DECISION", "RULE", "COMMAND"];
        out.push_str(&format::table(&header, &rows));
        more(&mut out, all.len());
    }
    let all = workloads(&summary.rows);
    let evicted: Vec<_> = all.iter().filter(|(_, it)| it.evictions_at_most > 0).collect();
    if !evicted.is_empty() {
        let rows: Vec<[String; 5]> = evicted
            .iter()
            .take(MAX_ROWS)
            .map(|((namespace, workload), it)| {
                let name = format!("{namespace}/{workload}{}", star(it.is_guess));
                let numbers = [it.evictions, it.evictions_at_most, it.count, it.users.len() as u64];
                let [evictions, most, count, users] = numbers.map(|number| number.to_string());
                [name, evictions, most, count, users]
            })
            .collect();
        let _ = writeln!(
            out,
            "\n{}",
            format::table(&["WORKLOAD", "EVICTIONS", "AT-MOST", "INTERACTIONS", "USERS"], &rows).trim_end()
        );
        more(&mut out, evicted.len());
    }
    if let Some((yaml, is_whole)) = suggested(summary, text) {
        let what = if is_whole { "the configuration with them first" } else { "put them first in rules:" };
        let _ = writeln!(out, "\nSuggested rules, {what}:\n\n{}", yaml.trim_end());
    }
    out.push('\n');
    for note in notes(summary, source) {
        let _ = writeln!(out, "{}", format::plain(&note));
    }
    out
}

fn row_of(key: &Key, row: &Row, star: &str) -> [String; 7] {
    let token = if key.has_pod_token { " (pod)" } else { "" };
    let mut commands = row.commands.iter().map(|words| words.join(" "));
    let first = format::clip(&commands.next().unwrap_or_default(), MAX_COMMAND);
    let command = if commands.next().is_some() { format!("{first}, …") } else { first };
    [
        format!("{}{token}", key.user),
        format!("{}/{}{star}", key.namespace, key.workload),
        key.operation.as_str().to_owned(),
        row.count.to_string(),
        key.effect.word(),
        key.effect.rules.join(" or "),
        command,
    ]
}

fn more(out: &mut String, count: usize) {
    if count > MAX_ROWS {
        let _ = writeln!(out, "… {} more, all with -o json", count - MAX_ROWS);
    }
}

/// One JSON object for programs.
#[must_use]
pub fn json(summary: &Summary, source: &Source<'_>) -> String {
    let interactions = sorted(&summary.rows).into_iter().map(|(key, row)| {
        json!({
            "user": key.user, "hasPodToken": key.has_pod_token, "namespace": key.namespace, "workload": key.workload,
            "kind": row.kind, "workloadIsGuess": row.is_guess, "operation": key.operation.as_str(), "count": row.count,
            "decision": key.effect.outcome.word(), "actions": key.effect.actions,
            "dependsOn": key.effect.depends_on, "rules": key.effect.rules, "evictions": row.evictions,
            "evictionsAtMost": row.evictions_at_most, "withTerminal": row.with_tty,
            "commands": row.commands,
        })
    });
    let workloads = workloads(&summary.rows).into_iter().map(|((namespace, workload), it)| {
        json!({
            "namespace": namespace, "workload": workload, "kind": it.kind, "workloadIsGuess": it.is_guess,
            "interactions": it.count, "users": it.users, "evictions": it.evictions,
            "evictionsAtMost": it.evictions_at_most,
        })
    });
    let suggested = suggested(summary, source.text);
    let (first, last) = summary.span.unzip();
    let mut whole: Value = json!({
        "configuration": source.name, "first": first, "last": last,
        "interactions": interactions.collect::<Vec<_>>(), "workloads": workloads.collect::<Vec<_>>(),
        "suggestedRules": suggested.as_ref().map(|(yaml, _)| yaml),
        "suggestedRulesAreWholeConfiguration": suggested.as_ref().map(|(_, is_whole)| is_whole),
        "notAdmitted": summary.refused, "notes": notes(summary, source),
    });
    whole.as_object_mut().expect("it is an object").extend(source.fields.clone());
    serde_json::to_string_pretty(&whole).expect("JSON values serialise") + "\n"
}
