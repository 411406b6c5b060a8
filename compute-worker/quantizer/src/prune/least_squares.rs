//! Ridge regression: a change of a projection that makes up for what its output lacks.
//!
//! ```text
//! minimise  Σ_t w_t² ‖y_t − Δ a_t‖²  +  ridge ‖Δ‖²         a: inputs of the projection,  y: what its output lacks
//!
//! Δ (AᵀA + ridge) = YᵀA                  where there are more tokens than inputs
//! Δ = X A,  X (AAᵀ + ridge) = Yᵀ         where there are fewer; the same Δ
//! ```
//! The ridge pulls towards no change, so whatever it is, the sum over tokens never grows. It is chosen on a quarter of the
//! tokens that the regression does not see; then all are fitted. A change that helps none of those is not made.

use std::borrow::Cow;

use rookery_kernels::Gemm;

use crate::linalg::{Compute, LinalgError, solve_spd};

/// Ridges tried, as shares of the mean sum of squares of an input.
const RIDGES: [f32; 5] = [0.03, 0.3, 3.0, 30.0, 300.0];
/// Of so many groups of tokens one is held out.
const HELD_OUT: usize = 4;

/// A projection's inputs, and what its output lacks.
pub(super) struct Problem<'a> {
    /// `[T][n]`.
    pub(super) inputs: &'a [f32],
    /// Inputs of the projection.
    pub(super) n: usize,
    /// `[T][m]`.
    pub(super) missing: &'a [f32],
    /// Outputs of the projection.
    pub(super) m: usize,
    /// How much each token counts, `[T]`.
    pub(super) weights: &'a [f32],
    /// Neighbouring tokens that are fitted or held out together: those of a sequence are too alike to be on both sides.
    pub(super) group: usize,
}

/// A change that helps.
#[derive(Debug)]
pub(super) struct Change {
    /// `[m][n]`, to be added to the projection.
    pub(super) values: Vec<f32>,
    /// The ridge chosen, as a share of the mean sum of squares of an input.
    pub(super) ridge: f32,
    /// Share of the weighted squares that is still missing on the tokens held out, when the others alone were fitted.
    pub(super) left_held_out: f64,
}

/// The best change, if there is one that helps tokens that it was not fitted to.
///
/// # Errors
/// When a sum is not finite.
pub(super) fn fit(compute: &Compute, problem: &Problem<'_>) -> Result<Option<Change>, LinalgError> {
    let (rows, fitted) = Rows::weighted(problem);
    if rows.missing_squares() == 0.0 {
        return Ok(None);
    }
    let (seen, held_out) = rows.split(fitted);
    let mut best: Option<(f64, f32)> = None;
    if let Some(normal) = Normal::of(compute, &seen) {
        for ridge in RIDGES {
            let values = match normal.solve(compute, ridge) {
                Ok(values) => values,
                // Too small a ridge for f32.
                Err(LinalgError::NotPositive { .. }) => continue,
                Err(error) => return Err(error),
            };
            let left = held_out.left(compute, &values);
            if left < best.map_or(1.0, |(least, _)| least) {
                best = Some((left, ridge));
            }
        }
    }
    let (Some((left_held_out, ridge)), Some(normal)) = (best, Normal::of(compute, &rows)) else {
        return Ok(None);
    };
    let values = normal.solve(compute, ridge)?;
    let helps = rows.left(compute, &values) < 1.0;
    Ok(helps.then_some(Change { values, ridge, left_held_out }))
}

/// Tokens, each times its weight.
struct Rows<'a> {
    inputs: Cow<'a, [f32]>,
    missing: Cow<'a, [f32]>,
    n: usize,
    m: usize,
}

