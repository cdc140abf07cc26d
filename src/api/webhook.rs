//! The `ValidatingWebhookConfiguration`: without it, the API server does not call Pristine at all.
//!
//! | file | subject |
//! |---|---|
//! | here | which entries are ours, and what they contain (pure) |
//! | `path` | the secret URL path (pure) |
//! | `check` | what is weaker than shipped (pure) |
//! | `watch` | the only watch of the object |
//! | `writer` | reads the object, writes it and deletes it |
//! | `enforcement` | reports what is weaker |
//! | `heal` | whether a deleted one is created again, and with which content (pure) |
//! | `healer` | creates it again |

use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration};

use self::path::Paths;

pub mod check;
pub mod enforcement;
pub mod heal;
pub mod healer;
pub mod path;
pub mod watch;
pub mod writer;

/// The annotation with the generation of the store that caBundle was written from.
pub const GENERATION: &str = "pristine/generation";
/// The annotation with the time at which the secret path was renewed.
const PATH_RENEWED_AT: &str = "pristine/path-renewed-at";

/// The name of the configuration, and the Service by which we know our entries in it.
#[derive(Clone, Debug)]
pub struct Names {
    /// The `ValidatingWebhookConfiguration`.
    pub configuration: String,
    /// The Service that the webhook entries name.
    pub service: String,
    /// The namespace of the Service, which is ours.
    pub namespace: String,
}

impl Names {
    /// The name that API servers verify in the serving certificate.
    #[must_use]
    pub fn dns(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// The entries that call our Service. Others in the same object are not Pristine's.
    fn entries<'a>(
        &'a self,
        live: &'a ValidatingWebhookConfiguration,
    ) -> impl Iterator<Item = &'a ValidatingWebhook> + 'a {
        live.webhooks.iter().flatten().filter(|entry| {
            let target = entry.client_config.service.as_ref();
            target.is_some_and(|target| target.name == self.service && target.namespace == self.namespace)
        })
    }

    /// caBundle of each of our entries.
    #[must_use]
    pub fn bundles(&self, live: &ValidatingWebhookConfiguration) -> Vec<Vec<u8>> {
        self.entries(live).map(|entry| entry.client_config.ca_bundle.clone().unwrap_or_default().0).collect()
    }

    /// The secret path of each of our entries.
    #[must_use]
    pub fn paths(&self, live: &ValidatingWebhookConfiguration) -> Paths {
        let service = self.entries(live).filter_map(|entry| entry.client_config.service.as_ref());
        let renewed_at = live.metadata.annotations.as_ref().and_then(|all| all.get(PATH_RENEWED_AT)?.parse().ok());
        Paths { live: service.map(|service| service.path.clone().unwrap_or_default()).collect(), renewed_at }
    }
}
