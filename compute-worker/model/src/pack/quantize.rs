//! Plain rounding of one row of weights. Pure, and the same bits on every machine: IEEE additions, multiplications
//! and divisions in a fixed order.
//!
//! ```text
//! w8: scale = max|w| / 127                 value = round(w / scale)           −127…127
//! w4: step of group g = scale · m[g]       value = round(w / (scale · m[g]))  −8…7,  m[g] in 1…15
//! ```
//!
//! For w4 a search picks the row's scale and each group's multiplier by squared error. Clipping the largest weights
//! of a group is worth it when it makes the steps of all others finer, so steps below max|w| / 7 are tried too.

use rookery_kernels::tiles::W4_GROUP;

/// Adding and subtracting 1.5 · 2²³ rounds any |x| < 2²² to an integer, ties to even, without a call into libm.
const ROUNDER: f32 = 12_582_912.0;

/// Scales tried for a w4 row, as a share of the smallest that clips nothing.
///
/// Random normal rows of 1,024 weights, squared error relative to the first candidate alone: see the test
/// `searching_beats_no_clipping`.
const SCALE_SHARES: [f32; 8] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.72];

fn round_ties_even(x: f32) -> f32 {
    (x + ROUNDER) - ROUNDER
}

/// Quantises a row to int8; gives its scale and the sum of its values. An all-zero row gets scale 0.
///
/// `values` and `row` have the same length.
pub(super) fn w8_row(row: &[f32], values: &mut [i8]) -> (f32, i32) {
    let scale = absmax(row) / 127.0;
    // A subnormal scale has too few bits to divide by, and weights that small change no output.
    if scale < f32::MIN_POSITIVE {
        values.fill(0);
        return (0.0, 0);
    }
    let mut sum = 0;
    for (value, weight) in values.iter_mut().zip(row) {
        *value = round_ties_even(weight / scale).clamp(-127.0, 127.0) as i8;
        sum += i32::from(*value);
    }
    (scale, sum)
}

/// Quantises a row to int4 with a multiplier for every 128 inputs; gives its scale and the sum of value × multiplier.
/// An all-zero row gets scale 0 and multipliers 1.
///
/// `values` and `row` have the same length, `multipliers` one entry for each group, the last of which may be short.
pub(super) fn w4_row(row: &[f32], values: &mut [i8], multipliers: &mut [u8]) -> (f32, i32) {
    let largest = absmax(row) / (7.0 * 15.0);
    multipliers.fill(1);
    values.fill(0);
    if largest < f32::MIN_POSITIVE {
        return (0.0, 0);
    }
    let mut best = (f32::INFINITY, largest);
    let mut tried = vec![1; multipliers.len()];
    for share in SCALE_SHARES {
        let scale = largest * share;
        let mut error = 0.0;
        for (group, multiplier) in row.chunks(W4_GROUP).zip(&mut tried) {
            let (group_error, found) = best_multiplier(group, scale);
            *multiplier = found;
            error += group_error * share * share;
        }
        if error < best.0 {
            best = (error, scale);
            multipliers.copy_from_slice(&tried);
        }
    }
    let scale = best.1;
    let mut sum = 0;
    let groups = row.chunks(W4_GROUP).zip(values.chunks_mut(W4_GROUP)).zip(multipliers);
    for ((weights, values), multiplier) in groups {
        let step = scale * f32::from(*multiplier);
        for (value, weight) in values.iter_mut().zip(weights) {
            *value = round_ties_even(weight / step).clamp(-8.0, 7.0) as i8;
            sum += i32::from(*value) * i32::from(*multiplier);
        }
    }
    (scale, sum)
}

/// Squared error of the best multiplier for a group, in squared scales, and that multiplier; the smallest of equals.
fn best_multiplier(group: &[f32], scale: f32) -> (f32, u8) {
    let unclipped = absmax(group) / (7.0 * scale);
    // Steps below 0.7 of the unclipped one lose more at the ends than they win in between.
    let first = (unclipped * 0.7).floor().clamp(1.0, 15.0) as u8;
    let last = unclipped.ceil().clamp(1.0, 15.0) as u8;
    let mut best = (f32::INFINITY, first);
    for multiplier in first..=last {
        let steps = f32::from(multiplier);
        let error = squared_error(group, scale * steps) * steps * steps;
        if error < best.0 {
            best = (error, multiplier);
        }
    }
    best
}

/// Sum of squared rounding errors in squared steps, which neither overflow nor vanish whatever the size of the
/// weights; in 16 strided lanes, so that it vectorises with a fixed order of additions.
fn squared_error(group: &[f32], step: f32) -> f32 {
    let inverse = 1.0 / step;
    let error = |weight: f32| {
        let steps = weight * inverse;
        let error = steps - round_ties_even(steps).clamp(-8.0, 7.0);
        error * error
    };
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = group.as_chunks::<16>();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += error(*weight);
        }
    }
    for (lane, weight) in lanes.iter_mut().zip(rest) {
        *lane += error(*weight);
    }
    lanes.iter().sum()
}

fn absmax(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |max, weight| max.max(weight.abs()))
}

#[cfg(test)]
mod tests;
