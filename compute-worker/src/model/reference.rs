//! The forward pass in plain f32, to check everything else against.
//!
//! It shares nothing with the engine: weights come from the imported model as they are, there is no cache, no
//! quantisation and no tile order; of the kernels it uses the f32 matrix product, which the engine does not.
//! Normalisation, softmax and rotary angles are computed in f64.
//!
//! All sequences go through one layer together, so that each weight is read and dequantised once:
//!
//! ```text
//! x = embedding[tokens]
//! for each layer:
//!     q, k, v = split(norm(x)·W + b);  q, k = rope(norm per head if the model has it)
//!     x += softmax(q·kᵀ/√d, causal, per sequence)·v·Wo
//!     x += H(silu(norm(x)·Wgate) ∘ norm(x)·Wup)·Wdown         H: Walsh–Hadamard, if the model has it
//! logits = norm(x)·head
//! ```
//!
//! Memory: one layer's weights in f32, about `8 · hidden · 4` bytes a token, and 256 MiB of logits.

mod attention;
mod divergence;
mod matmul;

use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::source::{ImportError, ModelSource};

use attention::Heads;
pub use divergence::{Divergence, divergence};
use matmul::{Products, for_each_chunk};

/// Tokens whose feed-forward activations are held at once.
const FFN_TOKENS: usize = 1024;
/// Bytes of logits held at once.
const LOGIT_BYTES: usize = 256 << 20;
/// Rows of the head that are dequantised at once.
const HEAD_ROWS: usize = 8192;

/// Why the reference could not compute.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A weight could not be read.
    #[error("reference forward")]
    Import(#[from] ImportError),
    /// A token is not in the vocabulary.
    #[error(
        "token {token} at position {position} of sequence {sequence} is outside the vocabulary of {vocabulary}"
    )]
    Token {
        /// Which sequence.
        sequence: usize,
        /// Where in it.
        position: usize,
        /// The token.
        token: u32,
        /// Number of rows of the embedding.
        vocabulary: usize,
    },
}

/// An f32 forward pass over an imported model.
pub struct Reference<'a> {
    source: &'a dyn ModelSource,
    threads: usize,
    products: Products,
}

impl<'a> Reference<'a> {
    /// A reference over `source` that computes with all processors. Reads nothing yet.
    pub fn open(source: &'a dyn ModelSource) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Reference { source, threads, products: Products::new(threads) }
    }

    /// Calls `each` with sequence, position and `[vocab]` logits, in ascending order, once for every token of every
    /// sequence. Every sequence starts at position 0 and sees only itself.
    ///
    /// # Errors
    /// When a weight cannot be read or a token is outside the vocabulary; `each` has not been called then, unless the
    /// head is what could not be read.
    pub fn logits(
        &self,
        sequences: &[&[u32]],
        each: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), ReferenceError> {
        let mut x = self.embed(sequences)?;
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        for layer in 0..self.source.config().layers {
            self.attention(layer, &lengths, &mut x)?;
            self.feed_forward(layer, &mut x, &mut |_| {})?;
        }
        self.head(&lengths, &x, each)
    }

    fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    /// The residual stream before the first layer, `[T][hidden]`, sequence after sequence. With [`Reference::attention`]
    /// and [`Reference::feed_forward`], for those who look at what happens between layers.
    ///
    /// # Errors
    /// When the embedding cannot be read or a token is outside the vocabulary.
    pub fn embed(&self, sequences: &[&[u32]]) -> Result<Vec<f32>, ReferenceError> {
        let (vocabulary, hidden) = (self.config().vocab, self.config().hidden);
        let mut x = Vec::new();
        for (sequence, tokens) in sequences.iter().enumerate() {
            for (position, &token) in tokens.iter().enumerate() {
                let row = token as usize;
                if row >= vocabulary {
                    return Err(ReferenceError::Token { sequence, position, token, vocabulary });
                }
                x.extend(self.source.tensor_rows(TensorName::TokenEmbedding, row..row + 1)?);
            }
        }
        debug_assert_eq!(x.len() % hidden, 0);
        Ok(x)
    }

