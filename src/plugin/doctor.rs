//! `kubectl pristine doctor`: does it work, and who can get around it? It changes nothing.

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
    bypass::{RIGHTS, Rbac},
    certs::{NAME, Trust},
    connection::Connection,
    format::{duration, plain},
    output::{Failure, emit, is_colourful},
};
use crate::{clock::Clock, config};

const POLICIES: [&str; 3] = ["mark.pods.pristine", "self.pods.pristine", "audit.pods.pristine"];
/// The policy of manifests/components/nodes-proxy-guard.
const NODES_PROXY: &str = "nodes-proxy.pristine";
const REAPPLY: &str = "kubectl apply -f manifests/install.yaml (of the version that runs)";

/// What came of one question.
enum Finding {
    /// All is well, and what was seen.
    Fine(String),
    /// Somebody should know.
    Warning(String, String),
    /// A promise does not hold; and what to do.
    Broken(String, String),
}

use Finding::{Broken, Fine, Warning};

/// A question that could not be asked, because its user may not.
fn unknown(failure: &Failure) -> Finding {
    Warning(format!("cannot be checked: {}", failure.message), "ask somebody who may, or be granted that".to_owned())
}

/// Asks them all.
///
/// # Errors
/// That something is broken.
pub async fn run(connection: &Connection, clock: &Clock) -> Result<(), Failure> {
    // Without an answer to this there is nothing to be found out.
    connection.call("get the version of Kubernetes", connection.client.apiserver_version()).await?;
    let mut broken = 0;
    let trust = Trust::read(connection).await;
    let mut tell = |what: &str, finding: Finding| {
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
        let fix = fix.map(|fix| format!("         to fix it: {}\n", plain(&fix))).unwrap_or_default();
        emit(&format!("{word}  {what}: {}\n{fix}", plain(&text)))
    };
    tell("webhook configuration", entries(connection).await)?;
    match &trust {
        Ok(trust) => {
            tell("replicas", replicas(trust, &connection.pristine))?;
            tell("certificates", certificates(trust, clock.now()))?;
        }
        Err(failure) => tell("certificates", unknown(failure))?,
    }
    tell("admission", admission(connection, trust.as_ref()).await)?;
    tell("eviction", leader(connection, clock.now()).await)?;
    tell("policies", policies(connection).await)?;
    tell("configuration", configuration(connection).await)?;
    match rbac(connection).await {
        Err(failure) => tell("ways around it", unknown(&failure))?,
        Ok(rbac) => {
            let api: Api<ValidatingAdmissionPolicyBinding> = Api::all(connection.client.clone());
            let guard = connection.call("get validatingadmissionpolicybindings", api.get_opt(NODES_PROXY)).await;
            for (what, finding) in around(&rbac, guard.is_ok_and(|found| found.is_some())) {
                tell(&what, finding)?;
            }
        }
    }
    if broken == 0 { Ok(()) } else { Err(Failure::new(format!("{broken} of the above are broken"))) }
}

/// What was installed.
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
                format!("there is no ValidatingWebhookConfiguration {NAME}: no exec is seen"),
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
            broken.push(format!("{name} has an objectSelector, and an exec has no labels, so it is never seen"));
        }
        if live.rules != entry.rules {
            broken.push(format!("{name} has other rules"));
        }
        let service = |entry: &ValidatingWebhook| {
            entry.client_config.service.as_ref().map(|service| (service.name.clone(), service.namespace.clone()))
        };
        if service(live) != service(entry) {
            broken.push(format!("{name} calls something else"));
        }
        if !is_empty(&live.namespace_selector) {
            changed.push(format!("{name} has a namespaceSelector: execs elsewhere are not seen"));
        }
        if live.match_conditions != entry.match_conditions {
            changed.push(format!("{name} has other matchConditions: whoever they leave out is not seen"));
        }
        if live.failure_policy != entry.failure_policy {
            let has = live.failure_policy.as_deref().unwrap_or("Fail");
            changed.push(format!(
                "{name} has failurePolicy {has}, and was shipped with {}",
                entry.failure_policy.as_deref().unwrap_or("Fail")
            ));
        }
    }
    let all = || broken.iter().chain(&changed).map(String::as_str).collect::<Vec<_>>().join("; ");
    match (broken.is_empty(), changed.is_empty()) {
        (false, _) => Broken(all(), REAPPLY.into()),
        (true, false) => Warning(all(), "if nobody means it so, apply the manifest again, with your components".into()),
        (true, true) => Fine(format!("{} entries, as shipped", shipped.len())),
    }
}

fn replicas(trust: &Trust, namespace: &str) -> Finding {
    let (all, ready) = (trust.replicas.len(), trust.replicas.iter().filter(|replica| replica.is_ready).count());
    let logs = format!("kubectl -n {namespace} get pods; kubectl -n {namespace} logs deployment/pristine");
    match ready {
        0 => Broken(format!("none of {all} is Ready: every exec is refused, but for break-glass"), logs),
        1 => Warning(format!("1 of {all} is Ready: if it goes, execs are refused"), logs),
        _ if ready < all => Warning(format!("{ready} of {all} are Ready"), logs),
        _ => Fine(format!("{ready} of {all} are Ready")),
    }
}

