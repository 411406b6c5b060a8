//! Matrix products in f32.

use crate::{Kernels, Pool};

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

impl Kernels {
    /// Adds a product: `out[m][n] += scale · Σ_k a[m][k] · b[n][k]`.
    ///
    /// # Panics
    /// When a slice is too short for its shape.
    pub fn gemm(&self, _pool: &Pool, _job: &Gemm<'_>, _scale: f32, _out: &mut [f32], _out_stride: usize) {
        unimplemented!()
    }
}
