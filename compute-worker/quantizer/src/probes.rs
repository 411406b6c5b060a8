//! Prompts with known answers, and what packing lost of them.

use rookery_compute_worker::engine::EngineConfig;
use rookery_compute_worker::model::reference::ReferenceError;
use rookery_compute_worker::probes::{Answers, ProbeError, ProbeSet, Prompt, Replay};
use rookery_model::bundle::Bundle;
use rookery_model::source::ModelSource;

/// Probes could not be recorded, or say that the packed model is not good enough.
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// The engine could not record or replay them.
    #[error("probes")]
    Engine(#[from] ProbeError),
    /// The unpacked model could not be asked.
    #[error("probes in f32")]
    Reference(#[from] ReferenceError),
    /// The bundle carries none.
    #[error("the bundle carries no probes; pack the model again to have them recorded")]
    None,
    /// Packing lost too many answers.
    #[error(
        "packing lost {lost} right answers, at most {allowed} may be lost: {names}; choose a recipe with more bits, or allow more"
    )]
    Lost {
        /// Answers lost.
        lost: usize,
        /// Answers that may be lost.
        allowed: usize,
        /// Names of their probes.
        names: String,
    },
}

/// What `eval --probes` reports of a bundle.
#[derive(Clone, Debug)]
pub struct ProbesReport {
    /// Whether the engine here answers as recorded, keys and values cached as f16.
    pub f16: Replay,
    /// Likewise, as int8.
    pub int8: Replay,
    /// Which answers are right, as recorded.
    pub answers: Answers,
    /// The probes themselves.
    pub set: ProbeSet,
}

/// The 32 prompts that are recorded with every model.
pub fn prompts() -> Vec<Prompt> {
    unimplemented!()
}

/// Records [`prompts`] over `bundle`, and asks `source` in f32 which answers it knew.
///
/// `max_lost` is how many answers that are right in f32 may be wrong when packed; `None` allows any number.
///
/// # Errors
/// When the engine or the source fails, and [`ProbesError::Lost`].
pub fn record(
    _bundle: &Bundle,
    _source: &dyn ModelSource,
    _config: &EngineConfig,
    _max_lost: Option<usize>,
) -> Result<ProbeSet, ProbesError> {
    unimplemented!()
}

/// Replays the probes that `bundle` carries on an engine of this machine, for each type of key/value cache.
///
/// # Errors
/// [`ProbesError::None`], and when the engine fails; a wrong answer is no error.
pub fn evaluate(_bundle: &Bundle, _config: &EngineConfig) -> Result<ProbesReport, ProbesError> {
    unimplemented!()
}
