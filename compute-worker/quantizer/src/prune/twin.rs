//! Source and pruned model side by side over calibration text, layer by layer.
//!
//! Both streams start alike. Where the pruned model does something else than its source, it picks channels by what they add
//! to its own stream, and its down projection is refitted to bring that stream to where the source's is after the same layer
//! and the dropped ones behind it: so each refitting also makes up for what those before it left.

use half::f16;
use rookery_compute_worker::model::reference::Reference;
use rookery_kernels::Gemm;
use rookery_model::names::{LayerTensor, TensorName};
use rookery_model::source::ModelSource;
use serde::Serialize;

use super::PruneError;
use super::cut::Cut;
use super::least_squares::{Problem, fit};
use super::meter::Meter;
use super::source::{KeptLayer, pick_columns};
use crate::calibration::Sequences;
use crate::linalg::Compute;

/// How a down projection was refitted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerFit {
    /// The layer of the source.
    pub layer: usize,
    /// Distance of the pruned model's stream from the source's after the layer (and dropped ones behind it), relative to the
    /// stream's size: root of the mean square over calibration tokens, before refitting.
    pub error_before: f64,
    /// The same after it.
    pub error_after: f64,
    /// The ridge, as a share of an input's mean sum of squares; `None` where no change helped tokens held out.
    pub ridge: Option<f32>,
    /// Share of the squared distance left on tokens held out.
    pub left_held_out: Option<f64>,
}

/// What the pass needs.
pub(super) struct Twin<'a> {
    pub(super) compute: &'a Compute,
    pub(super) source: &'a dyn ModelSource,
    pub(super) reference: Reference<'a>,
    pub(super) sequences: &'a Sequences,
    pub(super) cut: &'a Cut,
    pub(super) recover: bool,
    pub(super) meter: &'a Meter<'a>,
}

impl Twin<'_> {
    /// The layers that stay, and how those that were to be refitted were.
    pub(super) fn run(&self) -> Result<(Vec<KeptLayer>, Vec<LayerFit>), PruneError> {
        let kept = &self.cut.kept;
        let plain = |&layer: &usize| KeptLayer { layer, ..KeptLayer::default() };
        let mut layers: Vec<KeptLayer> = kept.iter().map(plain).collect();
        let mut fits = Vec::new();
        if !self.recover && self.cut.width.is_none() {
            return Ok((layers, fits));
        }
        let tokens: Vec<&[u32]> = self.sequences.tokens.chunks(self.sequences.length).collect();
        let mut pruned = self.reference.embed(&tokens)?;
        // The source's stream; `None` as long as it is the same.
        let mut original: Option<Vec<f32>> = None;
        if self.recover && kept[0] > 0 {
            let mut x = pruned.clone();
            self.advance(0..kept[0], &mut x)?;
            original = Some(x);
        }
        // Nothing is learnt from what comes after the last change.
        let last = (0..kept.len()).rev().find(|&position| self.cut.changes(position));
        for position in 0..=last.unwrap_or(0) {
            let layer = kept[position];
            if self.recover && original.is_none() && self.cut.changes(position) {
                original = Some(pruned.clone());
            }
            if let Some(x) = &mut original {
                self.advance(layer..self.cut.end(position), x)?;
            }
            if self.cut.changes(position) {
                let (changed, fit) = self.change(layer, &mut pruned, original.as_deref())?;
                layers[position] = changed;
                fits.extend(fit);
            } else {
                self.advance(layer..layer + 1, &mut pruned)?;
            }
        }
        Ok((layers, fits))
    }

    fn lengths(&self) -> Vec<usize> {
        vec![self.sequences.length; self.sequences.count()]
    }

    /// Takes a stream through layers of the source.
    fn advance(&self, layers: std::ops::Range<usize>, x: &mut [f32]) -> Result<(), PruneError> {
        for layer in layers {
            self.reference.attention(layer, &self.lengths(), x)?;
            self.reference.feed_forward(layer, x, &mut |_| {})?;
            self.check(layer, x)?;
            self.meter.layer();
        }
        Ok(())
    }

    fn check(&self, layer: usize, x: &[f32]) -> Result<(), PruneError> {
        if x.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(PruneError::NotFinite { layer }) }
    }

    /// Takes the pruned model's stream through a layer that is changed. `target` is where it should then be; without it
    /// nothing is refitted.
    fn change(
        &self,
        layer: usize,
        x: &mut Vec<f32>,
        target: Option<&[f32]>,
    ) -> Result<(KeptLayer, Option<LayerFit>), PruneError> {
        let hidden = self.source.config().hidden;
        self.reference.attention(layer, &self.lengths(), x)?;
        let before = x.clone();
        let mut inputs = Vec::new();
        self.reference.feed_forward(layer, x, &mut |inner| inputs.extend_from_slice(inner))?;
        self.check(layer, x)?;
        let weights = token_weights(x, hidden);
        let mut down = self.source.tensor(TensorName::Layer(layer, LayerTensor::FfnDown))?;
        let mut kept = KeptLayer { layer, ..KeptLayer::default() };
        if let Some(width) = self.cut.width {
            let ffn = self.source.config().ffn;
            let channels = strongest(&inputs, &down, &weights, ffn, width);
            inputs = pick_columns(&inputs, ffn, &channels);
            down = pick_columns(&down, ffn, &channels);
            kept.channels = Some(channels);
            *x = before;
            self.add_product(&inputs, &down, hidden, x);
        }
        let Some(target) = target else {
            self.meter.layer();
            return Ok((kept, None));
        };
        let missing: Vec<f32> = target.iter().zip(&*x).map(|(target, x)| target - x).collect();
        let n = inputs.len() / weights.len();
        let problem = Problem {
            inputs: &inputs,
            n,
            missing: &missing,
            m: hidden,
            weights: &weights,
            group: self.sequences.length,
        };
        let change = fit(self.compute, &problem).map_err(|source| PruneError::Fit { layer, source })?;
        let mut report = LayerFit {
            layer,
            error_before: relative_error(target, x, &weights),
            error_after: 0.0,
            ridge: None,
            left_held_out: None,
        };
        if let Some(mut change) = change {
            let refitted = down.iter().zip(&change.values).map(|(down, change)| f16::from_f32(down + change));
            let refitted: Vec<f16> = refitted.collect();
            // What the file will hold is what layers behind see.
            for ((change, refitted), down) in change.values.iter_mut().zip(&refitted).zip(&down) {
                *change = refitted.to_f32() - down;
            }
            self.add_product(&inputs, &change.values, hidden, x);
            kept.down = Some(refitted);
            (report.ridge, report.left_held_out) = (Some(change.ridge), Some(change.left_held_out));
            self.check(layer, x)?;
        }
        report.error_after = relative_error(target, x, &weights);
        tracing::debug!(layer, report.error_before, report.error_after, "refitted");
        self.meter.layer();
        Ok((kept, Some(report)))
    }

    /// `x[T][m] += a[T][n] · w[m][n]ᵀ`.
    fn add_product(&self, a: &[f32], w: &[f32], m: usize, x: &mut [f32]) {
        let (tokens, n) = (x.len() / m, w.len() / m);
        let job = Gemm { m: tokens, n: m, k: n, a, a_stride: n, b: w, b_stride: n };
        self.compute.kernels.gemm(&self.compute.pool, &job, 1.0, x, m);
    }
}

