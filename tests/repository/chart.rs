//! The Helm chart renders what kustomize renders. `hack/generate chart` makes its templates from the same files; here a
//! real Helm shows that the result is the same, for the default values and for every component.
//!
//! The tests that need Helm and kubectl are run by `hack/test cluster`.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{files, read, root};

const CHART: &str = "manifests/chart";
const NAMESPACE: &str = "pristine-system";

/// Objects by kind, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

fn objects(text: &str) -> Objects {
    let text = format!("\n{text}");
    let mut found = Objects::new();
    // Helm begins with a separator, and an empty template renders an empty document.
    for document in text.split("\n---\n").filter(|document| document.contains("kind:")) {
        let object: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let key = (word(&object["kind"]), word(&metadata["namespace"]), word(&metadata["name"]));
        assert!(found.insert(key.clone(), object).is_none(), "{key:?} is there twice");
    }
    assert!(found.len() > 20, "{} objects", found.len());
    found
}

/// What the chart should render where kustomize renders this: the same, with the annotation by which Helm keeps the
/// namespace. Helm's own record of the release is in it, and so is the CA.
fn of_chart(kustomized: &str) -> Objects {
    let mut objects = objects(kustomized);
    let namespace = objects.get_mut(&("Namespace".to_owned(), String::new(), NAMESPACE.to_owned())).unwrap();
    let annotations = namespace["metadata"]["annotations"].as_object_mut().unwrap();
    assert!(annotations.insert("helm.sh/resource-policy".to_owned(), json!("keep")).is_none());
    objects
}

#[allow(clippy::disallowed_methods, reason = "how hack/test says where it is")]
fn helm(arguments: &[&str]) -> Output {
    let program = std::env::var("PRISTINE_HELM").unwrap_or_else(|_| panic!("hack/test cluster sets PRISTINE_HELM"));
    Command::new(program).args(arguments).current_dir(root()).output().unwrap()
}

/// `helm template` in the right namespace, with more arguments.
fn template(more: &[&str]) -> Output {
    let version = ["--kube-version", "v1.37.0"];
    helm(&[&["template", "pristine", CHART, "--namespace", NAMESPACE][..], &version, more].concat())
}

fn text(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn error(output: Output) -> String {
    assert!(!output.status.success(), "accepted");
    String::from_utf8(output.stderr).unwrap()
}

fn rendered(more: &[&str]) -> Objects {
    objects(&text(template(more)))
}

fn kustomize(components: &[String]) -> String {
    let folder = tempfile::tempdir_in(root().join("target")).unwrap();
    let listed: Vec<_> = components.iter().map(|name| format!("../../manifests/components/{name}")).collect();
    let kustomization = format!("resources: [../../manifests/base]\ncomponents: [{}]\n", listed.join(", "));
    fs::write(folder.path().join("kustomization.yaml"), kustomization).unwrap();
    text(Command::new("kubectl").arg("kustomize").arg(folder.path()).output().unwrap())
}

fn components() -> Vec<String> {
    let all = fs::read_dir(root().join("manifests/components")).unwrap();
    let mut names: Vec<_> = all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 9, "{names:?}");
    names
}

/// The value that stands for a component.
fn value(component: &str) -> String {
    if component == "single-replica" {
        return "replicas=1".to_owned();
    }
    let mut words = component.split('-');
    let mut name = words.next().unwrap().to_owned();
    for word in words {
        name.push_str(&word[..1].to_uppercase());
        name.push_str(&word[1..]);
    }
    format!("components.{name}=true")
}

/// Asserts that the chart renders the base with these components, and that they change something.
fn assert_same(components: &[String], base: &Objects) {
    let values: Vec<String> = components.iter().map(|component| value(component)).collect();
    let sets: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    let (found, expected) = (rendered(&sets), of_chart(&kustomize(components)));
    for (key, object) in &expected {
        assert_eq!(found.get(key), Some(object), "{components:?}: {key:?}");
    }
    assert_eq!(found.len(), expected.len(), "{components:?}: the chart renders more");
    assert_ne!(found, *base, "{components:?} change nothing");
}

