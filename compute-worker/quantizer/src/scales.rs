//! Search of a row's scale, and of its groups' multipliers, by squared error weighted by how much each input matters.
//!
//! ```text
//! w8: step = scale                       values −127…127
//! w4: step of group g = scale · m[g]     values −8…7, m[g] in 1…15
//! error = Σ_k importance[k] · (w[k] − step · clamp(round(w[k] / step)))²
//! ```
//! Plain IEEE operations in 16 strided lanes: a fixed order of additions on every machine.

use rookery_kernels::tiles::W4_GROUP;

/// Scales tried for a row, as shares of the smallest that clips nothing: clipping a few large weights makes the steps of
/// all others finer.
const W4_SHARES: [f32; 8] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.72];
/// With 255 values little is won by clipping.
const W8_SHARES: [f32; 6] = [1.0, 0.98, 0.96, 0.93, 0.90, 0.86];
/// Steps below this share of one that clips nothing lose more at the ends than they win in between.
pub(crate) const LEAST_SHARE: f32 = 0.7;
const LANES: usize = 16;

/// Adding and subtracting 1.5 · 2²³ rounds any |x| < 2²² to an integer, ties to even, without a call into libm.
const ROUNDER: f32 = 12_582_912.0;

/// The whole values that a form stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// −8…7.
    W4,
    /// −127…127.
    W8,
}

impl Range {
    pub(crate) const fn low(self) -> f32 {
        match self {
            Range::W4 => -8.0,
            Range::W8 => -127.0,
        }
    }

    pub(crate) const fn high(self) -> f32 {
        match self {
            Range::W4 => 7.0,
            Range::W8 => 127.0,
        }
    }

    /// The nearest value to `steps`, ties to even.
    #[inline(always)]
    pub(crate) fn nearest(self, steps: f32) -> f32 {
        // Clamped first, which gives the same value and keeps the rounding trick in its range.
        let steps = if steps > self.low() { steps } else { self.low() };
        let steps = if steps < self.high() { steps } else { self.high() };
        (steps + ROUNDER) - ROUNDER
    }
}

/// 1/step, or 0 where the step is 0, so that everything rounds to 0.
#[inline(always)]
pub(crate) fn inverse(step: f32) -> f32 {
    if step > 0.0 { 1.0 / step } else { 0.0 }
}

/// The scale of a `w8` row; 0 for a row of zeros.
///
/// `importance` has a weight for each of the row's inputs; without it all count alike.
pub fn w8_scale(row: &[f32], importance: Option<&[f32]>) -> f32 {
    let largest = absmax(row) / 127.0;
    // A subnormal scale has too few bits to divide by, and weights that small change no output.
    if largest < f32::MIN_POSITIVE {
        return 0.0;
    }
    let error = |share: f32| {
        let steps = squared_error(row, importance, largest * share, Range::W8);
        steps * share * share
    };
    least(W8_SHARES.map(|share| (error(share), largest * share)))
}

/// The scale of a `w4` row, and a multiplier for each 128 of its inputs; scale 0 and multipliers 1 for a row of zeros.
///
/// `importance` as for [`w8_scale`].
pub fn w4_scale(row: &[f32], importance: Option<&[f32]>, multipliers: &mut [u8]) -> f32 {
    let largest = absmax(row) / (7.0 * 15.0);
    multipliers.fill(1);
    if largest < f32::MIN_POSITIVE {
        return 0.0;
    }
    let mut best = (f32::INFINITY, largest);
    let mut tried = vec![1; multipliers.len()];
    for share in W4_SHARES {
        let scale = largest * share;
        let mut error = 0.0;
        for (at, (group, multiplier)) in row.chunks(W4_GROUP).zip(&mut tried).enumerate() {
            let importance = importance.map(|all| &all[at * W4_GROUP..at * W4_GROUP + group.len()]);
            let (group_error, found) = best_multiplier(group, importance, scale);
            *multiplier = found;
            error += group_error * share * share;
        }
        if error < best.0 {
            best = (error, scale);
            multipliers.copy_from_slice(&tried);
        }
    }
    best.1
}

/// First and last multiplier worth trying for a group whose largest weight is `absmax`.
pub(crate) fn multipliers_for(absmax: f32, scale: f32) -> (u8, u8) {
    let unclipped = absmax * inverse(7.0 * scale);
    let first = (unclipped * LEAST_SHARE).floor().clamp(1.0, 15.0) as u8;
    (first, unclipped.ceil().clamp(1.0, 15.0) as u8)
}

/// Error of the best multiplier for a group, in squared scales, and that multiplier; the smallest of equals.
fn best_multiplier(group: &[f32], importance: Option<&[f32]>, scale: f32) -> (f32, u8) {
    let (first, last) = multipliers_for(absmax(group), scale);
    let mut best = (f32::INFINITY, first);
    for multiplier in first..=last {
        let steps = f32::from(multiplier);
        let error = squared_error(group, importance, scale * steps, Range::W4) * steps * steps;
        if error < best.0 {
            best = (error, multiplier);
        }
    }
    best
}

/// Sum of weighted squared rounding errors in squared steps, which neither overflow nor vanish whatever the size of the
/// weights.
fn squared_error(weights: &[f32], importance: Option<&[f32]>, step: f32, range: Range) -> f32 {
    let inverse = inverse(step);
    let error = |weight: f32| {
        let steps = weight * inverse;
        let error = steps - range.nearest(steps);
        error * error
    };
    let mut lanes = [0.0f32; LANES];
    let Some(importance) = importance else {
        for chunk in weights.chunks(LANES) {
            lanes.iter_mut().zip(chunk).for_each(|(lane, weight)| *lane += error(*weight));
        }
        return lanes.iter().sum();
    };
    for (chunk, importance) in weights.chunks(LANES).zip(importance.chunks(LANES)) {
        let both = chunk.iter().zip(importance);
        lanes.iter_mut().zip(both).for_each(|(lane, (weight, matters))| *lane += error(*weight) * matters);
    }
    lanes.iter().sum()
}

/// What goes with the least error; the first of equals.
fn least<const N: usize>(candidates: [(f32, f32); N]) -> f32 {
    let mut best = candidates[0];
    for candidate in candidates {
        if candidate.0 < best.0 {
            best = candidate;
        }
    }
    best.1
}

pub(crate) fn absmax(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |max, weight| max.max(weight.abs()))
}

#[cfg(test)]
mod tests;
