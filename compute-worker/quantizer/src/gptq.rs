//! Rounding of a matrix that makes up for its own errors.

use crate::linalg::{Compute, Feedback};

/// A rounded matrix, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounded {
    /// `[rows][cols]`: −8…7 for `w4`, −127…127 for `w8`.
    pub values: Vec<i8>,
    /// `[rows][ceil(cols / 128)]`, 1…15, for `w4`; empty for `w8`.
    pub multipliers: Vec<u8>,
    /// `[rows]`.
    pub scales: Vec<f32>,
    /// tr(E H Eᵀ) / tr(W H Wᵀ): the share of the outputs' energy on the calibration tokens that is error.
    pub error: f64,
}

/// Rounds `weights` `[rows][cols]` to `w4` by GPTQ.
///
/// # Panics
/// When lengths do not match.
pub fn gptq_w4(
    _compute: &Compute,
    _weights: &[f32],
    _rows: usize,
    _cols: usize,
    _feedback: &Feedback,
) -> Rounded {
    unimplemented!()
}

/// Rounds `weights` `[rows][cols]` to `w8` by GPTQ.
///
/// # Panics
/// When lengths do not match.
pub fn gptq_w8(
    _compute: &Compute,
    _weights: &[f32],
    _rows: usize,
    _cols: usize,
    _feedback: &Feedback,
) -> Rounded {
    unimplemented!()
}

/// Rounds each of `weights` `[rows][cols]` to the nearest `w4` value, scales searched by squared error weighted by
/// `importance` `[cols]` (all alike without). `error` counts the diagonal of H alone.
///
/// # Panics
/// When lengths do not match.
pub fn nearest_w4(
    _compute: &Compute,
    _weights: &[f32],
    _rows: usize,
    _cols: usize,
    _importance: Option<&[f32]>,
) -> Rounded {
    unimplemented!()
}

/// Rounds each of `weights` `[rows][cols]` to the nearest `w8` value, as [`nearest_w4`].
///
/// # Panics
/// When lengths do not match.
pub fn nearest_w8(
    _compute: &Compute,
    _weights: &[f32],
    _rows: usize,
    _cols: usize,
    _importance: Option<&[f32]>,
) -> Rounded {
    unimplemented!()
}
