//! The plugin as krew installs it: from the archives and the manifest of `hack/krew package`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serial_test::parallel;
use tokio::process::Command;

use crate::{
    common::setting,
    kubectl::{Namespace, kubectl},
};

/// The platforms of the release, as in `linux_amd64`.
fn platforms() -> Vec<String> {
    let workflow = fs::read_to_string(in_repository(".github/workflows/release.yml")).unwrap();
    let behind = workflow.split("platform: ").skip(1);
    behind.map(|rest| rest.split([',', '}']).next().unwrap().to_owned()).collect()
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn host() -> String {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!("linux_{arch}")
}

fn success(output: &Output, what: &str) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {err}{out}");
    out.into_owned()
}

/// A release, and a user's folder of krew.
struct Krew {
    release: tempfile::TempDir,
    root: tempfile::TempDir,
}

impl Krew {
    /// Packs what `hack/krew build` built for this machine, and for each other platform a file in its place.
    async fn with_a_release() -> Self {
        let (release, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["hack", "manifests", "Cargo.toml", "LICENSE"] {
            symlink(in_repository(name), release.path().join(name)).unwrap();
        }
        for platform in platforms() {
            let folder = format!("target/plugin/kubectl-pristine_{platform}");
            fs::create_dir_all(release.path().join(&folder)).unwrap();
            if platform == host() {
                let program = format!("{folder}/kubectl-pristine");
                fs::copy(in_repository(&program), release.path().join(&program)).expect("hack/krew build built it");
            } else {
                let name = if platform.starts_with("windows") { "kubectl-pristine.exe" } else { "kubectl-pristine" };
                fs::write(release.path().join(folder).join(name), &platform).unwrap();
            }
        }
        let package = Command::new(release.path().join("hack/krew")).arg("package").output().await.unwrap();
        success(&package, "hack/krew package");
        // `krew uninstall` asks for the index that every user of krew has.
        let init = Command::new("git").args(["init", "--quiet"]).arg(root.path().join("index/default")).output().await;
        success(&init.unwrap(), "git init");
        Self { release, root }
    }

    /// The path of an archive or of the manifest.
    fn file(&self, name: &str) -> String {
        self.release.path().join("target/krew").join(name).display().to_string()
    }

    /// krew, as on this platform.
    async fn run(&self, platform: &str, words: &[&str]) -> Output {
        let (os, arch) = platform.split_once('_').unwrap();
        let program = setting("PRISTINE_KREW").expect("hack/test ecosystem sets PRISTINE_KREW");
        let mut command = Command::new(program);
        command.args(words).env("KREW_ROOT", self.root.path()).env("KREW_OS", os).env("KREW_ARCH", arch);
        // It would ask GitHub for a newer krew.
        command.env("KREW_NO_UPGRADE_CHECK", "1").stdin(Stdio::null()).kill_on_drop(true);
        command.output().await.unwrap()
    }

    async fn install(&self, platform: &str, archive: &str) -> Output {
        let (manifest, archive) = (self.file("pristine.yaml"), self.file(archive));
        self.run(platform, &["install", "--manifest", &manifest, "--archive", &archive]).await
    }

    fn path(&self) -> String {
        format!("{}:{}", self.root.path().join("bin").display(), setting("PATH").unwrap())
    }

    /// `kubectl pristine` with these words.
    async fn pristine(&self, words: &[&str]) -> Output {
        kubectl(&[&["pristine"][..], words].concat()).env("PATH", self.path()).output().await.unwrap()
    }
}

fn archive(platform: &str) -> String {
    format!("kubectl-pristine_v{}_{platform}.tar.gz", env!("CARGO_PKG_VERSION"))
}

#[tokio::test]
#[ignore = "needs a cluster and krew: hack/test ecosystem"]
#[parallel]
async fn krew_installs_the_plugin_and_every_shell_completes_it_until_krew_removes_it() {
    let (krew, host) = (Krew::with_a_release().await, host());
    success(&krew.install(&host, &archive(&host)).await, "krew install");
    let version = success(&krew.pristine(&["--version"]).await, "--version");
    assert_eq!(version.trim(), concat!("kubectl pristine ", env!("CARGO_PKG_VERSION")));
    assert!(success(&krew.pristine(&["--help"]).await, "--help").contains("Usage: kubectl pristine"));

    let ns = Namespace::new("t-mark-").await;
    ns.workload("StatefulSet", 1).await;
    ns.run(&["exec", "web-0", "--", "true"]).await;
    let listed = krew.pristine(&["get", "-n", &ns.name, "-o", "name"]).await;
    assert_eq!(success(&listed, "get"), "pod/web-0\n");

    // As docs/plugin.md and the caveats of the manifest say.
    let program = krew.root.path().join("bin/kubectl_complete-pristine");
    fs::write(&program, success(&krew.pristine(&["completion", "kubectl"]).await, "completion")).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let in_namespace = format!("kubectl pristine -n {} extend we", ns.name);
    let cases = ["kubectl pristine ext", "kubectl pristine get --no-h", "kubectl pristine get -o wi", &in_namespace];
    let expected = format!(
        "kubectl pristine extend\nkubectl pristine get --no-headers\nkubectl pristine get -o wide\n{in_namespace}b-0\n"
    );
    for (shell, setup) in [
        ("bash", "source /usr/share/bash-completion/bash_completion; source <(kubectl completion bash)"),
        ("zsh", "autoload -Uz compinit; compinit -u -D; source <(kubectl completion zsh)"),
        ("fish", "kubectl completion fish | source"),
    ] {
        let mut command = Command::new("python3");
        command.arg(in_repository("tests/process/completion.py")).args([shell, setup]).args(cases);
        let output = command.env("PATH", krew.path()).output().await.unwrap();
        assert_eq!(success(&output, shell), expected, "{shell}");
    }

    success(&krew.run(&host, &["uninstall", "pristine"]).await, "krew uninstall");
    let gone = krew.pristine(&["--version"]).await;
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("unknown command"), "{gone:?}");
}

#[tokio::test]
#[ignore = "needs krew: hack/test ecosystem"]
#[parallel]
async fn krew_installs_the_plugin_of_every_platform_of_the_release() {
    let krew = Krew::with_a_release().await;
    let platforms = platforms();
    for os in ["linux", "darwin", "windows"] {
        assert!(platforms.iter().any(|platform| platform.starts_with(os)), "{platforms:?}");
    }
    for platform in platforms.iter().filter(|platform| **platform != host()) {
        success(&krew.install(platform, &archive(platform)).await, platform);
        let name = if platform.starts_with("windows") { "kubectl-pristine.exe" } else { "kubectl-pristine" };
        let installed = fs::read_to_string(krew.root.path().join("bin").join(name)).unwrap();
        assert_eq!(installed, *platform);
        success(&krew.run(platform, &["uninstall", "pristine"]).await, "krew uninstall");
    }
    // krew compares the archive with the manifest.
    let other = krew.install(&host(), &archive("windows_amd64")).await;
    assert!(!other.status.success() && String::from_utf8_lossy(&other.stderr).contains("checksum"), "{other:?}");
}