#[test]
#[ignore = "needs helm: hack/test cluster"]
fn with_default_values_the_chart_is_the_manifest() {
    assert_eq!(rendered(&[]), of_chart(&read("manifests/install.yaml")));
}

#[test]
#[ignore = "needs helm: hack/test cluster"]
fn each_component_any_two_and_all_of_them_are_what_kustomize_makes() {
    let (components, base) = (components(), rendered(&[]));
    for (at, first) in components.iter().enumerate() {
        assert_same(std::slice::from_ref(first), &base);
        for second in &components[at + 1..] {
            assert_same(&[first.clone(), second.clone()], &base);
        }
    }
    assert_same(&components, &base);
}

#[test]
#[ignore = "needs helm: hack/test cluster"]
fn every_value_arrives_where_it_belongs_and_changes_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    let values = r"
image: {repository: mirror.example:5000/pristine, tag: v9, pullSecrets: [{name: mirror}]}
replicas: 3
resources: {requests: {cpu: 50m, memory: 64Mi}}
flags: [--serving-lifetime=24h, '--log-level=info,pristine=debug']
configuration:
  apiVersion: pristine/v1alpha1
  kind: PristineConfiguration
  default: {action: Evict, ttl: 10m}
  rules:
  - {name: kube-system, match: {namespaces: [kube-system]}, action: Record}
";
    fs::write(&file, values).unwrap();
    let mut expected = of_chart(&read("manifests/install.yaml"));
    let mut found = rendered(&["--values", file.to_str().unwrap()]);
    let key = |kind: &str| (kind.to_owned(), NAMESPACE.to_owned(), "pristine".to_owned());

    let map = found.remove(&key("ConfigMap")).unwrap();
    let rules = map["data"]["pristine.yaml"].as_str().unwrap();
    let configuration = pristine::config::parse("values", rules).unwrap();
    assert_eq!(configuration.policy.rules[0].name, "kube-system");
    assert_eq!(map["data"].as_object().unwrap().len(), 1);

    let deployment = &mut expected.get_mut(&key("Deployment")).unwrap()["spec"];
    deployment["replicas"] = json!(3);
    let sum =
        found[&key("Deployment")]["spec"]["template"]["metadata"]["annotations"]["checksum/configuration"].clone();
    assert!(sum.as_str().unwrap().len() == 64, "{sum}");
    let pod = &mut deployment["template"];
    pod["metadata"]["annotations"]["checksum/configuration"] = sum.clone();
    pod["spec"]["imagePullSecrets"] = json!([{"name": "mirror"}]);
    let container = &mut pod["spec"]["containers"][0];
    container["image"] = json!("mirror.example:5000/pristine:v9");
    container["resources"] = json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}});
    container["args"] = json!(["serve", "--serving-lifetime=24h", "--log-level=info,pristine=debug"]);
    assert_eq!(found, expected);

    // Other rules restart the replicas too, and a digest wins.
    fs::write(&file, values.replace("10m", "20m")).unwrap();
    let digest = format!("image.digest=sha256:{}", "0123456789abcdef".repeat(4));
    let other = rendered(&["--values", file.to_str().unwrap(), "--set", &digest]);
    let pod = &other[&key("Deployment")]["spec"]["template"];
    assert_ne!(pod["metadata"]["annotations"]["checksum/configuration"], sum);
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap();
    assert_eq!(image, format!("mirror.example:5000/pristine@{}", digest.split_once('=').unwrap().1));
}

