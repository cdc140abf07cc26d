//! What the scripts of hack rely on: the names of tests, and which tests have nothing beside them.

use crate::{files, read};

/// The binary that `hack/test RING` runs.
fn binary(ring: &str) -> &str {
    if ring == "rotation" { "control_plane" } else { ring }
}

/// Whether `hack/test RING` runs a test of this name, which has its modules before it.
pub fn has_test(ring: &str, name: &str) -> bool {
    let Some((modules, name)) = name.rsplit_once("::") else { return false };
    let file = format!("tests/{}/{}.rs", binary(ring), modules.replace("::", "/"));
    files("tests").iter().any(|found| found.to_str() == Some(&file)) && read(&file).contains(&format!("fn {name}()"))
}

#[test]
fn every_test_on_the_cluster_says_whether_another_may_run_beside_it() {
    let mut count = 0;
    for file in files("tests/cluster") {
        let text = read(file.to_str().unwrap());
        for test in text.split("#[tokio::test").skip(1) {
            let (attributes, rest) = test.split_once("async fn ").unwrap();
            let says = attributes.contains("#[serial]") || attributes.contains("#[parallel]");
            assert!(says, "{}: {}: neither #[serial] nor #[parallel]", file.display(), rest.split('(').next().unwrap());
            count += 1;
        }
    }
    assert!(count > 50, "{count} tests on the cluster");
}

#[test]
fn every_test_that_a_script_names_exists() {
    for script in ["hack/soak", "hack/bench"] {
        let text = read(script);
        let name = text.lines().find_map(|line| line.trim_start().strip_prefix("test=")).unwrap();
        assert!(has_test("rotation", name), "{script}: there is no test {name}");
    }
}
