//! Matrix products in f32. The only code shared with anything else here is the kernels' f32 product, which the engine does
//! not use, and whose own tests compare it with f64.

use std::sync::{Mutex, PoisonError};

use rookery_kernels::{Gemm, Kernels, Pool};

/// What computes products: the machine's kernels and threads.
pub(super) struct Products {
    kernels: &'static Kernels,
    pool: Pool,
}

impl Products {
    /// With `threads` threads, the caller's included.
    pub(super) fn new(threads: usize) -> Self {
        Self { kernels: Kernels::detect(), pool: Pool::new(threads) }
    }

    /// `out[t · stride + column + n] += Σ_k x[t][k] · W[n][k]`, for `x` of `[T][k]`, `weights` of `[N][k]` and `out` of
    /// `[T][stride]`.
    pub(super) fn linear(
        &self,
        x: &[f32],
        weights: &[f32],
        k: usize,
        out: &mut [f32],
        stride: usize,
        column: usize,
    ) {
        let (m, n) = (x.len() / k, weights.len() / k);
        assert_eq!(m, out.len() / stride, "one row of output for each row of input");
        assert!(column + n <= stride, "the output fits its rows");
        if m == 0 {
            return;
        }
        let job = Gemm { m, n, k, a: x, a_stride: k, b: weights, b_stride: k };
        self.kernels.gemm(&self.pool, &job, 1.0, &mut out[column..], stride);
    }
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
            Products::new(2).linear(&x, &w, k, &mut out, rows + 3, 2);
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