fn certificates(trust: &Trust, now: Timestamp) -> Finding {
    let look = || "kubectl pristine certs; kubectl -n pristine-system logs deployment/pristine".to_owned();
    if !trust.is_one_bundle() {
        return Broken("caBundle is empty, or not the same in all entries".to_owned(), look());
    }
    let ready = || trust.replicas.iter().filter(|replica| replica.is_ready);
    if let Some(replica) = ready().find(|replica| replica.version.is_none()) {
        return Warning(format!("{} does not say what it serves", replica.name), look());
    }
    if let Some(replica) = ready().find(|replica| trust.trusted_until(replica, now).is_none()) {
        return Broken(format!("what {} serves is not trusted by caBundle", replica.name), look());
    }
    match ready().filter_map(|replica| trust.trusted_until(replica, now)).min() {
        Some(until) => Fine(format!("caBundle trusts every replica, until {until:.0} at least; renewed before")),
        None => Broken("no replica serves a certificate".to_owned(), look()),
    }
}

/// The API server calls the webhook for this, as for an exec, and nothing is written: it is a dry run that adds nothing.
async fn admission(connection: &Connection, trust: Result<&Trust, &Failure>) -> Finding {
    let replica = match trust {
        Ok(trust) => trust.replicas.first(),
        Err(failure) => return unknown(failure),
    };
    let Some(replica) = replica else {
        return Warning("there is no pod of Pristine to try it on".to_owned(), REAPPLY.to_owned());
    };
    let api: Api<Pod> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": []}}));
    let is_closed = trust.is_ok_and(|trust| trust.is_closed);
    let asked = tokio::time::Instant::now();
    match connection.call("patch pods/ephemeralcontainers", api.patch_ephemeral_containers(&replica.name, &params, &patch)).await {
        Ok(_) if !is_closed => Warning(
            "cannot be told: the entry debug.pods.pristine lets requests by when the webhook fails".to_owned(),
            "look at pristine_admission_requests_total, or at apiserver_admission_webhook_fail_open_count".to_owned(),
        ),
        Ok(_) => Fine(format!("the API server calls the webhook and trusts it ({} ms, dry run)", asked.elapsed().as_millis())),
        Err(failure) if failure.message.contains("failed calling webhook") => Broken(
            failure.message,
            "kubectl pristine certs; does a NetworkPolicy or a firewall keep the API server from port 10250 of the pods?".to_owned(),
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
                    format!("{holder} has not renewed its lease for {}: nothing is evicted", duration(age)),
                    logs,
                );
            }
            Fine(format!("{holder} evicts what is due"))
        }
        _ => Broken("no replica has the lease: nothing is evicted".to_owned(), logs),
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
            return Broken(format!("the policy {name} is missing, or not bound for all with {action}"), REAPPLY.into());
        }
    }
    Fine("marks are guarded, and Pristine's own account is confined".to_owned())
}

async fn configuration(connection: &Connection) -> Finding {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), &connection.pristine);
    let found = match connection.call("get configmaps", api.get_opt("pristine")).await {
        Ok(found) => found.and_then(|map| map.data).and_then(|mut data| data.remove("pristine.yaml")),
        Err(failure) => return unknown(&failure),
    };
    let edit = format!("kubectl -n {} edit configmap pristine", connection.pristine);
    let Some(text) = found else {
        return Broken("there is no ConfigMap pristine with pristine.yaml".to_owned(), REAPPLY.into());
    };
    match config::parse("pristine.yaml", &text) {
        Ok(read) => Fine(format!("{} rules and a default", read.policy.rules.len())),
        Err(error) => Broken(format!("{error}; the one before it is in force"), edit),
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

fn around(rbac: &Rbac, nodes_proxy_is_guarded: bool) -> Vec<(String, Finding)> {
    let mut all = Vec::new();
    for right in RIGHTS {
        let holders = rbac.holders(right);
        if holders.is_empty() {
            continue;
        }
        let what = format!("{} {}", right.verbs.join("/"), right.resource);
        let who: Vec<String> =
            holders.iter().map(|holder| format!("{} ({})", holder.subject, holder.binding)).collect();
        let who = who.join(", ");
        all.push(if right.resource == "nodes/proxy" && nodes_proxy_is_guarded {
            (what, Fine(format!("{who} may, and {NODES_PROXY} leaves metrics and lists of it, but for who reaches port 10250 of a node")))
        } else {
            (what, Warning(format!("{who} may {}", right.leads_to), right.fix.to_owned()))
        });
    }
    let masters: Vec<String> = rbac.masters().into_iter().map(|holder| holder.subject).collect();
    let masters = if masters.is_empty() { "nobody that RBAC names".to_owned() } else { masters.join(", ") };
    all.push(("ways around it".to_owned(), Fine(format!("everything may be done by {masters}"))));
    all
}
