//! A backend that lets another one compute and judges each product while its inputs are at hand.

use std::collections::HashMap;
use std::ops::Range;

use rookery_compute_worker::backend::{Backend, BackendError};
use rookery_compute_worker::model::weights::ModelWeights;
use rookery_kernels::{Activations, Kernels, LinearJob, Pool};
use rookery_model::bundle::{LinearWeights, Precision};
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::source::{ImportError, ModelSource};

use super::measure::{Channel, Inputs, Outcome, measure};
use super::report::CallReport;
use super::rounding::RoundingReport;
use crate::eval::watched::Meter;

/// Weights of the source that are compared at once.
const CHUNK_VALUES: usize = 8 << 20;

/// A piece of a matrix that was multiplied with.
pub(super) struct Piece {
    pub(super) tensor: TensorName,
    pub(super) first_row: usize,
    pub(super) channels: Vec<Channel>,
}

/// Where a stored piece belongs.
#[derive(Clone, Copy)]
struct Place {
    tensor: TensorName,
    first_row: usize,
    precision: Precision,
}

/// The wrapped backend and what it was seen doing.
pub(super) struct Watch<'a> {
    inner: Box<dyn Backend>,
    kernels: &'static Kernels,
    source: &'a dyn ModelSource,
    meter: &'a Meter<'a>,
    places: HashMap<usize, Place>,
    /// Before they were rounded: inputs of the calls to come.
    x: Vec<f32>,
    rounding: RoundingReport,
    inputs: Option<Inputs>,
    pub(super) pieces: Vec<Piece>,
    /// Of each linear call.
    pub(super) calls: Vec<CallReport>,
    pub(super) failure: Option<ImportError>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        inner: Box<dyn Backend>,
        kernels: &'static Kernels,
        source: &'a dyn ModelSource,
        weights: &ModelWeights,
        meter: &'a Meter<'a>,
    ) -> Self {
        Self {
            inner,
            kernels,
            source,
            meter,
            places: places(weights),
            x: Vec::new(),
            rounding: RoundingReport::default(),
            inputs: None,
            pieces: Vec::new(),
            calls: Vec::new(),
            failure: None,
        }
    }

    /// Rounds as the engine would.
    pub(super) fn round(&mut self, pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) {
        if !self.inner.quantize(pool, x, cols, out) {
            self.kernels.quantize(pool, x, cols, out);
        }
    }

    fn judge(&mut self, pool: &Pool, a: &Activations, job: &LinearJob<'_>) -> Result<(), BackendError> {
        let place = self.places.get(&address(job.weights.tile_bytes())).copied();
        let place = place.ok_or_else(|| self.failed("a product with weights that are not the model's"))?;
        let kernels = self.kernels;
        if self.inputs.is_none() {
            self.calls.push(CallReport { tensor: place.tensor, rounding: self.rounding });
            self.inputs = Some(Inputs::new(kernels, pool, std::mem::take(&mut self.x), a));
        }
        let Some(inputs) = &self.inputs else { unreachable!("made above") };
        let outcome = Outcome { activations: a, job, precision: place.precision };
        let rows = job.weights.rows();
        let mut channels = Vec::with_capacity(rows);
        for part in chunks(rows, inputs.cols) {
            let of_matrix = place.first_row + part.start..place.first_row + part.end;
            let source = match self.source.tensor_rows(stored(self.source, place.tensor), of_matrix) {
                Ok(source) => source,
                Err(error) => {
                    self.failure = Some(error);
                    return Err(self.failed("the source's weights could not be read"));
                }
            };
            channels.extend(measure(kernels, pool, inputs, &outcome, part.start, &source));
            self.meter.add(source.len() as u64);
        }
        self.pieces.push(Piece { tensor: place.tensor, first_row: place.first_row, channels });
        Ok(())
    }

    fn failed(&self, message: &str) -> BackendError {
        BackendError { backend: self.inner.name(), message: message.to_owned() }
    }
}

/// Where a source keeps a matrix: a tied head is the embedding.
fn stored(source: &dyn ModelSource, tensor: TensorName) -> TensorName {
    let tied = tensor == TensorName::Output && source.config().tied_head;
    if tied { TensorName::TokenEmbedding } else { tensor }
}

/// Parts of `0..rows` that begin at multiples of 64 and are not too large.
pub(super) fn chunks(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (CHUNK_VALUES / cols / 64 * 64).max(64);
    (0..rows).step_by(most).map(move |start| start..rows.min(start + most))
}

impl Backend for Watch<'_> {
    fn linear(
        &mut self,
        pool: &Pool,
        a: &Activations,
        jobs: &mut [LinearJob<'_>],
    ) -> Result<(), BackendError> {
        self.inner.linear(pool, a, jobs)?;
        jobs.iter().try_for_each(|job| self.judge(pool, a, job))
    }

    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> bool {
        self.inner.rms_norm(x, weight, eps, out)
    }

    fn silu_mul(&mut self, gate: &[f32], up: &[f32], columns: usize, out: &mut [f32]) -> bool {
        self.inner.silu_mul(gate, up, columns, out)
    }

    fn quantize(&mut self, pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) -> bool {
        self.round(pool, x, cols, out);
        self.rounding = RoundingReport::of(x, out);
        self.x = x.to_vec();
        self.inputs = None;
        true
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

/// Where each stored piece's tiles begin.
fn places(weights: &ModelWeights) -> HashMap<usize, Place> {
    let mut places = HashMap::new();
    let mut add = |tensor: TensorName, matrix: &LinearWeights| {
        for segment in &matrix.segments {
            let place = Place { tensor, first_row: segment.first_row, precision: segment.precision };
            places.insert(address(segment.tiles()), place);
        }
    };
    for (index, layer) in weights.layers.iter().enumerate() {
        let [q, k, v] = &layer.qkv;
        let matrices = [
            (LayerTensor::AttnQ, &q.weights),
            (LayerTensor::AttnK, &k.weights),
            (LayerTensor::AttnV, &v.weights),
            (LayerTensor::AttnOutput, &layer.attn_output),
            (LayerTensor::FfnGate, &layer.ffn_gate),
            (LayerTensor::FfnUp, &layer.ffn_up),
            (LayerTensor::FfnDown, &layer.ffn_down),
        ];
        matrices.into_iter().for_each(|(tensor, matrix)| add(TensorName::Layer(index, tensor), matrix));
    }
    // A tied head is the embedding's own tiles; what multiplies with them is the head.
    add(TensorName::Output, &weights.head);
    places
}

fn address(tiles: &[u8]) -> usize {
    tiles.as_ptr().addr()
}