    /// `x·Wᵀ + b`: `[T][in]` to `[T][out]`.
    fn project(
        &self,
        layer: usize,
        weight: LayerTensor,
        bias: Option<LayerTensor>,
        x: &[f32],
    ) -> Result<Vec<f32>, ReferenceError> {
        let name = TensorName::Layer(layer, weight);
        let (rows, cols) = self.config().shape(name);
        let weights = self.source.tensor(name)?;
        let mut out = vec![0.0; x.len() / cols * rows];
        self.products.linear(x, &weights, cols, &mut out, rows, 0);
        if let Some(bias) = bias {
            let bias = self.source.tensor(TensorName::Layer(layer, bias))?;
            for row in out.chunks_exact_mut(rows) {
                row.iter_mut().zip(&bias).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(out)
    }

    /// RMS norm of each row of `x` that `weight` is long.
    fn norm(&self, name: TensorName, x: &mut [f32]) -> Result<(), ReferenceError> {
        let weight = self.source.tensor(name)?;
        let eps = f64::from(self.config().rms_eps);
        for_each_chunk(x, 64 * weight.len(), self.threads, &|_, rows| {
            for row in rows.chunks_exact_mut(weight.len()) {
                let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / row.len() as f64;
                let scale = 1.0 / (mean + eps).sqrt();
                row.iter_mut()
                    .zip(&weight)
                    .for_each(|(x, w)| *x = (f64::from(*x) * scale * f64::from(*w)) as f32);
            }
        });
        Ok(())
    }

    /// Adds the attention of `layer` to the stream `x`, `[T][hidden]`, whose sequences are `lengths` tokens long.
    ///
    /// # Errors
    /// When a weight cannot be read.
    ///
    /// # Panics
    /// When there is no such layer, or `x` is of another number of tokens.
    pub fn attention(&self, layer: usize, lengths: &[usize], x: &mut [f32]) -> Result<(), ReferenceError> {
        let config = self.config();
        let mut normed = x.to_vec();
        self.norm(TensorName::Layer(layer, LayerTensor::AttnNorm), &mut normed)?;
        let bias = |tensor| config.qkv_bias.then_some(tensor);
        let mut q = self.project(layer, LayerTensor::AttnQ, bias(LayerTensor::AttnQBias), &normed)?;
        let mut k = self.project(layer, LayerTensor::AttnK, bias(LayerTensor::AttnKBias), &normed)?;
        let v = self.project(layer, LayerTensor::AttnV, bias(LayerTensor::AttnVBias), &normed)?;
        if config.qk_norm {
            self.norm(TensorName::Layer(layer, LayerTensor::AttnQNorm), &mut q)?;
            self.norm(TensorName::Layer(layer, LayerTensor::AttnKNorm), &mut k)?;
        }
        let heads = Heads::new(config);
        heads.rotate(lengths, config.heads, &mut q);
        heads.rotate(lengths, config.kv_heads, &mut k);
        let mixed = heads.attend(lengths, &q, &k, &v, self.threads);
        let out = self.project(layer, LayerTensor::AttnOutput, None, &mixed)?;
        x.iter_mut().zip(&out).for_each(|(x, out)| *x += out);
        Ok(())
    }

    /// Adds the feed-forward of `layer` to the stream `x`, `[T][hidden]`. `watch` sees the inputs of its down projection,
    /// `[tokens][ffn]`, of some tokens after the other.
    ///
    /// # Errors
    /// When a weight cannot be read.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn feed_forward(
        &self,
        layer: usize,
        x: &mut [f32],
        watch: &mut dyn FnMut(&[f32]),
    ) -> Result<(), ReferenceError> {
        let (hidden, ffn) = (self.config().hidden, self.config().ffn);
        let mut normed = x.to_vec();
        self.norm(TensorName::Layer(layer, LayerTensor::FfnNorm), &mut normed)?;
        let read = |tensor| self.source.tensor(TensorName::Layer(layer, tensor));
        let gate = read(LayerTensor::FfnGate)?;
        let up = read(LayerTensor::FfnUp)?;
        let down = read(LayerTensor::FfnDown)?;
        for (x, normed) in x.chunks_mut(FFN_TOKENS * hidden).zip(normed.chunks(FFN_TOKENS * hidden)) {
            let tokens = normed.len() / hidden;
            let (mut gated, mut upped) = (vec![0.0; tokens * ffn], vec![0.0; tokens * ffn]);
            self.products.linear(normed, &gate, hidden, &mut gated, ffn, 0);
            self.products.linear(normed, &up, hidden, &mut upped, ffn, 0);
            for_each_chunk(&mut gated, 64 * ffn, self.threads, &|first, rows| {
                let upped = &upped[first..first + rows.len()];
                rows.iter_mut().zip(upped).for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * up);
                if let Some(block) = self.config().ffn_hadamard {
                    rows.chunks_exact_mut(block).for_each(walsh_hadamard);
                }
            });
            watch(&gated);
            let mut out = vec![0.0; tokens * hidden];
            self.products.linear(&gated, &down, ffn, &mut out, hidden, 0);
            x.iter_mut().zip(&out).for_each(|(x, out)| *x += out);
        }
        Ok(())
    }

    fn head(
        &self,
        lengths: &[usize],
        x: &[f32],
        each: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), ReferenceError> {
        let (vocab, hidden) = (self.config().vocab, self.config().hidden);
        let name = if self.config().tied_head { TensorName::TokenEmbedding } else { TensorName::Output };
        let mut normed = x.to_vec();
        self.norm(TensorName::OutputNorm, &mut normed)?;
        let mut places =
            lengths.iter().enumerate().flat_map(|(sequence, &n)| (0..n).map(move |at| (sequence, at)));
        let block = (LOGIT_BYTES / (vocab * size_of::<f32>())).max(1);
        for normed in normed.chunks(block * hidden) {
            let mut logits = vec![0.0; normed.len() / hidden * vocab];
            for first in (0..vocab).step_by(HEAD_ROWS) {
                let rows = self.source.tensor_rows(name, first..vocab.min(first + HEAD_ROWS))?;
                self.products.linear(normed, &rows, hidden, &mut logits, vocab, first);
            }
            for (row, (sequence, position)) in logits.chunks_exact(vocab).zip(&mut places) {
                each(sequence, position, row);
            }
        }
        Ok(())
    }
}

/// `x ← H·x`, unnormalised, in natural order; the length is a power of two.
fn walsh_hadamard(x: &mut [f32]) {
    let mut stride = x.len() / 2;
    while stride > 0 {
        for part in x.chunks_exact_mut(2 * stride) {
            let (low, high) = part.split_at_mut(stride);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        stride /= 2;
    }
}

#[cfg(test)]
mod tests;