#[test]
#[ignore = "needs helm: hack/test cluster"]
fn a_bad_value_is_refused_by_its_name() {
    let rules = "configuration={\"apiVersion\":\"pristine/v1alpha1\",\"kind\":\"PristineConfiguration\",\"default\":";
    for (set, field, reason) in [
        ("replicas=0", "/replicas", "minimum"),
        ("replicas=\"two\"", "/replicas", "want integer"),
        ("replica=3", "replica", "not allowed"),
        ("components={\"fail-open\":true}", "fail-open", "not allowed"),
        ("components={\"surge\":\"yes\"}", "/components/surge", "want boolean"),
        ("flags=[\"--namespace=other\"]", "/flags/0", "does not match pattern"),
        ("flags=[\"--listen=[::]:1\"]", "/flags/0", "does not match pattern"),
        ("image={\"tag\":\"a b\"}", "/image/tag", "does not match pattern"),
        ("image={\"digest\":\"latest\"}", "/image/digest", "does not match pattern"),
        ("configuration={\"rules\":[]}", "/configuration", "missing properties"),
        (&format!("{rules}{{\"action\":\"Evit\"}}}}"), "/configuration/default/action", "oneOf"),
        (&format!("{rules}{{\"action\":\"Evict\",\"ttl\":\"10 min\"}}}}"), "/configuration/default/ttl", "pattern"),
        (&format!("{rules}{{\"action\":\"Record\"}},\"rule\":[]}}"), "/configuration", "'rule' not allowed"),
    ] {
        let said = error(template(&["--set-json", set]));
        assert!(said.contains(field) && said.contains(reason), "{set}: {said}");
    }
}

#[test]
#[ignore = "needs helm: hack/test cluster"]
fn another_namespace_is_refused_with_the_reason() {
    let said = error(helm(&["template", "pristine", CHART, "--namespace", "tools", "--kube-version", "v1.37.0"]));
    let expected = "Pristine runs in the namespace pristine-system, and not in \"tools\"";
    assert!(said.contains(expected) && said.contains("--namespace pristine-system"), "{said}");
    let said = error(template(&["--kube-version", "v1.29.9"]));
    assert!(said.contains("1.30.0") && said.contains("1.29.9"), "{said}");
}

#[test]
#[ignore = "needs helm: hack/test cluster"]
fn the_chart_passes_lint_and_is_packaged_whole() {
    let every: Vec<String> = components().iter().map(|component| value(component)).collect();
    let sets: Vec<&str> = every.iter().flat_map(|value| ["--set", value]).collect();
    for more in [&[][..], &sets] {
        text(helm(&[&["lint", "--strict", "--quiet", CHART, "--namespace", NAMESPACE][..], more].concat()));
    }
    let folder = tempfile::tempdir().unwrap();
    text(helm(&["package", CHART, "--destination", folder.path().to_str().unwrap()]));
    let package = folder.path().join(concat!("pristine-", env!("CARGO_PKG_VERSION"), ".tgz"));
    let packed = text(Command::new("tar").arg("tzf").arg(&package).output().unwrap());
    for file in files(CHART) {
        let name = format!("pristine/{}", file.strip_prefix(CHART).unwrap().display());
        assert!(packed.lines().any(|line| line == name), "{name} is not in the package: {packed}");
    }
    // What is packaged is what is in the folder.
    let unpacked = package.to_str().unwrap().to_owned();
    let of_package = ["template", "pristine", &unpacked, "--namespace", NAMESPACE, "--kube-version", "v1.37.0"];
    assert_eq!(objects(&text(helm(&of_package))), rendered(&[]));
}

#[test]
fn the_version_of_the_chart_is_the_version_of_the_crate() {
    let chart: Value = serde_saphyr::from_str(&read("manifests/chart/Chart.yaml")).unwrap();
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_schema_allows_flags_of_serve_and_components_that_exist() {
    let schema: Value = serde_json::from_str(&read("manifests/chart/values.schema.json")).unwrap();
    let pattern = schema["properties"]["flags"]["items"]["pattern"].as_str().unwrap();
    let (_, names) = pattern.split_once('(').unwrap();
    let names: Vec<&str> = names.split_once(')').unwrap().0.split('|').collect();
    let reference = read("docs/flags.md");
    let serve = reference.split("### pristine serve").nth(1).unwrap().split("###").next().unwrap();
    assert!(names.len() > 5 && names.iter().all(|name| serve.contains(&format!(" --{name} <"))), "{names:?}");

    let allowed: Vec<&String> = schema["properties"]["components"]["properties"].as_object().unwrap().keys().collect();
    let mut expected: Vec<String> = components().iter().map(|component| value(component)).collect();
    expected.retain(|value| value != "replicas=1");
    expected.sort();
    let allowed: Vec<String> = allowed.iter().map(|name| format!("components.{name}=true")).collect();
    assert_eq!(allowed, expected);
}
