//! Second moments of int8 activations, by the integer kernels.

use rookery_kernels::{Activations, LinearJob, MAX_COLS, W8, Weights, tiles};

use super::Compute;

/// Rows of the matrix per call of the kernel: their left part is computed, mirrored values are copied.
const PANEL: usize = 512;
/// Most tokens whose products int32 holds, in whole tiles.
const MOST_TOKENS: usize = MAX_COLS / tiles::TILE_COLS * tiles::TILE_COLS;

/// Second moments of a linear layer's inputs: Σ_t a_t a_tᵀ.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// Inputs, K.
    pub n: usize,
    /// `[n][n]`, symmetric.
    pub values: Vec<f32>,
    /// Rows of activations that were added up; 0 where that says nothing.
    pub tokens: usize,
}

impl Hessian {
    /// Of the int8 values of `a`, each row counting alike whatever its scale.
    ///
    /// Sums of up to 133,120 tokens are exact integers, rounded once; those of more tokens are added in f32.
    pub fn of(compute: &Compute, a: &Activations) -> Hessian {
        let (n, tokens) = (a.cols(), a.rows());
        let mut values = vec![0.0; n * n];
        for first in (0..tokens).step_by(MOST_TOKENS) {
            let count = MOST_TOKENS.min(tokens - first);
            if first == 0 {
                products(compute, a, first, count, &mut values);
            } else {
                let mut more = vec![0.0; n * n];
                products(compute, a, first, count, &mut more);
                values.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
        mirror(&mut values, n);
        Hessian { n, values, tokens }
    }

    /// Adds the second moments of other activations of the same layer.
    ///
    /// # Panics
    /// When the sizes differ.
    pub fn add(&mut self, other: &Hessian) {
        assert_eq!(self.n, other.n, "hessian: sizes differ");
        self.values.iter_mut().zip(&other.values).for_each(|(sum, more)| *sum += more);
        self.tokens += other.tokens;
    }

    /// The sum of squares of each input, `[n]`.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.n).map(|i| self.values[i * self.n + i]).collect()
    }
}

/// Writes the products of `count` tokens on and below the diagonal (and some above it).
fn products(compute: &Compute, a: &Activations, first: usize, count: usize, out: &mut [f32]) {
    let n = a.cols();
    let rows = transposed(a, first, count);
    let row_sums: Vec<i32> =
        rows.chunks_exact(count).map(|row| row.iter().map(|&v| i32::from(v)).sum()).collect();
    let mut packed = vec![0; tiles::w8_len(n, count)];
    tiles::pack_w8(n, count, &rows, &mut packed);
    let scales = vec![1.0; n];
    let weights =
        Weights::W8(W8 { rows: n, cols: count, tiles: &packed, scales: &scales, row_sums: &row_sums });
    for top in (0..n).step_by(PANEL) {
        let bottom = n.min(top + PANEL);
        let panel = Activations::from_rows(count, &rows[top * count..bottom * count], &scales[top..bottom]);
        let out = &mut out[top * n..bottom * n];
        // Panels are multiples of 64 rows, so this is a whole part.
        let weights = weights.part(0..bottom);
        compute.kernels.linear(
            &compute.pool,
            &panel,
            &mut [LinearJob { weights, bias: None, out, out_stride: n, out_column: 0 }],
        );
    }
}

/// Tokens `first..first + count` as `[K][count]`.
fn transposed(a: &Activations, first: usize, count: usize) -> Vec<i8> {
    /// Tokens and inputs of a square that both orders keep in the first cache.
    const SIDE: usize = 64;
    let n = a.cols();
    let mut out = vec![0; n * count];
    for token in (0..count).step_by(SIDE) {
        let tokens = token..count.min(token + SIDE);
        for input in (0..n).step_by(SIDE) {
            let inputs = input..n.min(input + SIDE);
            for token in tokens.clone() {
                let row = &a.row(first + token)[inputs.clone()];
                for (input, &value) in inputs.clone().zip(row) {
                    out[input * count + token] = value;
                }
            }
        }
    }
    out
}

/// Copies what is below the diagonal to above it.
fn mirror(values: &mut [f32], n: usize) {
    const SIDE: usize = 32;
    for top in (0..n).step_by(SIDE) {
        for left in (0..=top).step_by(SIDE) {
            for row in top..n.min(top + SIDE) {
                for col in left..row.min(left + SIDE) {
                    values[col * n + row] = values[row * n + col];
                }
            }
        }
    }
}