impl Rows<'_> {
    /// All tokens: first those that are fitted, whose number comes with them, then those held out.
    fn weighted(problem: &Problem<'_>) -> (Rows<'static>, usize) {
        let &Problem { n, m, weights, group, .. } = problem;
        let group = group.min(weights.len().div_ceil(HELD_OUT)).max(1);
        let held_out = |token: &usize| token / group % HELD_OUT == HELD_OUT - 1;
        let (last, first): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(held_out);
        let fitted = first.len();
        let order: Vec<usize> = first.into_iter().chain(last).collect();
        let take = |values: &[f32], width: usize| -> Vec<f32> {
            let row = |&token: &usize| {
                values[token * width..][..width].iter().map(move |value| value * weights[token])
            };
            order.iter().flat_map(row).collect()
        };
        let (inputs, missing) = (take(problem.inputs, n), take(problem.missing, m));
        (Rows { inputs: inputs.into(), missing: missing.into(), n, m }, fitted)
    }

    fn split(&self, tokens: usize) -> (Rows<'_>, Rows<'_>) {
        let (inputs, more_inputs) = self.inputs.split_at(tokens * self.n);
        let (missing, more_missing) = self.missing.split_at(tokens * self.m);
        let rows = |inputs, missing| Rows {
            inputs: Cow::Borrowed(inputs),
            missing: Cow::Borrowed(missing),
            n: self.n,
            m: self.m,
        };
        (rows(inputs, missing), rows(more_inputs, more_missing))
    }

    fn tokens(&self) -> usize {
        self.inputs.len() / self.n
    }

    fn missing_squares(&self) -> f64 {
        squares(&self.missing)
    }

    /// Share of the squares that is missing after a change `[m][n]`; 1 where nothing was.
    fn left(&self, compute: &Compute, change: &[f32]) -> f64 {
        let all = self.missing_squares();
        if all == 0.0 {
            return 1.0;
        }
        let mut rest = self.missing.to_vec();
        subtract(compute, &self.inputs, change, [self.tokens(), self.n, self.m], &mut rest);
        squares(&rest) / all
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// `out[T][m] −= a[T][n] · w[m][n]ᵀ`.
fn subtract(compute: &Compute, a: &[f32], w: &[f32], [tokens, n, m]: [usize; 3], out: &mut [f32]) {
    let job = Gemm { m: tokens, n: m, k: n, a, a_stride: n, b: w, b_stride: n };
    compute.kernels.gemm(&compute.pool, &job, -1.0, out, m);
}

/// The normal equations in their smaller form.
struct Normal {
    /// `[n][T]`.
    inputs: Vec<f32>,
    tokens: usize,
    n: usize,
    /// `[size][size]`, where size is the smaller of n and T.
    gram: Vec<f32>,
    /// `[m][size]`.
    right: Vec<f32>,
    /// Mean sum of squares of an input.
    mean: f32,
}

impl Normal {
    /// `None` where all inputs are zero.
    fn of(compute: &Compute, rows: &Rows<'_>) -> Option<Self> {
        let (tokens, n, m) = (rows.tokens(), rows.n, rows.m);
        let mean = (squares(&rows.inputs) / n as f64) as f32;
        if mean < f32::MIN_POSITIVE {
            return None;
        }
        let inputs = transposed(&rows.inputs, n);
        let missing = transposed(&rows.missing, m);
        let product = |a: &[f32], b: &[f32], [m, n, k]: [usize; 3]| {
            let mut out = vec![0.0; m * n];
            let job = Gemm { m, n, k, a, a_stride: k, b, b_stride: k };
            compute.kernels.gemm(&compute.pool, &job, 1.0, &mut out, n);
            out
        };
        let (gram, right) = if tokens < n {
            (product(&rows.inputs, &rows.inputs, [tokens, tokens, n]), missing)
        } else {
            (product(&inputs, &inputs, [n, n, tokens]), product(&missing, &inputs, [m, n, tokens]))
        };
        Some(Self { inputs, tokens, n, gram, right, mean })
    }

    /// The change `[m][n]` for a ridge.
    fn solve(&self, compute: &Compute, ridge: f32) -> Result<Vec<f32>, LinalgError> {
        let size = self.tokens.min(self.n);
        let x = solve_spd(compute, &self.gram, size, &self.right, ridge * self.mean)?;
        if self.tokens >= self.n {
            return Ok(x);
        }
        let (m, n, tokens) = (x.len() / size, self.n, self.tokens);
        let mut out = vec![0.0; m * n];
        let job = Gemm { m, n, k: tokens, a: &x, a_stride: tokens, b: &self.inputs, b_stride: tokens };
        compute.kernels.gemm(&compute.pool, &job, 1.0, &mut out, n);
        Ok(out)
    }
}

/// `[rows][width]` to `[width][rows]`, by squares that both orders keep in the first cache.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    const SIDE: usize = 32;
    let rows = values.len() / width;
    let mut out = vec![0.0; values.len()];
    for top in (0..rows).step_by(SIDE) {
        for left in (0..width).step_by(SIDE) {
            for row in top..rows.min(top + SIDE) {
                for column in left..width.min(left + SIDE) {
                    out[column * rows + row] = values[row * width + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::tests::Random;

    /// Inputs, and outputs that a projection of them and noise make.
    fn made(random: &mut Random, tokens: usize, n: usize, m: usize, noise: f32) -> (Vec<f32>, Vec<f32>) {
        let compute = Compute::new(1);
        let (inputs, weights) = (random.normals(tokens * n), random.normals(m * n));
        let mut missing: Vec<f32> = random.normals(tokens * m).iter().map(|value| value * noise).collect();
        subtract(&compute, &inputs, &weights, [tokens, n, m], &mut missing);
        (inputs, missing)
    }

    #[test]
    fn both_forms_give_the_same_change() {
        let (compute, random) = (Compute::new(2), &mut Random(5));
        let (n, m) = (48, 5);
        // Zero rows change nothing but which form is the smaller.
        let (mut inputs, mut missing) = made(random, 40, n, m, 0.5);
        let rows = |inputs: &[f32], missing: &[f32]| Rows {
            inputs: inputs.to_vec().into(),
            missing: missing.to_vec().into(),
            n,
            m,
        };
        let short = Normal::of(&compute, &rows(&inputs, &missing)).unwrap();
        inputs.resize(60 * n, 0.0);
        missing.resize(60 * m, 0.0);
        let long = Normal::of(&compute, &rows(&inputs, &missing)).unwrap();
        assert_eq!((short.gram.len(), long.gram.len()), (40 * 40, n * n));
        for ridge in [0.03, 3.0] {
            let (a, b) = (short.solve(&compute, ridge).unwrap(), long.solve(&compute, ridge).unwrap());
            let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest < 1e-3, "{largest}");
        }
    }

    #[test]
    fn a_change_never_leaves_more_than_was_missing() {
        let (compute, random) = (Compute::new(2), &mut Random(11));
        for (tokens, n, m) in [(40, 24, 6), (24, 40, 3), (300, 32, 8), (5, 3, 2)] {
            for noise in [0.0, 1.0, 100.0] {
                let (inputs, missing) = made(random, tokens, n, m, noise);
                let weights: Vec<f32> = random.normals(tokens).iter().map(|w| w.abs()).collect();
                let problem =
                    Problem { inputs: &inputs, n, missing: &missing, m, weights: &weights, group: 8 };
                let (rows, _) = Rows::weighted(&problem);
                let normal = Normal::of(&compute, &rows).unwrap();
                for ridge in RIDGES {
                    let left = rows.left(&compute, &normal.solve(&compute, ridge).unwrap());
                    assert!(left <= 1.0, "{tokens} {n} {noise} {ridge}: {left}");
                }
                if let Some(change) = fit(&compute, &problem).unwrap() {
                    assert!(rows.left(&compute, &change.values) < 1.0 && change.left_held_out < 1.0);
                    assert_eq!(change.values.len(), m * n);
                }
            }
        }
    }

    #[test]
    fn what_inputs_tell_is_found_and_noise_is_not() {
        let (compute, random) = (Compute::new(2), &mut Random(3));
        let (tokens, n, m) = (400, 16, 4);
        let weights = vec![1.0; tokens];
        let (inputs, missing) = made(random, tokens, n, m, 0.01);
        let problem = Problem { inputs: &inputs, n, missing: &missing, m, weights: &weights, group: 10 };
        let change = fit(&compute, &problem).unwrap().unwrap();
        let (rows, _) = Rows::weighted(&problem);
        let left = rows.left(&compute, &change.values);
        assert!(left < 0.02 && change.left_held_out < 0.02, "{left} {change:?}");
        let nothing = vec![0.0; tokens * m];
        assert!(fit(&compute, &Problem { missing: &nothing, ..problem }).unwrap().is_none());
        let no_inputs = vec![0.0; tokens * n];
        assert!(fit(&compute, &Problem { inputs: &no_inputs, ..problem }).unwrap().is_none());
    }
}
