//! What each gateway is to serve.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, any::AnyRow};

use crate::domain::{
    Digest, GatewayId, Millis, ModelName,
    rollout::{Plan, RolloutId},
};

use super::{
    Store, StoreError, Tx,
    gateways::unknown,
    invalid,
    row::{Columns, MOST_ROWS, placeholders, tuples},
};

/// Who owns a gateway now says whether the roll-out of an assignment is over.
const COLUMNS: &str = "SELECT a.gateway AS gateway, a.model AS model, a.digest AS digest, o.rollout AS rollout, \
    a.rollout AS assigned_by, a.previous AS previous, a.rolls_back AS rolls_back, a.generation AS generation, \
    a.since AS since, \
    r.traceparent AS traceparent FROM assignments a \
    LEFT JOIN owners o ON o.gateway = a.gateway AND o.model = a.model AND o.rollout = a.rollout \
    LEFT JOIN rollouts r ON r.id = a.rollout";

/// A version that a gateway is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentRecord {
    /// The gateway.
    pub gateway: GatewayId,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub digest: Digest,
    /// The roll-out that says so, while it is not over.
    pub rollout: Option<RolloutId>,
    /// The roll-out that said so, over or not: a gateway that was away is still held to what that asks.
    pub assigned_by: RolloutId,
    /// The version that was assigned before.
    pub previous: Option<Digest>,
    /// Whether it takes back a version that came after it.
    pub rolls_back: bool,
    /// W3C trace context of the roll-out; may be empty.
    pub traceparent: String,
    /// The gateway's generation since when this is so.
    pub generation: u64,
    /// When it was assigned.
    pub since: Millis,
}

/// What a plan changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentChange {
    /// The gateway.
    pub gateway: GatewayId,
    /// The model.
    pub model: ModelName,
    /// The version; `None`: nothing of the model any more.
    pub digest: Option<Digest>,
    /// Whether it takes back a version that came after it.
    pub rolls_back: bool,
}

impl Store {
    /// Everything that a gateway is to serve, by model, with its generation.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without that gateway.
    pub async fn assignments_of(
        &self,
        gateway: &GatewayId,
    ) -> Result<(u64, Vec<AssignmentRecord>), StoreError> {
        let mut tx = self.database.snapshot().await?;
        let row = sqlx::query("SELECT generation FROM gateways WHERE id = $1 AND removed IS NULL")
            .bind(gateway.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let generation = row.ok_or_else(|| unknown(gateway))?.unsigned("generation")?;
        let rows = sqlx::query(AssertSqlSafe(format!("{COLUMNS} WHERE a.gateway = $1")))
            .bind(gateway.as_str())
            .fetch_all(&mut *tx)
            .await?;
        Ok((generation, records(&rows)?))
    }

    /// All assignments, by gateway and model.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn assignments(&self) -> Result<Vec<AssignmentRecord>, StoreError> {
        let rows = sqlx::query(COLUMNS).fetch_all(self.database.reader()).await?;
        records(&rows)
    }
}

/// Makes a plan's changes what gateways are to serve. The caller holds the lock and owns the gateways.
pub(super) async fn assign(
    tx: &mut Tx,
    plan: &Plan,
    model: &ModelName,
    changes: &[AssignmentChange],
) -> Result<(), StoreError> {
    check(plan, model, changes)?;
    let mut sorted: Vec<_> = changes.iter().collect();
    sorted.sort_by(|one, other| one.gateway.cmp(&other.gateway));
    for chunk in sorted.chunks(MOST_ROWS) {
        let generations = next_generations(tx, chunk).await?;
        let before = current(tx, model, chunk).await?;
        put(tx, plan, chunk, &generations, &before).await?;
        withdraw(tx, model, chunk).await?;
        log(tx, plan, chunk, &generations).await?;
    }
    Ok(())
}

/// A change says what the plan says, once.
fn check(plan: &Plan, model: &ModelName, changes: &[AssignmentChange]) -> Result<(), StoreError> {
    let mut seen = BTreeSet::new();
    for change in changes {
        let gateway = &change.gateway;
        if change.model != *model {
            return Err(invalid(format!(
                "a change of gateway {gateway} is of model {}, not {model}",
                change.model
            )));
        }
        if !seen.insert(gateway) {
            return Err(invalid(format!("gateway {gateway} is changed twice")));
        }
        if plan.targets.get(gateway).map(|target| &target.digest) != Some(&change.digest) {
            return Err(invalid(format!("the change of gateway {gateway} is not what the plan says")));
        }
    }
    Ok(())
}

type Generations = BTreeMap<GatewayId, i64>;

