//! Orthogonal rotations folded into weights, so that no channel of an activation stands out (QuaRot, Ashkboos et al.
//! 2024; SpinQuant, Liu et al. 2024).
//!
//! ```text
//!            e·R1           w∘γ·R1          R2 per head        R2ᵀ per head, R1         w∘γ·R1         H·/b, R1
//! tokens → embedding → x → norm → q,k,v → attention → o → + → norm → gate,up → H → down → + → … → norm → head (w∘γ·R1)
//! ```
//! - R1, `hidden × hidden`, turns the residual stream. It is orthogonal, so an RMS norm without weight commutes with it;
//!   each norm's weight γ moves into the matrices that read the norm's output and becomes 1. The head takes the last γ,
//!   so a tied head becomes a matrix of its own.
//! - R2, `head_dim × head_dim`, one for each key/value head, turns the values; attention mixes whole values, so it
//!   reaches the output projection, where it is undone. The bias of v turns with them.
//! - The feed-forward's inner activations are transformed while the model runs, in blocks of
//!   [`ModelConfig::ffn_hadamard`]: `u = H·a`, `down' = down·Hᵀ/b`.
//!
//! R1 and R2 are randomised Hadamard matrices, `diag(±1)·(H ⊗ P)/√n`, with Sylvester's `H` of a power of two and one of
//! Paley's `P` where the size is no power of two:
//!
//! | size    | R1         | size | R1          | size | R1          |
//! |---------|------------|------|-------------|------|-------------|
//! | 576     | H16 ⊗ P36  | 2048 | H2048       | 4096 | H4096       |
//! | 896     | H32 ⊗ P28  | 2304 | H64 ⊗ P36   | 5120 | H256 ⊗ P20  |
//! | 960     | H16 ⊗ P60  | 2560 | H128 ⊗ P20  | 6656 | H128 ⊗ P52  |
//! | 1024    | H1024      | 3072 | H256 ⊗ P12  | 7168 | H256 ⊗ P28  |
//! | 1536    | H128 ⊗ P12 | 3584 | H128 ⊗ P28  | 8192 | H8192       |
//!
//! A size `2ᵃ·t`, `t` odd, has one if `a ≥ 2` and `t ≤ 63` is none of 23, 29, 39, 43, 47, 59 (or `t` is 1). Any other is
//! rotated in blocks of the largest power of two that divides it, if that is at least 16, else not at all.
//!
//! The same source gives the same bytes on every machine and with any number of threads: signs come from a counter-based
//! generator, and each value is computed in f32 by one fixed sequence of operations.

mod hadamard;
mod paley;
mod signs;
mod strips;

use std::fmt::Write;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::ModelConfig;
use crate::names::{LayerTensor, TensorName};
use crate::source::parallel::parallel;
use crate::source::{ImportError, ModelSource};
use crate::tokenizer::TokenizerConfig;
use hadamard::{Hadamard, LANES};
use signs::signs;
use strips::{Side, Strips};

/// Largest block of the feed-forward's transform; longer ones cost more time than they win in quality.
const MAX_FFN_BLOCK: usize = 256;
/// Smallest block of it.
const MIN_FFN_BLOCK: usize = 16;
/// Values read and rotated as one task.
const TASK_VALUES: usize = 1 << 18;
/// Values for which more than one thread is started.
const PARALLEL_VALUES: usize = 1 << 21;
/// Values of a matrix that are held beside it while it is rotated along its columns.
const STAGED_VALUES: usize = 1 << 22;
/// Matrices kept after they were rotated along their columns.
const KEPT: usize = 2;

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
    #[error("reading the norms that rotation folds into matrices")]
    Import(#[from] ImportError),
}

/// A model with rotations folded into its weights; up to rounding it computes what its source computes.
///
/// Rows are rotated as they are asked for. The output projections of attention and feed-forward, and v, are rotated along
/// their columns and so are computed whole; the last two are kept. Long requests use all processors.
pub struct RotatedSource<'a> {
    source: &'a dyn ModelSource,
    config: ModelConfig,
    residual: Option<Residual>,
    heads: Option<Heads>,
    ffn: Option<Hadamard>,
    threads: usize,
    /// Most recently used last.
    kept: Mutex<Vec<(TensorName, Arc<Strips>)>>,
}

/// R1 and the norms folded beside it.
struct Residual {
    hadamard: Hadamard,
    /// `±1/√order`, `[hidden]`.
    factors: Vec<f32>,
    /// Weights of both norms of each layer.
    norms: Vec<[Vec<f32>; 2]>,
    output_norm: Vec<f32>,
}

