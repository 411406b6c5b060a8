//! The check before a model is served.

use rookery_model::bundle::Bundle;

use super::{Mismatch, ProbeError, Replay, SelfCheck};
use crate::engine::EngineCore;

/// What became of a check that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelfCheckReport {
    /// Not done, and why.
    Skipped(&'static str),
    /// Every answer is what was recorded.
    Passed(Replay),
}

/// The model must not be served.
#[derive(Debug, thiserror::Error)]
pub enum SelfCheckError {
    /// The probes could not be replayed.
    #[error("self-check of model {model:?} could not be done")]
    Probes {
        /// Name of the model.
        model: String,
        /// Why.
        #[source]
        source: ProbeError,
    },
    /// An answer differs.
    #[error("self-check of model {model:?} on {backend}: {mismatch:?}")]
    Differs {
        /// Name of the model.
        model: String,
        /// Where it was computed.
        backend: String,
        /// The first difference.
        mismatch: Box<Mismatch>,
    },
}

/// Replays the probes that `bundle` carries on the engine that is to serve it.
///
/// # Errors
/// When an answer differs from what was recorded, or probes cannot be replayed.
pub fn self_check(
    _core: &mut EngineCore,
    _bundle: &Bundle,
    _extent: SelfCheck,
) -> Result<SelfCheckReport, SelfCheckError> {
    unimplemented!()
}
