//! Safe entry to quantisation and linear layers: checks every length, then shares panels among threads.

use std::cell::RefCell;

use crate::float::body::SMALLEST_ABSMAX;
use crate::integer::{Acc, PANEL, Panel, Quad, Rows, packed_quads};
use crate::pool::{Pool, SharedMut};
use crate::{Activations, Kernels, Weights};

/// Rows of activations per pass over a packed panel: their accumulators take 24 KiB of L1/L2.
const PASS_ROWS: usize = 96;
/// Jobs handled in one loop of the pool; more are handled one batch after another.
const BATCH: usize = 8;
/// A task reads about this many bytes of weights at least (when enough tasks remain for all threads), so that
/// handing it out costs little and the hardware prefetchers see long runs.
const TASK_BYTES: usize = 128 * 1024;

/// One matrix to multiply the activations with, and where its outputs go.
pub struct LinearJob<'a> {
    /// `[N][K]`, K as in the activations.
    pub weights: Weights<'a>,
    /// `[N]`, added to each row of the result.
    pub bias: Option<&'a [f32]>,
    /// `[M][out_stride]`; only columns `out_column..out_column + N` are written.
    pub out: &'a mut [f32],
    /// Values from one row of `out` to the next.
    pub out_stride: usize,
    /// First column written.
    pub out_column: usize,
}

/// A checked job, in a form that threads can share.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) out: SharedMut<f32>,
    pub(crate) stride: usize,
}

/// One thread's packed panel and accumulators.
struct Scratch {
    packed: Vec<Quad>,
    acc: Vec<Acc>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { packed: Vec::new(), acc: Vec::new() }) };
}

impl Kernels {
    /// Quantises rows of `cols` values to int8: scale = absmax/127, value = round(x·127/absmax), ties to even.
    ///
    /// A row whose absmax is below 1e-36 becomes zeros with scale 0. A row that holds a NaN or an infinity
    /// becomes zeros with scale NaN: every output of that row is NaN, other rows are untouched.
    ///
    /// # Panics
    /// When `cols` is 0 or does not divide `x.len()`.
    pub fn quantize(&self, pool: &Pool, x: &[f32], cols: usize, out: &mut Activations) {
        const { assert!(127.0 / SMALLEST_ABSMAX < f32::MAX) };
        assert!(cols > 0 && x.len().is_multiple_of(cols), "quantize: {} values in rows of {cols}", x.len());
        let rows = x.len() / cols;
        let (values, scales, sums) = out.reshape(rows, cols);
        let stride = values.len() / rows.max(1);
        let values = SharedMut(values.as_mut_ptr());
        let (scales, sums) = (SharedMut(scales.as_mut_ptr()), SharedMut(sums.as_mut_ptr()));
        // A row of 896 takes about 0.1 µs; less than a few microseconds is not worth another thread.
        let per_task = (16 * 1024 / cols).max(1);
        pool.run(rows.div_ceil(per_task), &|task| {
            for row in task * per_task..rows.min((task + 1) * per_task) {
                // SAFETY: row < rows, so all three lie in the buffers that `reshape` sized, which are
                // borrowed mutably until `run` returns; each row belongs to one task.
                let (to, scale, sum) = unsafe {
                    let to = std::slice::from_raw_parts_mut(values.get().add(row * stride), stride);
                    (to, &mut *scales.get().add(row), &mut *sums.get().add(row))
                };
                // SAFETY: this table exists only where its instruction set was detected.
                *scale = unsafe { (self.float.quantize_row)(&x[row * cols..(row + 1) * cols], to) };
                *sum = to.iter().map(|&a| i32::from(a)).sum();
            }
        });
    }

