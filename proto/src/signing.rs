//! Detached signatures of model versions: ed25519 over the digest of a manifest.
//!
//! A manifest names every blob by its SHA-256, so a signature of the manifest's digest covers the whole version.
//! What is signed is `rookery version v1`, a line feed, and the digest as text: the same key cannot be made to sign
//! anything else by showing it a digest. Signing needs a key file and the digest and nothing else: no network, no
//! control plane, not even the bundle.
//!
//! Keys are PEM files as other tools write them: PKCS #8 for the secret one, SubjectPublicKeyInfo for the public one.
//! A key is named by the first 16 hexadecimal digits of the SHA-256 of its 32 public bytes.
//!
//! ```console
//! $ printf 'rookery version v1\n%s' sha256:… > message
//! $ openssl pkeyutl -verify -pubin -inkey release.pub.pem -rawin -in message -sigfile signature
//! ```

use std::{fmt, str::FromStr};

use ed25519_dalek::{
    Signer,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
        spki::der::pem::LineEnding,
    },
};
use sha2::{Digest as _, Sha256};

use crate::v1;

/// What every signed message begins with: says what the signature is for.
const PURPOSE: &str = "rookery version v1\n";

/// Most signatures of one version that are looked at: each costs the time of a verification.
pub const MAX_SIGNATURES: usize = 16;

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no secret key.
    #[error("this is no ed25519 secret key in PEM (PKCS #8, \"BEGIN PRIVATE KEY\")")]
    Secret,
    /// The text is no public key.
    #[error("this is no ed25519 public key in PEM (\"BEGIN PUBLIC KEY\")")]
    Public,
    /// The bytes are no public key.
    #[error("these {0} bytes are no ed25519 public key, which has 32 and is a point of the curve")]
    Bytes(usize),
    /// The key cannot be written down.
    #[error("the key cannot be written as PEM")]
    Encode,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a new key")]
    Random(#[source] getrandom::Error),
    /// The text is no key id.
    #[error("{0:?} is no key id, which has 16 lower-case hexadecimal digits")]
    Id(String),
}

/// The first 16 hexadecimal digits of the SHA-256 of a public key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(KeyError::Id(text.chars().take(32).collect()))
        }
    }
}

/// Signs versions. Wiped from memory when dropped, and not shown by `Debug`.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

impl SigningKey {
    /// A new key from the system's random numbers.
    ///
    /// # Errors
    /// [`KeyError::Random`] if there are none.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        Ok(Self(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }

    /// Reads PKCS #8 in PEM.
    ///
    /// # Errors
    /// [`KeyError::Secret`], which does not repeat the text.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| KeyError::Secret)
    }

    /// PKCS #8 in PEM, without the public key, as every tool reads it.
    ///
    /// # Errors
    /// [`KeyError::Encode`], which no key of this type is known to cause.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let bytes = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        let pem = bytes.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Encode)?;
        Ok(pem.as_str().to_owned())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a version by its digest, `sha256:…`.
    pub fn sign(&self, digest: &str) -> v1::Signature {
        v1::Signature {
            key_id: self.public().id().0,
            signature: self.0.sign(message(digest).as_bytes()).to_bytes().to_vec(),
        }
    }
}

/// Checks signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// Takes the 32 bytes that travel on the wire.
    ///
    /// # Errors
    /// [`KeyError::Bytes`] if they are no key, or one under which anything verifies.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let wrong = || KeyError::Bytes(bytes.len());
        let array: &[u8; 32] = bytes.try_into().map_err(|_| wrong())?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(array).map_err(|_| wrong())?;
        if key.is_weak() { Err(wrong()) } else { Ok(Self(key)) }
    }

    /// The 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Reads SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// [`KeyError::Public`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_public_key_pem(pem).map_err(|_| KeyError::Public)?;
        if key.is_weak() { Err(KeyError::Public) } else { Ok(Self(key)) }
    }

    /// SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// [`KeyError::Encode`], which no key of this type is known to cause.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|_| KeyError::Encode)
    }

    /// What the key is called.
    pub fn id(&self) -> KeyId {
        let hash = Sha256::digest(self.0.as_bytes());
        KeyId(hash[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether `signature` is this key's signature of `digest`.
    pub fn verifies(&self, digest: &str, signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message(digest).as_bytes(), &signature).is_ok())
    }
}

/// No signature of a version counts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("the version is not signed; sign it with `rookery models sign`")]
    Unsigned,
    /// There are some, by others.
    #[error("the version is signed by {0}, which is not trusted; `rookery models keys trust` changes that")]
    Untrusted(String),
    /// One says that it is by a trusted key and is not.
    #[error("the signature by {0} is wrong: it is not of this version")]
    Wrong(KeyId),
}

