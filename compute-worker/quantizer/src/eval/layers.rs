//! Where an error enters: every linear layer against the source's weights, on the inputs that it really had.

use rookery_compute_worker::backend::Backend;
use rookery_model::bundle::Bundle;
use rookery_model::source::ModelSource;
use serde::Serialize;

use super::{EvalError, EvalProgress};

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// Tokens that went through.
    pub tokens: usize,
    /// What is wrong, the gravest first; empty for a model that is right.
    pub findings: Vec<Finding>,
}

/// Something wrong in one place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Tensor or place, e.g. `blk.3.ffn_down.weight`.
    pub place: String,
    /// What is wrong, for people.
    pub message: String,
}

/// Runs `tokens` through the bundle on `backend` and compares each linear layer with `source`'s weights.
///
/// # Errors
/// See [`EvalError`].
pub fn by_layer(
    _bundle: &Bundle,
    _source: &dyn ModelSource,
    _backend: Box<dyn Backend>,
    _tokens: &[u32],
    _threads: usize,
    _progress: &dyn EvalProgress,
) -> Result<LayerReport, EvalError> {
    unimplemented!()
}