async fn next_generations(tx: &mut Tx, changes: &[&AssignmentChange]) -> Result<Generations, StoreError> {
    let sql = format!(
        "UPDATE gateways SET generation = generation + 1 \
         WHERE removed IS NULL AND id IN ({}) RETURNING id, generation",
        placeholders(0, changes.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for change in changes {
        query = query.bind(change.gateway.as_str());
    }
    let rows = query.fetch_all(&mut **tx).await?;
    rows.iter().map(|row| Ok((row.parsed("id")?, row.number("generation")?))).collect()
}

/// What gateways are to serve now, and what they were to serve before.
async fn current(
    tx: &mut Tx,
    model: &ModelName,
    changes: &[&AssignmentChange],
) -> Result<BTreeMap<GatewayId, (Digest, Option<Digest>)>, StoreError> {
    let sql = format!(
        "SELECT gateway, digest, previous FROM assignments WHERE model = $1 AND gateway IN ({})",
        placeholders(1, changes.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(model.as_str());
    for change in changes {
        query = query.bind(change.gateway.as_str());
    }
    let rows = query.fetch_all(&mut **tx).await?;
    rows.iter()
        .map(|row| Ok((row.parsed("gateway")?, (row.parsed("digest")?, row.maybe_parsed("previous")?))))
        .collect()
}

async fn put(
    tx: &mut Tx,
    plan: &Plan,
    changes: &[&AssignmentChange],
    generations: &Generations,
    before: &BTreeMap<GatewayId, (Digest, Option<Digest>)>,
) -> Result<(), StoreError> {
    let kept: Vec<_> = changes.iter().filter_map(|change| Some((*change, change.digest.as_ref()?))).collect();
    if kept.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "INSERT INTO assignments (gateway, model, digest, rollout, previous, rolls_back, generation, since) \
         VALUES {} \
         ON CONFLICT (gateway, model) DO UPDATE SET digest = excluded.digest, rollout = excluded.rollout, \
         previous = excluded.previous, rolls_back = excluded.rolls_back, generation = excluded.generation, \
         since = excluded.since",
        tuples(kept.len(), 8)
    );
    let now = Millis::now().0;
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (change, digest) in kept {
        // The same version again leaves what came before it.
        let previous = before.get(&change.gateway).and_then(|(current, previous)| {
            if current == digest { previous.as_ref() } else { Some(current) }
        });
        query = query
            .bind(change.gateway.as_str())
            .bind(change.model.as_str())
            .bind(digest.as_str())
            .bind(&plan.rollout.0)
            .bind(previous.map(Digest::as_str))
            .bind(i64::from(change.rolls_back))
            .bind(generation(generations, change)?)
            .bind(now);
    }
    query.execute(&mut **tx).await?;
    Ok(())
}

async fn withdraw(tx: &mut Tx, model: &ModelName, changes: &[&AssignmentChange]) -> Result<(), StoreError> {
    let gone: Vec<_> = changes.iter().filter(|change| change.digest.is_none()).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let sql =
        format!("DELETE FROM assignments WHERE model = $1 AND gateway IN ({})", placeholders(1, gone.len()));
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(model.as_str());
    for change in gone {
        query = query.bind(change.gateway.as_str());
    }
    query.execute(&mut **tx).await?;
    Ok(())
}

async fn log(
    tx: &mut Tx,
    plan: &Plan,
    changes: &[&AssignmentChange],
    generations: &Generations,
) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO assignment_log (gateway, model, generation, digest, rollout, since) VALUES {}",
        tuples(changes.len(), 6)
    );
    let now = Millis::now().0;
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for change in changes {
        query = query
            .bind(change.gateway.as_str())
            .bind(change.model.as_str())
            .bind(generation(generations, change)?)
            .bind(change.digest.as_ref().map(Digest::as_str))
            .bind(&plan.rollout.0)
            .bind(now);
    }
    query.execute(&mut **tx).await?;
    Ok(())
}

fn generation(generations: &Generations, change: &AssignmentChange) -> Result<i64, StoreError> {
    generations.get(&change.gateway).copied().ok_or_else(|| gone(&change.gateway))
}

/// The plan rests on a gateway that has been removed.
pub(super) fn gone(gateway: &GatewayId) -> StoreError {
    StoreError::Conflict { what: format!("gateway {gateway}, which has been removed,") }
}

fn records(rows: &[AnyRow]) -> Result<Vec<AssignmentRecord>, StoreError> {
    let mut records = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    records.sort_by(|one, other| (&one.gateway, &one.model).cmp(&(&other.gateway, &other.model)));
    Ok(records)
}

fn record(row: &AnyRow) -> Result<AssignmentRecord, StoreError> {
    Ok(AssignmentRecord {
        gateway: row.parsed("gateway")?,
        model: row.parsed("model")?,
        digest: row.parsed("digest")?,
        rollout: row.maybe_text("rollout")?.map(RolloutId),
        assigned_by: RolloutId(row.text("assigned_by")?),
        previous: row.maybe_parsed("previous")?,
        rolls_back: row.number("rolls_back")? != 0,
        traceparent: row.maybe_text("traceparent")?.unwrap_or_default(),
        generation: row.unsigned("generation")?,
        since: row.millis("since")?,
    })
}
