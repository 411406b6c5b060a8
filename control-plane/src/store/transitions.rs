//! What happened to versions on gateways.

use crate::domain::{Digest, GatewayId, Millis, ModelName, rollout::RolloutId};

use super::{Store, StoreError};

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
        let _ = (gateway, transitions);
        unimplemented!()
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
        let _ = (filter, limit);
        unimplemented!()
    }
}
