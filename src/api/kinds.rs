//! What is known of the kinds of controllers: their resources, from the discovery of the API server.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;

/// How long the resource of a kind is believed. A CustomResourceDefinition can be deleted, and created again.
const KNOWN_FOR: SignedDuration = SignedDuration::from_secs(600);
/// How long a kind without `scale` is believed to have none: its CustomResourceDefinition may be installed later.
const UNKNOWN_FOR: SignedDuration = SignedDuration::from_secs(60);
/// Kinds in memory. Users choose the kind of an owner reference, so their number has a limit.
const MAX_KINDS: usize = 256;

/// The resources of kinds, by apiVersion and kind.
#[derive(Debug, Default)]
pub struct Kinds(Mutex<HashMap<(String, String), Kind>>);

/// What was read of one kind.
#[derive(Debug)]
struct Kind {
    read_at: Timestamp,
    /// None for a kind without the subresource `scale`.
    resource: Option<String>,
}

impl Kinds {
    /// What is known of the kind; none if it must be read.
    #[must_use]
    pub fn get(&self, version: &str, kind: &str, now: Timestamp) -> Option<Option<String>> {
        let kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Kind { read_at, resource } = kinds.get(&(version.to_owned(), kind.to_owned()))?;
        let lasts = if resource.is_some() { KNOWN_FOR } else { UNKNOWN_FOR };
        (now.duration_since(*read_at) < lasts).then(|| resource.clone())
    }

    /// Remembers the resource of a kind.
    pub fn put(&self, version: &str, kind: &str, resource: Option<String>, now: Timestamp) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() >= MAX_KINDS {
            kinds.clear();
        }
        kinds.insert((version.to_owned(), kind.to_owned()), Kind { read_at: now, resource });
    }
}

/// The plural name of the kind, if it has the subresource `scale`.
#[must_use]
pub fn scalable(list: &APIResourceList, kind: &str) -> Option<String> {
    let named = list.resources.iter().find(|resource| resource.kind == kind && !resource.name.contains('/'))?;
    let scale = format!("{}/scale", named.name);
    (named.namespaced && list.resources.iter().any(|resource| resource.name == scale)).then(|| named.name.clone())
}

/// Whether this can be one segment of a URL path. A user can write anything into an owner reference.
#[must_use]
pub fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'_'))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;

    use super::*;

    fn list(names: &[&str]) -> APIResourceList {
        let resource = |name: &&str| APIResource {
            name: (*name).to_owned(),
            kind: if name.ends_with("/scale") { "Scale".to_owned() } else { "CloneSet".to_owned() },
            namespaced: true,
            ..APIResource::default()
        };
        APIResourceList { resources: names.iter().map(resource).collect(), ..APIResourceList::default() }
    }

    #[test]
    fn only_a_kind_with_the_subresource_scale_is_counted() {
        let with = list(&["clonesets/status", "clonesets", "clonesets/scale"]);
        assert_eq!(scalable(&with, "CloneSet").as_deref(), Some("clonesets"));
        assert_eq!(scalable(&with, "Other"), None);
        assert_eq!(scalable(&list(&["clonesets", "clonesets/status", "others/scale"]), "CloneSet"), None);
    }

    #[test]
    fn a_kind_is_read_again_when_what_is_known_is_old() {
        let (kinds, start) = (Kinds::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(kinds.get("v1", "Pod", start), None);
        kinds.put("v1", "Pod", None, start);
        kinds.put("a/v1", "A", Some("as".to_owned()), start);
        assert_eq!(kinds.get("v1", "Pod", start + UNKNOWN_FOR / 2), Some(None));
        assert_eq!(kinds.get("v1", "Pod", start + UNKNOWN_FOR), None);
        assert_eq!(kinds.get("a/v1", "A", start + KNOWN_FOR / 2), Some(Some("as".to_owned())));
        assert_eq!(kinds.get("a/v1", "A", start + KNOWN_FOR), None);
        for n in 0..2 * MAX_KINDS {
            kinds.put("v1", &n.to_string(), None, start);
        }
        assert!(kinds.0.lock().unwrap().len() <= MAX_KINDS);
    }

    #[test]
    fn the_name_in_an_owner_reference_cannot_change_the_path() {
        assert!(["web", "web-0.x", "system:web"].into_iter().all(is_segment));
        assert!(!["", "..", "../x", "a/b", "a?b", "a%2Fb", "a b"].into_iter().any(is_segment));
    }
}
