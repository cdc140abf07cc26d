//! What people read fits together: links lead somewhere, tests that a page names exist, and the words stay plain.

use std::path::Path;

use crate::{files, read, root};

/// Every page in Markdown.
fn pages() -> Vec<String> {
    let at_top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(str::to_owned).into_iter();
    let below = ["docs", "manifests"].into_iter().flat_map(files).map(|file| file.display().to_string());
    at_top.chain(below).filter(|file| Path::new(file).extension().is_some_and(|ext| ext == "md")).collect()
}

/// The text without its code blocks.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// As GitHub makes an anchor of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let (mut broken, mut count) = (Vec::new(), 0);
    for page in pages() {
        let folder = Path::new(&page).parent().unwrap();
        for link in prose(&read(&page)).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(&page) } else { root().join(folder).join(file) };
            let has_heading = || {
                let text = std::fs::read_to_string(&target).unwrap_or_default();
                prose(&text).lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if !target.exists() || (!heading.is_empty() && !has_heading()) {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(count > 50, "{count} links");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_test_that_a_page_names_exists() {
    let code: String = ["src", "tests"]
        .into_iter()
        .flat_map(files)
        .filter(|file| file.extension().is_some_and(|ext| ext == "rs"))
        .map(|file| read(file.to_str().unwrap()))
        .collect();
    let (mut missing, mut count) = (Vec::new(), 0);
    for page in pages() {
        for name in prose(&read(&page)).split('`').skip(1).step_by(2) {
            let is_path = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | ':'));
            // `module::a_test_has_several_words`
            let Some((_, function)) = name.rsplit_once("::").filter(|_| is_path) else { continue };
            if function.matches('_').count() < 3 {
                continue;
            }
            count += 1;
            if !code.contains(&format!("fn {function}(")) {
                missing.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(count > 20, "{count} names of tests");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_readme_has_at_most_900_words() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 900, "README.md has {words} words");
}

/// Words of a voice that has to be read twice. Each use that is left is the best word there.
const OLD_WORDS: [&str; 5] = ["whoever", "nobody", "somebody", "anew", "for ever"];
/// How many are left.
const MAX_OLD_WORDS: usize = 20;

#[test]
fn the_words_are_plain() {
    let is_read = |file: &str| [".md", ".rs", ".yaml"].iter().any(|end| file.ends_with(end));
    let mut found = Vec::new();
    let folders = ["docs", "manifests", "src"].into_iter().flat_map(files).map(|file| file.display().to_string());
    for file in folders.chain(["README.md".to_owned()]).filter(|file| is_read(file)) {
        for (number, line) in read(&file).lines().enumerate() {
            let line = line.to_lowercase();
            for word in OLD_WORDS {
                let ends = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                let is_word =
                    |at: usize| ends(line[..at].chars().next_back()) && ends(line[at + word.len()..].chars().next());
                let count = line.match_indices(word).filter(|(at, _)| is_word(*at)).count();
                found.extend(std::iter::repeat_n(format!("{file}:{}: {word}", number + 1), count));
            }
        }
    }
    assert!(found.len() <= MAX_OLD_WORDS, "{} words:\n{}", found.len(), found.join("\n"));
}

/// The rules in the code blocks of a page, as a configuration.
fn rules_of(page: &str) -> pristine::config::Configuration {
    let text = read(page);
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let rules: String = blocks.filter(|block| block.starts_with("- name:")).collect();
    let head =
        "apiVersion: pristine/v1alpha1\nkind: PristineConfiguration\ndefault: {action: Evict, ttl: 10m}\nrules:\n";
    pristine::config::parse(page, &format!("{head}{rules}")).unwrap()
}

#[test]
fn the_rules_in_the_guides_are_valid_and_decide_about_the_tools_that_they_name() {
    let names = |page| -> Vec<String> { rules_of(page).policy.rules.iter().map(|rule| rule.name.clone()).collect() };
    assert!(names("docs/configure.md").len() > 3);
    assert_eq!(
        names("docs/tools.md"),
        ["dev-namespaces", "skaffold", "tilt", "deploy-checks", "velero-hooks"].map(str::to_owned)
    );
    let policy = rules_of("docs/tools.md").policy;
    let decides = |user: &str,
                   namespace: &str,
                   labels: serde_json::Value,
                   namespace_labels: &[(&str, &str)],
                   tty: bool| {
        let pod = serde_json::json!({"metadata": {"namespace": namespace, "name": "web-0", "labels": labels}, "spec": {"containers": []}});
        let pod = serde_json::from_value(pod).unwrap();
        let user = pristine::mark::User { name: user.to_owned(), ..Default::default() };
        let interaction = pristine::mark::Interaction {
            at: jiff::Timestamp::UNIX_EPOCH,
            operation: pristine::mark::Operation::Exec,
            container: "app".to_owned(),
            command: ["tar", "xmf", "-", "-C", "/", "--no-same-owner"].map(str::to_owned).to_vec(),
            stdin: true,
            tty,
            user: user.clone(),
            review: String::new(),
            rule: String::new(),
        };
        let of_namespace =
            namespace_labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let it = pristine::config::policy::Attributes {
            interaction: &interaction,
            user: &user,
            argv: &interaction.command,
            pod: &pod,
            namespace: Some(&of_namespace),
        };
        let Ok(decision) = policy.decide(it) else { panic!("the labels of the namespace are known") };
        decision.rule
    };
    let none = || serde_json::json!({});
    let tilt = serde_json::json!({"app.kubernetes.io/managed-by": "tilt"});
    for (user, namespace, labels, of_namespace, tty, rule) in [
        ("alice", "team-a", none(), &[("purpose", "dev")][..], true, "dev-namespaces"),
        ("alice", "team-a", serde_json::json!({"skaffold.dev/run-id": "x"}), &[], false, "skaffold"),
        ("alice", "team-a", tilt, &[], false, "tilt"),
        ("system:serviceaccount:ci:deployer", "staging-eu", none(), &[], false, "deploy-checks"),
        ("system:serviceaccount:ci:deployer", "prod-eu", none(), &[], false, "default"),
        ("system:serviceaccount:ci:deployer", "staging-eu", none(), &[], true, "default"),
        ("system:serviceaccount:velero:velero-server", "prod-eu", none(), &[], false, "velero-hooks"),
        ("alice", "prod-eu", none(), &[], true, "default"),
    ] {
        assert_eq!(decides(user, namespace, labels, of_namespace, tty), rule, "{user} in {namespace}");
    }
}
