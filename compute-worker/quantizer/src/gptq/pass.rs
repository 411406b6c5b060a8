//! Passes over the groups of a matrix.

use std::ops::Range as Columns;
use std::sync::{Mutex, PoisonError};

use rookery_kernels::Gemm;

use super::Rounded;
use super::group::{self, Factors, LANES, Lanes, Tile};
use crate::linalg::{BLOCK, Compute, Feedback, blocks};
use crate::scales::{Range, multipliers_for};

/// A group is rounded anew only where that lowers its cost by more than f32 noise.
const WORTH: f32 = 1.0 - 1e-5;

/// A matrix being rounded.
pub(super) struct Pass<'a> {
    compute: &'a Compute,
    weights: &'a [f32],
    rows: usize,
    cols: usize,
    range: Range,
    feedback: &'a Feedback,
    /// W − Ŵ, `[rows][cols]`.
    errors: Vec<f32>,
    rounded: Rounded,
    /// A product for the group at hand, `[rows][group]`.
    part: Vec<f32>,
}

/// Sixteen rows (fewer at the end) of a [`Pass`], for one thread.
struct Chunk<'a> {
    weights: &'a [f32],
    part: &'a [f32],
    scales: &'a [f32],
    errors: &'a mut [f32],
    values: &'a mut [i8],
    /// `[rows][groups]`; empty for `w8`.
    multipliers: &'a mut [u8],
}

/// Where a group lies.
#[derive(Clone)]
struct Group {
    index: usize,
    cols: Columns<usize>,
    /// Columns of the matrix.
    all: usize,
}

impl<'a> Pass<'a> {
    /// `start` has scales and multipliers; every value is written by [`Pass::ldlq`].
    pub(super) fn new(
        compute: &'a Compute,
        weights: &'a [f32],
        [rows, cols]: [usize; 2],
        range: Range,
        feedback: &'a Feedback,
        mut start: Rounded,
    ) -> Self {
        start.values.resize(rows * cols, 0);
        let errors = vec![0.0; rows * cols];
        Self { compute, weights, rows, cols, range, feedback, errors, rounded: start, part: Vec::new() }
    }

    /// Rounds everything, first column to last.
    pub(super) fn ldlq(&mut self) {
        let (feedback, range, n) = (self.feedback, self.range, self.cols);
        let mut columns = Vec::new();
        for group in groups(n) {
            feedback.upper_columns(&group.cols, &mut columns);
            self.multiply(&group.cols, group.cols.start, &columns, group.cols.end);
            let factors = Factors {
                upper: &feedback.upper()[group.cols.start * n + group.cols.start..],
                stride: n,
                pivots: &feedback.pivots()[group.cols.clone()],
            };
            self.each_chunk(&|chunk| chunk.ldlq(&group, factors, range));
        }
    }

    /// Rounds every group anew, all others being as they are, where that costs less.
    pub(super) fn sweep(&mut self) {
        let (feedback, range, n) = (self.feedback, self.range, self.cols);
        let mut hessian = Vec::new();
        for group in groups(n) {
            feedback.hessian_rows(&group.cols, &mut hessian);
            self.multiply(&group.cols, n, &hessian, n);
            let own = feedback.group(group.index);
            let factors = Factors { upper: own.upper(), stride: group.cols.len(), pivots: own.pivots() };
            self.each_chunk(&|chunk| chunk.improve(&group, factors, own.columns(), range));
        }
    }

    /// part = errors[..][..k] · bᵀ, b `[group][stride]`.
    fn multiply(&mut self, group: &Columns<usize>, k: usize, b: &[f32], stride: usize) {
        self.part.clear();
        self.part.resize(self.rows * group.len(), 0.0);
        let product = Gemm {
            m: self.rows,
            n: group.len(),
            k,
            a: &self.errors,
            a_stride: self.cols,
            b,
            b_stride: stride,
        };
        self.compute.kernels.gemm(&self.compute.pool, &product, 1.0, &mut self.part, group.len());
    }

