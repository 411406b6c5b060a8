//! What `--by-layer` says.

use std::ops::Range;

use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use serde::Serialize;

use super::rounding::{RoundingReport, Rule};

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Whether the source is the very file that the bundle was packed from; what differs between two files counts as error.
    pub same_source: bool,
    /// What is wrong, in the order of the forward pass; empty for a model that is right.
    pub findings: Vec<Finding>,
    /// Every matrix, in the order of the forward pass.
    pub tensors: Vec<TensorReport>,
    /// How the inputs of each linear call were rounded, in order.
    pub roundings: Vec<CallReport>,
    /// Wall time.
    pub seconds: f64,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Scales of weights are larger or smaller than they should be, by one factor.
    Scale,
    /// Each channel has the scale of another one, so many rows before it (after it, if negative).
    RolledScales(isize),
    /// Scales of weights are wrong, by no common factor.
    Scales,
    /// The stored weights are not those of the source, whatever the scales.
    Weights,
    /// Activations are not rounded to the nearest step, ties to even.
    Rounding(Rule),
    /// Activations have scales other than absmax/127.
    ActivationScale,
    /// Outputs are not what the stored weights and the activations give.
    Products,
    /// A norm or bias is not the source's.
    Vector,
}

/// Something wrong in one place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Place in the forward pass: what comes first may be the cause of what people see.
    #[serde(skip)]
    pub order: usize,
    /// The tensor; of a fault of activations, the first matrix of every linear call that takes them.
    pub tensors: Vec<TensorName>,
    /// Rows of the tensor (output channels), unless all.
    pub rows: Option<Range<usize>>,
    /// Heads of the attention that these rows are, if they are whole ones.
    pub heads: Option<Range<usize>>,
    /// What kind of thing is wrong.
    pub fault: Fault,
    /// What scales are over what they should be.
    pub factor: Option<f64>,
    /// Relative error of the tensor's outputs that comes from it, roughly.
    pub severity: f64,
    /// For people.
    pub message: String,
}

/// One matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub tensor: TensorName,
    /// How its rows are stored, e.g. `w4` or `w4+w8`.
    pub precision: String,
    /// Output channels.
    pub channels: usize,
    /// ⟨y, y_ref⟩/⟨y_ref, y_ref⟩ over all outputs, on the activations that the layer had. Of the embedding: of its weights.
    pub slope: f64,
    /// Median of the channels' slopes.
    pub median_slope: f64,
    /// Spread of the channels' slopes: their median distance from the median, as a standard deviation.
    pub slope_spread: f64,
    /// Channel whose slope is furthest from 1.
    pub furthest_channel: usize,
    /// That slope.
    pub furthest_slope: f64,
    /// |y − y_ref|/|y_ref| with the activations before rounding: all that the layer adds. Of the embedding: of its weights.
    pub relative_error: f64,
    /// The same with the activations after rounding: what the weights add.
    pub weight_error: f64,
    /// Share of the error's energy that is one constant for each channel.
    pub bias_share: f64,
}

/// How the inputs of one linear call were rounded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CallReport {
    /// First matrix that takes them.
    pub tensor: TensorName,
    /// How they were rounded.
    #[serde(flatten)]
    pub rounding: RoundingReport,
}

/// Place in the forward pass; odd for a matrix or vector, even for the inputs before it.
pub(super) fn order(tensor: TensorName, config: &ModelConfig) -> usize {
    const PER_LAYER: usize = 32;
    match tensor {
        TensorName::TokenEmbedding => 0,
        TensorName::Layer(layer, tensor) => {
            let place = LayerTensor::ALL.into_iter().position(|other| other == tensor).unwrap_or(0);
            PER_LAYER * (layer + 1) + 2 * place + 1
        }
        TensorName::OutputNorm => PER_LAYER * (config.layers + 1) + 1,
        TensorName::Output => PER_LAYER * (config.layers + 1) + 3,
    }
}

impl Finding {
    pub(super) fn vector(tensor: TensorName, differ: usize, len: usize, config: &ModelConfig) -> Self {
        Self {
            order: order(tensor, config),
            tensors: vec![tensor],
            rows: None,
            heads: None,
            fault: Fault::Vector,
            factor: None,
            severity: differ as f64 / len.max(1) as f64,
            message: format!("{tensor}: {differ} of {len} values are not the source's"),
        }
    }
}
