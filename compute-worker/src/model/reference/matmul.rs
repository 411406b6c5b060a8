//! Matrix products in f32, fast enough to check thousands of tokens without any intrinsics.
//!
//! ```text
//! panel p: rows 8p..8p+8 of W, transposed to [K][8], zero padded
//! for 64 tokens (one task):  for 512 of K:  for each panel:  for 4 tokens:
//!     acc[4][8] = Σ_k x[token][k] · panel[k][8];  out += acc
//! ```
//! `acc` fits the vector registers of any 64-bit machine, a panel's part fits the first-level cache, the tokens' part the
//! second. Partial sums of 512 products also keep rounding errors small.

use std::sync::{Mutex, PoisonError};

/// Output rows in a panel.
const PANEL: usize = 8;
/// Tokens computed together.
const TOKENS: usize = 4;
/// Tokens of one task.
const TASK_TOKENS: usize = 64;
/// Length of K that is summed before it is added to the output.
const K_BLOCK: usize = 512;

/// A weight matrix in panels: `[ceil(N/8)][K][8]`.
pub(super) struct Packed {
    panels: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Packed {
    /// Packs `weights`, `[N][cols]`.
    pub(super) fn new(weights: &[f32], cols: usize, threads: usize) -> Self {
        let rows = weights.len() / cols;
        let mut panels = vec![0.0; rows.div_ceil(PANEL) * PANEL * cols];
        for_each_chunk(&mut panels, cols * PANEL, threads, &|first, panel| {
            let rows = weights[first..].chunks_exact(cols).take(PANEL);
            for (n, row) in rows.enumerate() {
                panel.chunks_exact_mut(PANEL).zip(row).for_each(|(column, &value)| column[n] = value);
            }
        });
        Packed { panels, rows, cols }
    }
}

/// `out[t * stride + column + n] = Σ_k x[t][k] · W[n][k]`, for `x` of `[T][K]` and `out` of `[T][stride]`.
pub(super) fn linear(
    x: &[f32],
    weights: &Packed,
    out: &mut [f32],
    stride: usize,
    column: usize,
    threads: usize,
) {
    let k = weights.cols;
    assert_eq!(x.len() / k, out.len() / stride, "one row of output for each row of input");
    assert!(column + weights.rows <= stride, "the output fits its rows");
    for_each_chunk(out, TASK_TOKENS * stride, threads, &|first, out| {
        let x = &x[first / stride * k..][..out.len() / stride * k];
        for start in (0..k).step_by(K_BLOCK) {
            let block = start..k.min(start + K_BLOCK);
            for (p, panel) in weights.panels.chunks_exact(PANEL * k).enumerate() {
                let panel = panel[block.start * PANEL..block.end * PANEL].as_chunks::<PANEL>().0;
                let first_row = p * PANEL;
                let rows = PANEL.min(weights.rows - first_row);
                let columns = column + first_row..column + first_row + rows;
                let mut tokens = out.chunks_exact_mut(TOKENS * stride);
                let mut inputs = x.chunks_exact(TOKENS * k);
                for (out, x) in (&mut tokens).zip(&mut inputs) {
                    let sums = product::<TOKENS>(std::array::from_fn(|t| &x[t * k..][block.clone()]), panel);
                    for (out, sums) in out.chunks_exact_mut(stride).zip(&sums) {
                        add(&mut out[columns.clone()], sums);
                    }
                }
                let rest = tokens.into_remainder().chunks_exact_mut(stride);
                for (out, x) in rest.zip(inputs.remainder().chunks_exact(k)) {
                    let [sums] = product::<1>([&x[block.clone()]], panel);
                    add(&mut out[columns.clone()], &sums);
                }
            }
        }
    });
}

/// `acc[t][n] = Σ_k x[t][k] · panel[k][n]`.
#[inline(always)]
fn product<const T: usize>(x: [&[f32]; T], panel: &[[f32; PANEL]]) -> [[f32; PANEL]; T] {
    let mut acc = [[0.0; PANEL]; T];
    let x = x.map(|row| &row[..panel.len()]);
    for (k, weights) in panel.iter().enumerate() {
        for (acc, x) in acc.iter_mut().zip(&x) {
            for (acc, weight) in acc.iter_mut().zip(weights) {
                *acc += x[k] * weight;
            }
        }
    }
    acc
}

fn add(out: &mut [f32], sums: &[f32; PANEL]) {
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
}

/// Calls `f` with start and contents of every chunk of `data`, from `threads` threads, each chunk once.
pub(super) fn for_each_chunk(
    data: &mut [f32],
    length: usize,
    threads: usize,
    f: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let chunks = Mutex::new(data.chunks_mut(length).enumerate());
    let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some((index, chunk)) = next() {
            f(index * length, chunk);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_sums_in_f64() {
        let value = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
        for (tokens, rows, k) in [(1, 1, 1), (3, 9, 31), (70, 17, 520), (5, 8, 1100)] {
            let x: Vec<f32> = (0..tokens * k).map(value).collect();
            let w: Vec<f32> = (0..rows * k).map(|i| value(i + 7)).collect();
            let mut out = vec![0.0; tokens * (rows + 3)];
            linear(&x, &Packed::new(&w, k, 2), &mut out, rows + 3, 2, 2);
            for (t, out) in out.chunks_exact(rows + 3).enumerate() {
                assert_eq!((out[0], out[1], out[rows + 2]), (0.0, 0.0, 0.0), "columns beside the product");
                for n in 0..rows {
                    let pairs = x[t * k..][..k].iter().zip(&w[n * k..]);
                    let products: Vec<f64> = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).collect();
                    let exact: f64 = products.iter().sum();
                    let size: f64 = products.iter().map(|product| product.abs()).sum();
                    let error = (f64::from(out[n + 2]) - exact).abs();
                    assert!(error <= 1e-5 * size, "{tokens}x{rows}x{k}: {error} of {size}");
                }
            }
        }
    }
}
