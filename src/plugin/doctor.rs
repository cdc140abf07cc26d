//! `kubectl pristine doctor`: checks whether Pristine works, and who can bypass it. It changes nothing.

use jiff::Timestamp;
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
    },
    core::v1::Pod,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    certs::{NAME, Trust},
    connection::Connection,
    format::plain,
    output::{Failure, emit, is_colourful},
};
use crate::{
    api::webhook::{
        self,
        check::{ACCEPTED, Weakness, check, list},
    },
    clock::Clock,
};

mod bypasses;
mod configuration;
mod evictions;
mod placement;
mod surges;
mod version;
use evictions::evictions;

const POLICIES: [&str; 4] =
    ["mark.pods.pristine", "self.pods.pristine", "self.webhooks.pristine", "audit.pods.pristine"];
const REAPPLY: &str = "kubectl apply -f manifests/install.yaml (of the installed version)";

/// The result of one check.
enum Finding {
    /// The check passed: what was found.
    Fine(String),
    /// An administrator should know: what was found, and what to do.
    Warning(String, String),
    /// A promise of Pristine does not hold: what was found, and what to do.
    Broken(String, String),
    /// Something that is often right as it is: what was found, and how to find out.
    Note(String, String),
}

use Finding::{Broken, Fine, Note, Warning};

/// A check that could not run, most often because the user lacks a permission.
fn unknown(failure: &Failure) -> Finding {
    let fix = "if a permission is missing, run doctor as a user who has it".to_owned();
    Warning(format!("cannot check: {}", failure.message), fix)
}

/// Runs all checks.
///
/// # Errors
/// If a check finds something broken.
pub async fn run(connection: &Connection, clock: &Clock) -> Result<(), Failure> {
    // If the API server does not answer this request, no check can run.
    let kubernetes = connection.call("get the Kubernetes version", connection.client.apiserver_version()).await?;
    let mut broken = 0;
    let trust = Trust::read(connection).await;
    let mut report = |what: &str, finding: Finding| {
        let (word, colour, text, advice) = match finding {
            Fine(text) => ("OK", 32, text, None),
            Note(text, advice) => ("NOTE", 36, text, Some(("to check", advice))),
            Warning(text, fix) => ("WARNING", 33, text, Some(("to fix", fix))),
            Broken(text, fix) => {
                broken += 1;
                ("BROKEN", 31, text, Some(("to fix", fix)))
            }
        };
        let padded = format!("{word:7}");
        let word = if is_colourful() { format!("\x1b[{colour}m{padded}\x1b[0m") } else { padded };
        let advice = advice.map(|(what, advice)| format!("         {what}: {}\n", plain(&advice))).unwrap_or_default();
        emit(&format!("{word}  {what}: {}\n{advice}", plain(&text)))
    };
    report("Kubernetes", version::judge(&kubernetes))?;
    report("webhook configuration", entries(connection).await)?;
    match &trust {
        Ok(trust) => {
            report("replicas", replicas(trust, &connection.pristine))?;
            if let Some(finding) = placement::placement(connection, trust).await {
                report("replicas", finding)?;
            }
            report("certificates", certificates(trust, clock.now()))?;
        }
        Err(failure) => report("certificates", unknown(failure))?,
    }
    report("admission", admission(connection, trust.as_ref()).await)?;
    for finding in
        evictions(connection, clock.now()).await.into_iter().chain(surges::surges(connection, clock.now()).await)
    {
        report("eviction", finding)?;
    }
    report("policies", policies(connection).await)?;
    let (in_force, own) = configuration::configuration(connection).await;
    report("configuration", in_force)?;
    if let Ok(Trust { replicas, .. }) = &trust
        && let Some(finding) =
            configuration::idle(&own, replicas.iter().map(|replica| replica.undecided.as_ref()), clock.now())
    {
        report("rules", finding)?;
    }
    for (what, finding) in bypasses::bypasses(connection, version::minor(&kubernetes)).await {
        report(&what, finding)?;
    }
    if broken == 0 { Ok(()) } else { Err(Failure::new(format!("{broken} of the checks above are BROKEN"))) }
}

async fn entries(connection: &Connection) -> Finding {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(connection.client.clone());
    match connection.call("get validatingwebhookconfigurations", api.get_opt(NAME)).await {
        Ok(live) => compared(&check(live.as_ref(), NAME, &connection.pristine)),
        Err(failure) => unknown(&failure),
    }
}

/// The finding about the webhook configuration, which each replica also reports.
fn compared(found: &[Weakness]) -> Finding {
    let (accepted, open): (Vec<_>, Vec<_>) = found.iter().partition(|weakness| weakness.is_accepted);
    let listed = || format!("accepted by the annotation {ACCEPTED}: {}", list(accepted.iter().copied()));
    let mut text = list(open.iter().copied());
    if !open.is_empty() {
        if !accepted.is_empty() {
            text = format!("{text}; {}", listed());
        }
        return Broken(text, format!("{REAPPLY}, with your components"));
    }
    let count = webhook::check::entries();
    if accepted.is_empty() {
        Fine(format!("{count} entries, as shipped"))
    } else {
        Fine(format!("{count} entries; {}", listed()))
    }
}

