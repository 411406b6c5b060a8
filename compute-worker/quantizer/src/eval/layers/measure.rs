//! Numbers of one matrix: its outputs against those of the source's weights on the same inputs, and its stored weights
//! against the source's.
//!
//! ```text
//! A [T][K] activations as the engine had them, int8 × scale;  X [T][K] before they were rounded;  W the source's rows
//! y  [T][N] what the backend gave, bias taken off
//! yₐ = A·Wᵀ: y differs from it by the rounding of weights alone      → slope ⟨y, yₐ⟩/⟨yₐ, yₐ⟩ of each channel
//! yₓ = X·Wᵀ: y differs from it by the rounding of activations too   → relative error and bias share
//! acc·sa·sw from the stored integers, a token a channel: what the backend should have given
//! ```
//! How far from 1 a right channel's slope can be is known before looking at it: rounding errors of weights are like noise of
//! variance step²/12, which the channel's slope takes up with `|g|/⟨yₐ, yₐ⟩`, where `g = Aᵀ·yₐ`. Few strong directions
//! in A make that large.

use rookery_kernels::tiles::{W4_GROUP, unpack_w4, unpack_w8};
use rookery_kernels::{Gemm, Kernels, LinearJob, Pool, Weights};
use rookery_model::bundle::Precision;
use serde::Serialize;

/// Rows whose weights are unpacked together, a multiple of all tiles.
const PANEL: usize = 64;
/// Relative room for the f32 division by which weights were rounded.
const SLACK: f64 = 1e-5;

/// One output channel.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Channel {
    pub(crate) precision: Precision,
    /// As stored.
    pub(crate) scale: f64,
    /// Outputs, one a token.
    pub(crate) tokens: usize,
    /// ⟨yₐ, yₐ⟩, ⟨y, yₐ⟩ and |y − yₐ|².
    pub(crate) energy: f64,
    pub(crate) cross: f64,
    pub(crate) error: f64,
    /// ⟨yₓ, yₓ⟩, |y − yₓ|² and Σ (y − yₓ).
    pub(crate) full_energy: f64,
    pub(crate) full_error: f64,
    pub(crate) full_sum: f64,
    /// ⟨w, w⟩, ⟨w, ŵ⟩ and |ŵ − w|².
    pub(crate) weight_energy: f64,
    pub(crate) weight_cross: f64,
    pub(crate) weight_error: f64,
    /// ⟨w, w⟩ and ⟨w, ŵ⟩ over the weights that are not at an end of their range.
    pub(crate) inner_energy: f64,
    pub(crate) inner_cross: f64,
    /// Scales from this to the next round the source's weights to the stored integers; none does where it is larger.
    pub(crate) least_scale: f64,
    pub(crate) largest_scale: f64,
    /// Mean of step²/12 over all weights.
    pub(crate) noise: f64,
    /// |y − yₐ|² if rounding errors were noise.
    pub(crate) expected_error: f64,
    /// |Aᵀ·yₐ|².
    pub(crate) gain: f64,
    /// Whether the output checked was what the stored integers give.
    pub(crate) exact: bool,
}

impl Channel {
    /// Slope of the output over the expected one, and its deviation if rounding errors are noise. Of a row that is only
    /// looked up: of its weights.
    pub(crate) fn slope(&self) -> (f64, f64) {
        if self.energy > 0.0 {
            return (self.cross / self.energy, (self.noise * self.gain).sqrt() / self.energy);
        }
        (self.weight_cross / self.weight_energy, (self.noise / self.weight_energy).sqrt())
    }

    /// Slope of the stored weights over the source's, those at the ends of their range left out, and its deviation if
    /// rounding errors are noise.
    pub(crate) fn weight_slope(&self) -> (f64, f64) {
        (self.inner_cross / self.inner_energy, (self.noise / self.inner_energy).sqrt())
    }

    /// Energy of the error that weights add over that of the outputs.
    pub(crate) fn error_share(&self) -> f64 {
        if self.energy > 0.0 { self.error / self.energy } else { self.weight_error / self.weight_energy }
    }

