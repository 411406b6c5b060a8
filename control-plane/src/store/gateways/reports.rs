//! What gateways report, and who holds their connections. Frequent, so not in the audit log.

use crate::domain::{GatewayId, Millis};

use super::{LinkUp, Report, unknown};
use crate::store::{
    Lock, Store, StoreError,
    row::{Columns, plain, signed},
};

impl Store {
    /// Saves what gateways reported, in one transaction. Those that are unknown are passed over.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn save_reports(&self, reports: &[Report]) -> Result<(), StoreError> {
        if reports.is_empty() {
            return Ok(());
        }
        let mut sorted: Vec<_> = reports.iter().collect();
        sorted.sort_by(|one, other| one.gateway.cmp(&other.gateway));
        let mut tx = self.write(Lock::Row).await?;
        for report in sorted {
            sqlx::query(
                "UPDATE gateways SET facts = COALESCE($2, facts), versions = COALESCE($3, versions), \
                 last_seen = CASE WHEN last_seen > $4 THEN last_seen ELSE $4 END WHERE id = $1 AND removed IS NULL",
            )
            .bind(report.gateway.as_str())
            .bind(report.facts_json.as_deref().map(plain))
            .bind(report.versions_json.as_deref().map(plain))
            .bind(report.seen.0)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }

    /// Says that a replica holds a gateway's connection now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    ///
    /// # Returns
    /// What is known of the gateway at that moment, so that nobody has to read again.
    pub async fn link_up(&self, id: &GatewayId, replica: &str) -> Result<LinkUp, StoreError> {
        let mut tx = self.write(Lock::Row).await?;
        let row = sqlx::query(
            "UPDATE gateways SET link_replica = $2, link_epoch = link_epoch + 1, link_since = $3, last_seen = $3 \
             WHERE id = $1 AND removed IS NULL \
             RETURNING link_epoch, generation, acknowledged_sequence",
        )
        .bind(id.as_str())
        .bind(replica)
        .bind(Millis::now().0)
        .fetch_all(&mut *tx)
        .await?;
        let row = row.first().ok_or_else(|| unknown(id))?;
        let up = LinkUp {
            epoch: row.unsigned("link_epoch")?,
            generation: row.unsigned("generation")?,
            acknowledged_sequence: row.unsigned("acknowledged_sequence")?,
        };
        tx.commit().await?;
        Ok(up)
    }

    /// Says that a link has ended. Does nothing if the gateway has a newer one, or is gone.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn link_down(&self, id: &GatewayId, epoch: u64) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::Row).await?;
        sqlx::query(
            "UPDATE gateways SET link_replica = NULL, last_seen = $3 \
             WHERE id = $1 AND link_epoch = $2 AND link_replica IS NOT NULL",
        )
        .bind(id.as_str())
        .bind(signed("epoch", epoch)?)
        .bind(Millis::now().0)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}
