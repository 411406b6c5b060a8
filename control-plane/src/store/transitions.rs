//! What happened to versions on gateways.

use crate::domain::{Digest, GatewayId, Millis, ModelName, rollout::RolloutId};

use sqlx::any::AnyRow;

use super::{
    Lock, Store, StoreError, Tx,
    gateways::unknown,
    row::{Columns, plain, signed},
};

/// A version has gone from one phase to another, as its gateway tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitionRecord {
    /// Grows with each of the gateway.
    pub sequence: u64,
    /// By the gateway's clock.
    pub at: Millis,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub digest: Digest,
    /// The phase before.
    pub from: String,
    /// The phase since.
    pub to: String,
    /// Why, in words.
    pub reason: String,
    /// Of the assignment that it follows.
    pub generation: u64,
    /// What gates found, JSON.
    pub verdicts_json: String,
}

/// A transition with where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayTransition {
    /// The gateway.
    pub gateway: GatewayId,
    /// The roll-out that assigned the version, if one did.
    pub rollout: Option<RolloutId>,
    /// When it was kept, by the control plane's clock.
    pub received: Millis,
    /// What happened.
    pub transition: TransitionRecord,
}

/// Which transitions; the default: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransitionFilter {
    /// Only of this gateway.
    pub gateway: Option<GatewayId>,
    /// Only of this roll-out.
    pub rollout: Option<RolloutId>,
}

impl Store {
    /// Keeps transitions and acknowledges them. Those that are kept already are passed over.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without that gateway.
    ///
    /// # Returns
    /// The acknowledged sequence.
    pub async fn append_transitions(
        &self,
        gateway: &GatewayId,
        transitions: &[TransitionRecord],
    ) -> Result<u64, StoreError> {
        let last = transitions.iter().map(|transition| transition.sequence).max().unwrap_or(0);
        let mut tx = self.write(Lock::Row).await?;
        // Changes the gateway's row first: two replicas that append for one gateway do it one after the other.
        let rows = sqlx::query(
            "UPDATE gateways SET acknowledged_sequence = \
             CASE WHEN acknowledged_sequence < $2 THEN $2 ELSE acknowledged_sequence END \
             WHERE id = $1 AND removed IS NULL RETURNING enrolment, acknowledged_sequence",
        )
        .bind(gateway.as_str())
        .bind(signed("sequence", last)?)
        .fetch_all(&mut *tx)
        .await?;
        let row = rows.first().ok_or_else(|| unknown(gateway))?;
        let enrolment = row.number("enrolment")?;
        for transition in transitions {
            append(&mut tx, gateway, enrolment, transition).await?;
        }
        let acknowledged = row.unsigned("acknowledged_sequence")?;
        self.commit(tx).await?;
        Ok(acknowledged)
    }

    /// The last `limit` transitions that match, newest first.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn transitions(
        &self,
        filter: &TransitionFilter,
        limit: u32,
    ) -> Result<Vec<GatewayTransition>, StoreError> {
        let (gateway, rollout) = (filter.gateway.as_ref(), filter.rollout.as_ref());
        let query = match (gateway, rollout) {
            (None, None) => sqlx::query(
                "SELECT * FROM transitions ORDER BY received DESC, enrolment DESC, sequence DESC LIMIT $1",
            )
            .bind(i64::from(limit)),
            (Some(gateway), None) => sqlx::query(
                "SELECT * FROM transitions WHERE gateway = $2 ORDER BY enrolment DESC, sequence DESC LIMIT $1",
            )
            .bind(i64::from(limit))
            .bind(gateway.as_str()),
            (None, Some(rollout)) => sqlx::query(
                "SELECT * FROM transitions WHERE rollout = $2 \
                 ORDER BY received DESC, enrolment DESC, sequence DESC LIMIT $1",
            )
            .bind(i64::from(limit))
            .bind(&rollout.0),
            (Some(gateway), Some(rollout)) => sqlx::query(
                "SELECT * FROM transitions WHERE gateway = $2 AND rollout = $3 \
                 ORDER BY enrolment DESC, sequence DESC LIMIT $1",
            )
            .bind(i64::from(limit))
            .bind(gateway.as_str())
            .bind(&rollout.0),
        };
        let rows = query.fetch_all(self.database.reader()).await?;
        rows.iter().map(record).collect()
    }
}

async fn append(
    tx: &mut Tx,
    gateway: &GatewayId,
    enrolment: i64,
    transition: &TransitionRecord,
) -> Result<(), StoreError> {
    // The roll-out is the one that last assigned the model when the generation was made.
    sqlx::query(
        "INSERT INTO transitions (gateway, enrolment, sequence, at, model, digest, from_phase, to_phase, reason, \
         generation, verdicts, rollout, received) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
         (SELECT rollout FROM assignment_log WHERE gateway = $1 AND model = $5 AND generation <= $10 \
         ORDER BY generation DESC LIMIT 1), $12) ON CONFLICT (gateway, enrolment, sequence) DO NOTHING",
    )
    .bind(gateway.as_str())
    .bind(enrolment)
    .bind(signed("sequence", transition.sequence)?)
    .bind(transition.at.0)
    .bind(transition.model.as_str())
    .bind(transition.digest.as_str())
    .bind(plain(&transition.from))
    .bind(plain(&transition.to))
    .bind(plain(&transition.reason))
    .bind(signed("generation", transition.generation)?)
    .bind(plain(&transition.verdicts_json))
    .bind(Millis::now().0)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn record(row: &AnyRow) -> Result<GatewayTransition, StoreError> {
    Ok(GatewayTransition {
        gateway: row.parsed("gateway")?,
        rollout: row.maybe_text("rollout")?.map(RolloutId),
        received: row.millis("received")?,
        transition: TransitionRecord {
            sequence: row.unsigned("sequence")?,
            at: row.millis("at")?,
            model: row.parsed("model")?,
            digest: row.parsed("digest")?,
            from: row.text("from_phase")?,
            to: row.text("to_phase")?,
            reason: row.text("reason")?,
            generation: row.unsigned("generation")?,
            verdicts_json: row.text("verdicts")?,
        },
    })
}