    /// Multiplies the activations with each job's weights: `out[m][out_column + n] = (acc·sa[m])·sw[n]`, with
    /// a bias `fma(acc·sa[m], sw[n], bias[n])`, where `acc = Σ_k a[m][k]·w[n][k]` is exact.
    ///
    /// # Panics
    /// When a job's slices do not fit its shape or its K differs from the activations'.
    pub fn linear(&self, pool: &Pool, a: &Activations, jobs: &mut [LinearJob<'_>]) {
        for batch in jobs.chunks_mut(BATCH) {
            let mut views: [Option<View<'_>>; BATCH] = [None; BATCH];
            let (mut panels, mut bytes) = (0, 0);
            for (view, job) in views.iter_mut().zip(batch.iter_mut()) {
                let checked = check(a, job);
                panels += checked.weights.rows().div_ceil(PANEL);
                bytes += checked.weights.bytes();
                *view = Some(checked);
            }
            if panels == 0 || a.rows() == 0 {
                continue;
            }
            let by_bytes = (TASK_BYTES / (bytes / panels).max(1)).max(1);
            let by_threads = panels.div_ceil(pool.threads() * 4).max(1);
            let per_task = by_bytes.min(by_threads);
            pool.run(panels.div_ceil(per_task), &|task| {
                SCRATCH.with_borrow_mut(|scratch| {
                    for index in task * per_task..panels.min((task + 1) * per_task) {
                        let (view, panel) = locate(&views, index);
                        self.panel(a, view, panel, scratch);
                    }
                });
            });
        }
    }

    /// One panel of one job, for all rows.
    fn panel(&self, a: &Activations, view: &View<'_>, index: usize, scratch: &mut Scratch) {
        let panel = Panel::of(&view.weights, index);
        let rows = Rows { values: a.values(), stride: a.stride(), count: a.rows(), sums: a.sums() };
        scratch.acc.resize(PASS_ROWS, [0; PANEL]);
        if rows.count <= panel.direct_rows(self.integer) {
            // SAFETY: this table exists only where its instruction set was detected; `check` asserted the
            // tiles' lengths and `Activations` keeps its rows padded to 64 bytes.
            unsafe { (self.integer.direct)(&panel, rows, &mut scratch.acc[..rows.count]) };
            return self.write(a, view, index, 0, &scratch.acc[..rows.count]);
        }
        scratch.packed.resize(packed_quads(panel.cols), Quad::ZERO);
        // SAFETY: as for `direct`; the packed panel has `packed_quads(cols)` entries.
        unsafe { (self.integer.pack)(&panel, &mut scratch.packed) };
        for first in (0..rows.count).step_by(PASS_ROWS) {
            let count = PASS_ROWS.min(rows.count - first);
            // SAFETY: as above; acc has `count` entries.
            unsafe {
                (self.integer.packed)(&scratch.packed, rows.range(first, count), &mut scratch.acc[..count])
            };
            self.write(a, view, index, first, &scratch.acc[..count]);
        }
    }

    /// Dequantises accumulators of rows `first..` into the job's output.
    fn write(&self, a: &Activations, view: &View<'_>, index: usize, first: usize, acc: &[Acc]) {
        let start = index * PANEL;
        let end = view.weights.rows().min(start + PANEL);
        let (scales, bias) = (&view.weights.scales()[start..end], view.bias.map(|bias| &bias[start..end]));
        for (i, acc) in acc.iter().enumerate() {
            let m = first + i;
            // SAFETY: `check` asserted that row m's columns lie in `out`, which is borrowed mutably until
            // `linear` returns; each panel of a job belongs to one task, so no two slices overlap.
            let out = unsafe {
                std::slice::from_raw_parts_mut(view.out.get().add(m * view.stride + start), end - start)
            };
            // SAFETY: this table exists only where its instruction set was detected.
            unsafe { (self.float.finish)(acc, a.scale(m), scales, bias, out) };
        }
    }

    /// Writes the dequantised weights of one row (an embedding): value · scale.
    ///
    /// # Panics
    /// When there is no such row or `out` is not K long.
    pub fn embed_row(&self, weights: &Weights<'_>, row: usize, out: &mut [f32]) {
        weights.check();
        assert!(row < weights.rows(), "embed_row: row {row} of {}", weights.rows());
        assert_eq!(out.len(), weights.cols(), "embed_row: output length");
        let scale = weights.scales()[row];
        for (col, out) in out.iter_mut().enumerate() {
            *out = f32::from(weights.value(row, col)) * scale;
        }
    }
}

/// Asserts that a job's slices fit its shape and the activations'.
pub(crate) fn check<'a>(a: &Activations, job: &'a mut LinearJob<'_>) -> View<'a> {
    let (rows, cols) = (job.weights.rows(), job.weights.cols());
    job.weights.check();
    assert_eq!(cols, a.cols(), "linear: weights and activations differ in K");
    assert!(job.bias.is_none_or(|bias| bias.len() == rows), "linear: bias does not have {rows} values");
    assert!(
        job.out_column.checked_add(rows).is_some_and(|end| end <= job.out_stride),
        "linear: columns {} + {rows} do not fit rows of {}",
        job.out_column,
        job.out_stride
    );
    let needed =
        a.rows().saturating_sub(1).checked_mul(job.out_stride).map(|len| len + job.out_column + rows);
    assert!(
        a.rows() == 0 || needed.is_some_and(|needed| needed <= job.out.len()),
        "linear: output of {} is too short for {} rows of {}",
        job.out.len(),
        a.rows(),
        job.out_stride
    );
    // The column is within the first row, checked above, unless there is no row at all.
    let out = if a.rows() == 0 { job.out.as_mut_ptr() } else { job.out[job.out_column..].as_mut_ptr() };
    View { weights: job.weights, bias: job.bias, out: SharedMut(out), stride: job.out_stride }
}

/// The job and panel within it of a panel counted over all jobs.
fn locate<'v, 'a>(views: &'v [Option<View<'a>>; BATCH], mut index: usize) -> (&'v View<'a>, usize) {
    for view in views.iter().flatten() {
        let panels = view.weights.rows().div_ceil(PANEL);
        if index < panels {
            return (view, index);
        }
        index -= panels;
    }
    unreachable!("panel index beyond the jobs that were counted")
}
