//! Imports point one way, and each outside crate is used in few places.

use std::collections::BTreeSet;

use crate::{files, read};

/// What each module may use of this crate, beside its own top-level module: `config` is everything below `config`,
/// `config::policy` only what is below that. A module without a row has the row of the module around it. Pure modules first.
const MAY_USE: &[(&str, &[&str])] = &[
    ("duration", &[]),
    ("error", &[]),
    ("mark", &[]),
    ("config", &["duration", "eviction", "mark"]),
    ("config::policy", &["mark"]),
    ("config::policy::conditions", &["api::webhook::check", "mark"]),
    ("config::explain", &["admission", "mark"]),
    ("admission", &["mark"]),
    ("eviction", &["mark"]),
    ("certs", &["api::webhook::path", "clock::Now"]),
    ("api::webhook::check", &[]),
    ("api::webhook::heal", &[]),
    ("api::webhook::path", &["clock::Now"]),
    ("plugin::format", &[]),
    ("plugin::row", &["eviction", "mark"]),
    ("plugin::bypass", &[]),
    // I/O.
    ("clock", &[]),
    ("telemetry", &[]),
    ("dir_watch", &[]),
    ("audit_log", &["mark"]),
    ("api", &["audit_log", "clock", "error", "mark", "telemetry"]),
    ("config::source", &["config"]),
    ("config::reload", &["api", "config", "dir_watch", "error", "eviction", "telemetry"]),
    ("server", &["telemetry"]),
    ("admission::handler", &["api", "telemetry"]),
    ("admission::marking", &["api", "config", "error", "mark"]),
    ("admission::reported", &["api", "error", "mark"]),
    ("admission::report", &["api", "audit_log", "mark", "telemetry"]),
    ("admission::path_guard", &["api::webhook"]),
    ("admission::http", &["duration", "server", "telemetry"]),
    ("eviction::reconcile", &["api", "audit_log", "error", "mark", "telemetry"]),
    ("eviction::controller", &["api", "error", "mark", "server", "telemetry"]),
    ("eviction::mark_successor", &["api", "audit_log", "error", "mark", "telemetry"]),
    ("eviction::loop_store", &["api", "error", "mark", "telemetry"]),
    ("eviction::leadership", &["api", "clock", "error"]),
    ("eviction::suspension", &["error"]),
    ("eviction::uninstall", &["api", "error", "mark"]),
    ("certs::mounted", &["api", "clock::Now", "dir_watch", "error", "server", "telemetry"]),
    ("certs::objects", &["api"]),
    ("certs::secret_path", &["api::webhook::path", "clock::Now", "telemetry"]),
    ("certs::controller", &["api", "clock::Now", "error", "server", "telemetry"]),
    ("certs::replica_status::publisher", &["api", "error", "telemetry"]),
    ("plugin", &["api", "certs", "clock", "config", "duration", "error", "eviction", "mark"]),
    ("plugin::log", &["cli::simulate", "clock", "duration", "error"]),
    ("plugin::log::entry", &["cli::simulate::event", "mark"]),
    ("plugin::summary", &["cli::simulate", "config"]),
    ("cli", &[]),
    ("cli::args", &["api::webhook::Names", "certs", "duration", "telemetry"]),
    ("cli::simulate", &["admission", "config", "mark", "plugin::format"]),
    ("cli::commands", &["certs", "clock", "cli", "config", "plugin", "telemetry"]),
    // Wiring.
    ("run", &["admission", "api", "audit_log", "certs", "cli", "clock", "config", "eviction", "server", "telemetry"]),
];

/// The pure ones: they decide, take `now`, and return data and reasons.
const PURE: &[&str] = &[
    "duration",
    "error",
    "mark",
    "mark::claims",
    "mark::extension",
    "mark::interaction",
    "mark::owner",
    "mark::redact",
    "mark::redact::command",
    "mark::redact::lexer",
    "mark::redact::names",
    "mark::redact::programs",
    "mark::redact::shapes",
    "mark::report",
    "mark::surge",
    "plugin::log::entry",
    "cli::docgen",
    "cli::simulate::cloud",
    "cli::simulate::event",
    "cli::simulate::fold",
    "cli::simulate::print",
    "cli::simulate::read",
    "cli::simulate::recorded",
    "cli::simulate::records",
    "cli::simulate::suggest",
    "cli::simulate::summary",
    "cli::simulate::uri",
    "cli::simulate::workload",
    "config",
    "config::explain",
    "config::policy",
    "config::policy::conditions",
    "config::policy::glob",
    "config::policy::overlap",
    "config::policy::possible",
    "config::policy::selector",
    "admission::review",
    "admission::validate",
    "api::kinds",
    "api::owners::groups",
    "api::owners::members",
    "api::webhook",
    "api::webhook::check",
    "api::webhook::heal",
    "api::webhook::path",
    "eviction::entry",
    "eviction::loops",
    "eviction::pacing",
    "eviction::pacing::flight",
    "eviction::pacing::permit",
    "eviction::pacing::rate_limit",
    "eviction::plan",
    "eviction::quarantine",
    "eviction::queue",
    "eviction::successor",
    "eviction::surge",
    "eviction::surge::budgets",
    "eviction::surge::conditions",
    "eviction::surge::step",
    "eviction::switch",
    "certs",
    "certs::bundle",
    "certs::ca",
    "certs::mounted::trust",
    "certs::replica_status",
    "certs::rotation",
    "certs::rotation::missing",
    "certs::rotation::serving",
    "certs::rotation::step",
    "certs::secret",
    "plugin::bypass",
    "plugin::bypass::impersonation",
    "plugin::bypass::rbac",
    "plugin::doctor::version",
    "plugin::format",
    "plugin::row",
];

