//! Outliers of activations moved into weights (SmoothQuant, Xiao et al. 2022).
//!
//! Where a linear layer takes `x`, channel `j` of `x` is divided by `s_j` and column `j` of the weights multiplied by it:
//!
//! ```text
//! s_j = max|x_j|^α / max|w_j|^(1−α)          both maxima come out as max|x_j|^(1−α) · max|w_j|^α …
//! ```
//! and, at α = 0.5, equal. The division is folded into whatever makes `x`, so the model computes what it did:
//!
//! | input of | divided in                                                              |
//! |----------|-------------------------------------------------------------------------|
//! | q, k, v  | the norm before attention                                               |
//! | o        | rows and bias of v; query heads that share a key/value head share `s`   |
//! | gate, up | the norm before the feed-forward                                        |
//! | down     | rows of up                                                              |
//!
//! The head's input stays as it is. Powers are products of square roots, so every machine finds the same `s`.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::config::ModelConfig;
use crate::names::{LayerTensor, TensorName};
use crate::source::parallel::parallel;
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::TokenizerConfig;

/// Bounds of `s`: beyond them a channel is dead, and dividing by next to nothing helps nobody.
const SCALES: (f64, f64) = (1e-5, 1e5);
/// Values read as one task.
const TASK_VALUES: usize = 1 << 18;

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
    Strength(f32),
    /// The maxima are those of a model of another shape.
    #[error("channel maxima of {place}: {found} found, {expected} needed; measure them on this model")]
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
    /// The inputs of the down projection are transformed, so no row of the up projection makes one of them.
    #[error(
        "a model with a Hadamard transform in its feed-forward cannot be smoothed; smooth it before it is rotated"
    )]
    Transformed,
    /// A weight could not be read.
    #[error("reading the weights to smooth")]
    Import(#[from] ImportError),
}

/// A model whose linear layers see smoother inputs; up to rounding it computes what its source computes.
pub struct SmoothedSource<'a> {
    source: &'a dyn ModelSource,
    alpha: f32,
    layers: Vec<Scales>,
}

/// `s` of one block.
struct Scales {
    /// `[hidden]`: inputs of q, k and v.
    attention: Vec<f32>,
    /// `[kv_heads * head_dim]`: rows of v.
    values: Vec<f32>,
    /// `[heads * head_dim]`: the same for each query head.
    mixed: Vec<f32>,
    /// `[hidden]`: inputs of gate and up.
    ffn: Vec<f32>,
    /// `[ffn]`: rows of up.
    inner: Vec<f32>,
}

impl<'a> SmoothedSource<'a> {
    /// Smooths `source` with strength `alpha`: 0 leaves all difficulty to activations, 1 moves all of it to weights.
    /// Reads every matrix of every block once, with all processors.
    ///
    /// # Errors
    /// When `statistics` are not of this model, `alpha` is outside 0..=1, the inputs of the down projection are transformed,
    /// or a weight cannot be read.
    pub fn new(
        source: &'a dyn ModelSource,
        statistics: &ChannelMaxima,
        alpha: f32,
    ) -> Result<Self, SmoothError> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(SmoothError::Strength(alpha));
        }
        if source.config().ffn_hadamard.is_some() {
            return Err(SmoothError::Transformed);
        }
        check(source.config(), statistics)?;
        let maxima = statistics.layers.iter().enumerate();
        let layers = maxima.map(|(layer, maxima)| Scales::new(source, layer, maxima, alpha));
        Ok(Self { source, alpha, layers: layers.collect::<Result<_, _>>()? })
    }
}

impl Scales {
    fn new(
        source: &dyn ModelSource,
        layer: usize,
        maxima: &LayerMaxima,
        alpha: f32,
    ) -> Result<Self, ImportError> {
        let config = source.config();
        let scales = |inputs: &[f32], columns: &[f32]| -> Vec<f32> {
            inputs.iter().zip(columns).map(|(&input, &weight)| scale(input, weight, alpha)).collect()
        };
        let columns = |tensors: &[LayerTensor]| column_maxima(source, layer, tensors);
        let attention = columns(&[LayerTensor::AttnQ, LayerTensor::AttnK, LayerTensor::AttnV])?;
        let output = columns(&[LayerTensor::AttnOutput])?;
        let ffn = columns(&[LayerTensor::FfnGate, LayerTensor::FfnUp])?;
        let inner = columns(&[LayerTensor::FfnDown])?;
        let values = scales(&shared(config, &maxima.output), &shared(config, &output));
        let group = config.heads / config.kv_heads;
        let heads = values.chunks_exact(config.head_dim).flat_map(|head| std::iter::repeat_n(head, group));
        Ok(Self {
            attention: scales(&maxima.attention, &attention),
            mixed: heads.flatten().copied().collect(),
            values,
            ffn: scales(&maxima.ffn, &ffn),
            inner: scales(&maxima.down, &inner),
        })
    }

    /// What columns are multiplied by.
    fn inputs(&self, tensor: LayerTensor) -> Option<&[f32]> {
        match tensor {
            LayerTensor::AttnQ | LayerTensor::AttnK | LayerTensor::AttnV => Some(&self.attention),
            LayerTensor::AttnOutput => Some(&self.mixed),
            LayerTensor::FfnGate | LayerTensor::FfnUp => Some(&self.ffn),
            LayerTensor::FfnDown => Some(&self.inner),
            LayerTensor::AttnNorm
            | LayerTensor::FfnNorm
            | LayerTensor::AttnQBias
            | LayerTensor::AttnKBias
            | LayerTensor::AttnVBias
            | LayerTensor::AttnQNorm
            | LayerTensor::AttnKNorm => None,
        }
    }

