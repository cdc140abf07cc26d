//! Every version of Pristine's objects, as the API server announces them: who wrote, and what.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures_util::StreamExt as _;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::watcher,
};
use serde_json::Value;
use tokio::{task::JoinHandle, time::Instant};

use crate::kubectl::client;

/// One version of an object.
#[derive(Clone)]
pub struct Version {
    pub at: Instant,
    /// `Kind/name`
    pub object: String,
    pub value: Value,
}

pub struct Watch {
    seen: Arc<Mutex<Vec<Version>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Watch {
    /// Watches all objects that are in this manifest.
    pub async fn start(manifest: &str) -> Self {
        let mut kinds: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for text in manifest.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(text).unwrap();
            let word = |value: &Value| value.as_str().unwrap().to_owned();
            let kind = (word(&object["apiVersion"]), word(&object["kind"]));
            kinds.entry(kind).or_default().insert(word(&object["metadata"]["name"]));
        }
        let (seen, client) = (Arc::new(Mutex::new(Vec::new())), client().await);
        let watch = |((version, kind), names): ((String, String), BTreeSet<String>)| {
            let (group, version) = version.split_once('/').unwrap_or(("", &version));
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            tokio::spawn(record(api, kind, names, seen.clone()))
        };
        let tasks = kinds.into_iter().map(watch).collect();
        Self { seen, tasks }
    }

    /// The versions of an object since then, with the one before.
    pub fn versions(&self, object: &str, since: Instant) -> Vec<Version> {
        let seen = self.seen.lock().unwrap();
        let all: Vec<_> = seen.iter().filter(|version| version.object == object).cloned().collect();
        let first = all.partition_point(|version| version.at < since);
        all[first.saturating_sub(1)..].to_vec()
    }

    pub fn objects(&self) -> BTreeSet<String> {
        self.seen.lock().unwrap().iter().map(|version| version.object.clone()).collect()
    }

    /// The objects that this field manager has written since then.
    pub fn written_by(&self, manager: &str, since: Instant) -> Vec<String> {
        let is_new = |object: &String| {
            let versions = self.versions(object, since);
            versions.windows(2).any(|pair| writes(&pair[0].value, manager) != writes(&pair[1].value, manager))
        };
        self.objects().into_iter().filter(is_new).collect()
    }

    /// The objects of which anyone has changed more than the status since then.
    pub fn changed(&self, since: Instant) -> Vec<String> {
        let is_changed = |object: &String| {
            let versions = self.versions(object, since);
            versions.windows(2).any(|pair| specified(&pair[0].value) != specified(&pair[1].value))
        };
        self.objects().into_iter().filter(is_changed).collect()
    }
}

/// The object without its status, and without what the API server counts.
fn specified(object: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.remove("resourceVersion");
    metadata.remove("managedFields");
    // The number of the rollout, which the controller of Deployments writes.
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove("deployment.kubernetes.io/revision");
    }
    object
}

/// The writes of a manager to the object itself: when, and which fields.
fn writes<'a>(object: &'a Value, manager: &str) -> Vec<(&'a Value, &'a Value)> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let ours = entries.filter(|entry| entry["manager"] == manager && entry.get("subresource").is_none());
    ours.map(|entry| (&entry["time"], &entry["fieldsV1"])).collect()
}

async fn record(api: Api<DynamicObject>, kind: String, names: BTreeSet<String>, seen: Arc<Mutex<Vec<Version>>>) {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        // After an error the watch begins again.
        let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event else { continue };
        let name = object.metadata.name.clone().unwrap();
        let is_elsewhere = object.metadata.namespace.as_deref().is_some_and(|ns| ns != crate::common::SYSTEM);
        if names.contains(&name) && !is_elsewhere {
            let version = Version {
                at: Instant::now(),
                object: format!("{kind}/{name}"),
                value: serde_json::to_value(object).unwrap(),
            };
            seen.lock().unwrap().push(version);
        }
    }
}

/// What a part of the time has seen of the webhook configuration.
pub struct Certificates {
    /// The certificates of CAs that were in caBundle.
    pub authorities: usize,
    pub paths: usize,
    /// Versions in which an entry was not whole.
    pub broken: Vec<Value>,
}

/// What the webhook configuration went through.
pub fn certificates(versions: &[Version]) -> Certificates {
    use base64::Engine as _;
    let (mut authorities, mut paths, mut broken) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for version in versions {
        let entries = version.value["webhooks"].as_array().cloned().unwrap_or_default();
        for entry in &entries {
            let client = &entry["clientConfig"];
            let (bundle, path) = (client["caBundle"].as_str().unwrap_or(""), client["service"]["path"].as_str());
            let pem = base64::prelude::BASE64_STANDARD.decode(bundle).unwrap();
            let pem = String::from_utf8(pem).unwrap();
            authorities.extend(pem.split_inclusive("-----END CERTIFICATE-----\n").map(|one| one.trim().to_owned()));
            paths.extend(path.map(str::to_owned));
            if pem.is_empty() || path.is_none() {
                broken.push(version.value.clone());
            }
        }
        if entries.len() != 4 {
            broken.push(version.value.clone());
        }
    }
    authorities.remove("");
    Certificates { authorities: authorities.len(), paths: paths.len(), broken }
}
