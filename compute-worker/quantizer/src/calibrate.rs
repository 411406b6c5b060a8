//! The calibration pass: Hessians from the engine's own activations.
//!
//! ```text
//! base bundle, all w8 ─► forward pass, T rows, layer by layer
//!                          │ at each linear call: int8 activations a[T][K]
//!                          ▼
//!                        H = Σ_t a_t a_tᵀ ─► factors ─► every matrix of the call is rounded
//! ```
//!
//! The pass goes on with the base's own outputs, so what a matrix is rounded to does not depend on what others are. At the
//! end of a layer its matrices are handed over to be written, and the residual stream is on disk from its beginning on:
//! an interrupted pass goes on with the layer it was in.

use rookery_compute_worker::backend::{Backend, BackendError, CpuBackend};
use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, AttentionQuery, BLOCK_TOKENS, KvType, LinearJob, Pool};
use rookery_model::bundle::Bundle;
use rookery_model::config::ModelConfig;
use rookery_model::names::{LayerTensor, TensorName};

use crate::calibration::Sequences;
use crate::linalg::{Feedback, Hessian};
use crate::pack::QuantizeError;

pub use round::{RoundedMatrix, Rounder};
pub use stream::StreamStore;

mod round;
mod stream;

/// Share of the mean diagonal of a Hessian that is added to its diagonal, the usual choice (Frantar et al. 2022).
const DAMPING: f32 = 0.01;

/// The linear calls of a layer, in order, and the matrices of each.
const CALLS: [&[LayerTensor]; 4] = [
    &[LayerTensor::AttnQ, LayerTensor::AttnK, LayerTensor::AttnV],
    &[LayerTensor::AttnOutput],
    &[LayerTensor::FfnGate, LayerTensor::FfnUp],
    &[LayerTensor::FfnDown],
];

/// Takes what was rounded, layer by layer.
pub trait LayerSink: Send {
    /// Whether a layer is there from an earlier run, so that it need not be rounded again.
    fn has(&self, layer: usize) -> bool;

    /// Takes the rounded matrices of a layer.
    ///
    /// # Errors
    /// When they cannot be kept; the pass ends.
    fn take(&mut self, layer: usize, matrices: Vec<RoundedMatrix>) -> Result<(), QuantizeError>;
}

/// Rows of several sequences that go through a model together.
pub struct Rows {
    lengths: Vec<usize>,
    blocks: Vec<Vec<u32>>,
}

impl Rows {
    /// Every token of every sequence, each sequence with blocks of its own.
    pub fn of(sequences: &Sequences) -> Self {
        let per_sequence = sequences.length.div_ceil(BLOCK_TOKENS) as u32;
        let blocks = (0..sequences.count() as u32)
            .map(|index| (index * per_sequence..(index + 1) * per_sequence).collect())
            .collect();
        let lengths = (0..sequences.count()).flat_map(|_| 1..=sequences.length).collect();
        Self { lengths, blocks }
    }

    /// Blocks of all of them.
    pub fn block_count(&self) -> usize {
        self.blocks.iter().map(Vec::len).sum()
    }

    /// One query for each row.
    pub fn queries(&self) -> Vec<AttentionQuery<'_>> {
        let per_sequence = self.lengths.len() / self.blocks.len().max(1);
        let query = |(row, &len): (usize, &usize)| {
            let blocks = &self.blocks[row / per_sequence][..len.div_ceil(BLOCK_TOKENS)];
            AttentionQuery { blocks, len }
        };
        self.lengths.iter().enumerate().map(query).collect()
    }
}

/// Bytes that a [`Forward`] takes for each row of a batch, cache included.
pub fn bytes_per_row(model: &ModelConfig) -> usize {
    let scratch = 2 * model.hidden + 2 * model.q_rows() + 2 * model.kv_rows() + 3 * model.ffn;
    let cache = 2 * 2 * model.layers * model.kv_rows();
    4 * scratch + model.ffn.max(model.hidden) + cache
}