    /// Energy of the error that is one constant over all tokens.
    pub(crate) fn constant_error(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.full_sum * self.full_sum / self.tokens as f64 }
    }

    /// Whether some scale rounds the source's weights to the stored integers, each to the nearest. Integers that make up
    /// for each other's errors, or that belong to other weights, have none.
    pub(crate) fn is_nearest(&self) -> bool {
        self.least_scale <= self.largest_scale * (1.0 + SLACK)
    }

    /// Whether the stored scale is one that rounds the source's weights to the stored integers.
    pub(crate) fn fits(&self) -> bool {
        self.least_scale <= self.scale * (1.0 + SLACK) && self.scale <= self.largest_scale * (1.0 + SLACK)
    }

    /// Stored scale over the middle of those that would do.
    pub(crate) fn scale_ratio(&self) -> f64 {
        let largest = if self.largest_scale.is_finite() { self.largest_scale } else { self.scale };
        self.scale / (self.least_scale.max(f64::MIN_POSITIVE) * largest.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// |y − slope·yₐ|² over what rounding noise would make of it.
    pub(crate) fn excess(&self) -> f64 {
        if self.expected_error <= 0.0 {
            return 0.0;
        }
        let (slope, _) = self.slope();
        // Pythagoras; the noise of the stored steps, which a wrong scale has scaled too.
        (self.error - (slope - 1.0).powi(2) * self.energy).max(0.0) / self.expected_error
    }
}

/// Inputs of one linear call.
pub(crate) struct Inputs {
    pub(crate) tokens: usize,
    pub(crate) cols: usize,
    /// `[T][K]`.
    x: Vec<f32>,
    a: Vec<f32>,
    /// A·Aᵀ, `[T][T]`.
    gram: Vec<f32>,
    /// Σ_t A², `[K]`.
    squares: Vec<f64>,
}

impl Inputs {
    pub(crate) fn new(
        kernels: &Kernels,
        pool: &Pool,
        x: Vec<f32>,
        activations: &rookery_kernels::Activations,
    ) -> Self {
        let (tokens, cols) = (activations.rows(), activations.cols());
        let mut a = Vec::with_capacity(tokens * cols);
        for row in 0..tokens {
            let scale = activations.scale(row);
            a.extend(activations.row(row).iter().map(|&value| f32::from(value) * scale));
        }
        let mut gram = vec![0.0; tokens * tokens];
        let (m, n, k) = (tokens, tokens, cols);
        kernels.gemm(pool, &Gemm { m, n, k, a: &a, a_stride: k, b: &a, b_stride: k }, 1.0, &mut gram, n);
        let mut squares = vec![0.0; cols];
        for row in a.chunks_exact(cols) {
            squares.iter_mut().zip(row).for_each(|(sum, &a)| *sum += f64::from(a) * f64::from(a));
        }
        Self { tokens, cols, x, a, gram, squares }
    }

    /// `source · inputsᵀ`, `[rows][T]`.
    fn outputs(&self, kernels: &Kernels, pool: &Pool, source: &[f32], inputs: &[f32]) -> Vec<f32> {
        let (m, n, k) = (source.len() / self.cols, self.tokens, self.cols);
        let mut out = vec![0.0; m * n];
        let job = Gemm { m, n, k, a: source, a_stride: k, b: inputs, b_stride: k };
        kernels.gemm(pool, &job, 1.0, &mut out, n);
        out
    }
}

/// What a backend was asked for and gave.
pub(crate) struct Outcome<'a> {
    pub(crate) activations: &'a rookery_kernels::Activations,
    pub(crate) job: &'a LinearJob<'a>,
    pub(crate) precision: Precision,
}

