//! The reference pages of docs/, made from what the program reads and tells, so that they cannot differ from it. Pure.

use std::fmt::Write as _;

use serde_json::Value;

/// How a page begins: what it is, and that nobody should edit it.
fn begin(title: &str, about: &str) -> String {
    format!("# {title}\n\n<!-- Made by hack/update-reference. -->\n\n{about}\n")
}

/// The fields of the configuration, from its JSON Schema.
#[must_use]
pub fn configuration(schema: &str) -> String {
    let schema: Value = serde_json::from_str(schema).unwrap_or_default();
    let about = "The file `pristine.yaml` of the ConfigMap `pristine`. It is read anew when it changes; what is wrong is refused whole, \
                 with line and field, and what was in force stays. `pristine check-config FILE` says the same of a file, and \
                 `pristine explain` which rule decides. Editors read [the JSON Schema](../manifests/configuration.schema.json).";
    let mut page = begin("Configuration", about);
    page.push_str("\n| field | type | meaning |\n|---|---|---|\n");
    fields(&schema, &schema, "", &mut page);
    page.push_str("\n## Actions\n\n| action | meaning |\n|---|---|\n");
    for action in schema["$defs"]["Action"]["oneOf"].as_array().into_iter().flatten() {
        let _ = writeln!(page, "| `{}` | {} |", text(&action["const"]), text(&action["description"]));
    }
    page
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace('\n', " ")
}

/// What a `$ref` stands for, and the other half of something that may be null.
fn resolve<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    let value = value["anyOf"].as_array().and_then(|either| either.first()).unwrap_or(value);
    let name = value["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    name.map_or(value, |name| &root["$defs"][name])
}

fn fields(root: &Value, object: &Value, before: &str, page: &mut String) {
    let required: Vec<&str> = object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in object["properties"].as_object().into_iter().flatten() {
        let inner = resolve(root, field);
        let item = resolve(root, &inner["items"]);
        let is_list = inner["type"] == "array";
        let path = format!("{before}{name}{}", if is_list { "[]" } else { "" });
        let inner = if is_list { item } else { inner };
        let kind = match (&inner["const"], inner["type"].as_str(), inner["type"].as_array()) {
            (Value::String(only), ..) => format!("`{only}`"),
            (_, Some(one), _) => one.to_owned(),
            (.., Some(either)) => text(&either[0]),
            _ if inner["oneOf"].is_array() => "word".to_owned(),
            _ => "object".to_owned(),
        };
        let kind = if required.contains(&name.as_str()) { format!("{kind}, required") } else { kind };
        let (own, of_type) = (text(&field["description"]), text(&inner["description"]));
        let says_it_all = own == of_type || inner["properties"].is_object();
        let meaning = if says_it_all { own } else { format!("{own} {of_type}") };
        let _ = writeln!(page, "| `{path}` | {kind} | {} |", meaning.trim().replace('|', "\\|"));
        fields(root, inner, &format!("{path}."), page);
    }
}

/// The metrics, from what a process that has just begun tells.
#[must_use]
pub fn metrics(told: &str) -> String {
    let about = "Of the port `probes` (8080) of each replica, path `/metrics`, in the OpenMetrics text format. No label takes a \
                 value from a request, so the number of series is bounded. Counters that are listed with words begin at zero. \
                 [The monitoring component](../manifests/components/monitoring) has alerts, each with a section in \
                 [the runbook](runbook.md), and a dashboard.";
    let mut page = begin("Metrics", about);
    page.push_str("\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
    let lines: Vec<&str> = told.lines().collect();
    let mut families: Vec<(&str, &str)> =
        lines.iter().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')).collect();
    families.sort_unstable();
    for (name, help) in families {
        let typed = format!("# TYPE {name} ");
        let kind = lines.iter().find_map(|line| line.strip_prefix(typed.as_str())).unwrap_or("unknown");
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let _ = writeln!(page, "| `{name}{suffix}` | {kind} | {} | {help} |", labels(&lines, name));
    }
    page
}

/// Each label with the words that are told from the beginning.
fn labels(lines: &[&str], name: &str) -> String {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    let series = lines.iter().filter_map(|line| line.strip_prefix(name)?.split_once('{'));
    for (_, rest) in series.filter(|(suffix, _)| matches!(*suffix, "" | "_total" | "_info")) {
        for pair in rest.split('}').next().unwrap_or_default().split("\",") {
            let Some((label, word)) = pair.split_once("=\"") else { continue };
            let word = word.trim_end_matches('"').to_owned();
            match all.iter_mut().find(|(known, _)| known == label) {
                Some((_, words)) if words.contains(&word) => {}
                Some((_, words)) => words.push(word),
                None => all.push((label.to_owned(), vec![word])),
            }
        }
    }
    // In no order as they are told.
    all.sort_unstable();
    all.iter_mut().for_each(|(_, words)| words.sort_unstable());
    let shown = all.iter().map(|(label, words)| format!("`{label}`: {}", words.join(", ")));
    shown.collect::<Vec<_>>().join("; ")
}

/// What can be typed, as the programs say it themselves.
#[must_use]
pub fn flags(pristine: &mut clap::Command, plugin: &mut clap::Command) -> String {
    let about = "What `pristine` and `kubectl pristine` understand. Durations are Go's: `90s`, `10m`, `1h30m`. Exit codes are 0 for \
                 success and 1 for any failure; `pristine` itself gives 2 for words that it does not understand, `kubectl pristine`, \
                 like kubectl, 1.";
    let mut page = begin("Commands and flags", about);
    for program in [pristine, plugin] {
        let name = program.get_name().to_owned();
        let names: Vec<String> = program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(|command| command.get_name().to_owned())
            .collect();
        let _ = write!(page, "\n## {name}\n\n```text\n{}```\n", lines(&program.render_long_help().to_string()));
        for command in names {
            let Some(found) = program.find_subcommand_mut(&command) else { continue };
            // Only its own: the global flags are above.
            let mut found = found.clone().bin_name(format!("{name} {command}"));
            let help = lines(&found.render_long_help().to_string());
            let _ = write!(page, "\n### {name} {command}\n\n```text\n{help}```\n");
        }
    }
    page
}

fn lines(text: &str) -> String {
    text.lines().map(str::trim_end).fold(String::new(), |all, line| all + line + "\n")
}