/// Runs `sequences` through `base` and rounds with what was seen.
///
/// # Errors
/// When a matrix cannot be read or rounded, the sink fails, or state cannot be kept.
pub fn calibrate(
    base: &Bundle,
    sequences: &Sequences,
    rounder: &Rounder<'_>,
    streams: &StreamStore,
    sink: &mut dyn LayerSink,
) -> Result<(), QuantizeError> {
    let layers = base.info().config.model.layers;
    let Some(first_missing) = (0..layers).find(|&layer| !sink.has(layer)) else { return Ok(()) };
    let rows = Rows::of(sequences);
    let limits = ForwardLimits {
        threads: rounder.compute.pool.threads(),
        blocks: rows.block_count(),
        kv_type: KvType::F16,
        positions: sequences.length,
        max_rows: sequences.tokens.len(),
        max_logit_rows: 0,
    };
    let mut forward = Forward::new(ModelWeights::resolve(base)?, rounder.compute.kernels, &limits);
    let queries = rows.queries();
    let batch = Batch { tokens: &sequences.tokens, queries: &queries, logits_of: &[] };
    let hidden = base.info().config.model.hidden;
    let resumed = streams.latest(first_missing, sequences.tokens.len() * hidden)?;
    let first_layer = resumed.as_ref().map_or(0, |(layer, _)| *layer);
    let mut backend = Calibrating {
        inner: CpuBackend::new(rounder.compute.kernels),
        rounder,
        streams,
        sink,
        layer: first_layer,
        call: 0,
        layers,
        rounded: Vec::new(),
        failure: None,
    };
    let result = match &resumed {
        Some((layer, x)) => forward.run_from(&mut backend, &batch, *layer, x),
        None => forward.run(&mut backend, &batch),
    };
    match backend.failure.take() {
        Some(failure) => Err(failure),
        None => Ok(result?),
    }
}

/// Computes as the processor does, and rounds the matrices of each call with its activations.
struct Calibrating<'a> {
    inner: CpuBackend,
    rounder: &'a Rounder<'a>,
    streams: &'a StreamStore,
    sink: &'a mut dyn LayerSink,
    /// The layer and which of its [`CALLS`] comes next.
    layer: usize,
    call: usize,
    layers: usize,
    /// Matrices of this layer.
    rounded: Vec<RoundedMatrix>,
    /// Why the pass ends early.
    failure: Option<QuantizeError>,
}

impl Calibrating<'_> {
    /// Rounds the matrices of the call that comes next, and counts it.
    fn observe(&mut self, a: &Activations) -> Result<(), QuantizeError> {
        let layer = self.layer;
        let wanted = CALLS[self.call].iter().map(|&tensor| TensorName::Layer(layer, tensor));
        let wanted: Vec<TensorName> = wanted.filter(|&name| self.rounder.wants(name)).collect();
        if !wanted.is_empty() && !self.sink.has(layer) {
            let compute = self.rounder.compute;
            let fault = |fault: String| QuantizeError::Rounding { tensor: wanted[0].to_string(), fault };
            if !a.is_finite() {
                return Err(fault("its inputs on the calibration text are not finite".to_owned()));
            }
            let feedback = Feedback::factor(compute, Hessian::of(compute, a), DAMPING)
                .map_err(|error| fault(error.to_string()))?;
            for name in wanted {
                self.rounded.push(self.rounder.round(name, &feedback)?);
            }
        }
        self.call += 1;
        Ok(())
    }

    /// Hands over a layer after its last call.
    fn end_layer(&mut self) -> Result<(), QuantizeError> {
        let rounded = std::mem::take(&mut self.rounded);
        if !self.sink.has(self.layer) {
            self.sink.take(self.layer, rounded)?;
        }
        (self.layer, self.call) = (self.layer + 1, 0);
        Ok(())
    }

    fn stop<T>(&mut self, result: Result<T, QuantizeError>) -> Result<T, BackendError> {
        result.map_err(|failure| {
            let message = failure.to_string();
            self.failure = Some(failure);
            BackendError { backend: self.name(), message }
        })
    }
}

impl Backend for Calibrating<'_> {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        if self.layer == self.layers {
            return self.inner.linear(pool, a, jobs);
        }
        let observed = self.observe(a);
        self.stop(observed)?;
        self.inner.linear(pool, a, jobs)?;
        if self.call == CALLS.len() {
            let ended = self.end_layer();
            self.stop(ended)?;
        }
        Ok(())
    }

    /// Sees the residual stream at the beginning of each layer.
    fn rms_norm(&mut self, x: &[f32], _weight: &[f32], _eps: f32, _out: &mut [f32]) -> bool {
        if self.call == 0 && self.layer < self.layers {
            // Without it a resumed pass begins further ahead, nothing else.
            if let Err(error) = self.streams.keep(self.layer, x) {
                tracing::warn!(%error, "an interrupted calibration will begin anew");
            }
        }
        false
    }

    fn name(&self) -> String {
        "calibration".to_owned()
    }
}

/// The matrices of a block, in the order of the forward pass.
pub fn linear_tensors() -> impl Iterator<Item = LayerTensor> {
    CALLS.iter().flat_map(|call| call.iter().copied())
}
