//! The SBOM of the image names every crate that is built for it, and no other. What it is compared with does not come from the
//! program that writes it: Cargo.lock, `cargo tree`, and the list of crates in the binary of the image.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{read, root};

/// Name and version.
type Crate = (String, String);

#[test]
#[ignore = "needs the image: hack/image"]
fn the_sbom_names_each_crate_of_the_binary_with_its_checksum_and_no_other() {
    let sbom = sbom();
    let components = array(&sbom["components"]);
    let checksums = checksums();
    for component in components {
        let krate = named(component);
        let hash = &component["hashes"][0];
        assert_eq!(hash["alg"], "SHA-256", "{component}");
        assert_eq!(checksums.get(&krate), Some(&text(&hash["content"])), "{component}");
        assert_eq!(component["purl"], format!("pkg:cargo/{}@{}", krate.0, krate.1));
    }
    let scope = |scope: &str| -> BTreeSet<_> {
        components.iter().filter(|component| component["scope"] == scope).map(named).collect()
    };
    assert_eq!(differences(&tree("normal"), &scope("required")), []);
    // Not each crate that only builds need is built: a crate without a build script can name one.
    let (built, resolved) = (scope("excluded"), tree("normal,build"));
    assert_eq!(built.difference(&resolved).collect::<Vec<_>>(), Vec::<&Crate>::new(), "not of the build");
    assert_eq!(scope("required").len() + built.len(), components.len(), "a crate twice, or without a scope");
    assert!(scope("required").len() > 100 && built.len() > 2);
}

#[test]
#[ignore = "needs the image: hack/image"]
fn the_binary_in_the_image_names_the_crates_of_the_sbom() {
    let sbom = sbom();
    let itself = named(&sbom["metadata"]["component"]);
    let mut in_sbom: BTreeSet<_> = array(&sbom["components"]).iter().map(named).collect();
    in_sbom.insert(itself);

    let audit: Value = serde_json::from_slice(&list_of_crates(&binary_in_image())).unwrap();
    let packages = array(&audit["packages"]);
    let in_binary: BTreeSet<_> = packages.iter().map(named).collect();
    assert_eq!(in_sbom.difference(&in_binary).collect::<Vec<_>>(), Vec::<&Crate>::new(), "not in the binary");
    // What is linked is a stricter list than the SBOM's: without macros, which run in the compiler.
    let linked: BTreeSet<_> = packages.iter().filter(|package| package["kind"] != "build").map(named).collect();
    let wanted = tree("normal,no-proc-macro");
    assert_eq!(wanted.difference(&linked).collect::<Vec<_>>(), Vec::<&Crate>::new(), "not in the binary as linked");
    // cargo-auditable also lists some crates that Cargo.lock has and cargo does not compile: optional ones
    // (rust-lang/cargo#10801), and what a crate without a build script names for it.
    let checksums = checksums();
    let more: Vec<_> = in_binary.difference(&in_sbom).collect();
    assert!(more.iter().all(|krate| checksums.contains_key(*krate)), "{more:?}");
    assert!(more.len() < 10, "{more:?}");
}

fn sbom() -> Value {
    serde_json::from_str(&read("target/image/pristine.cdx.json")).unwrap()
}

fn differences(wanted: &BTreeSet<Crate>, found: &BTreeSet<Crate>) -> Vec<(&'static str, Crate)> {
    let missing = wanted.difference(found).map(|krate| ("missing", krate.clone()));
    missing.chain(found.difference(wanted).map(|krate| ("too many", krate.clone()))).collect()
}

/// What cargo resolves for this machine, without Pristine itself.
fn tree(edges: &str) -> BTreeSet<Crate> {
    let output = run(
        Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--prefix=none", "--no-dedupe", "--edges", edges])
            .current_dir(root()),
        b"",
    );
    String::from_utf8(output)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (name, version) = line.split_once(" v")?;
            let version = version.split(' ').next()?;
            Some((name.to_owned(), version.to_owned()))
        })
        .filter(|(name, _)| name != env!("CARGO_PKG_NAME"))
        .collect()
}

/// Of every crate in Cargo.lock that has one: all but Pristine itself.
fn checksums() -> BTreeMap<Crate, String> {
    let lock = read("Cargo.lock");
    let field = |package: &str, name: &str| {
        let (_, rest) = package.split_once(&format!("\n{name} = \""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|package| {
            let krate = (field(package, "name")?, field(package, "version")?);
            Some((krate, field(package, "checksum")?))
        })
        .collect()
}

/// The archive has an index, that names a manifest, that names one layer, that has one file.
fn binary_in_image() -> Vec<u8> {
    let archive = root().join("target/image/pristine.tar");
    let blob = |descriptor: &Value| {
        let digest = text(&descriptor["digest"]).replace(':', "/");
        extract(&archive, &format!("blobs/{digest}"))
    };
    let index: Value = serde_json::from_slice(&extract(&archive, "index.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
    assert_eq!(array(&manifest["layers"]).len(), 1, "{manifest}");
    let layer = blob(&manifest["layers"][0]);
    run(Command::new("tar").args(["-xzO", "pristine"]), &layer)
}

fn extract(archive: &Path, file: &str) -> Vec<u8> {
    run(Command::new("tar").arg("-xOf").arg(archive).arg(file), b"")
}

/// What cargo-auditable wrote into a binary: JSON, compressed, in a section of its own.
fn list_of_crates(binary: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pristine");
    let section = folder.path().join("section");
    std::fs::write(&file, binary).unwrap();
    let dump = format!("--dump-section=.dep-v0={}", section.display());
    run(Command::new("objcopy").arg(dump).arg(file).arg("/dev/null"), b"");
    let mut json = Vec::new();
    flate2::read::ZlibDecoder::new(std::fs::File::open(section).unwrap()).read_to_end(&mut json).unwrap();
    json
}

fn run(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{command:?}: {}", output.status);
    output.stdout
}

fn named(of: &Value) -> Crate {
    (text(&of["name"]), text(&of["version"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap()
}
