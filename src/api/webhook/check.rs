//! Compares a live `ValidatingWebhookConfiguration` with the shipped one, and says what is weaker. Pure.
//!
//! Equivalent and broader is fine. What is weaker is either a way past Pristine, or a lock-out of break-glass.

use std::{fmt, sync::LazyLock};

use k8s_openapi::{
    api::admissionregistration::v1::{RuleWithOperations, ValidatingWebhook, ValidatingWebhookConfiguration},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

/// The annotation of the configuration in which an operator lists the fields that deviate on purpose.
pub const ACCEPTED: &str = "pristine/accepted-deviations";

/// The fields that an operator may list there. No cluster works without the others.
pub const ACCEPTABLE: [&str; 5] = ["failurePolicy", "matchConditions", "namespaceSelector", "timeoutSeconds", "rules"];

/// The entry for break-glass: it must not deny a request while no replica answers.
const BREAK_GLASS: &str = "break-glass.pods.pristine";

static SHIPPED: LazyLock<ValidatingWebhookConfiguration> = LazyLock::new(|| {
    let text = include_str!("../../../manifests/base/webhook.yaml");
    serde_saphyr::from_str(text).expect("the shipped manifest is valid")
});

/// One way in which the live configuration is weaker than the shipped one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Weakness {
    /// The name of the entry; none if the configuration itself does not exist.
    pub entry: Option<&'static str>,
    /// The field, as [`ACCEPTED`] names it.
    pub field: &'static str,
    /// What is weaker, and what follows from it.
    pub what: String,
    /// Whether an operator accepts it in the annotation [`ACCEPTED`].
    pub is_accepted: bool,
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some(entry) => write!(f, "{entry}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// The weaknesses in one line.
#[must_use]
pub fn list<'a>(weaknesses: impl IntoIterator<Item = &'a Weakness>) -> String {
    weaknesses.into_iter().map(Weakness::to_string).collect::<Vec<_>>().join("; ")
}

/// The shipped configuration.
#[must_use]
pub fn shipped() -> &'static ValidatingWebhookConfiguration {
    &SHIPPED
}

/// The number of shipped entries.
#[must_use]
pub fn entries() -> usize {
    SHIPPED.webhooks.iter().flatten().count()
}

/// What is weaker in the live configuration, whose entries must call this Service in this namespace.
#[must_use]
pub fn check(live: Option<&ValidatingWebhookConfiguration>, service: &str, namespace: &str) -> Vec<Weakness> {
    let Some(live) = live else {
        let what = "the ValidatingWebhookConfiguration does not exist: no interaction is recorded".to_owned();
        return vec![Weakness { entry: None, field: "metadata", what, is_accepted: false }];
    };
    let accepted = live.metadata.annotations.as_ref().and_then(|all| all.get(ACCEPTED)).map_or("", String::as_str);
    let accepted: Vec<&str> = accepted.split(',').map(str::trim).filter(|field| ACCEPTABLE.contains(field)).collect();
    let mut found = Vec::new();
    for shipped in SHIPPED.webhooks.iter().flatten() {
        let mut weak = |field, what| {
            let is_accepted = accepted.contains(&field);
            found.push(Weakness { entry: Some(&shipped.name), field, what, is_accepted });
        };
        match live.webhooks.iter().flatten().find(|entry| entry.name == shipped.name) {
            None => weak("webhooks", "the entry is missing: its requests are not recorded".to_owned()),
            Some(entry) => {
                target(entry, service, namespace, &mut weak);
                coverage(entry, shipped, &mut weak);
                conditions(entry, shipped, &mut weak);
                failure(entry, shipped, &mut weak);
            }
        }
    }
    found
}

