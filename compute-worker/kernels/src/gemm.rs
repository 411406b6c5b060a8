//! Matrix products in f32, for what is computed once per model: factorisations, error feedback, least squares.
//!
//! ```text
//! for each block of 256 k:                         part of the numeric contract
//!     acc[m][n] = fma over k, in order:  a[m][k] · b[n][k]      from 0
//!     out[m][n] = fma(scale, acc[m][n], out[m][n])
//! ```
//! An element's bits depend on its own row of `a` and of `b` only: neither on the tiles, nor on the threads, nor on the
//! instruction set.

pub(crate) mod tile;

use std::cell::RefCell;

use crate::pool::SharedMut;
use crate::{Kernels, Pool};
use tile::{Scratch, Task};

/// Columns of the result per task: packed rows of `b` take 384 KiB of L2.
const TASK_COLS: usize = 384;
/// Most rows of the result per task; `b` is packed once for all of them.
const TASK_ROWS: usize = 768;
/// Rows of tasks are a multiple of this, which every micro-kernel's height divides.
const ROW_STEP: usize = 24;

/// One product `a · bᵀ` of row-major matrices.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// Rows of `a` and of the result.
    pub m: usize,
    /// Rows of `b`, columns of the result.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
    /// `[m][a_stride]`, of which the first `k` of each row count.
    pub a: &'a [f32],
    /// Values from one row of `a` to the next.
    pub a_stride: usize,
    /// `[n][b_stride]`, of which the first `k` of each row count.
    pub b: &'a [f32],
    /// Values from one row of `b` to the next.
    pub b_stride: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

impl Kernels {
    /// Adds a product: `out[m][n] += scale · Σ_k a[m][k] · b[n][k]`, `out` being `[m][out_stride]`, of which the first
    /// `n` of each row are written.
    ///
    /// # Panics
    /// When a slice is too short for its shape or a row longer than its stride.
    pub fn gemm(&self, pool: &Pool, job: &Gemm<'_>, scale: f32, out: &mut [f32], out_stride: usize) {
        let Gemm { m, n, k, .. } = *job;
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        assert_holds("a", job.a.len(), [m, k], job.a_stride);
        assert_holds("b", job.b.len(), [n, k], job.b_stride);
        assert_holds("out", out.len(), [m, n], out_stride);
        let col_tasks = n.div_ceil(TASK_COLS);
        let wanted = (pool.threads() * 4).div_ceil(col_tasks);
        let rows = m.div_ceil(wanted).next_multiple_of(ROW_STEP).min(TASK_ROWS);
        let out = SharedMut(out.as_mut_ptr());
        pool.run(col_tasks * m.div_ceil(rows), &|task| {
            let (col, row) = (task % col_tasks * TASK_COLS, task / col_tasks * rows);
            let task = Task {
                rows: rows.min(m - row),
                cols: TASK_COLS.min(n - col),
                k,
                a: &job.a[row * job.a_stride..],
                a_stride: job.a_stride,
                b: &job.b[col * job.b_stride..],
                b_stride: job.b_stride,
                scale,
                // SAFETY: row < m and col < n, so the offset is within `out` by `assert_holds`.
                out: SharedMut(unsafe { out.get().add(row * out_stride + col) }),
                out_stride,
            };
            SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: this table exists only where its instruction set was detected. The task's part of `out`
                // is in bounds by `assert_holds`, borrowed mutably until `run` returns, and no other task's.
                unsafe { (self.float.gemm)(&task, scratch) }
            });
        });
    }
}

/// Asserts that `len` values hold a `[rows][cols]` matrix with rows `stride` apart.
fn assert_holds(what: &str, len: usize, [rows, cols]: [usize; 2], stride: usize) {
    let needed = (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols));
    assert!(
        cols <= stride && needed.is_some_and(|needed| needed <= len),
        "gemm: {what} of {len} values does not hold {rows} x {cols} with rows {stride} apart"
    );
}
