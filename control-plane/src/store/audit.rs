//! Who did what, when.

use crate::domain::Millis;

use uuid::Uuid;

use super::{
    Lock, Store, StoreError, Tx,
    row::{Columns, plain},
};

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Sorts by time.
    pub id: String,
    /// When.
    pub at: Millis,
    /// Name of the bearer token, "gateway ID", or "control plane".
    pub actor: String,
    /// Such as `rollout.create`.
    pub action: String,
    /// What it was done to.
    pub object: String,
    /// In words.
    pub detail: String,
}

impl Store {
    /// Keeps that something was done which changes nothing else in the store.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn audit(
        &self,
        actor: &str,
        action: &str,
        object: &str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::Row).await?;
        note(&mut tx, actor, action, object, detail).await?;
        self.commit(tx).await
    }

    /// The last `limit` entries, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn audit_entries(&self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, at, actor, action, object, detail FROM audit ORDER BY at DESC, id DESC LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(AuditEntry {
                    id: row.text("id")?,
                    at: row.millis("at")?,
                    actor: row.text("actor")?,
                    action: row.text("action")?,
                    object: row.text("object")?,
                    detail: row.text("detail")?,
                })
            })
            .collect()
    }
}

/// Writes that something is done, in the transaction that does it.
pub(super) async fn note(
    tx: &mut Tx,
    actor: &str,
    action: &str,
    object: &str,
    detail: &str,
) -> Result<(), StoreError> {
    // Version 7 grows with time, and within a process from call to call.
    sqlx::query("INSERT INTO audit (id, at, actor, action, object, detail) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(Uuid::now_v7().simple().to_string())
        .bind(Millis::now().0)
        .bind(plain(actor))
        .bind(action)
        .bind(plain(object))
        .bind(plain(detail))
        .execute(&mut **tx)
        .await?;
    Ok(())
}
