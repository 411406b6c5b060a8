//! Certificates of gateways: which are known, and which no longer count.

use crate::domain::{GatewayId, Millis};

use super::unknown;
use crate::store::{Lock, Store, StoreError, Tx, audit::note, exists, row::plain};

impl Store {
    /// Keeps a gateway's new certificate. Its older ones stay valid.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn renew(&self, id: &GatewayId, serial: &str, not_after: Millis) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let changed =
            sqlx::query("UPDATE gateways SET serial = $2, not_after = $3 WHERE id = $1 AND removed IS NULL")
                .bind(id.as_str())
                .bind(serial)
                .bind(not_after.0)
                .execute(&mut *tx)
                .await?;
        if changed.rows_affected() == 0 {
            return Err(unknown(id));
        }
        certify(&mut tx, id, serial, not_after).await?;
        note(&mut tx, &format!("gateway {id}"), "certificate.renew", id.as_str(), serial).await?;
        self.commit(tx).await
    }

    /// Whether a certificate has been revoked.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn is_revoked(&self, serial: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT serial FROM certificates WHERE serial = $1 AND revoked IS NOT NULL")
            .bind(serial)
            .fetch_optional(self.database.reader())
            .await?;
        Ok(row.is_some())
    }

    /// Revokes a certificate, also one that is not known. Twice is as once.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn revoke(&self, serial: &str, actor: &str) -> Result<(), StoreError> {
        let mut tx = self.write(Lock::All).await?;
        let revoked = sqlx::query(
            "INSERT INTO certificates (serial, gateway, not_after, revoked) VALUES ($1, NULL, 0, $2) \
             ON CONFLICT (serial) DO UPDATE SET revoked = excluded.revoked WHERE certificates.revoked IS NULL",
        )
        .bind(plain(serial))
        .bind(Millis::now().0)
        .execute(&mut *tx)
        .await?;
        if revoked.rows_affected() > 0 {
            note(&mut tx, actor, "certificate.revoke", serial, "").await?;
        }
        self.commit(tx).await
    }
}

/// Keeps which gateway a certificate is of.
pub(super) async fn certify(
    tx: &mut Tx,
    id: &GatewayId,
    serial: &str,
    not_after: Millis,
) -> Result<(), StoreError> {
    let kept = sqlx::query(
        "INSERT INTO certificates (serial, gateway, not_after) VALUES ($1, $2, $3) ON CONFLICT (serial) DO NOTHING",
    )
    .bind(serial)
    .bind(id.as_str())
    .bind(not_after.0)
    .execute(&mut **tx)
    .await?;
    if kept.rows_affected() == 0 { Err(exists(format!("certificate {serial}"))) } else { Ok(()) }
}
