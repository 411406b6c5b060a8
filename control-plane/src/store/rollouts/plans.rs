//! Plans at rest: each is kept without its targets but with those that differ from its parent's, and the current targets of
//! each roll-out are kept beside them. A wave over thousands of gateways so costs what it changes, not what it covers.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;

use crate::{
    domain::{
        Digest, GatewayId,
        rollout::{Plan, RolloutId, Target},
    },
    store::{
        Store, StoreError, Tx, not_found,
        row::{Columns, MOST_ROWS, placeholders, signed, to_json, tuples},
    },
};

/// Gateways whose target differs from the parent's; `None`: it has none any more.
type Changed = BTreeMap<GatewayId, Option<Target>>;

/// Keeps a plan whose parent has the targets `before`.
pub(super) async fn insert(
    tx: &mut Tx,
    plan: &Plan,
    before: &BTreeMap<GatewayId, Target>,
) -> Result<(), StoreError> {
    let changed = difference(before, &plan.targets);
    let mut head = plan.clone();
    head.targets.clear();
    sqlx::query("INSERT INTO plans (rollout, generation, head, changed) VALUES ($1, $2, $3, $4)")
        .bind(&plan.rollout.0)
        .bind(signed("generation", plan.generation)?)
        .bind(to_json("plan", &head)?)
        .bind(to_json("targets", &changed)?)
        .execute(&mut **tx)
        .await?;
    put_targets(tx, &plan.rollout, &changed).await?;
    delete_targets(tx, &plan.rollout, &changed).await
}

fn difference(before: &BTreeMap<GatewayId, Target>, after: &BTreeMap<GatewayId, Target>) -> Changed {
    let put = after
        .iter()
        .filter(|(gateway, target)| before.get(gateway) != Some(target))
        .map(|(gateway, target)| (gateway.clone(), Some(target.clone())));
    let gone =
        before.keys().filter(|gateway| !after.contains_key(gateway)).map(|gateway| (gateway.clone(), None));
    put.chain(gone).collect()
}

async fn put_targets(tx: &mut Tx, rollout: &RolloutId, changed: &Changed) -> Result<(), StoreError> {
    let put: Vec<_> =
        changed.iter().filter_map(|(gateway, target)| Some((gateway, target.as_ref()?))).collect();
    for chunk in put.chunks(MOST_ROWS) {
        let sql = format!(
            "INSERT INTO targets (rollout, gateway, target, previous) VALUES {} \
             ON CONFLICT (rollout, gateway) DO UPDATE SET target = excluded.target, previous = excluded.previous",
            tuples(chunk.len(), 4)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (gateway, target) in chunk {
            query = query
                .bind(&rollout.0)
                .bind(gateway.as_str())
                .bind(to_json("target", target)?)
                .bind(target.previous.as_ref().map(Digest::as_str));
        }
        query.execute(&mut **tx).await?;
    }
    Ok(())
}

async fn delete_targets(tx: &mut Tx, rollout: &RolloutId, changed: &Changed) -> Result<(), StoreError> {
    let gone: Vec<_> =
        changed.iter().filter(|(_, target)| target.is_none()).map(|(gateway, _)| gateway).collect();
    for chunk in gone.chunks(MOST_ROWS) {
        let sql = format!(
            "DELETE FROM targets WHERE rollout = $1 AND gateway IN ({})",
            placeholders(1, chunk.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(&rollout.0);
        for gateway in chunk {
            query = query.bind(gateway.as_str());
        }
        query.execute(&mut **tx).await?;
    }
    Ok(())
}

/// Targets of a roll-out's current plan.
pub(super) async fn targets(
    tx: &mut Tx,
    rollout: &RolloutId,
) -> Result<BTreeMap<GatewayId, Target>, StoreError> {
    let rows = sqlx::query("SELECT gateway, target FROM targets WHERE rollout = $1")
        .bind(&rollout.0)
        .fetch_all(&mut **tx)
        .await?;
    rows.iter().map(|row| Ok((row.parsed("gateway")?, row.json("target")?))).collect()
}

/// Every plan of a roll-out, oldest first, each put together from those before it.
pub(super) async fn all(store: &Store, rollout: &RolloutId) -> Result<Vec<Plan>, StoreError> {
    let rows = sqlx::query("SELECT head, changed FROM plans WHERE rollout = $1 ORDER BY generation")
        .bind(&rollout.0)
        .fetch_all(store.database.reader())
        .await?;
    if rows.is_empty() {
        return Err(not_found(format!("roll-out {rollout}")));
    }
    let mut targets = BTreeMap::new();
    rows.iter()
        .map(|row| {
            let mut plan: Plan = row.json("head")?;
            for (gateway, target) in row.json::<Changed>("changed")? {
                match target {
                    Some(target) => targets.insert(gateway, target),
                    None => targets.remove(&gateway),
                };
            }
            plan.targets = targets.clone();
            Ok(plan)
        })
        .collect()
}
