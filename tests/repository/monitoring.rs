//! The alerts, their tests, the runbook, the dashboard and the metrics of the code fit together.
//!
//! `promtool test rules` runs the cases of `tests/monitoring`, with the groups of the PrometheusRule beside them as
//! rules.yaml. Each case says of every alert whether it fires: an alert that it does not list must be silent.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::{Value, json};

use crate::{files, read};

const RULES: &str = "manifests/components/monitoring/prometheusrule.yaml";
const DASHBOARD: &str = "manifests/components/monitoring/dashboard.json";
const RUNBOOK: &str = "docs/runbook.md";
const METRICS: &str = "docs/metrics.md";

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn alerts() -> Vec<Value> {
    let rules = yaml(RULES);
    let groups = array(&rules["spec"]["groups"]);
    let alerts: Vec<Value> = groups.flat_map(|group| array(&group["rules"])).cloned().collect();
    assert!(alerts.len() > 20 && alerts.iter().all(|alert| alert["alert"].is_string()), "{RULES}: {}", alerts.len());
    alerts
}

/// The files of cases, by their paths.
fn test_files() -> Vec<String> {
    let found: Vec<String> = files("tests/monitoring").iter().map(|file| file.to_str().unwrap().to_owned()).collect();
    assert!(found.iter().all(|file| file.ends_with(".test.yaml")) && !found.is_empty(), "{found:?}");
    found
}

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

/// As Grafana would send them.
fn dashboard_expressions() -> Vec<String> {
    let panels = panels();
    let targets = panels.iter().flat_map(|panel| array(&panel["targets"]));
    let found: Vec<String> = targets.map(|target| text(&target["expr"]).replace("$__rate_interval", "5m")).collect();
    assert!(found.len() > 10, "{}", found.len());
    found
}

/// The anchors that GitHub makes of the headings of the runbook.
fn sections() -> BTreeSet<String> {
    let runbook = read(RUNBOOK);
    let headings = runbook.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(*c)).collect()
    };
    headings.map(anchor).collect()
}

/// The groups of the PrometheusRule, as a file that promtool reads. (JSON is YAML.)
fn rules() -> (String, String) {
    ("rules.yaml".to_owned(), yaml(RULES)["spec"].to_string())
}

/// Runs `promtool COMMAND rules` on the files with this ending, in a folder that has all of them.
fn promtool(command: &str, files: &[(String, String)], ending: &str) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let names = files.iter().map(|(name, _)| name).filter(|name| name.ends_with(ending));
    let output = Command::new("promtool").args([command, "rules"]).args(names).current_dir(folder.path()).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run promtool, which hack/test installs with Debian's package prometheus: {error}")
    });
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {command} rules: {out}{err}");
}

#[test]
fn promtool_accepts_every_alert_rule() {
    promtool("check", &[rules()], ".yaml");
}

#[test]
fn every_alert_fires_when_it_should_and_is_silent_when_it_should() {
    let cases = test_files().into_iter().map(|file| (file.rsplit('/').next().unwrap().to_owned(), read(&file)));
    promtool("test", &cases.chain([rules()]).collect::<Vec<_>>(), ".test.yaml");
}

#[test]
fn promtool_accepts_every_expression_of_the_dashboard() {
    // As recording rules, because promtool has no check for a single expression.
    let rules = dashboard_expressions().into_iter().enumerate();
    let rules: Vec<Value> = rules.map(|(n, expr)| json!({"record": format!("dashboard:{n}"), "expr": expr})).collect();
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    promtool("check", &[("dashboard.yaml".to_owned(), groups.to_string())], ".yaml");
}

/// The alerts that a case expects at each time at which it lists all that fire.
fn expected(case: &Value) -> Vec<BTreeSet<String>> {
    let checks = array(&case["promql_expr_test"]);
    let checks = checks.filter(|check| text(&check["expr"]).contains("(ALERTS{alertstate=\"firing\"})"));
    let names = |check: &Value| {
        let labels = array(&check["exp_samples"]).map(|sample| text(&sample["labels"]));
        let names = labels.map(|labels| labels.split("alertname=\"").nth(1).unwrap().split('"').next().unwrap());
        names.map(str::to_owned).collect()
    };
    checks.map(names).collect()
}

