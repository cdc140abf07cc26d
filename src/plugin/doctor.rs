//! `kubectl pristine doctor`: checks whether Pristine works, and who can bypass it. It changes nothing.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    admissionregistration::v1::{
        ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhook, ValidatingWebhookConfiguration,
    },
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod},
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    bypass::{PERMISSIONS, Rbac},
    certs::{NAME, Trust},
    connection::Connection,
    format::{duration, plain},
    output::{Failure, emit, is_colourful},
};
use crate::{clock::Clock, config};

const POLICIES: [&str; 4] =
    ["mark.pods.pristine", "self.pods.pristine", "self.webhooks.pristine", "audit.pods.pristine"];
/// The policy of the component manifests/components/nodes-proxy-guard.
const NODES_PROXY: &str = "nodes-proxy.pristine";
const REAPPLY: &str = "kubectl apply -f manifests/install.yaml (of the installed version)";

/// The result of one check.
enum Finding {
    /// The check passed: what was found.
    Fine(String),
    /// An administrator should know: what was found, and what to do.
    Warning(String, String),
    /// A promise of Pristine does not hold: what was found, and what to do.
    Broken(String, String),
}

use Finding::{Broken, Fine, Warning};

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
    connection.call("get the Kubernetes version", connection.client.apiserver_version()).await?;
    let mut broken = 0;
    let trust = Trust::read(connection).await;
    let mut report = |what: &str, finding: Finding| {
        let (word, colour, text, fix) = match finding {
            Fine(text) => ("OK", 32, text, None),
            Warning(text, fix) => ("WARNING", 33, text, Some(fix)),
            Broken(text, fix) => {
                broken += 1;
                ("BROKEN", 31, text, Some(fix))
            }
        };
        let padded = format!("{word:7}");
        let word = if is_colourful() { format!("\x1b[{colour}m{padded}\x1b[0m") } else { padded };
        let fix = fix.map(|fix| format!("         to fix: {}\n", plain(&fix))).unwrap_or_default();
        emit(&format!("{word}  {what}: {}\n{fix}", plain(&text)))
    };
    report("webhook configuration", entries(connection).await)?;
    match &trust {
        Ok(trust) => {
            report("replicas", replicas(trust, &connection.pristine))?;
            report("certificates", certificates(trust, clock.now()))?;
        }
        Err(failure) => report("certificates", unknown(failure))?,
    }
    report("admission", admission(connection, trust.as_ref()).await)?;
    report("eviction", leader(connection, clock.now()).await)?;
    report("policies", policies(connection).await)?;
    report("configuration", configuration(connection).await)?;
    match rbac(connection).await {
        Err(failure) => report("RBAC", unknown(&failure))?,
        Ok(rbac) => {
            let api: Api<ValidatingAdmissionPolicyBinding> = Api::all(connection.client.clone());
            let guard = connection.call("get validatingadmissionpolicybindings", api.get_opt(NODES_PROXY)).await;
            for (what, finding) in bypasses(&rbac, guard.is_ok_and(|found| found.is_some())) {
                report(&what, finding)?;
            }
        }
    }
    if broken == 0 { Ok(()) } else { Err(Failure::new(format!("{broken} of the checks above are BROKEN"))) }
}

/// The webhook entries of the shipped manifest.
fn shipped() -> Vec<ValidatingWebhook> {
    let text = include_str!("../../manifests/base/webhook.yaml");
    let found: ValidatingWebhookConfiguration = serde_saphyr::from_str(text).unwrap_or_default();
    found.webhooks.unwrap_or_default()
}

