//! Which unfinished roll-out owns which gateway for which model: at most one, by the table's key.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use crate::domain::{GatewayId, ModelName, rollout::RolloutId};

use super::{
    Owner, Store, StoreError, Tx,
    assignments::gone,
    row::{Columns, MOST_ROWS, placeholders, tuples},
};

/// Makes a roll-out the owner of gateways. The caller holds the lock.
pub(super) async fn take(
    tx: &mut Tx,
    rollout: &RolloutId,
    model: &ModelName,
    gateways: &BTreeSet<&GatewayId>,
) -> Result<(), StoreError> {
    let gateways: Vec<_> = gateways.iter().copied().collect();
    for chunk in gateways.chunks(MOST_ROWS) {
        let sql = format!(
            "SELECT id FROM gateways WHERE removed IS NULL AND id IN ({})",
            placeholders(0, chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for gateway in chunk {
            query = query.bind(gateway.as_str());
        }
        let rows = query.fetch_all(&mut **tx).await?;
        let there = rows.iter().map(|row| row.parsed("id")).collect::<Result<BTreeSet<GatewayId>, _>>()?;
        if let Some(missing) = chunk.iter().find(|gateway| !there.contains(**gateway)) {
            return Err(gone(missing));
        }
        if let Some(other) = other_owner(tx, rollout, model, chunk).await? {
            return Err(StoreError::Overlaps {
                rollout: other.rollout,
                gateway: other.gateway,
                model: other.model,
            });
        }
        insert(tx, rollout, model, chunk).await?;
    }
    Ok(())
}

async fn other_owner(
    tx: &mut Tx,
    rollout: &RolloutId,
    model: &ModelName,
    gateways: &[&GatewayId],
) -> Result<Option<Owner>, StoreError> {
    let sql = format!(
        "SELECT gateway, rollout FROM owners WHERE model = $1 AND rollout <> $2 AND gateway IN ({}) LIMIT 1",
        placeholders(2, gateways.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(model.as_str()).bind(&rollout.0);
    for gateway in gateways {
        query = query.bind(gateway.as_str());
    }
    let row = query.fetch_optional(&mut **tx).await?;
    row.map(|row| {
        Ok(Owner {
            gateway: row.parsed("gateway")?,
            model: model.clone(),
            rollout: RolloutId(row.text("rollout")?),
        })
    })
    .transpose()
}

async fn insert(
    tx: &mut Tx,
    rollout: &RolloutId,
    model: &ModelName,
    gateways: &[&GatewayId],
) -> Result<(), StoreError> {
    // Touches only rows that are its own, and says how many: were it not for the lock, the key would still keep a second
    // owner out.
    let sql = format!(
        "INSERT INTO owners (gateway, model, rollout) VALUES {} ON CONFLICT (gateway, model) \
         DO UPDATE SET rollout = excluded.rollout WHERE owners.rollout = excluded.rollout",
        tuples(gateways.len(), 3)
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for gateway in gateways {
        query = query.bind(gateway.as_str()).bind(model.as_str()).bind(&rollout.0);
    }
    let owned = query.execute(&mut **tx).await?.rows_affected();
    if usize::try_from(owned) == Ok(gateways.len()) {
        Ok(())
    } else {
        Err(StoreError::Conflict { what: format!("who owns the gateways of roll-out {rollout}") })
    }
}

/// A roll-out that is over owns nothing.
pub(super) async fn release(tx: &mut Tx, rollout: &RolloutId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM owners WHERE rollout = $1").bind(&rollout.0).execute(&mut **tx).await?;
    Ok(())
}

pub(super) async fn all(store: &Store) -> Result<Vec<Owner>, StoreError> {
    let rows =
        sqlx::query("SELECT gateway, model, rollout FROM owners").fetch_all(store.database.reader()).await?;
    let mut owners = rows
        .iter()
        .map(|row| {
            Ok(Owner {
                gateway: row.parsed("gateway")?,
                model: row.parsed("model")?,
                rollout: RolloutId(row.text("rollout")?),
            })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    owners.sort_by(|one, other| (&one.gateway, &one.model).cmp(&(&other.gateway, &other.model)));
    Ok(owners)
}
