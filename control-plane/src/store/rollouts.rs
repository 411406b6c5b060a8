//! Roll-outs, their plans, and which gateways they own.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, any::AnyRow};

use crate::domain::{
    GatewayId, Millis, ModelName,
    rollout::{Plan, RolloutId, RolloutSpec, Target},
};

use super::{
    AssignmentChange, Lock, Store, StoreError, Tx,
    assignments::assign,
    audit::note,
    exists, invalid, not_found, ownership,
    row::{Columns, plain, signed, to_json},
};

mod plans;

const COLUMNS: &str = "SELECT r.id AS id, r.spec AS spec, r.created AS created, r.created_by AS created_by, \
    r.traceparent AS traceparent, p.head AS head FROM rollouts r \
    JOIN plans p ON p.rollout = r.id AND p.generation = r.generation";

/// A roll-out that begins.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRollout {
    /// Its id.
    pub id: RolloutId,
    /// What was asked for.
    pub spec: RolloutSpec,
    /// When.
    pub created: Millis,
    /// By whom.
    pub created_by: String,
    /// W3C trace context of its trace; may be empty.
    pub traceparent: String,
    /// Every gateway that the selector matches now: the roll-out owns them for its model until it is over.
    pub gateways: Vec<GatewayId>,
    /// The first plan: generation 1, parent 0.
    pub plan: Plan,
    /// What that changes.
    pub changes: Vec<AssignmentChange>,
}

/// A roll-out with its current plan.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutRecord {
    /// Its id.
    pub id: RolloutId,
    /// What was asked for.
    pub spec: RolloutSpec,
    /// When.
    pub created: Millis,
    /// By whom.
    pub created_by: String,
    /// W3C trace context of its trace; may be empty.
    pub traceparent: String,
    /// The current plan.
    pub plan: Plan,
}

impl Store {
    /// Begins a roll-out: its first plan with everything that it changes, or nothing.
    ///
    /// # Errors
    /// [`StoreError::Overlaps`] if an unfinished roll-out of the model owns one of the gateways; [`StoreError::NotFound`] if
    /// the version is gone; [`StoreError::Conflict`] if a gateway is; [`StoreError::Exists`] if there is one with that id;
    /// [`StoreError::Invalid`] if plan and changes contradict each other.
    pub async fn create_rollout(&self, rollout: &NewRollout) -> Result<(), StoreError> {
        let plan = &rollout.plan;
        if plan.rollout != rollout.id || plan.generation != 1 || plan.parent != 0 {
            return Err(invalid(format!(
                "plan {} is not the first of roll-out {}",
                plan.generation, rollout.id
            )));
        }
        let spec = &rollout.spec;
        let mut tx = self.write(Lock::All).await?;
        let version = sqlx::query("SELECT version FROM versions WHERE model = $1 AND digest = $2 LIMIT 1")
            .bind(spec.model.as_str())
            .bind(spec.digest.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        if version.is_none() {
            return Err(not_found(format!("version {}@{}", spec.model, spec.version)));
        }
        insert(&mut tx, rollout).await?;
        let gateways: BTreeSet<_> =
            rollout.gateways.iter().chain(rollout.changes.iter().map(|change| &change.gateway)).collect();
        ownership::take(&mut tx, &rollout.id, &spec.model, &gateways).await?;
        keep(&mut tx, plan, &spec.model, &BTreeMap::new(), &rollout.changes).await?;
        let what = format!("{}@{} on {} gateways", spec.model, spec.version, gateways.len());
        note(&mut tx, &rollout.created_by, "rollout.create", &rollout.id.0, &what).await?;
        self.commit(tx).await
    }

    /// Makes a plan current if its parent is, with everything that it changes, or nothing. A gateway that joined later is
    /// owned from its first change on; a plan that is over owns nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another plan is current, or a gateway is gone; [`StoreError::Overlaps`] if another
    /// roll-out owns a gateway; [`StoreError::NotFound`] without that roll-out; [`StoreError::Invalid`] if plan and changes
    /// contradict each other.
    pub async fn advance(
        &self,
        plan: &Plan,
        expected_parent: u64,
        changes: &[AssignmentChange],
    ) -> Result<(), StoreError> {
        let id = &plan.rollout;
        if plan.parent != expected_parent || plan.generation != expected_parent + 1 {
            return Err(invalid(format!(
                "plan {} of roll-out {id} does not follow plan {expected_parent}",
                plan.generation
            )));
        }
        let mut tx = self.write(Lock::All).await?;
        let row = sqlx::query("SELECT model, generation FROM rollouts WHERE id = $1")
            .bind(&id.0)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| not_found(format!("roll-out {id}")))?;
        if row.unsigned("generation")? != expected_parent {
            return Err(StoreError::Conflict { what: format!("plan {expected_parent} of roll-out {id}") });
        }
        let model = row.parsed("model")?;
        let gateways = changes.iter().map(|change| &change.gateway).collect();
        ownership::take(&mut tx, id, &model, &gateways).await?;
        let before = plans::targets(&mut tx, id).await?;
        keep(&mut tx, plan, &model, &before, changes).await?;
        self.commit(tx).await
    }

