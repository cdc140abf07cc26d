//! What `kubectl pristine doctor` says about the version of Kubernetes. Pure.

use k8s_openapi::apimachinery::pkg::version::Info;

use super::Finding::{self, Broken, Fine, Warning};

/// matchConditions and ValidatingAdmissionPolicies are stable since 1.30.
const OLDEST: u32 = 30;
/// The last version in which `get pods/exec` is enough to exec over WebSocket: since 1.35 API servers ask for `create` too.
const LAST_WITH_GET: u32 = 34;
/// The last version in which an API server keeps a TLS transport for each URL of a webhook.
const LAST_WITH_TRANSPORTS: u32 = 36;

/// The minor version of 1.x; none if it cannot be read.
pub(super) fn minor(version: &Info) -> Option<u32> {
    // Some providers add a plus.
    let digits = version.minor.trim_end_matches('+');
    if version.major == "1" { digits.parse().ok() } else { None }
}

/// Whether `get pods/exec` without `create` is enough to exec while Pristine is not installed.
pub(super) fn is_get_enough(minor: Option<u32>) -> bool {
    minor.is_some_and(|minor| minor <= LAST_WITH_GET)
}

/// Whether Pristine supports the version, and what an operator should know about it.
pub(super) fn judge(version: &Info) -> Finding {
    let name = &version.git_version;
    match minor(version) {
        None => {
            let fix = "see docs/compatibility.md for the versions that are tested".to_owned();
            Warning(format!("the version {name} is not a version of Kubernetes 1.x that doctor can read"), fix)
        }
        Some(minor) if minor < OLDEST => Broken(
            format!("{name} is older than 1.{OLDEST}: its webhooks and policies lack what protects exec and the marks"),
            format!("upgrade the cluster to Kubernetes 1.{OLDEST} or newer"),
        ),
        Some(minor) if minor <= LAST_WITH_TRANSPORTS => Fine(format!(
            "{name}; up to 1.{LAST_WITH_TRANSPORTS}, each renewal of the secret path leaves some 50 KiB in the memory of \
             each API server until it restarts"
        )),
        Some(_) => Fine(name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(major: &str, minor: &str) -> Info {
        let git_version = format!("v{major}.{minor}.1");
        Info { major: major.into(), minor: minor.into(), git_version, ..Info::default() }
    }

    #[test]
    fn a_version_before_1_30_is_broken_and_a_later_one_says_what_is_known_of_it() {
        let Broken(text, fix) = judge(&info("1", "29")) else { panic!() };
        assert!(text.starts_with("v1.29.1 is older than 1.30: ") && fix.ends_with("1.30 or newer"), "{text} {fix}");
        for minor in ["30", "36", "36+"] {
            let Fine(text) = judge(&info("1", minor)) else { panic!("{minor}") };
            assert!(text.contains("each renewal of the secret path leaves some 50 KiB"), "{text}");
        }
        let Fine(text) = judge(&info("1", "37")) else { panic!() };
        assert_eq!(text, "v1.37.1");
        assert!(matches!(judge(&info("2", "0")), Warning(..)) && matches!(judge(&info("1", "x")), Warning(..)));
    }

    #[test]
    fn get_is_enough_to_exec_up_to_1_34() {
        assert!(is_get_enough(Some(30)) && is_get_enough(minor(&info("1", "34+"))));
        assert!(!is_get_enough(Some(35)) && !is_get_enough(None));
    }
}
