//! What the control plane keeps for itself, and the public keys that it trusts.

use crate::domain::Millis;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    Lock, Store, StoreError,
    audit::note,
    exists, not_found,
    row::{Columns, corrupt},
};

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
        let row = sqlx::query("SELECT value FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_optional(self.database.reader())
            .await?;
        row.map(|row| row.text("value")).transpose()
    }

    /// Keeps a secret unless there is one.
    ///
    /// # Errors
    /// If the database fails.
    ///
    /// # Returns
    /// The one that is kept: of several replicas that make one, all get the first.
    pub async fn put_once(&self, name: &str, value: &str) -> Result<String, StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let kept = sqlx::query("SELECT value FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = kept {
            return row.text("value");
        }
        sqlx::query("INSERT INTO secrets (name, value) VALUES ($1, $2)")
            .bind(name)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        note(&mut tx, "control plane", "secret.create", name, "").await?;
        self.commit(tx).await?;
        Ok(value.to_owned())
    }

    /// Trusts a key. Twice is as once.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if the id is of another key.
    pub async fn put_key(&self, key: &TrustedKey) -> Result<(), StoreError> {
        let public_key = STANDARD.encode(&key.public_key);
        let mut tx = self.write(Lock::All).await?;
        let kept = sqlx::query("SELECT public_key FROM trusted_keys WHERE key_id = $1")
            .bind(&key.key_id)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = kept {
            return if row.text("public_key")? == public_key {
                Ok(())
            } else {
                Err(exists(format!("key {}", key.key_id)))
            };
        }
        sqlx::query("INSERT INTO trusted_keys (key_id, public_key, added, added_by) VALUES ($1, $2, $3, $4)")
            .bind(&key.key_id)
            .bind(public_key)
            .bind(key.added.0)
            .bind(&key.added_by)
            .execute(&mut *tx)
            .await?;
        note(&mut tx, &key.added_by, "key.trust", &key.key_id, "").await?;
        self.commit(tx).await
    }

    /// Trusts a key no longer.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_key(&self, key_id: &str, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let deleted =
            sqlx::query("DELETE FROM trusted_keys WHERE key_id = $1").bind(key_id).execute(&mut *tx).await?;
        if deleted.rows_affected() == 0 {
            return Err(not_found(format!("key {key_id}")));
        }
        note(&mut tx, actor, "key.distrust", key_id, "").await?;
        self.commit(tx).await
    }

    /// All trusted keys, by id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn keys(&self) -> Result<Vec<TrustedKey>, StoreError> {
        let rows =
            sqlx::query("SELECT key_id, public_key, added, added_by FROM trusted_keys ORDER BY key_id")
                .fetch_all(self.database.reader())
                .await?;
        rows.iter()
            .map(|row| {
                Ok(TrustedKey {
                    key_id: row.text("key_id")?,
                    public_key: STANDARD
                        .decode(row.text("public_key")?)
                        .map_err(|error| corrupt("public_key", error))?,
                    added: row.millis("added")?,
                    added_by: row.text("added_by")?,
                })
            })
            .collect()
    }
}
