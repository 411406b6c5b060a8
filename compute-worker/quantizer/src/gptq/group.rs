//! One group of columns of sixteen rows: rows are lanes.

use crate::linalg::BLOCK;
use crate::scales::{Range, inverse};

/// Rows that are rounded together.
pub(super) const LANES: usize = 16;
/// A value of each of sixteen rows.
pub(super) type Lanes = [f32; LANES];
/// Columns of a group in sixteen rows; those beyond a short group's are not used.
pub(super) type Tile = [Lanes; BLOCK];

/// The factors that a group is rounded with: its own columns of U, and D.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    /// `[j][stride]`: U[j][j'] at j' > j, both counted from the group's first column.
    pub(super) upper: &'a [f32],
    pub(super) stride: usize,
    pub(super) pivots: &'a [f32],
}

/// Reads columns `cols` of up to sixteen rows, `[row][stride]`; lanes without a row become 0.
pub(super) fn load(from: &[f32], stride: usize, cols: std::ops::Range<usize>, out: &mut Tile) {
    if from.len() < LANES * stride {
        out[..cols.len()].fill([0.0; LANES]);
    }
    for (lane, row) in from.chunks(stride).enumerate().take(LANES) {
        for (out, value) in out.iter_mut().zip(&row[cols.clone()]) {
            out[lane] = *value;
        }
    }
}

/// Rounds a group column by column, each error made up for by the columns after it; gives what that costs each row,
/// Σ D[j]·(t[j] − ŵ[j])².
///
/// `t` are the targets without errors made within the group, and hold them afterwards; `base` is what errors are counted
/// from, `step` each row's.
pub(super) fn ldlq(
    factors: Factors<'_>,
    range: Range,
    base: &Tile,
    t: &mut Tile,
    step: &Lanes,
    values: &mut Tile,
) -> Lanes {
    let inverse = step.map(inverse);
    let mut cost = [0.0; LANES];
    for (j, pivot) in factors.pivots.iter().enumerate() {
        let mut error = [0.0; LANES];
        for lane in 0..LANES {
            let value = range.nearest(t[j][lane] * inverse[lane]);
            let rounded = value * step[lane];
            let off = t[j][lane] - rounded;
            cost[lane] += off * off * pivot;
            error[lane] = base[j][lane] - rounded;
            values[j][lane] = value;
        }
        let row = &factors.upper[j * factors.stride..][..factors.pivots.len()];
        for (t, u) in t.iter_mut().zip(row).skip(j + 1) {
            for lane in 0..LANES {
                t[lane] += error[lane] * u;
            }
        }
    }
    cost
}

/// Solves x·(U·D·Uᵀ) = g for sixteen rows, in place; gives x·g of each row.
///
/// `columns` is U by columns: `[j][k] = U[k][j]` for k < j.
pub(super) fn solve(factors: Factors<'_>, columns: &[f32], g: &mut Tile) -> Lanes {
    let width = factors.pivots.len();
    let mut cost = [0.0; LANES];
    for j in (0..width).rev() {
        let (before, at) = g.split_at_mut(j);
        let y = &mut at[0];
        for (g, u) in before.iter_mut().zip(&columns[j * factors.stride..]) {
            for lane in 0..LANES {
                g[lane] -= y[lane] * u;
            }
        }
        let d = factors.pivots[j];
        for lane in 0..LANES {
            let z = y[lane] / d;
            cost[lane] += z * y[lane];
            y[lane] = z;
        }
    }
    for j in 0..width {
        let (before, after) = g.split_at_mut(j + 1);
        let x = &before[j];
        let row = &factors.upper[j * factors.stride..][..width];
        for (g, u) in after.iter_mut().zip(&row[j + 1..]) {
            for lane in 0..LANES {
                g[lane] -= x[lane] * u;
            }
        }
    }
    cost
}
