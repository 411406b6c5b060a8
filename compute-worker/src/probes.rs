//! Prompts whose answers every gateway must reproduce exactly.
//!
//! The engine's answers do not depend on threads, instruction set, backend or batch. So what one machine answered when a
//! model was packed is what every machine must answer, to the last bit of every logit, and anything else is a fault: of
//! memory, of an accelerator, of a kernel, of the bundle's copy. The bundle carries such answers as `probes.json`:
//!
//! ```text
//! packing:  prompts ─► record ─► ProbeSet ─► bundle          greedy tokens and SHA-256 of the logits of each position,
//! start-up: bundle ─► ProbeSet ─► replay ─► Replay           for each type of key/value cache
//! ```
//!
//! Probes are not a measure of quality: a model that was packed badly reproduces its bad answers. For that, some probes
//! have one right [`Answer`], and the set says whether the unpacked model and the packed one gave it.

mod document;
mod prober;
mod record;
mod replay;
mod self_check;
mod speed;

use rookery_model::bundle::BundleError;
use rookery_model::tokenizer::TokenizerError;
use serde::{Deserialize, Serialize};

use crate::engine::{EngineError, GenerationError};
use crate::model::forward::ForwardError;

pub use document::{
    ANY_BOARD, Answer, Answers, MAX_ANSWER, MAX_PROBES, MAX_PROMPT, Probe, ProbeSet, Recording, TITLE, Topic,
};
pub use record::{Prompt, is_right, record};
use replay::Machine;
pub use replay::{Mismatch, Replay, replay, replay_bundle};
pub use self_check::{SelfCheckError, SelfCheckReport, self_check};
pub use speed::decode_speed;

/// How much of the probes is replayed before a model is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelfCheck {
    /// Nothing.
    Off,
    /// The first tokens of two probes: a fraction of a second for a small model.
    #[default]
    Quick,
    /// Every probe, every token.
    Full,
}

/// Probes could not be read, recorded or replayed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The document is none that this version understands.
    #[error("probes.json: {0}; pack the model again")]
    Document(String),
    /// The document's logits are of another vocabulary than the model's.
    #[error(
        "the probes have logits of {recorded} tokens, and the model has {vocabulary}: they belong to another model; pack \
         it again"
    )]
    OtherVocabulary {
        /// Tokens of the document.
        recorded: usize,
        /// Tokens of the model.
        vocabulary: usize,
    },
    /// The document names tokens that are not the model's.
    #[error("probe {probe:?} {fault}; the probes belong to another model: pack it again")]
    OtherModel {
        /// Name of the probe.
        probe: String,
        /// What does not fit.
        fault: String,
    },
    /// The bundle could not be read.
    #[error("cannot read the bundle")]
    Bundle(#[from] BundleError),
    /// No engine could be made for it.
    #[error("cannot start an engine for the probes")]
    Engine(#[from] EngineError),
    /// The tokenizer has no tokens for a prompt.
    #[error("prompt of probe {probe:?}")]
    Encode {
        /// Name of the probe.
        probe: String,
        /// Why.
        source: TokenizerError,
    },
    /// The engine could not answer a probe.
    #[error("probe {probe:?} was not answered")]
    Unanswered {
        /// Name of the probe.
        probe: String,
        /// Why.
        source: GenerationError,
    },
    /// A step of the engine failed.
    #[error("probes could not be computed")]
    Forward(#[from] ForwardError),
}
