//! Roll-outs, their plans, and which gateways they own.

use crate::domain::{
    GatewayId, Millis,
    rollout::{Plan, RolloutId, RolloutSpec},
};

use super::{AssignmentChange, Store, StoreError};

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
        let _ = rollout;
        unimplemented!()
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
        let _ = (plan, expected_parent, changes);
        unimplemented!()
    }

    /// The last `limit` roll-outs, newest first; only those that are not over, if `unfinished`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn rollouts(&self, unfinished: bool, limit: u32) -> Result<Vec<RolloutRecord>, StoreError> {
        let _ = (unfinished, limit);
        unimplemented!()
    }

    /// A roll-out by its id or the beginning of it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Ambiguous`].
    pub async fn rollout(&self, prefix: &str) -> Result<RolloutRecord, StoreError> {
        let _ = prefix;
        unimplemented!()
    }

    /// Every plan of a roll-out, oldest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn plans(&self, id: &RolloutId) -> Result<Vec<Plan>, StoreError> {
        let _ = id;
        unimplemented!()
    }

    /// Which unfinished roll-out owns a gateway for which model.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn owners(&self) -> Result<Vec<Owner>, StoreError> {
        unimplemented!()
    }
}

/// A roll-out owns a gateway for a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The gateway.
    pub gateway: GatewayId,
    /// The model.
    pub model: crate::domain::ModelName,
    /// The roll-out.
    pub rollout: RolloutId,
}