async fn entries(connection: &Connection) -> Finding {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(connection.client.clone());
    let found = match connection.call("get validatingwebhookconfigurations", api.get_opt(NAME)).await {
        Ok(Some(found)) => found.webhooks.unwrap_or_default(),
        Ok(None) => {
            return Broken(
                format!("ValidatingWebhookConfiguration {NAME} does not exist: no exec is recorded"),
                REAPPLY.into(),
            );
        }
        Err(failure) => return unknown(&failure),
    };
    let shipped = shipped();
    let (mut broken, mut changed) = (Vec::new(), Vec::new());
    for entry in &shipped {
        let name = &entry.name;
        let Some(live) = found.iter().find(|live| live.name == *name) else {
            broken.push(format!("{name} is missing"));
            continue;
        };
        let is_empty =
            |selector: &Option<LabelSelector>| selector.as_ref().is_none_or(|it| *it == LabelSelector::default());
        if !is_empty(&live.object_selector) {
            broken.push(format!("{name} has an objectSelector: an exec has no labels, so the webhook is never called"));
        }
        if live.rules != entry.rules {
            broken.push(format!("the rules of {name} differ from the shipped ones"));
        }
        let service = |entry: &ValidatingWebhook| {
            entry.client_config.service.as_ref().map(|service| (service.name.clone(), service.namespace.clone()))
        };
        if service(live) != service(entry) {
            broken.push(format!("{name} calls another Service"));
        }
        if !is_empty(&live.namespace_selector) {
            changed.push(format!("{name} has a namespaceSelector: requests in other namespaces are not recorded"));
        }
        if live.match_conditions != entry.match_conditions {
            let why = "requests that they exclude are not recorded";
            changed.push(format!("the matchConditions of {name} differ from the shipped ones: {why}"));
        }
        if live.failure_policy != entry.failure_policy {
            let has = live.failure_policy.as_deref().unwrap_or("Fail");
            changed.push(format!(
                "{name} has failurePolicy {has}, but is shipped with {}",
                entry.failure_policy.as_deref().unwrap_or("Fail")
            ));
        }
    }
    let all = || broken.iter().chain(&changed).map(String::as_str).collect::<Vec<_>>().join("; ");
    match (broken.is_empty(), changed.is_empty()) {
        (false, _) => Broken(all(), REAPPLY.into()),
        (true, false) => {
            Warning(all(), "unless this is intended, apply the manifest again, with your components".into())
        }
        (true, true) => Fine(format!("{} entries, as shipped", shipped.len())),
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

async fn leader(connection: &Connection, now: Timestamp) -> Finding {
    let api: Api<Lease> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let found = match connection.call("get leases", api.get_opt("pristine")).await {
        Ok(found) => found.and_then(|lease| lease.spec).unwrap_or_default(),
        Err(failure) => return unknown(&failure),
    };
    let logs = format!("kubectl -n {} logs deployment/pristine", connection.pristine);
    match (found.holder_identity.filter(|holder| !holder.is_empty()), found.renew_time) {
        (Some(holder), Some(renewed)) => {
            let age = now.duration_since(renewed.0);
            if age > SignedDuration::from_secs(30) {
                return Broken(
                    format!("{holder} has not renewed its Lease for {}: no pod is evicted", duration(age)),
                    logs,
                );
            }
            Fine(format!("{holder} is the leader and evicts due pods"))
        }
        _ => Broken("no replica holds the Lease: no pod is evicted".to_owned(), logs),
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

async fn configuration(connection: &Connection) -> Finding {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let found = match connection.call("get configmaps", api.get_opt("pristine")).await {
        Ok(found) => found.and_then(|map| map.data).and_then(|mut data| data.remove("pristine.yaml")),
        Err(failure) => return unknown(&failure),
    };
    let edit = format!("kubectl -n {} edit configmap pristine", connection.pristine);
    let Some(text) = found else {
        return Broken("ConfigMap pristine with the key pristine.yaml does not exist".to_owned(), REAPPLY.into());
    };
    match config::parse("pristine.yaml", &text) {
        Ok(read) => Fine(format!("{} rules and a default", read.policy.rules.len())),
        Err(error) => Broken(format!("{error}; the previous configuration is in force"), edit),
    }
}

async fn rbac(connection: &Connection) -> Result<Rbac, Failure> {
    let (client, all) = (|| connection.client.clone(), ListParams::default());
    let ours = &connection.pristine;
    Ok(Rbac {
        cluster_roles: connection.call("list clusterroles", Api::<ClusterRole>::all(client()).list(&all)).await?.items,
        cluster_role_bindings: connection
            .call("list clusterrolebindings", Api::<ClusterRoleBinding>::all(client()).list(&all))
            .await?
            .items,
        roles: connection.call("list roles", Api::<Role>::namespaced(client(), ours).list(&all)).await?.items,
        role_bindings: connection
            .call("list rolebindings", Api::<RoleBinding>::namespaced(client(), ours).list(&all))
            .await?
            .items,
    })
}

/// One finding for each permission that has holders, and one for the cluster admins.
fn bypasses(rbac: &Rbac, nodes_proxy_is_guarded: bool) -> Vec<(String, Finding)> {
    let mut all = Vec::new();
    for permission in PERMISSIONS {
        let holders = rbac.holders(permission);
        if holders.is_empty() {
            continue;
        }
        let what = format!("{} {}", permission.verbs.join("/"), permission.resource);
        let who: Vec<String> =
            holders.iter().map(|holder| format!("{} ({})", holder.subject, holder.binding)).collect();
        let who = who.join(", ");
        all.push(if permission.resource == "nodes/proxy" && nodes_proxy_is_guarded {
            let guard = "restricts it to metrics and lists, except for direct access to port 10250 of a node";
            (what, Fine(format!("{who} can use it; the policy {NODES_PROXY} {guard}")))
        } else {
            (what, Warning(format!("{who} can {}", permission.allows), permission.fix.to_owned()))
        });
    }
    let admins: Vec<String> = rbac.cluster_admins().into_iter().map(|holder| holder.subject).collect();
    let admins = if admins.is_empty() { "<none>".to_owned() } else { admins.join(", ") };
    all.push(("RBAC".to_owned(), Fine(format!("full access to the cluster: {admins}"))));
    all
}