fn replicas(trust: &Trust, namespace: &str) -> Finding {
    let (all, ready) = (trust.replicas.len(), trust.replicas.iter().filter(|replica| replica.is_ready).count());
    let logs = format!("kubectl -n {namespace} get pods; kubectl -n {namespace} logs deployment/pristine");
    match ready {
        0 => Broken(format!("0 of {all} are Ready: every exec is denied, except for break-glass"), logs),
        1 => Warning(
            format!("1 of {all} is Ready: if that replica fails, every exec is denied, except for break-glass"),
            logs,
        ),
        _ if ready < all => Warning(format!("{ready} of {all} are Ready"), logs),
        _ => Fine(format!("{ready} of {all} are Ready")),
    }
}

fn certificates(trust: &Trust, now: Timestamp) -> Finding {
    let inspect = || "kubectl pristine certs; kubectl -n pristine-system logs deployment/pristine".to_owned();
    if !trust.is_one_bundle() {
        return Broken("caBundle is empty, or differs between the webhook entries".to_owned(), inspect());
    }
    let ready = || trust.replicas.iter().filter(|replica| replica.is_ready);
    if let Some(replica) = ready().find(|replica| replica.version.is_none()) {
        return Warning(format!("replica {} has not published its serving certificate", replica.name), inspect());
    }
    if let Some(replica) = ready().find(|replica| trust.trusted_until(replica, now).is_none()) {
        return Broken(
            format!("caBundle does not trust the serving certificate of replica {}", replica.name),
            inspect(),
        );
    }
    match ready().filter_map(|replica| trust.trusted_until(replica, now)).min() {
        Some(until) => {
            Fine(format!("caBundle trusts every replica until at least {until:.0}; Pristine renews before that"))
        }
        None => Broken("no Ready replica serves a certificate".to_owned(), inspect()),
    }
}

/// Makes the API server call the webhook as for an exec. Nothing is written, because the request is a dry run that adds
/// no container.
async fn admission(connection: &Connection, trust: Result<&Trust, &Failure>) -> Finding {
    let replica = match trust {
        Ok(trust) => trust.replicas.first(),
        Err(failure) => return unknown(failure),
    };
    let Some(replica) = replica else {
        return Warning("cannot check: Pristine has no pod for the dry run".to_owned(), REAPPLY.to_owned());
    };
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": []}}));
    let is_closed = trust.is_ok_and(|trust| trust.is_closed);
    let start = tokio::time::Instant::now();
    let request = api.patch_ephemeral_containers(&replica.name, &params, &patch);
    match connection.call("patch pods/ephemeralcontainers", request).await {
        Ok(_) if !is_closed => Warning(
            "cannot check: debug.pods.pristine does not have failurePolicy Fail, so the dry run succeeds even if the \
             webhook fails"
                .to_owned(),
            "check pristine_admission_requests_total or apiserver_admission_webhook_fail_open_count".to_owned(),
        ),
        Ok(_) => {
            let time = start.elapsed().as_millis();
            Fine(format!("the API server reaches the webhook and trusts its certificate ({time} ms, dry run)"))
        }
        Err(failure) if failure.message.contains("failed calling webhook") => Broken(
            failure.message,
            "kubectl pristine certs; check that no NetworkPolicy or firewall blocks the API server from port 10250 of \
             the pods"
                .to_owned(),
        ),
        Err(failure) => unknown(&failure),
    }
}

async fn policies(connection: &Connection) -> Finding {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(connection.client.clone());
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(connection.client.clone());
    for name in POLICIES {
        let policy = connection.call("get validatingadmissionpolicies", policies.get_opt(name)).await;
        let binding = connection.call("get validatingadmissionpolicybindings", bindings.get_opt(name)).await;
        let (policy, binding) = match (policy, binding) {
            (Ok(policy), Ok(binding)) => (policy, binding),
            (Err(failure), _) | (_, Err(failure)) => return unknown(&failure),
        };
        let action = if name.starts_with("audit") { "Audit" } else { "Deny" };
        let spec = binding.and_then(|binding| binding.spec).unwrap_or_default();
        let acts =
            spec.validation_actions.iter().flatten().any(|word| word == action) && spec.match_resources.is_none();
        if policy.is_none() || !acts {
            return Broken(
                format!("ValidatingAdmissionPolicy {name} is missing, or is not bound with {action} for all requests"),
                REAPPLY.into(),
            );
        }
    }
    Fine("marks are protected, and Pristine's ServiceAccount is restricted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weakness_is_broken_and_an_accepted_one_is_listed() {
        let weakness = |field, is_accepted| {
            let what = format!("{field} is weak");
            Weakness { entry: Some("exec.pods.pristine"), field, what, is_accepted }
        };
        let (open, accepted) = (weakness("rules", false), weakness("failurePolicy", true));
        let listed =
            "accepted by the annotation pristine/accepted-deviations: exec.pods.pristine: failurePolicy is weak";
        let Broken(text, fix) = compared(&[accepted.clone(), open.clone()]) else { panic!() };
        assert_eq!(text, format!("exec.pods.pristine: rules is weak; {listed}"));
        assert!(fix.starts_with("kubectl apply -f manifests/install.yaml"), "{fix}");
        let Broken(text, _) = compared(&[open]) else { panic!() };
        assert_eq!(text, "exec.pods.pristine: rules is weak");
        let Fine(text) = compared(&[accepted]) else { panic!() };
        assert_eq!(text, format!("4 entries; {listed}"));
        let Fine(text) = compared(&[]) else { panic!() };
        assert_eq!(text, "4 entries, as shipped");
    }
}