/// What a pure module must not name.
const IMPURE: &[&str] =
    &["tokio", "hyper::", "tracing::", "Clock", "std::env", "kube::Client", "kube::Api", "notify::"];

/// Where each outside crate may be used.
const DOORS: &[(&str, &[&str])] = &[
    ("rcgen", &["certs::ca"]),
    ("ring::hmac", &["api::webhook::path"]),
    ("rustix", &["server::listen"]),
    ("socket2", &["server::listen"]),
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
            "plugin::exec",
            "plugin::extend",
            "plugin::get",
            "plugin::log",
            "plugin::output",
            "plugin::report",
            "plugin::summary",
            "plugin::suspend",
            "plugin::targets",
            "telemetry",
        ],
    ),
    ("anstyle_query", &["plugin::output"]),
    ("tracing_subscriber", &["telemetry"]),
    ("prometheus_client", &["telemetry", "telemetry::process", "telemetry::rules"]),
    ("serde_saphyr", &["api::webhook::check", "api::webhook::heal", "config", "plugin::get"]),
    ("flate2", &["cli::simulate"]),
    ("anyhow", &["cli::commands", "cli::simulate", "run", "telemetry", "main"]),
    ("arc_swap", &["certs::resolver"]),
    (
        "std::fs",
        &["cli::commands", "cli::simulate", "config", "config::source", "certs::mounted", "telemetry::process"],
    ),
];

struct Source {
    module: String,
    /// Without comments and without the tests at its end.
    code: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for file in files("src") {
        let module = file.strip_prefix("src").unwrap().with_extension("").to_str().unwrap().replace('/', "::");
        if module == "lib" || module.ends_with("::tests") || module.ends_with("::model") {
            continue;
        }
        let text = read(file.to_str().unwrap());
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        found.push(Source { module, code });
    }
    assert!(found.len() > 20);
    found
}

/// The row of a module, or of the nearest one around it.
fn row(module: &str) -> Option<&'static [&'static str]> {
    let mut name = module;
    loop {
        if let Some((_, uses)) = MAY_USE.iter().find(|(of, _)| *of == name) {
            return Some(uses);
        }
        name = name.rsplit_once("::")?.0;
    }
}

fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The paths after `crate::`, also those in `use crate::{a, b::{self, c}}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        paths(String::new(), &code[at + prefix.len()..], &mut found);
    }
    found
}

/// Adds the paths that a piece of code begins with; gives what is behind them.
fn paths<'a>(before: String, code: &'a str, found: &mut BTreeSet<String>) -> &'a str {
    let code = code.trim_start();
    if let Some(group) = code.strip_prefix('{') {
        let mut rest = group;
        loop {
            rest = paths(before.clone(), rest, found).trim_start();
            let end = rest.find([',', '{', '}']).unwrap_or(rest.len());
            match rest[end..].strip_prefix(',') {
                Some(next) if !next.trim_start().starts_with('}') => rest = next,
                _ => return rest[end..].trim_start_matches(',').trim_start().strip_prefix('}').unwrap_or_default(),
            }
        }
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    let path = if before.is_empty() { name.to_owned() } else { format!("{before}::{name}") };
    if let Some(rest) = rest.strip_prefix("::") {
        return paths(path, rest, found);
    }
    found.insert(if name == "self" || name.is_empty() { before } else { path });
    rest
}

#[test]
fn every_module_uses_only_what_the_table_allows() {
    let is_program = |module: &str| module == "main" || module.starts_with("bin::");
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !is_program(&source.module)) {
        let own = source.module.split("::").next().unwrap();
        let row = row(&source.module).unwrap_or_else(|| panic!("{}: no row in the table", source.module));
        let allows = |path: &str| is_below(path, own) || row.iter().any(|module| is_below(path, module));
        let others = used(&source.code).into_iter().filter(|path| !allows(path));
        wrong.extend(others.map(|path| format!("{} must not use crate::{path}", source.module)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_modules_do_no_io() {
    for source in sources().iter().filter(|source| PURE.contains(&source.module.as_str())) {
        for name in IMPURE {
            assert!(!source.code.contains(name), "{} is pure and must not use {name}", source.module);
        }
    }
}

#[test]
fn every_outside_crate_is_used_only_where_the_table_allows() {
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
fn the_full_path_of_every_import_is_read() {
    let code = "use crate::{\n    a,\n    b::{self, c as x, d::{e}},\n    f::*,\n};\nuse crate::g;\nfn h() { crate::i::j(crate::k) }";
    assert_eq!(used(code), ["a", "b", "b::c", "b::d::e", "f", "g", "i::j", "k"].map(str::to_owned).into());
}

#[test]
fn a_row_allows_what_is_below_it_and_nothing_beside_it() {
    assert!(is_below("config::policy::Verdict", "config::policy") && is_below("config::policy", "config"));
    assert!(!is_below("config::reload", "config::policy") && !is_below("configuration", "config"));
}
