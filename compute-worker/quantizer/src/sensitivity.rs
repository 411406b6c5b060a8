//! What four bits cost, tensor by tensor and head by head.
//!
//! The cost of a unit is the mean KL divergence of the model's next-token distributions when that unit alone is w4 and all
//! else w8, from those when all is w8. Both are computed with activations of about 16 bits: with int8 ones, any change at
//! all makes later layers round differently, and that noise is as large as what is to be measured.
//!
//! A model of n layers is run from the unit's layer on only, over the residual stream that the all-w8 model had there.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rookery_compute_worker::model::forward::{Batch, Forward, ForwardLimits};
use rookery_compute_worker::model::weights::{LayerWeights, ModelWeights};
use rookery_kernels::KvType;
use rookery_model::bundle::{Bundle, LinearWeights, Progress, Segment};
use rookery_model::names::{LayerTensor, TensorName};

use crate::calibrate::Rows;
use crate::calibration::Sequences;
use crate::linalg::Compute;
use crate::pack::QuantizeError;
use divergence::Target;
use fine::FineBackend;
pub use units::{UnitRows, head_run, units};

mod divergence;
mod fine;
mod units;

/// What measuring needs.
pub struct Measurement<'a> {
    /// The model with all matrices at w8.
    pub base: &'a Bundle,
    /// The model with all units at w4.
    pub w4: &'a Bundle,
    /// What goes through it.
    pub sequences: &'a Sequences,
    /// Distributions are compared at every so many positions.
    pub stride: usize,
    /// What it runs on.
    pub compute: &'a Compute,
    /// Where results are kept as they come, so that an interrupted measurement goes on.
    pub results: PathBuf,
    /// Told of the weights that were passed over, in bytes.
    pub progress: &'a dyn Progress,
}

/// Rows of a matrix of some layer that are measured at w4 together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which block.
    pub layer: usize,
    /// Its matrix.
    pub tensor: LayerTensor,
    /// Rows at w4, whole panels of 64 or up to the last.
    pub rows: Range<usize>,
}

impl Measurement<'_> {
    /// Positions whose distributions are compared.
    pub fn positions(&self) -> usize {
        self.compared().len()
    }

    /// Rows whose logits are compared: the last of every `stride` of a sequence.
    fn compared(&self) -> Vec<usize> {
        let length = self.sequences.length;
        (0..self.sequences.tokens.len())
            .filter(|row| (row % length + 1).is_multiple_of(self.stride))
            .collect()
    }

    /// The mean KL divergence of each change, in nats.
    ///
    /// # Errors
    /// When the model cannot be run, or results cannot be kept.
    pub fn run(&self, changes: &[Change]) -> Result<Vec<f64>, QuantizeError> {
        let mut known = read_results(&self.results, changes.len());
        let layers = self.base.info().config.model.layers;
        self.progress
            .start("measuring sensitivities", changes.iter().map(|change| self.cost(change.layer)).sum());
        for change in &changes[..known.len()] {
            self.progress.advance(self.cost(change.layer));
        }
        if known.len() < changes.len() {
            let rows = Rows::of(self.sequences);
            let queries = rows.queries();
            let compared = self.compared();
            let batch = Batch { tokens: &self.sequences.tokens, queries: &queries, logits_of: &compared };
            let mut forward = self.forward(rows.block_count(), compared.len())?;
            let mut backend = FineBackend::new(self.compute.kernels);
            let mut streams: Vec<Vec<f32>> = Vec::with_capacity(layers);
            forward.run_watched(&mut backend, &batch, &mut |_, x| streams.push(x.to_vec()))?;
            let targets: Vec<Target> = forward.logits().map(Target::of).collect();
            let mut results = ResultsFile::open(&self.results, &known)?;
            for change in &changes[known.len()..] {
                let restore = self.apply(&mut forward, change)?;
                let run = forward.run_from(&mut backend, &batch, change.layer, &streams[change.layer]);
                *slot(&mut forward.weights_mut().layers[change.layer], change.tensor) = restore;
                run?;
                let kl = mean_divergence(&mut forward, &targets);
                results.append(kl)?;
                known.push(kl);
                self.progress.advance(self.cost(change.layer));
            }
        }
        self.progress.finish();
        Ok(known)
    }

    fn forward(&self, blocks: usize, logit_rows: usize) -> Result<Forward, QuantizeError> {
        let limits = ForwardLimits {
            threads: self.compute.pool.threads(),
            blocks,
            kv_type: KvType::F16,
            positions: self.sequences.length,
            max_rows: self.sequences.tokens.len(),
            max_logit_rows: logit_rows,
        };
        Ok(Forward::new(ModelWeights::resolve(self.base)?, self.compute.kernels, &limits))
    }

    /// Bytes of weights that a run from `layer` on passes over.
    fn cost(&self, layer: usize) -> u64 {
        let model = &self.base.info().config.model;
        let bytes = |name| {
            let (rows, cols) = model.shape(name);
            (rows * cols) as u64
        };
        let block: u64 = crate::calibrate::linear_tensors().map(|t| bytes(TensorName::Layer(0, t))).sum();
        (model.layers - layer) as u64 * block + bytes(TensorName::TokenEmbedding) / self.stride as u64
    }

    /// Puts rows of the w4 form into the model; gives what was there.
    fn apply(&self, forward: &mut Forward, change: &Change) -> Result<LinearWeights, QuantizeError> {
        let name = TensorName::Layer(change.layer, change.tensor);
        let w4 = self.w4.linear(name)?;
        let place = slot(&mut forward.weights_mut().layers[change.layer], change.tensor);
        let (rows, cols) = (place.rows, place.cols);
        let Range { start, end } = change.rows;
        let mut segments: Vec<Segment> = Vec::new();
        for (from, range) in [(&*place, 0..start), (&w4, start..end), (&*place, end..rows)] {
            if !range.is_empty() {
                segments.push(from.segments[0].part(range));
            }
        }
        Ok(std::mem::replace(place, LinearWeights::from_segments(rows, cols, segments)))
    }
}

