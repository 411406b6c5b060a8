//! Least squares: a symmetric positive definite system with many right-hand sides.

use rookery_kernels::Gemm;

use super::{Compute, Feedback, Hessian, LinalgError, blocks};

/// Solves X·(H + ridge·I) = RHS for X `[m][n]`, where H is `[n][n]` and symmetric and RHS `[m][n]`.
///
/// # Errors
/// When H + ridge is not positive definite; unlike in [`Feedback::factor`] nothing more is added then.
///
/// # Panics
/// When lengths do not match.
pub fn solve_spd(
    compute: &Compute,
    h: &[f32],
    n: usize,
    rhs: &[f32],
    ridge: f32,
) -> Result<Vec<f32>, LinalgError> {
    assert_eq!(h.len(), n * n, "solve_spd: the matrix is not {n} x {n}");
    assert!(n > 0 && rhs.len().is_multiple_of(n), "solve_spd: {} values in rows of {n}", rhs.len());
    let mut h = Hessian { n, values: h.to_vec(), tokens: 0 };
    (0..n).for_each(|i| h.values[i * n + i] += ridge);
    let factors = Feedback::factor_exactly(compute, h)?;
    let mut x = rhs.to_vec();
    let rows = x.len() / n;
    let mut part = Vec::new();
    // Y·Uᵀ = RHS, last block first; then Y/D.
    for block in blocks(n).rev() {
        let (width, rest) = (block.len(), n - block.end);
        let (upper, after) = (factors.upper(), block.end);
        part.clear();
        part.resize(rows * width, 0.0);
        if rest > 0 {
            let product = Gemm {
                m: rows,
                n: width,
                k: rest,
                a: &x[after..],
                a_stride: n,
                b: &upper[block.start * n + after..],
                b_stride: n,
            };
            compute.kernels.gemm(&compute.pool, &product, -1.0, &mut part, width);
        }
        let columns = transposed_corner(&factors, &block);
        compute.pool.for_each_row(&mut x, n, &|row, x| {
            let x = &mut x[block.clone()];
            x.iter_mut().zip(&part[row * width..]).for_each(|(x, product)| *x += product);
            for i in (1..width).rev() {
                let last = x[i];
                x.iter_mut().zip(&columns[i * width..i * width + i]).for_each(|(x, u)| *x -= last * u);
            }
        });
    }
    compute.pool.for_each_row(&mut x, n, &|_, x| {
        x.iter_mut().zip(factors.pivots()).for_each(|(x, d)| *x /= d);
    });
    // X·U = Y/D, first block first.
    let mut columns = Vec::new();
    for block in blocks(n) {
        let width = block.len();
        part.clear();
        part.resize(rows * width, 0.0);
        factors.upper_columns(&block, &mut columns);
        if block.start > 0 {
            let product = Gemm {
                m: rows,
                n: width,
                k: block.start,
                a: &x,
                a_stride: n,
                b: &columns,
                b_stride: block.end,
            };
            compute.kernels.gemm(&compute.pool, &product, -1.0, &mut part, width);
        }
        let upper = factors.upper();
        compute.pool.for_each_row(&mut x, n, &|row, x| {
            let x = &mut x[block.clone()];
            x.iter_mut().zip(&part[row * width..]).for_each(|(x, product)| *x += product);
            for i in 0..width - 1 {
                let (first, u) = (x[i], &upper[(block.start + i) * n + block.start..]);
                x[i + 1..].iter_mut().zip(&u[i + 1..]).for_each(|(x, u)| *x -= first * u);
            }
        });
    }
    Ok(x)
}

/// U within a block on the diagonal, by columns: `[j][k] = U[k][j]` for k < j.
fn transposed_corner(factors: &Feedback, block: &std::ops::Range<usize>) -> Vec<f32> {
    let (n, width) = (factors.n(), block.len());
    let mut out = vec![0.0; width * width];
    for k in 0..width {
        let row = &factors.upper()[(block.start + k) * n + block.start..];
        for j in k + 1..width {
            out[j * width + k] = row[j];
        }
    }
    out
}