impl Residual {
    fn read(source: &dyn ModelSource, hadamard: Hadamard) -> Result<Self, ImportError> {
        let config = source.config();
        let norm = |layer, tensor| source.tensor(TensorName::Layer(layer, tensor));
        let both = |layer| Ok([norm(layer, LayerTensor::AttnNorm)?, norm(layer, LayerTensor::FfnNorm)?]);
        Ok(Self {
            factors: signs(0, config.hidden, hadamard.scale()),
            hadamard,
            norms: (0..config.layers).map(both).collect::<Result<_, ImportError>>()?,
            output_norm: source.tensor(TensorName::OutputNorm)?,
        })
    }

    /// For inputs that went through a norm.
    fn after(&self, norm: &[f32]) -> Side<'_> {
        let factors = self.factors.iter().zip(norm).map(|(factor, weight)| factor * weight).collect();
        Side { factors, hadamard: &self.hadamard }
    }

    fn side(&self) -> Side<'_> {
        Side { factors: self.factors.clone(), hadamard: &self.hadamard }
    }
}

/// R2 of every head.
struct Heads {
    hadamard: Hadamard,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    /// For what has a value for each dimension of each key/value head.
    fn values(&self, layer: usize) -> Side<'_> {
        let factors = signs(layer as u64 + 1, self.kv_heads * self.head_dim, self.hadamard.scale());
        Side { factors, hadamard: &self.hadamard }
    }

    /// For what has one for each dimension of each query head.
    fn mixed(&self, layer: usize) -> Side<'_> {
        let values = self.values(layer);
        let group = self.heads / self.kv_heads;
        let each =
            values.factors.chunks_exact(self.head_dim).flat_map(|head| std::iter::repeat_n(head, group));
        Side { factors: each.flatten().copied().collect(), ..values }
    }
}

