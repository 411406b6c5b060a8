//! Replicas of the control plane.

use crate::domain::Millis;

use super::{Lock, Store, StoreError, row::Columns};

/// How long a silent replica is remembered, in milliseconds.
const REMEMBERED: i64 = 24 * 60 * 60 * 1000;

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Its id, new with each start.
    pub id: String,
    /// Where others reach it.
    pub address: String,
    /// When it last said so, by its clock.
    pub seen: Millis,
}

impl Store {
    /// Says that a replica lives. Replicas that have been silent for a day are forgotten.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn beat(&self, id: &str, address: &str, now: Millis) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::Row).await?;
        sqlx::query(
            "INSERT INTO replicas (id, address, seen) VALUES ($1, $2, $3) \
             ON CONFLICT (id) DO UPDATE SET address = excluded.address, seen = excluded.seen",
        )
        .bind(id)
        .bind(address)
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM replicas WHERE seen < $1")
            .bind(now.0.saturating_sub(REMEMBERED))
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    /// Replicas that have said since `since` that they live, by id.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn replicas(&self, since: Millis) -> Result<Vec<ReplicaRecord>, StoreError> {
        let rows = sqlx::query("SELECT id, address, seen FROM replicas WHERE seen >= $1 ORDER BY id")
            .bind(since.0)
            .fetch_all(self.database.reader())
            .await?;
        rows.iter()
            .map(|row| {
                Ok(ReplicaRecord {
                    id: row.text("id")?,
                    address: row.text("address")?,
                    seen: row.millis("seen")?,
                })
            })
            .collect()
    }
}