/// Whether the entry calls us, in a version of the review that we read.
fn target(entry: &ValidatingWebhook, name: &str, namespace: &str, weak: &mut impl FnMut(&'static str, String)) {
    match &entry.client_config.service {
        None => weak("clientConfig", format!("the entry calls a URL, not the Service {namespace}/{name}")),
        Some(live) if live.name != name || live.namespace != namespace => {
            let other = format!("{}/{}", live.namespace, live.name);
            weak("clientConfig", format!("the entry calls the Service {other}, not {namespace}/{name}"));
        }
        Some(live) => {
            if let Some(port) = live.port.filter(|port| *port != 443) {
                weak("clientConfig", format!("the entry calls port {port} of the Service, not 443"));
            }
        }
    }
    if !entry.admission_review_versions.iter().any(|version| version == "v1") {
        let what = "admissionReviewVersions has no v1: Pristine cannot read the reviews".to_owned();
        weak("admissionReviewVersions", what);
    }
}

/// Whether the entry is called for every object that the shipped one is called for.
fn coverage(live: &ValidatingWebhook, shipped: &ValidatingWebhook, weak: &mut impl FnMut(&'static str, String)) {
    for rule in shipped.rules.iter().flatten() {
        for operation in rule.operations.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                if !live.rules.iter().flatten().any(|live| covers(live, rule, operation, resource)) {
                    let what = format!("no rule covers {operation} of {resource}: these requests are not recorded");
                    weak("rules", what);
                }
            }
        }
    }
    let selects =
        |selector: &Option<LabelSelector>| selector.as_ref().is_some_and(|it| *it != LabelSelector::default());
    if selects(&live.namespace_selector) {
        let what = "a namespaceSelector is set: requests in the namespaces that it excludes are not recorded";
        weak("namespaceSelector", what.to_owned());
    }
    if selects(&live.object_selector) {
        let what = "an objectSelector is set: the object of an exec has no labels, so no exec is recorded";
        weak("objectSelector", what.to_owned());
    }
}

fn covers(live: &RuleWithOperations, shipped: &RuleWithOperations, operation: &str, resource: &str) -> bool {
    let has = |words: &Option<Vec<String>>, word: &str| words.iter().flatten().any(|it| it == word || it == "*");
    let has_all = |live: &Option<Vec<String>>, shipped: &Option<Vec<String>>| {
        shipped.iter().flatten().all(|word| has(live, word))
    };
    let scope = live.scope.as_deref().unwrap_or("*");
    has_all(&live.api_groups, &shipped.api_groups)
        && has_all(&live.api_versions, &shipped.api_versions)
        && has(&live.operations, operation)
        && live.resources.iter().flatten().any(|pattern| matches(pattern, resource))
        && (scope == "*" || Some(scope) == shipped.scope.as_deref())
}

/// As the API server compares them: `*` means every resource, but no subresource.
fn matches(pattern: &str, resource: &str) -> bool {
    let (pattern, pattern_sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
    (pattern == "*" || pattern == resource) && (pattern_sub == "*" || pattern_sub == sub)
}

/// Whether the conditions exclude no more than the shipped ones, and no less.
fn conditions(live: &ValidatingWebhook, shipped: &ValidatingWebhook, weak: &mut impl FnMut(&'static str, String)) {
    let ours = || shipped.match_conditions.iter().flatten();
    for condition in live.match_conditions.iter().flatten() {
        let name = &condition.name;
        let differs = match ours().find(|ours| ours.name == *name) {
            None => "is not shipped",
            Some(ours) if ours.expression != condition.expression => "is not as shipped",
            Some(_) => continue,
        };
        weak(
            "matchConditions",
            format!("the matchCondition {name} {differs}: requests that it excludes are not recorded"),
        );
    }
    for ours in ours() {
        if !live.match_conditions.iter().flatten().any(|live| live.name == ours.name) {
            let follows = if is_closed(live) {
                "break-glass is denied while no replica answers"
            } else {
                "the entry is called for every request"
            };
            weak("matchConditions", format!("the matchCondition {} is missing: {follows}", ours.name));
        }
    }
}

/// What happens if no replica answers, and how soon.
fn failure(live: &ValidatingWebhook, shipped: &ValidatingWebhook, weak: &mut impl FnMut(&'static str, String)) {
    match (is_closed(shipped), is_closed(live)) {
        (true, false) => {
            let what = "failurePolicy is Ignore, not Fail: requests are not recorded while no replica answers";
            weak("failurePolicy", what.to_owned());
        }
        (false, true) if shipped.name == BREAK_GLASS => {
            let what = "failurePolicy is Fail, not Ignore: break-glass is denied while no replica answers";
            weak("failurePolicy", what.to_owned());
        }
        _ => {}
    }
    // 10 is the default of the API server.
    let (seconds, shipped) = (live.timeout_seconds.unwrap_or(10), shipped.timeout_seconds.unwrap_or(10));
    if seconds < shipped {
        let what = format!("timeoutSeconds is {seconds}, not {shipped}: no time is left for handing over");
        weak("timeoutSeconds", what);
    }
}

fn is_closed(entry: &ValidatingWebhook) -> bool {
    entry.failure_policy.as_deref().is_none_or(|policy| policy == "Fail")
}

#[cfg(test)]
mod tests;