/// Checks that at least one of `signatures` is that of a trusted key over `digest`, and says whose. At most
/// [`MAX_SIGNATURES`] are looked at.
///
/// # Errors
/// Why none counts. A wrong signature by a trusted key is told even if others are by strangers.
pub fn verify(
    digest: &str,
    signatures: &[v1::Signature],
    trusted: &[PublicKey],
) -> Result<KeyId, SignatureError> {
    let mut wrong = None;
    for signature in signatures.iter().take(MAX_SIGNATURES) {
        let of = |key: &&PublicKey| key.id().as_str() == signature.key_id;
        if let Some(key) = trusted.iter().find(of) {
            if key.verifies(digest, &signature.signature) {
                return Ok(key.id());
            }
            wrong = Some(key.id());
        }
    }
    match (wrong, signatures) {
        (Some(key), _) => Err(SignatureError::Wrong(key)),
        (None, []) => Err(SignatureError::Unsigned),
        (None, some) => {
            let mut ids: Vec<String> =
                some.iter().take(MAX_SIGNATURES).map(|one| one.key_id.chars().take(16).collect()).collect();
            ids.dedup();
            Err(SignatureError::Untrusted(ids.join(", ")))
        }
    }
}

fn message(digest: &str) -> String {
    format!("{PURPOSE}{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The first test vector of RFC 8032, section 7.1: a known pair of keys.
    const SECRET: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
        0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    const PUBLIC: [u8; 32] = [
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e,
        0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
    ];

    fn known() -> SigningKey {
        SigningKey(ed25519_dalek::SigningKey::from_bytes(&SECRET))
    }

    #[test]
    fn keys_survive_pem_and_are_what_others_make_of_them() {
        let key = known();
        assert_eq!(key.public().to_bytes(), PUBLIC);
        let (secret, public) = (key.to_pem().unwrap(), key.public().to_pem().unwrap());
        // What `openssl pkey` writes for this key: a header that is the same for all keys, then its 32 bytes.
        assert!(
            secret.contains("MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g"),
            "{secret}"
        );
        assert!(public.contains("MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="), "{public}");
        assert_eq!(SigningKey::from_pem(&secret).unwrap().public(), key.public());
        assert_eq!(PublicKey::from_pem(&public).unwrap(), key.public());
        assert_eq!(key.public().id().as_str(), "21fe31dfa154a261");
        let other = SigningKey::generate().unwrap();
        assert_ne!(other.public().id(), key.public().id());
        assert!(!format!("{other:?}").contains(&format!("{:?}", other.0.to_bytes())));
    }

    #[test]
    fn only_the_trusted_key_over_the_same_digest_counts() {
        let (key, other) = (known(), SigningKey::generate().unwrap());
        let trusted = [key.public()];
        let good = key.sign(DIGEST);
        assert_eq!(verify(DIGEST, &[other.sign(DIGEST), good.clone()], &trusted), Ok(key.public().id()));
        assert_eq!(verify(DIGEST, &[], &trusted), Err(SignatureError::Unsigned));
        let stranger = verify(DIGEST, &[other.sign(DIGEST)], &trusted).unwrap_err();
        assert!(matches!(&stranger, SignatureError::Untrusted(ids) if *ids == other.public().id().0));
        let moved = DIGEST.replace('e', "f");
        assert_eq!(
            verify(&moved, std::slice::from_ref(&good), &trusted),
            Err(SignatureError::Wrong(key.public().id()))
        );
        // A stranger who borrows the name of a trusted key.
        let forged = v1::Signature { key_id: good.key_id.clone(), ..other.sign(DIGEST) };
        assert_eq!(verify(DIGEST, &[forged], &trusted), Err(SignatureError::Wrong(key.public().id())));
    }

    #[test]
    fn every_changed_bit_of_a_signature_is_seen() {
        let key = known();
        let good = key.sign(DIGEST);
        for bit in 0..8 * good.signature.len() {
            let mut bad = good.signature.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.public().verifies(DIGEST, &bad), "bit {bit}");
        }
        for length in [0, 63, 65] {
            let mut bad = good.signature.clone();
            bad.resize(length, 0);
            assert!(!key.public().verifies(DIGEST, &bad));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(PublicKey::from_bytes(&[0; 32]).is_err(), "a point of small order verifies anything");
        assert!(PublicKey::from_bytes(&PUBLIC[1..]).is_err());
        for text in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "é"] {
            assert!(SigningKey::from_pem(text).is_err() && PublicKey::from_pem(text).is_err(), "{text:?}");
        }
        assert!("21FE31dfa154a261".parse::<KeyId>().is_err() && "..".parse::<KeyId>().is_err());
    }
}
