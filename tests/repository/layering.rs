//! Imports point one way, each outside crate has few doors, and files stay small enough to hold in mind.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What each room may use of this crate. A room also may use what is below it (`certs` → `certs::bundle`) and its own
/// children may use it. Pure rooms first.
const MAY_USE: &[(&str, &[&str])] = &[
    ("duration", &[]),
    ("error", &[]),
    ("mark", &[]),
    ("config", &["duration", "eviction", "mark"]),
    ("config::policy", &["mark"]),
    ("config::explain", &["admission", "mark"]),
    ("admission", &["mark"]),
    ("eviction", &["mark"]),
    ("certs", &[]),
    ("plugin::format", &[]),
    ("plugin::row", &["eviction", "mark"]),
    ("plugin::bypass", &[]),
    // I/O.
    ("clock", &[]),
    ("telemetry", &[]),
    ("dir_watch", &[]),
    ("audit_log", &["mark"]),
    ("api", &["audit_log", "clock", "error", "mark", "telemetry"]),
    ("config::reload", &["api", "config", "dir_watch", "error", "eviction", "telemetry"]),
    ("server", &["telemetry"]),
    ("admission::handler", &["api", "audit_log", "config", "error", "mark", "telemetry"]),
    ("admission::http", &["duration", "server", "telemetry"]),
    ("admission::secret_path::renewer", &["clock", "error"]),
    ("eviction::reconcile", &["api", "error", "mark", "telemetry"]),
    ("eviction::controller", &["api", "error", "mark", "server", "telemetry"]),
    ("eviction::mark_successor", &["api", "audit_log", "error", "telemetry"]),
    ("eviction::leadership", &["api", "clock", "error"]),
    ("certs::mounted", &["api", "dir_watch", "error", "server", "telemetry"]),
    ("certs::controller", &["api", "error", "server", "telemetry"]),
    ("certs::replica_status::publisher", &["api", "error"]),
    ("plugin", &["api", "certs", "clock", "config", "duration", "error", "eviction", "mark"]),
    ("cli", &[]),
    ("cli::args", &["certs", "duration", "telemetry"]),
    ("cli::commands", &["certs", "clock", "cli", "config", "plugin", "telemetry"]),
    // Wiring.
    ("run", &["admission", "api", "audit_log", "certs", "cli", "clock", "config", "eviction", "server", "telemetry"]),
];

/// The pure ones: they decide, take `now`, and return data and reasons.
const PURE: &[&str] = &[
    "duration",
    "error",
    "mark",
    "mark::extension",
    "mark::interaction",
    "mark::owner",
    "mark::redact",
    "cli::docgen",
    "config",
    "config::explain",
    "config::policy",
    "config::policy::conditions",
    "config::policy::glob",
    "config::policy::overlap",
    "admission::review",
    "admission::secret_path",
    "admission::validate",
    "eviction::entry",
    "eviction::pacing",
    "eviction::plan",
    "eviction::quarantine",
    "eviction::queue",
    "certs",
    "certs::bundle",
    "certs::ca",
    "certs::replica_status",
    "certs::rotation",
    "certs::secret",
    "plugin::bypass",
    "plugin::format",
    "plugin::row",
];

/// What a pure room must not name.
const IMPURE: &[&str] =
    &["tokio", "hyper::", "tracing::", "Clock", "std::env", "kube::Client", "kube::Api", "notify::"];

/// Where each outside crate may be used.
const DOORS: &[(&str, &[&str])] = &[
    ("rcgen", &["certs::ca"]),
    ("notify", &["dir_watch"]),
    ("tokio_rustls", &["server"]),
    ("x509_parser", &["certs", "certs::ca"]),
    (
        "clap",
        &[
            "cli::args",
            "cli::commands",
            "cli::docgen",
            "main",
            "plugin",
            "plugin::completion",
            "plugin::connection",
            "plugin::describe",
            "plugin::evict",
            "plugin::extend",
            "plugin::get",
            "telemetry",
        ],
    ),
    ("clap_complete", &["plugin::completion"]),
    ("tracing_subscriber", &["telemetry"]),
    ("prometheus_client", &["telemetry", "telemetry::process"]),
    ("serde_saphyr", &["config", "plugin::doctor", "plugin::get"]),
    ("anyhow", &["cli::commands", "run", "telemetry", "main"]),
    ("arc_swap", &["certs::resolver"]),
    ("std::fs", &["cli::commands", "config", "certs::mounted", "telemetry::process"]),
];

/// Lines of a file, tests included.
const MAX_LINES: usize = 400;

struct Source {
    module: String,
    path: PathBuf,
    text: String,
    /// Without comments and without the tests at its end.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let module = path.strip_prefix(&root).unwrap().with_extension("").to_str().unwrap().replace('/', "::");
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
            found.push(Source { module, path, text, code });
        }
    }
    assert!(found.len() > 20);
    found
        .into_iter()
        .filter(|source| {
            !source.module.ends_with("::tests") && !source.module.ends_with("::model") && source.module != "lib"
        })
        .collect()
}

/// The rows that apply to a module: its own and those of the rooms it is in.
fn allowed(module: &str) -> Option<BTreeSet<&'static str>> {
    let row = |name: &str| MAY_USE.iter().find(|(room, _)| *room == name).map(|(_, uses)| *uses);
    let mut name = module;
    loop {
        if let Some(uses) = row(name) {
            return Some(uses.iter().copied().collect());
        }
        name = name.rsplit_once("::")?.0;
    }
}

/// First segments after `crate::`, also in `use crate::{a, b::c}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.insert(name(item.trim()));
                    item.clear();
                    continue;
                }
                _ => {}
            }
            item.push(c);
        }
        found.insert(name(item.trim()));
    }
    found.remove("");
    found
}

#[test]
fn rooms_use_only_what_the_table_allows() {
    let is_program = |module: &str| module == "main" || module.starts_with("bin::");
    for source in sources().iter().filter(|source| !is_program(&source.module)) {
        let room = source.module.split("::").next().unwrap();
        let allowed = allowed(&source.module).unwrap_or_else(|| panic!("{}: no row in the table", source.module));
        for name in used(&source.code) {
            assert!(name == room || allowed.contains(name.as_str()), "{} must not use crate::{name}", source.module);
        }
    }
}

#[test]
fn pure_rooms_name_nothing_impure() {
    for source in sources().iter().filter(|source| PURE.contains(&source.module.as_str())) {
        for name in IMPURE {
            assert!(!source.code.contains(name), "{} is pure and must not use {name}", source.module);
        }
    }
}

#[test]
fn outside_crates_have_few_doors() {
    for source in sources() {
        for (name, doors) in DOORS {
            let used = source.code.contains(&format!("{name}::")) || source.code.contains(&format!("use {name}"));
            assert!(
                !used || doors.contains(&source.module.as_str()),
                "{} must not use {name}, only {doors:?}",
                source.module
            );
        }
    }
}

#[test]
fn files_can_be_held_in_mind() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines; split it by what it does", source.path.display());
    }
}

#[test]
fn the_reader_of_imports_reads_them() {
    let code = "use crate::{a, b::{c, d}, e::f};\nfn x() { crate::g::h() }";
    assert_eq!(used(code), ["a", "b", "e", "g"].map(str::to_owned).into());
}