    /// Calls `f` for each chunk of rows, on all threads.
    fn each_chunk(&mut self, f: &(dyn Fn(&mut Chunk<'_>) + Sync)) {
        let (cols, width) = (self.cols, self.part.len() / self.rows.max(1));
        let groups = self.rounded.multipliers.len() / self.rows.max(1);
        let mut multipliers = self.rounded.multipliers.chunks_mut((LANES * groups).max(1));
        let chunks: Vec<_> = self
            .errors
            .chunks_mut(LANES * cols)
            .zip(self.rounded.values.chunks_mut(LANES * cols))
            .zip(self.weights.chunks(LANES * cols))
            .zip(self.part.chunks(LANES * width))
            .zip(self.rounded.scales.chunks(LANES))
            .map(|((((errors, values), weights), part), scales)| {
                let multipliers = multipliers.next().unwrap_or_default();
                Mutex::new(Chunk { weights, part, scales, errors, values, multipliers })
            })
            .collect();
        self.compute.pool.run(chunks.len(), &|index| {
            f(&mut chunks[index].lock().unwrap_or_else(PoisonError::into_inner));
        });
    }

    /// Refits each row's scale, such that the row's output has slope 1 over the calibration, and measures the error.
    pub(super) fn refit(mut self) -> Rounded {
        let energies = self.energies();
        let (mut wrong, mut whole) = (0.0, 0.0);
        let rows = self.rounded.scales.iter_mut().zip(&mut self.rounded.losses);
        for (energy, (scale, loss)) in energies.iter().zip(rows) {
            let Energy { errors, both, weights } = *energy;
            let along = weights - both;
            let ratio = (weights / along) as f32;
            // Far from 1 only for a row that hardly does anything on the calibration.
            let ratio = if ratio > 0.8 && ratio < 1.25 { ratio } else { 1.0 };
            *scale *= ratio;
            let ratio = f64::from(ratio);
            *loss = (weights - 2.0 * ratio * along + ratio * ratio * (along - both + errors)).max(0.0);
            wrong += *loss;
            whole += weights;
        }
        self.rounded.error = if whole > 0.0 { wrong / whole } else { 0.0 };
        self.rounded
    }

    /// ⟨e, e⟩, ⟨e, w⟩ and ⟨w, w⟩ by H of each row, from the factors: half the work of products with H.
    fn energies(&mut self) -> Vec<Energy> {
        let mut energies = vec![Energy::default(); self.rows];
        let (feedback, n) = (self.feedback, self.cols);
        let (pivots, lambda) = (feedback.pivots(), f64::from(feedback.lambda()));
        let mut columns = Vec::new();
        let mut of_weights = Vec::new();
        for group in groups(n) {
            let Columns { start, end } = group.cols;
            let width = end - start;
            feedback.upper_columns(&group.cols, &mut columns);
            self.multiply(&group.cols, end, &columns, end);
            of_weights.clear();
            of_weights.resize(self.rows * width, 0.0);
            let product = Gemm {
                m: self.rows,
                n: width,
                k: end,
                a: self.weights,
                a_stride: n,
                b: &columns,
                b_stride: end,
            };
            self.compute.kernels.gemm(&self.compute.pool, &product, 1.0, &mut of_weights, width);
            let tasks: Vec<_> = energies.chunks_mut(LANES).map(Mutex::new).collect();
            let this = &*self;
            this.compute.pool.run(tasks.len(), &|task| {
                let mut energies = tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
                for (lane, energy) in energies.iter_mut().enumerate() {
                    let row = task * LANES + lane;
                    for j in 0..width {
                        let (e, w) = (this.errors[row * n + start + j], this.weights[row * n + start + j]);
                        let (e, w) = (f64::from(e), f64::from(w));
                        let of_e = f64::from(this.part[row * width + j]) + e;
                        let of_w = f64::from(of_weights[row * width + j]) + w;
                        let d = f64::from(pivots[start + j]);
                        energy.errors += d * of_e * of_e - lambda * e * e;
                        energy.both += d * of_e * of_w - lambda * e * w;
                        energy.weights += d * of_w * of_w - lambda * w * w;
                    }
                }
            });
        }
        energies
    }
}

/// Products of a row's errors and weights by H.
#[derive(Clone, Copy, Default)]
struct Energy {
    errors: f64,
    both: f64,
    weights: f64,
}

impl Chunk<'_> {
    fn ldlq(&mut self, group: &Group, factors: Factors<'_>, range: Range) {
        let width = group.cols.len();
        let (mut base, mut targets) = ([[0.0; LANES]; BLOCK], [[0.0; LANES]; BLOCK]);
        group::load(self.weights, group.all, group.cols.clone(), &mut base);
        group::load(self.part, width, 0..width, &mut targets);
        for (target, base) in targets.iter_mut().zip(&base).take(width) {
            target.iter_mut().zip(base).for_each(|(target, base)| *target += base);
        }
        let mut search = Search::new(f32::INFINITY);
        let limits = self.limits(&targets[..width], range);
        let most = limits.iter().map(|(first, last)| last - first).max().unwrap_or(0);
        for offset in 0..=most {
            let multipliers = limits.map(|(first, last)| last.min(first + offset));
            search.attempt(factors, range, [&base, &targets], &self.steps(&multipliers), &multipliers);
        }
        self.keep(group, &search);
    }

    fn improve(&mut self, group: &Group, factors: Factors<'_>, columns: &[f32], range: Range) {
        let width = group.cols.len();
        let (mut best, mut x) = ([[0.0; LANES]; BLOCK], [[0.0; LANES]; BLOCK]);
        group::load(self.part, width, 0..width, &mut x);
        let cost = group::solve(factors, columns, &mut x);
        group::load(self.weights, group.all, group.cols.clone(), &mut best);
        let mut errors = [[0.0; LANES]; BLOCK];
        group::load(self.errors, group.all, group.cols.clone(), &mut errors);
        for ((best, x), error) in best.iter_mut().zip(&x).zip(&errors).take(width) {
            for lane in 0..LANES {
                best[lane] += x[lane] - error[lane];
            }
        }
        let mut search = Search { cost: cost.map(|cost| cost * WORTH), ..Search::new(0.0) };
        let now = self.multipliers_of(group);
        let offsets: &[i8] = if self.multipliers.is_empty() { &[0] } else { &[0, -1, 1] };
        for &offset in offsets {
            let multipliers = now.map(|m| m.saturating_add_signed(offset).clamp(1, 15));
            search.attempt(factors, range, [&best, &best], &self.steps(&multipliers), &multipliers);
        }
        self.keep(group, &search);
    }

    /// First and last multiplier to try for each row.
    fn limits(&self, targets: &[Lanes], range: Range) -> [(u8, u8); LANES] {
        if range == Range::W8 {
            return [(1, 1); LANES];
        }
        let mut largest = [0.0f32; LANES];
        for target in targets {
            for (largest, target) in largest.iter_mut().zip(target) {
                *largest = largest.max(target.abs());
            }
        }
        std::array::from_fn(|lane| {
            self.scales.get(lane).map_or((1, 1), |scale| multipliers_for(largest[lane], *scale))
        })
    }

    /// Each row's multiplier for the group; 1 for `w8` and where there is no row.
    fn multipliers_of(&self, group: &Group) -> [u8; LANES] {
        let groups = group.all.div_ceil(BLOCK);
        std::array::from_fn(|lane| self.multipliers.get(lane * groups + group.index).copied().unwrap_or(1))
    }

    fn steps(&self, multipliers: &[u8; LANES]) -> Lanes {
        std::array::from_fn(|lane| {
            self.scales.get(lane).map_or(0.0, |scale| scale * f32::from(multipliers[lane]))
        })
    }

    /// Takes over what a search found for the rows where it found something.
    fn keep(&mut self, group: &Group, search: &Search) {
        let groups = group.all.div_ceil(BLOCK);
        let found = self.scales.len();
        for lane in (0..found).filter(|&lane| search.found[lane]) {
            let step = search.step[lane];
            if let Some(multiplier) = self.multipliers.get_mut(lane * groups + group.index) {
                *multiplier = search.multipliers[lane];
            }
            let at = lane * group.all + group.cols.start..lane * group.all + group.cols.end;
            let row = self.values[at.clone()].iter_mut().zip(&mut self.errors[at.clone()]);
            for ((to, error), (from, weight)) in row.zip(search.values.iter().zip(&self.weights[at])) {
                *to = from[lane] as i8;
                *error = weight - from[lane] * step;
            }
        }
    }
}

/// The cheapest rounding of a group found so far, row by row.
struct Search {
    cost: Lanes,
    found: [bool; LANES],
    multipliers: [u8; LANES],
    step: Lanes,
    values: Tile,
}

impl Search {
    fn new(cost: f32) -> Self {
        Self {
            cost: [cost; LANES],
            found: [false; LANES],
            multipliers: [1; LANES],
            step: [0.0; LANES],
            values: [[0.0; LANES]; BLOCK],
        }
    }

    fn attempt(
        &mut self,
        factors: Factors<'_>,
        range: Range,
        [base, targets]: [&Tile; 2],
        step: &Lanes,
        multipliers: &[u8; LANES],
    ) {
        let mut t = *targets;
        let mut values = [[0.0; LANES]; BLOCK];
        let cost = group::ldlq(factors, range, base, &mut t, step, &mut values);
        let better: [bool; LANES] = std::array::from_fn(|lane| cost[lane] < self.cost[lane]);
        for lane in (0..LANES).filter(|&lane| better[lane]) {
            self.cost[lane] = cost[lane];
            self.found[lane] = true;
            self.multipliers[lane] = multipliers[lane];
            self.step[lane] = step[lane];
        }
        for (kept, new) in self.values.iter_mut().zip(&values).take(factors.pivots.len()) {
            for lane in 0..LANES {
                kept[lane] = if better[lane] { new[lane] } else { kept[lane] };
            }
        }
    }
}

fn groups(all: usize) -> impl Iterator<Item = Group> {
    blocks(all).enumerate().map(move |(index, cols)| Group { index, cols, all })
}
