//! The secret URL path of the webhook: a client that does not know it cannot post a forged review. Pure.
//!
//! A path is a counter with its MAC under a [`Key`] that all replicas share. So a replica can check a path that it has
//! never seen: an API server may learn a new one first. Every path of the live configuration is accepted too, also if
//! another client wrote it, so that a new key never refuses what API servers call.
//!
//! It is a speed bump and not a proof: an API server shows the URL to the user when a call fails below HTTP. So the
//! path is renewed after its lifetime, after a replica starts, and after a broken connection. Renewals are rare, because
//! API servers before 1.37 keep a TLS transport for every path that there ever was. The clocks of two replicas can
//! differ by more than the lifetime, so a path is also as old as a replica has known it, by a clock that does not jump,
//! and no replica renews one that it has known for less than [`rest`]: two replicas never renew against each other.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use ring::hmac;

use crate::clock::Now;

/// How long a path is accepted after it was replaced. API servers learn a new path within 60 ms, and later when they
/// are busy.
pub const GRACE: Duration = Duration::from_secs(60);
/// How long a path rests before it is renewed, whatever happens: strangers can break as many connections as they like.
const REST: Duration = Duration::from_secs(3600);
/// A higher counter is no count of renewals: another client made it up, and adding to it could overflow.
const MAX_COUNTER: u64 = (1 << 53) - 1;
/// What a MAC under the key is for, so that no other use of the key gives a valid path.
const PURPOSE: &str = "pristine secret path v1";

/// How long a path of this lifetime rests: [`REST`], or a quarter of a short lifetime in tests.
#[must_use]
pub fn rest(lifetime: Duration) -> Duration {
    REST.min(lifetime / 4)
}

/// The key of the MAC: 256 bits. `Debug` does not print it.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A key that every replica with `secret` can derive, and that does not reveal `secret`.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"pristine secret path key v1");
        Self(tag.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Reads what [`Key::to_text`] returns.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 64 && is_hex(text));
        let text = text.ok_or("not 64 hexadecimal digits")?;
        let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap_or_default();
        Ok(Self(std::array::from_fn(byte)))
    }

    /// The key as 64 hexadecimal digits.
    #[must_use]
    pub fn to_text(&self) -> String {
        hex(&self.0)
    }

    /// The path of this counter: `/review/COUNTER-MAC`, both in hexadecimal digits, the MAC cut to 128 bits. The API
    /// server accepts only lower-case letters, digits and dashes in a segment.
    #[must_use]
    pub fn path(&self, counter: u64) -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), format!("{PURPOSE} {counter}").as_bytes());
        format!("/review/{counter:x}-{}", hex(&tag.as_ref()[..16]))
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The counter of a path that has the form of ours, whether or not its MAC is right.
fn counter(path: &str) -> Option<u64> {
    let (counter, mac) = path.strip_prefix("/review/")?.split_once('-')?;
    let has_form = mac.len() == 32 && is_hex(mac) && is_hex(counter);
    u64::from_str_radix(counter, 16).ok().filter(|counter| has_form && *counter <= MAX_COUNTER)
}

/// The path in the webhook configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Paths {
    /// The path of each entry that calls Pristine; empty if an entry has none.
    pub live: Vec<String>,
    /// When the path was renewed, as the replica that renewed it has recorded it.
    pub renewed_at: Option<Timestamp>,
}

impl Paths {
    /// The newest path, and its counter.
    fn newest(&self) -> Option<(u64, &String)> {
        self.live.iter().filter_map(|path| counter(path).map(|counter| (counter, path))).max()
    }

    /// Whether the client of a request to this path knows the secret: it is a path of the configuration, or one that
    /// was replaced a moment ago (`recent`), or the path of a counter that is at most one behind. There is no highest
    /// counter: after a restored backup of etcd, API servers call one that replicas have never seen.
    #[must_use]
    pub fn accepts<'a>(&'a self, path: &str, recent: impl IntoIterator<Item = &'a String>, key: Option<&Key>) -> bool {
        // All of them are compared, so that the response time reveals nothing.
        let known = self.live.iter().chain(recent).fold(false, |found, known| found | equal(known, path));
        let is_ours = |(counter, key): (u64, &Key)| {
            // While the configuration has no path of ours, every replica is about to write one.
            let is_new = self.newest().is_none_or(|(newest, _)| counter.saturating_add(1) >= newest);
            equal(&key.path(counter), path) & is_new
        };
        known | counter(path).zip(key).is_some_and(is_ours)
    }
}

/// Compares in constant time.
fn equal(known: &str, path: &str) -> bool {
    // The API server calls the root if an entry has no path.
    let known = if known.is_empty() { "/" } else { known };
    known.len() == path.len() && known.bytes().zip(path.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// A path to write into every entry that calls Pristine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// The path.
    pub path: String,
    /// When the path was renewed; none if an entry only gets back the path that the others have.
    pub renewed_at: Option<Timestamp>,
}

/// What a replica remembers of the path between two plans.
#[derive(Clone, Debug)]
pub struct Renewal {
    lifetime: Duration,
    /// Whether an error may have shown the path to a user.
    leaked: bool,
    /// The newest path, and since when this replica has known it, by a clock that does not jump.
    known: Option<(String, Duration)>,
}

impl Renewal {
    /// For paths of this lifetime. If the previous process was killed during a request, the error of the client has
    /// shown the path, so it counts as leaked.
    #[must_use]
    pub const fn new(lifetime: Duration) -> Self {
        Self { lifetime, leaked: true, known: None }
    }

    /// An error may have shown the path to a user.
    pub const fn leaked(&mut self) {
        self.leaked = true;
    }

    /// The path was renewed.
    pub const fn renewed(&mut self) {
        self.leaked = false;
    }

    /// The write that is due, if any, and how long until one can become due. `at` is a monotonic time.
    pub fn plan(&mut self, paths: &Paths, key: &Key, now: &Now, at: Duration) -> (Option<Write>, Duration) {
        let renew = |counter| Write { path: key.path(counter), renewed_at: Some(now.corrected) };
        let Some((counter, newest)) = paths.newest() else {
            self.known = None;
            // Paths of this key that were written before have lower counters: one second has less than one renewal.
            let first = u64::try_from(now.corrected.as_second()).unwrap_or_default();
            return ((!paths.live.is_empty()).then(|| renew(first)), Duration::MAX);
        };
        let known = self.known.take_if(|(path, _)| path == newest).unwrap_or_else(|| (newest.clone(), at));
        let known_for = at.saturating_sub(known.1);
        self.known = Some(known);
        let age = paths.renewed_at.and_then(|renewed| Duration::try_from(now.earliest.duration_since(renewed)).ok());
        let age = age.unwrap_or_default().max(known_for);
        let left = if self.leaked { Duration::ZERO } else { self.lifetime.saturating_sub(age) };
        let left = left.max(rest(self.lifetime).saturating_sub(known_for));
        if left.is_zero() {
            return (Some(renew(counter + 1)), Duration::ZERO);
        }
        let differs = paths.live.iter().any(|path| path != newest);
        (differs.then(|| Write { path: newest.clone(), renewed_at: None }), left)
    }
}

#[cfg(test)]
mod tests;
