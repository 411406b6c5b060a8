//! How far a packed model is from its source: predictions over text, and where in the model an error enters.
//!
//! ```text
//!                     ┌─ reference (f32 over the source, or a bundle on the engine) ─ logits ─┐
//!  texts ─► sequences ┤                                                                       ├─► perplexity, KL, top-1
//!                     └─ candidates: bundles on the engine, sources in f32 ────────── logits ─┘
//! ```
//!
//! - [`evaluate`] runs everybody over the same sequences side by side, 64 positions at a time, so that the reference is
//!   computed once however many candidates there are and no logits are kept.
//! - [`layers`] compares each linear layer with the source's weights on the inputs that the layer really had, and names
//!   the tensor that is wrong and the kind of fault.
//!
//! Sequences are the unit of chance: standard errors come from how much the sequences differ from each other.

use rookery_compute_worker::backend::{Backend, BackendError};
use rookery_compute_worker::model::forward::ForwardError;
use rookery_compute_worker::model::reference::ReferenceError;
use rookery_kernels::KvType;
use rookery_model::bundle::{Bundle, BundleError};
use rookery_model::source::{ImportError, ModelSource};
use rookery_model::tokenizer::TokenizerError;

pub mod layers;
mod report;
mod run;
mod score;
mod statistics;
mod stream;
mod texts;
mod watched;

pub use report::{CandidateReport, Divergences, Measured, ReferenceReport, Report};
pub use run::evaluate;
pub use texts::Text;

/// Whose predictions are measured.
pub struct Subject<'a> {
    /// What the report calls it.
    pub name: String,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Where logits come from.
    pub model: Model<'a>,
}

/// A model that gives logits.
pub enum Model<'a> {
    /// A bundle, on the engine's forward pass.
    Bundle {
        /// The bundle.
        bundle: &'a Bundle,
        /// What computes its linear layers.
        backend: Box<dyn Backend>,
        /// How it keeps keys and values.
        kv_type: KvType,
    },
    /// A GGUF file or a Hugging Face folder, in f32.
    Source(&'a dyn ModelSource),
}

/// How to evaluate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Most tokens over all texts, each text getting an equal share; `None` for everything.
    pub tokens: Option<usize>,
    /// Tokens of a sequence, 2 or more; each starts at position 0.
    pub sequence: usize,
    /// Threads that compute; 0 means one for each core.
    pub threads: usize,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { tokens: None, sequence: 512, threads: 0 }
    }
}

/// Hears how far an evaluation is. Called from several threads.
pub trait EvalProgress: Sync {
    /// `share` of all work is done, 0 to 1; never less than said before.
    fn at(&self, share: f64) {
        let _ = share;
    }
}

/// Ignores everything it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvalProgress;

impl EvalProgress for NoEvalProgress {}

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A bundle's tensor or tokenizer could not be read.
    #[error("{name}")]
    Bundle {
        /// The subject.
        name: String,
        /// What is wrong.
        #[source]
        source: BundleError,
    },
    /// A source's tokenizer cannot be used.
    #[error("tokenizer of {name}")]
    Tokenizer {
        /// The subject.
        name: String,
        /// What is wrong.
        #[source]
        source: TokenizerError,
    },
    /// The engine could not compute.
    #[error("{name}")]
    Forward {
        /// The subject.
        name: String,
        /// What is wrong.
        #[source]
        source: ForwardError,
    },
    /// The backend refused the model.
    #[error("{name}")]
    Backend {
        /// The subject.
        name: String,
        /// What is wrong.
        #[source]
        source: BackendError,
    },
    /// The f32 forward pass failed.
    #[error("{name}")]
    Reference {
        /// The subject.
        name: String,
        /// What is wrong.
        #[source]
        source: ReferenceError,
    },
    /// The source's weights could not be read.
    #[error("source weights")]
    Source(#[from] ImportError),
    /// Two models do not read the same text as the same tokens, so their predictions cannot be compared.
    #[error(
        "{name} does not read the text as the same tokens as {other}; only models with one vocabulary compare"
    )]
    OtherTokens {
        /// A subject.
        name: String,
        /// The one it was compared with.
        other: String,
    },
    /// There is nothing to measure.
    #[error(
        "the texts give no sequence of two tokens or more; give longer texts or a larger limit of tokens"
    )]
    NoTokens,
    /// A model gave logits that are no numbers.
    #[error("{name} gave logits that are no numbers at position {position} of sequence {sequence}")]
    NotFinite {
        /// The subject.
        name: String,
        /// Which sequence.
        sequence: usize,
        /// Where in it.
        position: usize,
    },
    /// Source and bundle are not the same model.
    #[error("{what} of the source is not that of the bundle; give the model that the bundle was packed from")]
    OtherModel {
        /// What differs.
        what: String,
    },
    /// The bundle was smoothed, which cannot be done again without the text that it was done by.
    #[error(
        "the bundle was packed with smooth = {strength}; comparing layers knows only transforms that need no text: pack \
         without smoothing to look into layers"
    )]
    Smoothed {
        /// How strongly.
        strength: f32,
    },
    /// The bundle says that it was transformed in a way that this program does not know.
    #[error("the bundle's quantization record {fault}; a newer version packed it, or it is damaged")]
    Record {
        /// What is wrong with it.
        fault: String,
    },
}
