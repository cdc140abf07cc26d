//! The only watch of the webhook configuration: all who need the live object follow what it has seen (I/O).

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::watch, time::Instant};

use super::{
    Names,
    path::{GRACE, Paths},
};
use crate::error::chain;

/// What the watch has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether an API server has answered yet: until then nothing is known. While the watch fails, the last answer
    /// stands: an API server that does not answer says nothing about the object.
    pub is_known: bool,
    /// The object; `None` if it does not exist.
    pub live: Option<Arc<ValidatingWebhookConfiguration>>,
    /// The secret path in our entries.
    pub paths: Paths,
    /// Each path that was replaced within [`GRACE`], and when this replica saw that.
    pub replaced: Vec<(String, Instant)>,
}

impl Seen {
    /// What is seen when the object has changed to this.
    fn next(&self, live: Option<ValidatingWebhookConfiguration>, names: &Names) -> Self {
        let now = Instant::now();
        let paths = live.as_ref().map(|live| names.paths(live)).unwrap_or_default();
        // The root is no secret, and a path that only one of the entries has lost is not replaced.
        let gone = self.paths.live.iter().filter(|path| path.len() > 1 && !paths.live.contains(path));
        let gone = gone.map(|path| (path.clone(), now));
        let recent = self.replaced.iter().filter(|(_, at)| now.duration_since(*at) < GRACE).cloned();
        let mut replaced: Vec<_> = recent.chain(gone).collect();
        replaced.dedup();
        Self { is_known: true, live: live.map(Arc::new), paths, replaced }
    }
}

/// The watch as it runs.
pub struct ConfigurationWatch {
    client: Client,
    names: Names,
    seen: watch::Sender<Seen>,
}

impl ConfigurationWatch {
    /// The watch of the configuration with this name, and what it will have seen.
    #[must_use]
    pub fn new(client: Client, names: Names) -> (Self, watch::Receiver<Seen>) {
        let (sender, seen) = watch::channel(Seen::default());
        (Self { client, names, seen: sender }, seen)
    }

    /// Runs until the process ends.
    pub async fn run(self) {
        let named =
            watcher::Config::default().timeout(60).fields(&format!("metadata.name={}", self.names.configuration));
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        follow(watcher(api, named).default_backoff().boxed(), &self.names, &self.seen).await;
    }
}

type Change = Result<watcher::Event<ValidatingWebhookConfiguration>, watcher::Error>;

async fn follow(mut changes: impl Stream<Item = Change> + Unpin, names: &Names, seen: &watch::Sender<Seen>) {
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
        let next = seen.borrow().next(live, names);
        seen.send_replace(next);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    use super::*;

    fn names() -> Names {
        let [configuration, service, namespace] = ["pristine", "pristine", "pristine-system"].map(str::to_owned);
        Names { configuration, service, namespace }
    }

    fn named(name: &str) -> ValidatingWebhookConfiguration {
        let mut live = ValidatingWebhookConfiguration::default();
        live.metadata.name = Some(name.to_owned());
        live
    }

    /// What was seen after these changes: whether anything is known, and the name of the object.
    async fn seen(changes: Vec<Change>) -> (bool, Option<String>) {
        let (sender, seen) = watch::channel(Seen::default());
        follow(stream::iter(changes), &names(), &sender).await;
        let Seen { is_known, live, .. } = seen.borrow().clone();
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

    /// The shipped configuration, with these paths in its first entries.
    fn with_paths(paths: &[&str]) -> ValidatingWebhookConfiguration {
        let text = include_str!("../../../manifests/base/webhook.yaml");
        let mut live: ValidatingWebhookConfiguration = serde_saphyr::from_str(text).unwrap();
        for (entry, path) in live.webhooks.iter_mut().flatten().zip(paths) {
            entry.client_config.service.as_mut().unwrap().path = Some((*path).to_owned());
        }
        live
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_path_is_remembered_for_a_minute_and_the_root_is_not() {
        let replaced = |seen: &Seen| seen.replaced.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        let seen = Seen::default().next(Some(with_paths(&[])), &names()).next(Some(with_paths(&["/a"; 4])), &names());
        assert_eq!((seen.paths.live[0].as_str(), replaced(&seen)), ("/a", vec![]));
        assert_eq!(replaced(&seen.next(Some(with_paths(&["/a"; 4])), &names())), Vec::<String>::new());
        let seen = seen.next(Some(with_paths(&["/a", "/x"])), &names()).next(Some(with_paths(&["/b"; 4])), &names());
        assert_eq!(replaced(&seen), ["/a", "/x"]);
        tokio::time::sleep(GRACE).await;
        assert_eq!(replaced(&seen.next(None, &names())), ["/b"]);
    }
}