/// One over the norm of each row: the next norm divides by it, so errors count relative to it. Else the first token of a
/// sequence, whose stream is a hundred times the others' in many models, would count for all of them.
fn token_weights(x: &[f32], hidden: usize) -> Vec<f32> {
    let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let weight = |norm: f64| if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
    x.chunks_exact(hidden).map(|row| weight(norm(row))).collect()
}

/// The `width` channels that add most to the stream, ascending: by the norm of their inputs over tokens times that of their
/// column of `down`.
fn strongest(inputs: &[f32], down: &[f32], weights: &[f32], ffn: usize, width: usize) -> Vec<usize> {
    let mut activations = vec![0.0; ffn];
    for (row, weight) in inputs.chunks_exact(ffn).zip(weights) {
        add_squares(&mut activations, row, f64::from(*weight));
    }
    let mut columns = vec![0.0; ffn];
    down.chunks_exact(ffn).for_each(|row| add_squares(&mut columns, row, 1.0));
    let score = |channel: usize| activations[channel] * columns[channel];
    let mut order: Vec<usize> = (0..ffn).collect();
    // Stable: of equals the first stays.
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    order.truncate(width);
    order.sort_unstable();
    order
}

fn add_squares(sums: &mut [f64], row: &[f32], weight: f64) {
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum += (f64::from(value) * weight).powi(2);
    }
}

/// Root of the mean weighted square of the rows' distances.
fn relative_error(target: &[f32], x: &[f32], weights: &[f32]) -> f64 {
    let hidden = x.len() / weights.len();
    let rows = target.chunks_exact(hidden).zip(x.chunks_exact(hidden)).zip(weights);
    let square = |((target, x), weight): ((&[f32], &[f32]), &f32)| {
        let distances = target.iter().zip(x).map(|(target, x)| f64::from(target - x).powi(2));
        distances.sum::<f64>() * f64::from(*weight).powi(2)
    };
    (rows.map(square).sum::<f64>() / weights.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_ranked_by_what_they_add() {
        // Two tokens, the second's stream ten times as large; channels by activation, by weight, by neither.
        let inputs = [1.0, 2.0, 0.1, 3.0, 0.0, 0.0, 20.0, 3.0];
        let down = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5];
        let weights = [1.0, 0.1];
        // Scores: 1, 4, 0.01 + 4, (9 + 0.09)/4.
        assert_eq!(strongest(&inputs, &down, &weights, 4, 1), [2]);
        assert_eq!(strongest(&inputs, &down, &weights, 4, 2), [1, 2]);
        assert_eq!(strongest(&inputs, &down, &weights, 4, 3), [1, 2, 3]);
    }

    #[test]
    fn errors_are_relative_to_the_stream() {
        let weights = token_weights(&[3.0, 4.0, 0.0, 0.0, 30.0, 40.0], 2);
        assert_eq!(weights, [0.2, 0.0, 0.02]);
        let error = relative_error(&[5.0, 0.0, 50.0, 0.0], &[0.0, 0.0, 0.0, 0.0], &[0.2, 0.02]);
        assert!((error - 1.0).abs() < 1e-6);
    }
}