/// Numbers of the channels `first..first + source.len()/K` of the job; `first` is a multiple of 64.
pub(crate) fn measure(
    kernels: &Kernels,
    pool: &Pool,
    inputs: &Inputs,
    outcome: &Outcome<'_>,
    first: usize,
    source: &[f32],
) -> Vec<Channel> {
    let (tokens, cols) = (inputs.tokens, inputs.cols);
    let rows = source.len() / cols;
    let on_a = inputs.outputs(kernels, pool, source, &inputs.a);
    let on_x = inputs.outputs(kernels, pool, source, &inputs.x);
    let mut through = vec![0.0; rows * tokens];
    let (m, n, k) = (rows, tokens, tokens);
    let job = Gemm { m, n, k, a: &on_a, a_stride: k, b: &inputs.gram, b_stride: k };
    kernels.gemm(pool, &job, 1.0, &mut through, n);
    let mut channels = vec![Channel::unknown(outcome.precision); rows];
    let share = rows.div_ceil(pool.threads()).next_multiple_of(PANEL);
    std::thread::scope(|scope| {
        for (part, channels) in channels.chunks_mut(share).enumerate() {
            let (on_a, on_x, through) = (&on_a, &on_x, &through);
            scope.spawn(move || {
                for (panel, channels) in channels.chunks_mut(PANEL).enumerate() {
                    let start = part * share + panel * PANEL;
                    let stored = Stored::unpack(&outcome.job.weights, first + start, channels.len());
                    for (i, channel) in channels.iter_mut().enumerate() {
                        let row = start + i;
                        let weights = &source[row * cols..(row + 1) * cols];
                        stored.compare(i, weights, Some(&inputs.squares), channel);
                        let at = row * tokens..(row + 1) * tokens;
                        let expected = [&on_a[at.clone()], &on_x[at.clone()], &through[at]];
                        channel.outputs(outcome, first + row, expected);
                        channel.exact = stored.gives(i, outcome, first + row);
                    }
                }
            });
        }
    });
    channels
}

/// Numbers of the rows `first..first + source.len()/K` of a matrix that is only looked up: weights alone.
pub(crate) fn measure_weights(
    stored: &Weights<'_>,
    precision: Precision,
    first: usize,
    source: &[f32],
    threads: usize,
) -> Vec<Channel> {
    let cols = stored.cols();
    let mut channels = vec![Channel::unknown(precision); source.len() / cols];
    let share = channels.len().div_ceil(threads).next_multiple_of(PANEL);
    std::thread::scope(|scope| {
        for (part, channels) in channels.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (panel, channels) in channels.chunks_mut(PANEL).enumerate() {
                    let start = part * share + panel * PANEL;
                    let unpacked = Stored::unpack(stored, first + start, channels.len());
                    for (i, channel) in channels.iter_mut().enumerate() {
                        let weights = &source[(start + i) * cols..(start + i + 1) * cols];
                        unpacked.compare(i, weights, None, channel);
                    }
                }
            });
        }
    });
    channels
}

impl Channel {
    fn unknown(precision: Precision) -> Self {
        Self {
            precision,
            scale: 0.0,
            tokens: 0,
            energy: 0.0,
            cross: 0.0,
            error: 0.0,
            full_energy: 0.0,
            full_error: 0.0,
            full_sum: 0.0,
            weight_energy: 0.0,
            weight_cross: 0.0,
            weight_error: 0.0,
            inner_energy: 0.0,
            inner_cross: 0.0,
            least_scale: 0.0,
            largest_scale: f64::INFINITY,
            noise: 0.0,
            expected_error: 0.0,
            gain: 0.0,
            exact: true,
        }
    }

    /// `expected` are yₐ, yₓ and A·Aᵀ·yₐ, `[T]` each.
    fn outputs(&mut self, outcome: &Outcome<'_>, row: usize, [on_a, on_x, through]: [&[f32]; 3]) {
        let job = outcome.job;
        let bias = job.bias.map_or(0.0, |bias| f64::from(bias[row]));
        self.tokens = on_a.len();
        for (t, ((&on_a, &on_x), &through)) in on_a.iter().zip(on_x).zip(through).enumerate() {
            let y = f64::from(job.out[t * job.out_stride + job.out_column + row]) - bias;
            let (on_a, on_x) = (f64::from(on_a), f64::from(on_x));
            self.energy += on_a * on_a;
            self.cross += y * on_a;
            self.error += (y - on_a) * (y - on_a);
            self.full_energy += on_x * on_x;
            self.full_error += (y - on_x) * (y - on_x);
            self.full_sum += y - on_x;
            self.gain += on_a * f64::from(through);
        }
        // f32 sums of large and small values can leave a gain just below what it must be.
        self.gain = self.gain.max(0.0);
    }
}

/// Up to 64 rows of stored weights.
struct Stored {
    cols: usize,
    values: Vec<i8>,
    multipliers: Vec<u8>,
    scales: Vec<f32>,
    ends: (i8, i8),
}

