//! The only watch of the webhook configuration: all who need the live object follow what it has seen (I/O).

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;

use crate::error::chain;

/// What the watch has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether an API server has answered yet: until then nothing is known. While the watch fails, the last answer
    /// stands: an API server that does not answer says nothing about the object.
    pub is_known: bool,
    /// The object; `None` if it does not exist.
    pub live: Option<Arc<ValidatingWebhookConfiguration>>,
}

/// The watch as it runs.
pub struct ConfigurationWatch {
    client: Client,
    name: String,
    seen: watch::Sender<Seen>,
}

impl ConfigurationWatch {
    /// The watch of the configuration with this name, and what it will have seen.
    #[must_use]
    pub fn new(client: Client, name: String) -> (Self, watch::Receiver<Seen>) {
        let (sender, seen) = watch::channel(Seen::default());
        (Self { client, name, seen: sender }, seen)
    }

    /// Runs until the process ends.
    pub async fn run(self) {
        let named = watcher::Config::default().timeout(60).fields(&format!("metadata.name={}", self.name));
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        follow(watcher(api, named).default_backoff().boxed(), &self.seen).await;
    }
}

type Change = Result<watcher::Event<ValidatingWebhookConfiguration>, watcher::Error>;

async fn follow(mut changes: impl Stream<Item = Change> + Unpin, seen: &watch::Sender<Seen>) {
    let mut listed = None;
    while let Some(change) = changes.next().await {
        let live = match change {
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "cannot watch the webhook configuration, retrying");
                continue;
            }
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(live)) => {
                listed = Some(live);
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(live)) => Some(live),
            Ok(watcher::Event::Delete(_)) => None,
        };
        seen.send_replace(Seen { is_known: true, live: live.map(Arc::new) });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn named(name: &str) -> ValidatingWebhookConfiguration {
        let mut live = ValidatingWebhookConfiguration::default();
        live.metadata.name = Some(name.to_owned());
        live
    }

    /// What was seen after these changes: whether anything is known, and the name of the object.
    async fn seen(changes: Vec<Change>) -> (bool, Option<String>) {
        let (sender, seen) = watch::channel(Seen::default());
        follow(stream::iter(changes), &sender).await;
        let Seen { is_known, live } = seen.borrow().clone();
        (is_known, live.and_then(|live| live.metadata.name.clone()))
    }

    #[tokio::test]
    async fn nothing_is_known_until_the_first_answer_which_stands_while_the_watch_fails() {
        let failed = || Err(watcher::Error::NoResourceVersion);
        assert_eq!(seen(vec![failed(), Ok(Init), Ok(InitApply(named("a")))]).await, (false, None));
        assert_eq!(seen(vec![Ok(Init), Ok(InitDone)]).await, (true, None));
        let listed = vec![Ok(Init), Ok(InitApply(named("a"))), Ok(InitDone), failed(), Ok(Init)];
        assert_eq!(seen(listed).await, (true, Some("a".to_owned())));
        assert_eq!(seen(vec![Ok(Apply(named("a"))), Ok(Init), Ok(InitDone)]).await, (true, None));
        assert_eq!(seen(vec![Ok(Apply(named("a"))), Ok(Delete(named("a")))]).await, (true, None));
    }
}
