//! Secrets that are shown once and stored as hashes.
//!
//! They are 256 random bits, so a plain SHA-256 is enough: there is no dictionary to try. Looking a hash up in an index
//! tells an attacker who measures time nothing about the secret, since what is compared is a hash that they cannot
//! steer; the last word is a comparison in constant time all the same.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

/// What bearer tokens begin with, so that scanners of leaked secrets find them.
const PREFIX: &str = "rkt_";

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

/// A random secret, never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// 256 new bits.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; SECRET_BYTES];
        random_bytes(&mut bytes)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The secret as text: letters, digits, `-` and `_`.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The system gives no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// Fills `bytes` from the system's generator.
pub(crate) fn random_bytes(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    super::server::provider().secure_random.fill(bytes).map_err(|_| NoRandomness)
}

/// A bearer token for the clients' port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BearerToken(Secret);

impl BearerToken {
    /// A new one. Its text is to be shown once, its [`BearerToken::hash`] to be stored.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn random() -> Result<Self, NoRandomness> {
        Ok(Self(Secret(format!("{PREFIX}{}", Secret::random()?.0))))
    }

    /// The token as text.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// What the store keeps: SHA-256 in lower-case hexadecimal.
    pub fn hash(&self) -> String {
        hash_of(self.expose())
    }

    /// Whether a text can be a token at all, so that nonsense costs no look-up.
    pub fn looks_like(text: &str) -> bool {
        text.len() == PREFIX.len() + 43
            && text.starts_with(PREFIX)
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    }
}

/// SHA-256 of a secret's text in lower-case hexadecimal.
pub fn hash_of(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether two texts are equal, in a time that depends only on their lengths.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |found, (a, b)| found | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_random_and_hidden() {
        let (a, b) = (BearerToken::random().unwrap(), BearerToken::random().unwrap());
        assert_ne!(a, b);
        assert!(BearerToken::looks_like(a.expose()), "{}", a.expose());
        assert_eq!(a.hash().len(), 64);
        assert_eq!(a.hash(), hash_of(a.expose()));
        assert!(!format!("{a:?}").contains(a.expose()));
        for text in ["", "rkt_", "abc", &a.expose()[1..], &format!("{}x", a.expose()), &"rkt_é".repeat(9)] {
            assert!(!BearerToken::looks_like(text), "{text}");
        }
    }

    #[test]
    fn comparison_sees_every_difference() {
        assert!(same("", "") && same("abc", "abc"));
        assert!(!same("abc", "abd") && !same("abc", "ab") && !same("", "a"));
    }
}