impl<'a> RotatedSource<'a> {
    /// Rotates `source`; only its norms are read now.
    ///
    /// # Errors
    /// When the source's feed-forward is rotated already or a norm's weight cannot be read.
    pub fn new(source: &'a dyn ModelSource, options: RotateOptions) -> Result<Self, RotateError> {
        let mut config = source.config().clone();
        if config.ffn_hadamard.is_some() {
            return Err(RotateError::Rotated);
        }
        let residual = options.residual.then(|| Hadamard::dividing(config.hidden)).flatten();
        let residual = residual.map(|hadamard| Residual::read(source, hadamard)).transpose()?;
        config.tied_head &= residual.is_none();
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let of_head = options.heads.then(|| Hadamard::dividing(head_dim)).flatten();
        let heads = of_head.map(|hadamard| Heads { hadamard, heads, kv_heads, head_dim });
        let block = (1 << config.ffn.trailing_zeros()).min(MAX_FFN_BLOCK);
        config.ffn_hadamard = (options.ffn && block >= MIN_FFN_BLOCK).then_some(block);
        let ffn = config.ffn_hadamard.map(Hadamard::sylvester);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { source, config, residual, heads, ffn, threads, kept: Mutex::default() })
    }

    /// What was rotated by what, in one line, e.g. `R1 = H32 ⊗ P28, R2 = H64, online H256`; `none` if nothing was.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let matrices = [
            ("R1 = ", self.residual.as_ref().map(|residual| &residual.hadamard), self.config.hidden),
            ("R2 = ", self.heads.as_ref().map(|heads| &heads.hadamard), self.config.head_dim),
            ("online ", self.ffn.as_ref(), MAX_FFN_BLOCK),
        ];
        for (name, hadamard, size) in matrices {
            let Some(hadamard) = hadamard else { continue };
            let comma = if text.is_empty() { "" } else { ", " };
            let blocks = size / hadamard.order();
            // Writing to a string cannot fail.
            let _ = match name {
                "online " => write!(text, "{comma}{name}{hadamard}"),
                _ if blocks > 1 => write!(text, "{comma}{name}I{blocks} ⊗ {hadamard}"),
                _ => write!(text, "{comma}{name}{hadamard}"),
            };
        }
        if text.is_empty() { "none".to_owned() } else { text }
    }

    /// What the inputs of a matrix, its columns, are rotated by; a bias is a row.
    fn input(&self, name: TensorName) -> Option<Side<'_>> {
        let residual = self.residual.as_ref();
        let (layer, tensor) = match name {
            TensorName::TokenEmbedding => return residual.map(Residual::side),
            TensorName::Output => return residual.map(|residual| residual.after(&residual.output_norm)),
            TensorName::OutputNorm => return None,
            TensorName::Layer(layer, tensor) => (layer, tensor),
        };
        let after = |norm: usize| residual.map(|residual| residual.after(&residual.norms[layer][norm]));
        match tensor {
            LayerTensor::AttnQ | LayerTensor::AttnK | LayerTensor::AttnV => after(0),
            LayerTensor::FfnGate | LayerTensor::FfnUp => after(1),
            LayerTensor::AttnOutput => self.heads.as_ref().map(|heads| heads.mixed(layer)),
            LayerTensor::AttnVBias => self.heads.as_ref().map(|heads| heads.values(layer)),
            LayerTensor::FfnDown => self.ffn.as_ref().map(|hadamard| Side {
                factors: vec![1.0 / hadamard.order() as f32; self.config.ffn],
                hadamard,
            }),
            LayerTensor::AttnNorm
            | LayerTensor::FfnNorm
            | LayerTensor::AttnQBias
            | LayerTensor::AttnKBias
            | LayerTensor::AttnQNorm
            | LayerTensor::AttnKNorm => None,
        }
    }

    /// What the outputs of a matrix, its rows, are rotated by.
    fn output(&self, name: TensorName) -> Option<Side<'_>> {
        let TensorName::Layer(layer, tensor) = name else { return None };
        if matches!(tensor, LayerTensor::AttnOutput | LayerTensor::FfnDown) {
            return self.residual.as_ref().map(Residual::side);
        }
        self.heads.as_ref().filter(|_| tensor == LayerTensor::AttnV).map(|heads| heads.values(layer))
    }

    /// Whether this is a norm whose weight was folded into matrices.
    fn is_folded(&self, name: TensorName) -> bool {
        let norm = matches!(
            name,
            TensorName::OutputNorm | TensorName::Layer(_, LayerTensor::AttnNorm | LayerTensor::FfnNorm)
        );
        norm && self.residual.is_some()
    }

    /// Rows of the source, rotated along their inputs.
    fn read(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let untied = name == TensorName::Output && self.source.config().tied_head;
        let stored = if untied { TensorName::TokenEmbedding } else { name };
        let Some(side) = self.input(name) else { return self.source.tensor_rows(stored, rows) };
        let columns = side.factors.len();
        let mut out = vec![0.0; rows.len() * columns];
        let threads = if out.len() < PARALLEL_VALUES { 1 } else { self.threads };
        let task_rows = (TASK_VALUES / columns).next_multiple_of(LANES).max(LANES);
        let fault = Mutex::new(None);
        parallel(out.chunks_mut(task_rows * columns).enumerate(), threads, |(index, out)| {
            let first = rows.start + index * task_rows;
            match self.source.tensor_rows(stored, first..first + out.len() / columns) {
                Ok(values) => {
                    out.copy_from_slice(&values);
                    side.apply_to_rows(out);
                }
                Err(error) => *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            }
        });
        fault.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(out), Err)
    }

    /// A matrix rotated along its outputs too. Whoever asks while it is computed waits for it.
    fn whole(&self, name: TensorName, side: &Side<'_>) -> Result<Arc<Strips>, ImportError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(kept, _)| *kept == name) {
            kept[at..].rotate_left(1);
        } else {
            // Room is made before memory is taken.
            let excess = (kept.len() + 1).saturating_sub(KEPT);
            kept.drain(..excess);
            let (rows, columns) = self.config.shape(name);
            let mut strips = Strips::new(rows, columns);
            let step = (STAGED_VALUES / columns).max(1);
            for first in (0..rows).step_by(step) {
                strips.put(first, &self.read(name, first..rows.min(first + step))?, self.threads);
            }
            strips.apply(side, self.threads);
            kept.push((name, Arc::new(strips)));
        }
        Ok(Arc::clone(&kept[kept.len() - 1].1))
    }
}

impl ModelSource for RotatedSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor_rows(&self, name: TensorName, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        if self.is_folded(name) {
            assert!(rows.end <= 1, "rows {rows:?} of {name} with 1");
            return Ok(vec![1.0; rows.len() * self.config.hidden]);
        }
        match self.output(name) {
            Some(side) => Ok(self.whole(name, &side)?.rows(rows)),
            None => self.read(name, rows),
        }
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
        format!("{}; rotated: {}", self.source.description(), self.describe())
    }
}

#[cfg(test)]
mod tests;
