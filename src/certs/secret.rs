//! The codec of the Secret: its data ⇄ [`Store`]. Pure. Data that cannot be decoded is an observation that the rotation
//! handles, with the reason, and no failure of the program.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::{
    Certificate, bundle,
    ca::{Ca, Key},
};
use crate::api::webhook::path;

/// The content of the Secret: the CA that signs now, the one that signs next, and those that are still trusted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Store {
    /// Grows with every write: of two stores, the one with the higher generation is newer.
    pub generation: u64,
    /// The CA that signs serving certificates now.
    pub active: Ca,
    /// The CA that signs after every caBundle has contained it for the hold.
    pub next: Option<Ca>,
    /// CAs that no longer sign but are still trusted. Their keys are erased.
    pub previous: Vec<Certificate>,
    /// The newest CA, signed by its predecessor: `next` while there is one, else `active`.
    pub cross: Option<Certificate>,
    /// Since when every caBundle has been seen to contain `next`.
    pub published_at: Option<Timestamp>,
    /// When `previous` stops being trusted.
    pub retire_at: Option<Timestamp>,
    /// The key of the secret path; none if another client has removed it from the Secret.
    pub path_key: Option<path::Key>,
}

impl Store {
    /// The store of a CA without a predecessor. The writer sets the generation.
    #[must_use]
    pub fn first(active: Ca, path_key: path::Key) -> Self {
        Self {
            generation: 0,
            active,
            next: None,
            previous: vec![],
            cross: None,
            published_at: None,
            retire_at: None,
            path_key: Some(path_key),
        }
    }

    /// Every CA that API servers must trust, oldest first.
    pub fn roots(&self) -> impl Iterator<Item = &Certificate> {
        let next = self.next.as_ref().map(|next| &next.certificate);
        self.previous.iter().chain([&self.active.certificate]).chain(next)
    }

    /// The phase of the rotation, one of [`PHASES`].
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match (&self.next, self.published_at, self.previous.is_empty()) {
            (Some(_), None, _) => "staged",
            (Some(_), Some(_), _) => "held",
            (None, _, false) => "overlap",
            (None, _, true) => "steady",
        }
    }

    /// The certificate to serve behind the leaf: `active` signed by its predecessor. It is served even after the
    /// predecessor was retired: it costs half a kilobyte, and another client may have restored an old caBundle.
    #[must_use]
    pub fn served_cross(&self) -> Option<&Certificate> {
        // While a next CA is staged, the cross-signed certificate is the one of that CA.
        if self.next.is_none() { self.cross.as_ref() } else { None }
    }
}

/// No rotation; the next CA is created; every caBundle contains it, for the hold; it signs, and the old CA is still
/// trusted.
pub const PHASES: [&str; 4] = ["steady", "staged", "held", "overlap"];

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    schema: u32,
    generation: u64,
    published_at: Option<Timestamp>,
    retire_at: Option<Timestamp>,
}

const SCHEMA: u32 = 1;

/// Encodes a store as the Secret's data.
#[must_use]
pub fn encode(store: &Store) -> BTreeMap<String, ByteString> {
    let Store { generation, active, next, previous, cross, published_at, retire_at, path_key } = store;
    let state = State { schema: SCHEMA, generation: *generation, published_at: *published_at, retire_at: *retire_at };
    let state = serde_json::to_string(&state).expect("the state serialises");
    let mut data = vec![
        ("state.json", state),
        ("active.crt", bundle::pem([&active.certificate])),
        ("active.key", active.key.0.clone()),
    ];
    if let Some(next) = next {
        data.push(("next.crt", bundle::pem([&next.certificate])));
        data.push(("next.key", next.key.0.clone()));
    }
    if !previous.is_empty() {
        data.push(("previous.crt", bundle::pem(previous)));
    }
    if let Some(cross) = cross {
        data.push(("cross.crt", bundle::pem([cross])));
    }
    if let Some(key) = path_key {
        data.push(("path.key", key.to_text()));
    }
    data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
}

/// A higher generation is no count of writes: it was made up, and adding to it would end in the range of what
/// JSON readers round.
const MAX_GENERATION: u64 = (1 << 53) - 1;

/// Returns a generation that others wrote.
///
/// # Errors
/// If it is absurd.
pub fn check_generation(generation: u64) -> Result<u64, String> {
    if generation > MAX_GENERATION {
        return Err(format!("generation {generation} is higher than any number of writes"));
    }
    Ok(generation)
}

/// Decodes the Secret's data.
///
/// # Errors
/// Names the key of the data that is wrong, and says why.
pub fn decode(data: &BTreeMap<String, ByteString>) -> Result<Store, String> {
    let at = |key: &'static str| move |error: String| format!("{key}: {error}");
    let optional = |key: &'static str| match data.get(key) {
        Some(ByteString(bytes)) if bytes.len() > bundle::MAX_BYTES => {
            Err(format!("{key}: {} bytes exceed the limit of {}", bytes.len(), bundle::MAX_BYTES))
        }
        Some(ByteString(bytes)) => Ok(Some(bytes.as_slice())),
        None => Ok(None),
    };
    let required = |key: &'static str| optional(key)?.ok_or_else(|| format!("{key} is missing"));
    let certificate = |key: &'static str, bytes| Certificate::from_pem(bytes).map_err(at(key));
    let ca = |crt: &'static str, key: &'static str, bytes| {
        let pem = String::from_utf8(required(key)?.to_vec()).map_err(|_| format!("{key}: not UTF-8"))?;
        Ca::new(certificate(crt, bytes)?, Key(pem)).map_err(at(key))
    };
    let state: State =
        serde_json::from_slice(required("state.json")?).map_err(|error| format!("state.json: {error}"))?;
    if state.schema != SCHEMA {
        return Err(format!("state.json: schema {} is not known to this version, which writes {SCHEMA}", state.schema));
    }
    let generation = check_generation(state.generation).map_err(at("state.json"))?;
    let mut previous = Vec::new();
    for der in CertificateDer::pem_slice_iter(optional("previous.crt")?.unwrap_or_default()) {
        let der = der.map_err(|error| format!("previous.crt: {error}"))?;
        previous.push(Certificate::from_der(der).map_err(at("previous.crt"))?);
    }
    Ok(Store {
        generation,
        active: ca("active.crt", "active.key", required("active.crt")?)?,
        next: optional("next.crt")?.map(|bytes| ca("next.crt", "next.key", bytes)).transpose()?,
        previous,
        cross: optional("cross.crt")?.map(|bytes| certificate("cross.crt", bytes)).transpose()?,
        published_at: state.published_at,
        retire_at: state.retire_at,
        path_key: optional("path.key")?.map(|bytes| path::Key::parse(bytes).map_err(at("path.key"))).transpose()?,
    })
}

#[cfg(test)]
mod tests;
