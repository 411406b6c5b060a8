//! What each gateway is to serve.

use crate::domain::{Digest, GatewayId, Millis, ModelName, rollout::RolloutId};

use super::{Store, StoreError};

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
        let _ = gateway;
        unimplemented!()
    }

    /// All assignments, by gateway and model.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn assignments(&self) -> Result<Vec<AssignmentRecord>, StoreError> {
        unimplemented!()
    }
}
