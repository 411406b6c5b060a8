//! One thread's part of a product: `b` packed a block of k at a time, `a` packed a few rows at a time, and the
//! micro-kernel over both.
//!
//! ```text
//! packed b: [panel][k][NV vectors of 16 columns]      packed a: [k][MR rows]
//! acc[MR][NV] in registers: MR broadcasts and NV loads for MR · NV fma
//! ```
//! AVX-512: 8 × 3 vectors, 24 of 32 registers; AVX2 and NEON, where a vector is two and four registers: 6 × 1.

use crate::pool::SharedMut;
use crate::simd::{LANES, Simd};

/// Products are summed over this many k before they are added to the result; part of the numeric contract.
const BLOCK_K: usize = 256;

/// A part of a product; `Kernels::gemm` makes them and vouches for the ranges.
pub(crate) struct Task<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) k: usize,
    pub(crate) a: &'a [f32],
    pub(crate) a_stride: usize,
    pub(crate) b: &'a [f32],
    pub(crate) b_stride: usize,
    pub(crate) scale: f32,
    /// The part's first value; `rows` rows of `cols` values, `out_stride` apart, are this task's.
    pub(crate) out: SharedMut<f32>,
    pub(crate) out_stride: usize,
}

/// Reused memory of one thread.
pub(crate) struct Scratch {
    a: Vec<f32>,
    b: Vec<[f32; LANES]>,
}

impl Scratch {
    pub(crate) const fn new() -> Self {
        Self { a: Vec::new(), b: Vec::new() }
    }
}

/// Runs one task. Only the task's rows and columns of `out` are read and written.
#[inline(always)]
pub(crate) fn run<S: Simd>(s: S, task: &Task<'_>, scratch: &mut Scratch) {
    if S::ROWS == 8 { shaped::<S, 8, 3>(s, task, scratch) } else { shaped::<S, 6, 1>(s, task, scratch) }
}

#[inline(always)]
fn shaped<S: Simd, const MR: usize, const NV: usize>(s: S, task: &Task<'_>, scratch: &mut Scratch) {
    let panels = task.cols.div_ceil(LANES * NV);
    for first in (0..task.k).step_by(BLOCK_K) {
        let block = first..task.k.min(first + BLOCK_K);
        let depth = block.len();
        scratch.b.resize(panels * depth * NV, [0.0; LANES]);
        scratch.a.resize(depth * MR, 0.0);
        for (panel, packed) in scratch.b.chunks_exact_mut(depth * NV).enumerate() {
            for vector in 0..NV {
                let col = (panel * NV + vector) * LANES;
                let live = task.cols.saturating_sub(col).min(LANES);
                let rows: [&[f32]; LANES] = std::array::from_fn(|lane| {
                    if lane >= live {
                        return &ZEROS[..depth];
                    }
                    &task.b[(col + lane) * task.b_stride..][block.clone()]
                });
                for (k, lanes) in packed.iter_mut().skip(vector).step_by(NV).enumerate() {
                    *lanes = std::array::from_fn(|lane| rows[lane][k]);
                }
            }
        }
        for row in (0..task.rows).step_by(MR) {
            let live = MR.min(task.rows - row);
            let rows: [&[f32]; MR] = std::array::from_fn(|i| {
                if i >= live { &ZEROS[..depth] } else { &task.a[(row + i) * task.a_stride..][block.clone()] }
            });
            let (packed, _) = scratch.a.as_chunks_mut::<MR>();
            for (k, lanes) in packed.iter_mut().enumerate() {
                *lanes = std::array::from_fn(|i| rows[i][k]);
            }
            for (panel, b) in scratch.b.chunks_exact(depth * NV).enumerate() {
                let col = panel * NV * LANES;
                // A last panel of fewer vectors computes no more than it needs.
                match (task.cols - col).div_ceil(LANES) {
                    1 => micro::<S, MR, NV, 1>(s, task, packed, b, [row, col], live),
                    2 if NV > 1 => micro::<S, MR, NV, 2>(s, task, packed, b, [row, col], live),
                    _ => micro::<S, MR, NV, NV>(s, task, packed, b, [row, col], live),
                }
            }
        }
    }
}

/// Stands in for rows beyond the last.
static ZEROS: [f32; BLOCK_K] = [0.0; BLOCK_K];

/// Adds the products of `MR` rows with the first `USED` vectors of a packed panel to the result at `[row, col]`; only
/// `live` rows are there.
#[inline(always)]
fn micro<S: Simd, const MR: usize, const NV: usize, const USED: usize>(
    s: S,
    task: &Task<'_>,
    a: &[[f32; MR]],
    b: &[[f32; LANES]],
    [row, col]: [usize; 2],
    live: usize,
) {
    let mut acc = [[s.splat(0.0); USED]; MR];
    let (b, _) = b.as_chunks::<NV>();
    for (a, b) in a.iter().zip(b) {
        let columns: [S::V; USED] = std::array::from_fn(|v| s.load(&b[v]));
        for i in 0..MR {
            let x = s.splat(a[i]);
            for v in 0..USED {
                acc[i][v] = s.fma(x, columns[v], acc[i][v]);
            }
        }
    }
    let scale = s.splat(task.scale);
    let width = (task.cols - col).min(USED * LANES);
    for (i, acc) in acc.iter().enumerate().take(live) {
        // SAFETY: row + i < rows and col + width <= cols, so by the promise of `Task::out` these values are in bounds
        // and this task's alone; the slice ends before the next is made.
        let out = unsafe {
            std::slice::from_raw_parts_mut(task.out.get().add((row + i) * task.out_stride + col), width)
        };
        for (acc, out) in acc.iter().zip(out.chunks_mut(LANES)) {
            s.store_part(s.fma(scale, *acc, s.load_part(out, 0.0)), out);
        }
    }
}