    /// The last `limit` roll-outs, newest first; only those that are not over, if `unfinished`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn rollouts(&self, unfinished: bool, limit: u32) -> Result<Vec<RolloutRecord>, StoreError> {
        let mut tx = self.database.snapshot().await?;
        let filter = if unfinished { "WHERE r.is_over = 0" } else { "" };
        let sql = format!("{COLUMNS} {filter} ORDER BY r.created DESC, r.id DESC LIMIT $1");
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(i64::from(limit)).fetch_all(&mut *tx).await?;
        let mut rollouts = Vec::with_capacity(rows.len());
        for row in &rows {
            rollouts.push(record(&mut tx, row).await?);
        }
        Ok(rollouts)
    }

    /// A roll-out by its id or the beginning of it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Ambiguous`].
    pub async fn rollout(&self, prefix: &str) -> Result<RolloutRecord, StoreError> {
        let mut tx = self.database.snapshot().await?;
        // PostgreSQL's function takes an INTEGER.
        let length = i32::try_from(prefix.chars().count()).unwrap_or(i32::MAX);
        let sql = format!("{COLUMNS} WHERE substr(r.id, 1, $2) = $1 ORDER BY r.id LIMIT 2");
        let rows =
            sqlx::query(AssertSqlSafe(sql)).bind(plain(prefix)).bind(length).fetch_all(&mut *tx).await?;
        match rows.as_slice() {
            [row] => record(&mut tx, row).await,
            [] => Err(not_found(format!("roll-out {prefix}"))),
            [..] => Err(StoreError::Ambiguous { what: format!("roll-out {prefix}") }),
        }
    }

    /// The trace context of a roll-out. Reads no plan either.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn traceparent(&self, id: &RolloutId) -> Result<String, StoreError> {
        let row = sqlx::query("SELECT traceparent FROM rollouts WHERE id = $1")
            .bind(plain(&id.0))
            .fetch_optional(self.database.reader())
            .await?;
        row.ok_or_else(|| not_found(format!("roll-out {id}")))?.text("traceparent")
    }

    /// What was asked for with a roll-out. Reads no plan, so it costs the same for one gateway and for thousands.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn spec(&self, id: &RolloutId) -> Result<RolloutSpec, StoreError> {
        let row = sqlx::query("SELECT spec FROM rollouts WHERE id = $1")
            .bind(plain(&id.0))
            .fetch_optional(self.database.reader())
            .await?;
        row.ok_or_else(|| not_found(format!("roll-out {id}")))?.json("spec")
    }

    /// Every plan of a roll-out, oldest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn plans(&self, id: &RolloutId) -> Result<Vec<Plan>, StoreError> {
        plans::all(self, id).await
    }

    /// Which unfinished roll-out owns a gateway for which model.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn owners(&self) -> Result<Vec<Owner>, StoreError> {
        ownership::all(self).await
    }
}

async fn insert(tx: &mut Tx, rollout: &NewRollout) -> Result<(), StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO rollouts (id, model, digest, spec, created, created_by, traceparent, generation, is_over) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&rollout.id.0)
    .bind(rollout.spec.model.as_str())
    .bind(rollout.spec.digest.as_str())
    .bind(to_json("specification", &rollout.spec)?)
    .bind(rollout.created.0)
    .bind(plain(&rollout.created_by))
    .bind(plain(&rollout.traceparent))
    .execute(&mut **tx)
    .await?;
    if inserted.rows_affected() == 0 { Err(exists(format!("roll-out {}", rollout.id))) } else { Ok(()) }
}

/// Makes a plan current, if its parent is, with everything that it changes. The caller holds the lock and owns the gateways
/// that change.
async fn keep(
    tx: &mut Tx,
    plan: &Plan,
    model: &ModelName,
    before: &BTreeMap<GatewayId, Target>,
    changes: &[AssignmentChange],
) -> Result<(), StoreError> {
    // Plans follow the last one too: a roll-out that is over still catches up late gateways, or is taken back.
    let current =
        sqlx::query("UPDATE rollouts SET generation = $2, is_over = $3 WHERE id = $1 AND generation = $4")
            .bind(&plan.rollout.0)
            .bind(signed("generation", plan.generation)?)
            .bind(i64::from(plan.state.is_over()))
            .bind(signed("parent", plan.parent)?)
            .execute(&mut **tx)
            .await?;
    if current.rows_affected() == 0 {
        return Err(StoreError::Conflict {
            what: format!("plan {} of roll-out {}", plan.parent, plan.rollout),
        });
    }
    plans::insert(tx, plan, before).await?;
    assign(tx, plan, model, changes).await?;
    if plan.state.is_over() {
        ownership::release(tx, &plan.rollout).await?;
    }
    let detail = format!("plan {}, {:?}, wave {}: {}", plan.generation, plan.state, plan.wave, plan.reason);
    note(tx, &plan.actor, "rollout.plan", &plan.rollout.0, &detail).await
}

async fn record(tx: &mut Tx, row: &AnyRow) -> Result<RolloutRecord, StoreError> {
    let id = RolloutId(row.text("id")?);
    let mut plan: Plan = row.json("head")?;
    plan.targets = plans::targets(tx, &id).await?;
    Ok(RolloutRecord {
        id,
        spec: row.json("spec")?,
        created: row.millis("created")?,
        created_by: row.text("created_by")?,
        traceparent: row.text("traceparent")?,
        plan,
    })
}

/// A roll-out owns a gateway for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The gateway.
    pub gateway: GatewayId,
    /// The model.
    pub model: ModelName,
    /// The roll-out.
    pub rollout: RolloutId,
}
