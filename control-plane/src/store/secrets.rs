//! What the control plane keeps for itself, and the public keys that it trusts.

use crate::domain::Millis;

use super::{Store, StoreError};

/// A public key whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// First 16 hexadecimal digits of its SHA-256.
    pub key_id: String,
    /// Its bytes.
    pub public_key: Vec<u8>,
    /// When it was added.
    pub added: Millis,
    /// By whom.
    pub added_by: String,
}

impl Store {
    /// A secret.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn secret(&self, name: &str) -> Result<Option<String>, StoreError> {
        let _ = name;
        unimplemented!()
    }

    /// Keeps a secret unless there is one.
    ///
    /// # Errors
    /// If the database fails.
    ///
    /// # Returns
    /// The one that is kept: of several replicas that make one, all get the first.
    pub async fn put_once(&self, name: &str, value: &str) -> Result<String, StoreError> {
        let _ = (name, value);
        unimplemented!()
    }

    /// Trusts a key. Twice is as once.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the id is of another key.
    pub async fn put_key(&self, key: &TrustedKey) -> Result<(), StoreError> {
        let _ = key;
        unimplemented!()
    }

    /// Trusts a key no longer.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_key(&self, key_id: &str, actor: &str) -> Result<(), StoreError> {
        let _ = (key_id, actor);
        unimplemented!()
    }

    /// All trusted keys, by id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn keys(&self) -> Result<Vec<TrustedKey>, StoreError> {
        unimplemented!()
    }
}
