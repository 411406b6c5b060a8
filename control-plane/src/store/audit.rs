//! Who did what, when.

use crate::domain::Millis;

use super::{Store, StoreError};

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
        let _ = (actor, action, object, detail);
        unimplemented!()
    }

    /// The last `limit` entries, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn audit_entries(&self, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let _ = limit;
        unimplemented!()
    }
}