impl Stored {
    fn unpack(weights: &Weights<'_>, first: usize, rows: usize) -> Self {
        let part = weights.part(first..first + rows);
        let cols = part.cols();
        let mut values = vec![0; rows * cols];
        let (multipliers, ends) = match &part {
            Weights::W8(part) => {
                unpack_w8(rows, cols, part.tiles, &mut values);
                (Vec::new(), (-127, 127))
            }
            Weights::W4(part) => {
                unpack_w4(rows, cols, part.tiles, &mut values);
                (part.multipliers.iter().map(|multiplier| multiplier & 15).collect(), (-8, 7))
            }
        };
        Self { cols, values, multipliers, scales: part.scales().to_vec(), ends }
    }

    fn multiplier(&self, row: usize, group: usize) -> i32 {
        let groups = self.cols.div_ceil(W4_GROUP);
        self.multipliers.get(row * groups + group).map_or(1, |&multiplier| i32::from(multiplier))
    }

    /// Least and largest scale that round `weight` to `value`; what is beyond an end of the range is cut off there.
    fn scales_for(&self, value: i8, weight: f64) -> (f64, f64) {
        if value == 0 {
            return (2.0 * weight.abs(), f64::INFINITY);
        }
        let size = f64::from(value).abs();
        // Of the wrong sign: no scale does.
        let weight = if (weight > 0.0) == (value > 0) { weight.abs() } else { 0.0 };
        let at_end = value == self.ends.0 || value == self.ends.1;
        let least = if at_end { 0.0 } else { weight / (size + 0.5) };
        (least, weight / (size - 0.5))
    }

    /// Row `row` against the source's `weights`.
    fn compare(&self, row: usize, weights: &[f32], squares: Option<&[f64]>, channel: &mut Channel) {
        let scale = f64::from(self.scales[row]);
        channel.scale = scale;
        let values = &self.values[row * self.cols..(row + 1) * self.cols];
        for (group, (values, weights)) in values.chunks(W4_GROUP).zip(weights.chunks(W4_GROUP)).enumerate() {
            let step = scale * f64::from(self.multiplier(row, group));
            let noise = step * step / 12.0;
            channel.noise += noise * values.len() as f64 / self.cols as f64;
            if let Some(squares) = squares {
                channel.expected_error +=
                    noise * squares[group * W4_GROUP..][..values.len()].iter().sum::<f64>();
            }
            let multiplier = f64::from(self.multiplier(row, group));
            for (&value, &weight) in values.iter().zip(weights) {
                let (stored, weight) = (f64::from(value) * step, f64::from(weight));
                channel.weight_energy += weight * weight;
                channel.weight_cross += weight * stored;
                channel.weight_error += (stored - weight) * (stored - weight);
                if value != self.ends.0 && value != self.ends.1 {
                    channel.inner_energy += weight * weight;
                    channel.inner_cross += weight * stored;
                }
                let (least, largest) = self.scales_for(value, weight / multiplier);
                channel.least_scale = channel.least_scale.max(least);
                channel.largest_scale = channel.largest_scale.min(largest);
            }
        }
    }

    /// Whether the backend gave what the stored integers make, at one token. Which one depends on the channel.
    fn gives(&self, row: usize, outcome: &Outcome<'_>, channel: usize) -> bool {
        let (a, job) = (outcome.activations, outcome.job);
        let token = channel * 7 % a.rows().max(1);
        let values = self.values[row * self.cols..(row + 1) * self.cols].chunks(W4_GROUP);
        let sum: i32 = values
            .zip(a.row(token).chunks(W4_GROUP))
            .enumerate()
            .map(|(group, (values, a))| {
                let sum: i32 = values.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
                sum * self.multiplier(row, group)
            })
            .sum();
        let product = f64::from(sum) * f64::from(a.scale(token)) * f64::from(self.scales[row]);
        let bias = job.bias.map_or(0.0, |bias| f64::from(bias[channel]));
        let found = f64::from(job.out[token * job.out_stride + job.out_column + channel]);
        // Two roundings of f32 and the sum with the bias.
        (found - product - bias).abs() <= 1e-6 * (product.abs() + bias.abs())
    }
}
