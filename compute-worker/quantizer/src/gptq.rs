//! Rounding of a matrix that makes up for its own errors.
//!
//! ```text
//! minimise tr(E·H·Eᵀ),  E = W − Ŵ,  H + λ = U·D·Uᵀ                                 every row by itself
//! LDLQ    for each column j:   t = w[j] + Σ_{k<j} e[k]·U[k][j];  ŵ[j] = nearest(t);  cost += D[j]·(t − ŵ[j])²
//!         a group's multiplier is chosen when the group is reached: each of a few is tried on all of its 128 columns
//! sweep   for each group:      t* = ŵ + (E·H)·H[J][J]⁻¹ is the best the group could be, all others as they are;
//!         LDLQ of t* by the factors of H[J][J], for the multiplier as it is and its neighbours; kept where it costs less
//! refit   each row's scale such that ⟨ŵ, w⟩_H = ⟨w, w⟩_H: the slope of the row's output over the calibration is 1
//! ```
//! GPTQ: Frantar et al., 2022. LDLQ, which gives the same values from the factors of H itself: Chee et al., QuIP, 2023.
//! Sweeps over what is rounded already: as in QuantEase, Behdin et al., 2023, but a group at a time.
//!
//! Sixteen rows share each load of U and H: rows are lanes.

mod group;
mod pass;

use rookery_kernels::tiles::W4_GROUP;

use crate::linalg::{Compute, Feedback};
use crate::scales::{self, Range};
use pass::Pass;

/// A rounded matrix, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// `[rows][cols]`: −8…7 for `w4`, −127…127 for `w8`.
    pub values: Vec<i8>,
    /// `[rows][ceil(cols / 128)]`, 1…15, for `w4`; empty for `w8`.
    pub multipliers: Vec<u8>,
    /// `[rows]`.
    pub scales: Vec<f32>,
    /// tr(E·H·Eᵀ) / tr(W·H·Wᵀ): the share of the outputs' energy on the calibration tokens that is error.
    pub error: f64,
    /// `[rows]`: e·H·eᵀ of each row's errors, the part of tr(E·H·Eᵀ) that it has.
    pub losses: Vec<f64>,
}

/// How much is done beyond one pass over the columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Passes over all groups afterwards. On tokens that were not calibrated on, one takes 2 to 5 % off the error of the
    /// demo model's matrices, two take 3 to 6 %, four a further 0.5 %; each costs about a third of what went before.
    pub(crate) sweeps: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self { sweeps: 2 }
    }
}

/// Rounds `weights` `[rows][cols]` to `w4` by GPTQ.
///
/// # Panics
/// When lengths do not match.
pub fn gptq_w4(compute: &Compute, weights: &[f32], rows: usize, cols: usize, feedback: &Feedback) -> Rounded {
    round(compute, weights, [rows, cols], Range::W4, feedback, Effort::default())
}

/// Rounds `weights` `[rows][cols]` to `w8` by GPTQ.
///
/// # Panics
/// When lengths do not match.
pub fn gptq_w8(compute: &Compute, weights: &[f32], rows: usize, cols: usize, feedback: &Feedback) -> Rounded {
    round(compute, weights, [rows, cols], Range::W8, feedback, Effort::default())
}

pub(crate) fn round(
    compute: &Compute,
    weights: &[f32],
    [rows, cols]: [usize; 2],
    range: Range,
    feedback: &Feedback,
    effort: Effort,
) -> Rounded {
    assert_eq!(feedback.n(), cols, "gptq: factors of another layer");
    let start = scaled(compute, weights, [rows, cols], range, Some(feedback.importance()));
    let mut pass = Pass::new(compute, weights, [rows, cols], range, feedback, start);
    pass.ldlq();
    for _ in 0..effort.sweeps {
        pass.sweep();
    }
    pass.refit()
}

/// Rounds each of `weights` `[rows][cols]` to the nearest `w4` value, scales searched by squared error weighted by
/// `importance` `[cols]` (all alike without). `error` counts the diagonal of H alone.
///
/// # Panics
/// When lengths do not match.
pub fn nearest_w4(
    compute: &Compute,
    weights: &[f32],
    rows: usize,
    cols: usize,
    importance: Option<&[f32]>,
) -> Rounded {
    nearest(compute, weights, [rows, cols], Range::W4, importance)
}

/// Rounds each of `weights` `[rows][cols]` to the nearest `w8` value, as [`nearest_w4`].
///
/// # Panics
/// When lengths do not match.
pub fn nearest_w8(
    compute: &Compute,
    weights: &[f32],
    rows: usize,
    cols: usize,
    importance: Option<&[f32]>,
) -> Rounded {
    nearest(compute, weights, [rows, cols], Range::W8, importance)
}

fn nearest(
    compute: &Compute,
    weights: &[f32],
    shape: [usize; 2],
    range: Range,
    importance: Option<&[f32]>,
) -> Rounded {
    let mut rounded = scaled(compute, weights, shape, range, importance);
    let [_, cols] = shape;
    let groups = cols.div_ceil(W4_GROUP);
    rounded.values.resize(weights.len(), 0);
    let mut whole = 0.0;
    for (row, (weights, values)) in
        weights.chunks_exact(cols).zip(rounded.values.chunks_exact_mut(cols)).enumerate()
    {
        for (col, (weight, value)) in weights.iter().zip(values).enumerate() {
            let multiplier = rounded.multipliers.get(row * groups + col / W4_GROUP).copied().unwrap_or(1);
            let step = rounded.scales[row] * f32::from(multiplier);
            let nearest = range.nearest(weight * scales::inverse(step));
            *value = nearest as i8;
            let matters = importance.map_or(1.0, |importance| f64::from(importance[col]));
            rounded.losses[row] += f64::from(weight - nearest * step).powi(2) * matters;
            whole += f64::from(*weight).powi(2) * matters;
        }
    }
    let wrong: f64 = rounded.losses.iter().sum();
    rounded.error = if whole > 0.0 { wrong / whole } else { 0.0 };
    rounded
}

/// Scales and multipliers by search, no values yet.
fn scaled(
    compute: &Compute,
    weights: &[f32],
    [rows, cols]: [usize; 2],
    range: Range,
    importance: Option<&[f32]>,
) -> Rounded {
    assert_eq!(weights.len(), rows * cols, "rounding: weights are not {rows} x {cols}");
    assert!(importance.is_none_or(|all| all.len() == cols), "rounding: importance of other inputs");
    let groups = match range {
        Range::W4 => cols.div_ceil(W4_GROUP),
        Range::W8 => 0,
    };
    // A row's scale and multipliers, as one row of values for the pool.
    let width = 1 + groups;
    let mut found = vec![0.0; rows * width];
    compute.pool.for_each_row(&mut found, width, &|row, found| {
        let weights = &weights[row * cols..(row + 1) * cols];
        let mut multipliers = vec![1; groups];
        found[0] = match range {
            Range::W4 => scales::w4_scale(weights, importance, &mut multipliers),
            Range::W8 => scales::w8_scale(weights, importance),
        };
        found[1..].iter_mut().zip(multipliers).for_each(|(found, m)| *found = f32::from(m));
    });
    let multipliers = found.chunks_exact(width).flat_map(|row| row[1..].iter().map(|&m| m as u8)).collect();
    let scales = found.chunks_exact(width).map(|row| row[0]).collect();
    Rounded { values: Vec::new(), multipliers, scales, error: 0.0, losses: vec![0.0; rows] }
}

#[cfg(test)]
mod tests;