    /// What outputs are divided by: a matrix's rows, a vector's elements.
    fn outputs(&self, tensor: LayerTensor) -> Option<&[f32]> {
        match tensor {
            LayerTensor::AttnNorm => Some(&self.attention),
            LayerTensor::FfnNorm => Some(&self.ffn),
            LayerTensor::AttnV | LayerTensor::AttnVBias => Some(&self.values),
            LayerTensor::FfnUp => Some(&self.inner),
            LayerTensor::AttnQ
            | LayerTensor::AttnK
            | LayerTensor::AttnOutput
            | LayerTensor::FfnGate
            | LayerTensor::FfnDown
            | LayerTensor::AttnQBias
            | LayerTensor::AttnKBias
            | LayerTensor::AttnQNorm
            | LayerTensor::AttnKNorm => None,
        }
    }
}

fn check(config: &ModelConfig, statistics: &ChannelMaxima) -> Result<(), SmoothError> {
    let same = |place: &dyn Fn() -> String, found: usize, expected: usize| match found == expected {
        true => Ok(()),
        false => Err(SmoothError::Shape { place: place(), found, expected }),
    };
    same(&|| "all layers".to_owned(), statistics.layers.len(), config.layers)?;
    for (layer, maxima) in statistics.layers.iter().enumerate() {
        let inputs = [
            ("attention", &maxima.attention, config.hidden),
            ("attention output", &maxima.output, config.q_rows()),
            ("feed-forward", &maxima.ffn, config.hidden),
            ("down", &maxima.down, config.ffn),
        ];
        for (input, maxima, expected) in inputs {
            let place = || format!("layer {layer}, {input}");
            same(&place, maxima.len(), expected)?;
            let faulty = maxima.iter().position(|value| !value.is_finite() || *value < 0.0);
            if let Some(channel) = faulty {
                return Err(SmoothError::Maximum { place: place(), channel, value: maxima[channel] });
            }
        }
    }
    Ok(())
}

/// Maxima of each dimension of each key/value head, over the query heads that use it.
fn shared(config: &ModelConfig, mixed: &[f32]) -> Vec<f32> {
    let (d, group) = (config.head_dim, config.heads / config.kv_heads);
    let of =
        |kv: usize, at: usize| (0..group).map(|head| mixed[(kv * group + head) * d + at]).fold(0.0, f32::max);
    (0..config.kv_rows()).map(|row| of(row / d, row % d)).collect()
}

/// Largest absolute value of each column of matrices of equal width.
fn column_maxima(
    source: &dyn ModelSource,
    layer: usize,
    tensors: &[LayerTensor],
) -> Result<Vec<f32>, ImportError> {
    let names = tensors.iter().map(|&tensor| TensorName::Layer(layer, tensor));
    let mut tasks = Vec::new();
    let mut columns = 0;
    for name in names {
        let (rows, cols) = source.config().shape(name);
        let step = (TASK_VALUES / cols).max(1);
        tasks.extend((0..rows).step_by(step).map(|first| (name, first..rows.min(first + step))));
        columns = cols;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let maxima = Mutex::new(Ok(vec![0.0f32; columns]));
    parallel(tasks.into_iter(), threads, |(name, rows)| {
        let part = source.tensor_rows(name, rows).map(|values| {
            let mut part = vec![0.0f32; columns];
            for row in values.chunks_exact(columns) {
                part.iter_mut().zip(row).for_each(|(max, value)| *max = max.max(value.abs()));
            }
            part
        });
        let mut maxima = maxima.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *maxima, part) {
            (Ok(all), Ok(part)) => all.iter_mut().zip(part).for_each(|(all, part)| *all = all.max(part)),
            (Ok(_), Err(error)) => *maxima = Err(error),
            (Err(_), _) => {}
        }
    });
    maxima.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// `input^α / weight^(1−α)`, or 1 for a channel that never carries anything.
fn scale(input: f32, weight: f32, alpha: f32) -> f32 {
    if input == 0.0 || weight == 0.0 {
        return 1.0;
    }
    let alpha = f64::from(alpha);
    let scale = power(f64::from(input), alpha) / power(f64::from(weight), 1.0 - alpha);
    scale.clamp(SCALES.0, SCALES.1) as f32
}

/// `x^exponent` for an exponent of 0 to 1: the product of `x^(2⁻ᵏ)` over the binary digits of the exponent.
fn power(x: f64, exponent: f64) -> f64 {
    let (mut root, mut rest, mut product) = (x, exponent, 1.0);
    // Every digit of an f32, and enough of an f64: roots tend to 1.
    for _ in 0..48 {
        if rest >= 1.0 {
            product *= root;
            rest -= 1.0;
        }
        (root, rest) = (root.sqrt(), 2.0 * rest);
    }
    product
}

impl ModelSource for SmoothedSource<'_> {
    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let mut values = self.source.tensor_rows(name, rows.clone())?;
        let TensorName::Layer(layer, tensor) = name else { return Ok(values) };
        let scales = &self.layers[layer];
        if let Some(inputs) = scales.inputs(tensor) {
            for row in values.chunks_exact_mut(inputs.len()) {
                row.iter_mut().zip(inputs).for_each(|(value, scale)| *value *= scale);
            }
        }
        if let Some(outputs) = scales.outputs(tensor) {
            let is_matrix = tensor.is_linear();
            let divisors = if is_matrix { &outputs[rows] } else { outputs };
            let width = if is_matrix { self.config().shape(name).1 } else { 1 };
            for (values, divisor) in values.chunks_exact_mut(width).zip(divisors) {
                values.iter_mut().for_each(|value| *value /= divisor);
            }
        }
        Ok(values)
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
        format!("{}; smoothed: {}", self.source.description(), self.alpha)
    }
}

#[cfg(test)]
mod tests;
