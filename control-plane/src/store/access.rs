//! Tokens: of people and programs, and of gateways that are to join. Only their hashes are kept.

use crate::domain::{GatewayId, Labels, Millis};

use super::{Store, StoreError};

/// A bearer token without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Whose it is.
    pub name: String,
    /// What it may do, in the caller's words.
    pub role: String,
    /// Of the secret.
    pub hash: String,
    /// When it was made.
    pub created: Millis,
    /// When it ends; `None`: it does not. Callers compare.
    pub ends: Option<Millis>,
}

/// A token to join with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJoinToken {
    /// Of the secret.
    pub hash: String,
    /// When it ends.
    pub ends: Millis,
    /// How many gateways may join with it.
    pub uses: u32,
    /// Labels of those that do.
    pub labels: Labels,
}

impl Store {
    /// Keeps a bearer token.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if one has the name or the hash.
    pub async fn put_token(&self, token: &TokenRecord, actor: &str) -> Result<(), StoreError> {
        let _ = (token, actor);
        unimplemented!()
    }

    /// The bearer token with a hash, also if it has ended.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn token_by_hash(&self, hash: &str) -> Result<Option<TokenRecord>, StoreError> {
        let _ = hash;
        unimplemented!()
    }

    /// All bearer tokens, by name.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        unimplemented!()
    }

    /// Forgets a bearer token.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn revoke_token(&self, name: &str, actor: &str) -> Result<(), StoreError> {
        let _ = (name, actor);
        unimplemented!()
    }

    /// Keeps a join token.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if one has the hash.
    pub async fn put_join_token(&self, token: &NewJoinToken, actor: &str) -> Result<(), StoreError> {
        let _ = (token, actor);
        unimplemented!()
    }

    /// Takes one use of a join token for a gateway. [`Store::enrol`] does this and keeps the gateway in one step.
    ///
    /// # Errors
    /// [`StoreError::JoinToken`].
    ///
    /// # Returns
    /// Labels of gateways that join with it.
    pub async fn take_join_token(
        &self,
        hash: &str,
        gateway: &GatewayId,
        now: Millis,
    ) -> Result<Labels, StoreError> {
        let _ = (hash, gateway, now);
        unimplemented!()
    }
}
