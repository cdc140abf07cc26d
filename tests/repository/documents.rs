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