#[test]
fn every_alert_has_a_test_that_fires_and_one_that_is_silent() {
    let mut tested = BTreeSet::new();
    for file in test_files() {
        for case in array(&yaml(&file)["tests"]) {
            let expected = expected(case);
            for (n, firing) in expected.iter().enumerate() {
                let silent_before = |name: &&String| expected[..n].iter().any(|earlier| !earlier.contains(*name));
                tested.extend(firing.iter().filter(silent_before).cloned());
            }
        }
    }
    let alerts = alerts();
    let missing: Vec<&str> =
        alerts.iter().map(|alert| text(&alert["alert"])).filter(|name| !tested.contains(*name)).collect();
    assert!(missing.is_empty(), "tests/monitoring: no case in which these are silent and then fire: {missing:?}");
}

#[test]
fn every_alert_has_a_severity_a_summary_and_a_description() {
    for alert in alerts() {
        let name = text(&alert["alert"]);
        let severity = text(&alert["labels"]["severity"]);
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: severity {severity:?}");
        for annotation in ["summary", "description"] {
            assert!(!text(&alert["annotations"][annotation]).is_empty(), "{name} has no {annotation}");
        }
    }
}

#[test]
fn every_alert_links_to_its_section_of_the_runbook() {
    let deployment = read("manifests/base/deployment.yaml");
    // The release workflow pushes the image to the repository's own name.
    let repository = deployment.split("image: ghcr.io/").nth(1).unwrap().split(':').next().unwrap();
    let sections = sections();
    let mut wrong = Vec::new();
    for alert in alerts() {
        let section = text(&alert["alert"]).to_lowercase();
        let url = format!("https://github.com/{repository}/blob/main/{RUNBOOK}#{section}");
        if text(&alert["annotations"]["runbook_url"]) != url {
            wrong.push(format!("the runbook_url of {} is not {url}", alert["alert"]));
        }
        if !sections.contains(&section) {
            wrong.push(format!("{RUNBOOK} has no section {}", alert["alert"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_link_within_the_runbook_leads_to_a_section() {
    let (runbook, sections) = (read(RUNBOOK), sections());
    let anchors = runbook.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap());
    let missing: Vec<&str> = anchors.filter(|anchor| !sections.contains(*anchor)).collect();
    assert!(missing.is_empty(), "{RUNBOOK} has no sections {missing:?}");
}

#[test]
fn every_panel_uses_the_data_source_variable() {
    for panel in panels().iter().filter(|panel| panel["type"] != "row") {
        let sources = array(&panel["targets"]).chain([panel]).map(|asks| &asks["datasource"]["uid"]);
        let wrong: Vec<_> = sources.filter(|uid| *uid != "${datasource}").collect();
        assert!(wrong.is_empty(), "{DASHBOARD}: panel {}: {wrong:?}", panel["title"]);
    }
}

#[test]
fn every_panel_has_an_id_of_its_own() {
    let ids: Vec<String> = panels().iter().map(|panel| panel["id"].to_string()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}

/// The metrics of ours, and of the process, that a text names.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pristine_") || word.starts_with("process_"))
}

#[test]
fn every_metric_in_alerts_and_dashboard_is_in_the_list_of_metrics() {
    let page = read(METRICS);
    // | `name` | type | …
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut known = BTreeSet::new();
    for (name, rest) in rows {
        if rest.starts_with("histogram") {
            known.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        } else {
            known.insert(name.to_owned());
        }
    }
    let (rules, expressions) = (read(RULES), dashboard_expressions().join("\n"));
    let unknown: BTreeSet<&str> =
        named(&rules).chain(named(&expressions)).filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "{METRICS} has no {unknown:?}");
}
