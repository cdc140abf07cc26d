//! The Secret's data ⇄ [`Store`]. Pure; unreadable data is a value with a reason, not a failure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::{
    Certificate, bundle,
    ca::{Ca, Key},
};

/// What the Secret holds: who signs now, who will, and who is still trusted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Store {
    /// Grows with every write; of two stores the higher is the newer.
    pub generation: u64,
    /// Signs serving certificates.
    pub active: Ca,
    /// Will sign once it has been published for long enough.
    pub next: Option<Ca>,
    /// No longer sign, are still trusted; their keys are erased.
    pub previous: Vec<Certificate>,
    /// The newest CA signed by the one before it: `next` while there is one, else `active`.
    pub cross: Option<Certificate>,
    /// Since when every caBundle has been seen to hold `next`.
    pub published_at: Option<Timestamp>,
    /// When `previous` stops being trusted.
    pub retire_at: Option<Timestamp>,
}

impl Store {
    /// The store of a first CA. Its generation is given by whoever writes it.
    #[must_use]
    pub const fn first(active: Ca) -> Self {
        Self { generation: 0, active, next: None, previous: vec![], cross: None, published_at: None, retire_at: None }
    }

    /// Every root to be trusted, oldest first.
    pub fn roots(&self) -> impl Iterator<Item = &Certificate> {
        let next = self.next.as_ref().map(|next| &next.certificate);
        self.previous.iter().chain([&self.active.certificate]).chain(next)
    }

    /// Where the rotation stands, in one word of [`PHASES`].
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match (&self.next, self.published_at, self.previous.is_empty()) {
            (Some(_), None, _) => "staged",
            (Some(_), Some(_), _) => "held",
            (None, _, false) => "overlap",
            (None, _, true) => "steady",
        }
    }

    /// The certificate to serve behind the leaf: `active` signed by its predecessor. Also after the predecessor is no
    /// longer trusted: it costs half a kilobyte, and an API server may still go by a caBundle that somebody put back.
    #[must_use]
    pub fn served_cross(&self) -> Option<&Certificate> {
        // While a next CA is staged, the cross certificate is that one's.
        if self.next.is_none() { self.cross.as_ref() } else { None }
    }
}

/// Nothing to do; the next CA is made; it is trusted and waits; it signs and the last one is trusted still.
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

/// The Secret's data for a store.
#[must_use]
pub fn encode(store: &Store) -> BTreeMap<String, ByteString> {
    let Store { generation, active, next, previous, cross, published_at, retire_at } = store;
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
    data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
}

/// Reads the Secret's data.
///
/// # Errors
/// Which key is wrong, and how.
pub fn decode(data: &BTreeMap<String, ByteString>) -> Result<Store, String> {
    let at = |key: &'static str| move |error: String| format!("{key}: {error}");
    let optional = |key: &'static str| match data.get(key) {
        Some(ByteString(bytes)) if bytes.len() > bundle::MAX_BYTES => {
            Err(format!("{key}: {} bytes are too many", bytes.len()))
        }
        Some(ByteString(bytes)) => Ok(Some(bytes.as_slice())),
        None => Ok(None),
    };
    let required = |key: &'static str| optional(key)?.ok_or_else(|| format!("{key} is missing"));
    let certificate = |key: &'static str, bytes| Certificate::from_pem(bytes).map_err(at(key));
    let ca = |crt: &'static str, key: &'static str, bytes| {
        let pem = String::from_utf8(required(key)?.to_vec()).map_err(|_| format!("{key}: not text"))?;
        Ca::new(certificate(crt, bytes)?, Key(pem)).map_err(at(key))
    };
    let state: State =
        serde_json::from_slice(required("state.json")?).map_err(|error| format!("state.json: {error}"))?;
    if state.schema != SCHEMA {
        return Err(format!("state.json: schema {} is not known to this version, which writes {SCHEMA}", state.schema));
    }
    let mut previous = Vec::new();
    for der in CertificateDer::pem_slice_iter(optional("previous.crt")?.unwrap_or_default()) {
        let der = der.map_err(|error| format!("previous.crt: {error}"))?;
        previous.push(Certificate::from_der(der).map_err(at("previous.crt"))?);
    }
    Ok(Store {
        generation: state.generation,
        active: ca("active.crt", "active.key", required("active.crt")?)?,
        next: optional("next.crt")?.map(|bytes| ca("next.crt", "next.key", bytes)).transpose()?,
        previous,
        cross: optional("cross.crt")?.map(|bytes| certificate("cross.crt", bytes)).transpose()?,
        published_at: state.published_at,
        retire_at: state.retire_at,
    })
}

#[cfg(test)]
mod tests;