/// Where a layer keeps a matrix.
fn slot(layer: &mut LayerWeights, tensor: LayerTensor) -> &mut LinearWeights {
    match tensor {
        LayerTensor::AttnQ => &mut layer.qkv[0].weights,
        LayerTensor::AttnK => &mut layer.qkv[1].weights,
        LayerTensor::AttnV => &mut layer.qkv[2].weights,
        LayerTensor::AttnOutput => &mut layer.attn_output,
        LayerTensor::FfnGate => &mut layer.ffn_gate,
        LayerTensor::FfnUp => &mut layer.ffn_up,
        LayerTensor::FfnDown => &mut layer.ffn_down,
        LayerTensor::AttnNorm
        | LayerTensor::AttnQBias
        | LayerTensor::AttnKBias
        | LayerTensor::AttnVBias
        | LayerTensor::AttnQNorm
        | LayerTensor::AttnKNorm
        | LayerTensor::FfnNorm => unreachable!("units are rows of matrices"),
    }
}

/// Over the last batch's logits, added up in their order.
fn mean_divergence(forward: &mut Forward, targets: &[Target]) -> f64 {
    let found = Mutex::new(vec![0.0; targets.len()]);
    forward.for_each_logits_row(&|row, logits| {
        let kl = targets[row].divergence(logits);
        found.lock().unwrap_or_else(PoisonError::into_inner)[row] = kl;
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Below zero only by rounding.
    (found.iter().sum::<f64>() / targets.len().max(1) as f64).max(0.0)
}

/// Results so far, one a line as the bits of an f64; reading ends at what is no such line.
fn read_results(path: &Path, most: usize) -> Vec<f64> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let value = |line: String| {
        let bits = (line.len() == 16).then(|| u64::from_str_radix(&line, 16).ok()).flatten()?;
        Some(f64::from_bits(bits)).filter(|value| value.is_finite())
    };
    BufReader::new(file).lines().map_while(Result::ok).map_while(value).take(most).collect()
}

/// The file of results, appended to.
struct ResultsFile {
    path: PathBuf,
    file: File,
}

impl ResultsFile {
    /// Anew with what is known.
    fn open(path: &Path, known: &[f64]) -> Result<Self, QuantizeError> {
        let io = |source| QuantizeError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(path).map_err(io)?;
        let mut results = Self { path: path.to_owned(), file };
        known.iter().try_for_each(|&kl| results.append(kl))?;
        Ok(results)
    }

    fn append(&mut self, kl: f64) -> Result<(), QuantizeError> {
        let io = |source| QuantizeError::Io { path: self.path.clone(), source };
        self.file.write_all(format!("{:016x}\n", kl.to_bits()).as_bytes()).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_up_to_the_first_broken_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results");
        assert!(read_results(&path, 9).is_empty());
        ResultsFile::open(&path, &[0.25, 1e-9]).unwrap().append(3.0).unwrap();
        assert_eq!(read_results(&path, 9), [0.25, 1e-9, 3.0]);
        assert_eq!(read_results(&path, 2), [0.25, 1e-9]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        assert_eq!(read_results(&path, 9), [0.25, 1e-9], "a line that was cut off");
    }
}
