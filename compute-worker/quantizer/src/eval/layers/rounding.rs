//! Whether activations were rounded to the nearest step, ties to even.
//!
//! ```text
//! r = x / sa − a,  in steps:   nearest −½…½    down (floor) 0…1    up −1…0    towards zero: sign(x)·r in 0…1
//! ```
//! One value beyond half a step is enough to know, whatever the values are: no average is needed, and none is deceived by
//! inputs that are mostly small. Real inputs hold no ties, so those are checked on rows made for it.

use rookery_kernels::Activations;
use serde::Serialize;

/// Float arithmetic moves a value of 127 steps by up to 2⁻¹⁶ of a step; this leaves room for other orders of operations.
const SLACK: f64 = 1e-3;
/// Relative error of a scale that is absmax/127 but for rounding.
const SCALE_SLACK: f64 = 1e-5;

/// How inputs of one linear call were rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RoundingReport {
    /// Values that are not zero.
    pub values: usize,
    /// Of those, further than half a step from where they were.
    pub beyond_half: usize,
    /// Mean of what rounding took away, in steps.
    pub mean: f64,
    /// Mean of that towards zero: positive where magnitudes shrank.
    pub mean_towards_zero: f64,
    /// Least and largest of what rounding took away, in steps.
    pub least: f64,
    /// See `least`.
    pub largest: f64,
    /// Least and largest of that towards zero.
    pub least_towards_zero: f64,
    /// See `least_towards_zero`.
    pub largest_towards_zero: f64,
    /// Rows whose scale is not absmax/127.
    pub other_scales: usize,
    /// Rows.
    pub rows: usize,
}

/// What a rounding rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Always down.
    Floor,
    /// Always up.
    Ceiling,
    /// Always towards zero.
    Truncation,
    /// To the nearest value, but ties are not to even.
    OtherTies,
    /// To none of the two nearest values, or now this and now that.
    Unknown,
}

impl Rule {
    /// For people: what it is called.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Floor => "floor",
            Rule::Ceiling => "ceiling",
            Rule::Truncation => "truncation towards zero",
            Rule::OtherTies => "nearest, but ties are not rounded to even",
            Rule::Unknown => "no known rule",
        }
    }
}

impl RoundingReport {
    /// Compares `x` `[rows][cols]` with what it was rounded to.
    pub(super) fn of(x: &[f32], a: &Activations) -> Self {
        let mut report = Self { least: 0.0, largest: 0.0, rows: a.rows(), ..Self::default() };
        let (mut sum, mut inwards) = (0.0, 0.0);
        for (row, x) in x.chunks_exact(a.cols().max(1)).enumerate() {
            let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let scale = f64::from(a.scale(row));
            let expected = f64::from(largest) / 127.0;
            // Rows of zeros, of next to nothing and of no numbers have scales of their own.
            if scale == 0.0 || !scale.is_finite() {
                continue;
            }
            if (scale - expected).abs() > SCALE_SLACK * expected {
                report.other_scales += 1;
            }
            for (&x, &a) in x.iter().zip(a.row(row)) {
                if x == 0.0 {
                    continue;
                }
                let taken = f64::from(x) / scale - f64::from(a);
                let towards_zero = if x > 0.0 { taken } else { -taken };
                report.values += 1;
                report.beyond_half += usize::from(taken.abs() > 0.5 + SLACK);
                sum += taken;
                inwards += towards_zero;
                report.least = report.least.min(taken);
                report.largest = report.largest.max(taken);
                report.least_towards_zero = report.least_towards_zero.min(towards_zero);
                report.largest_towards_zero = report.largest_towards_zero.max(towards_zero);
            }
        }
        let count = report.values.max(1) as f64;
        (report.mean, report.mean_towards_zero) = (sum / count, inwards / count);
        report
    }

    /// The rule that was followed instead of rounding to the nearest.
    pub fn fault(&self) -> Option<Rule> {
        if self.beyond_half == 0 {
            return None;
        }
        let within = |least: f64, largest: f64| least >= -SLACK && largest <= 1.0 + SLACK;
        Some(if within(self.least, self.largest) {
            Rule::Floor
        } else if within(-self.largest, -self.least) {
            Rule::Ceiling
        } else if within(self.least_towards_zero, self.largest_towards_zero) {
            Rule::Truncation
        } else {
            Rule::Unknown
        })
    }
}

/// Values whose scale is exactly 1, and ties between them: `127, 3/2, −5/2, −7/2, 9/2, …`. Both signs have ties whose even
/// neighbour is above and below, so that no other rule agrees on all of them.
pub(super) fn ties(cols: usize) -> Vec<f32> {
    let tie = |col: usize| {
        let half = (col % 126) as f32 + 0.5;
        if (col / 2).is_multiple_of(2) { half } else { -half }
    };
    (0..cols).map(|col| if col == 0 { 127.0 } else { tie(col) }).collect()
}

/// Whether ties went to the even neighbour.
pub(super) fn ties_to_even(x: &[f32], a: &Activations) -> bool {
    let nearest = |x: f32| x.round_ties_even() as i8;
    a.rows() == 1 && a.scale(0) == 1.0 && x.iter().zip(a.row(0)).all(|(&x, &a)| a == nearest(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: &[f32], rule: impl Fn(f32) -> f32) -> RoundingReport {
        let scale = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 127.0;
        let values: Vec<i8> = x.iter().map(|x| rule(x / scale).clamp(-127.0, 127.0) as i8).collect();
        RoundingReport::of(x, &Activations::from_rows(x.len(), &values, &[scale]))
    }

    #[test]
    fn rules_are_told_apart() {
        let x: Vec<f32> = (0..200).map(|i| ((i * 37 + 11) % 101) as f32 / 101.0 - 0.43).collect();
        assert_eq!(rounded(&x, f32::round_ties_even).fault(), None);
        assert_eq!(rounded(&x, f32::floor).fault(), Some(Rule::Floor));
        assert_eq!(rounded(&x, f32::ceil).fault(), Some(Rule::Ceiling));
        assert_eq!(rounded(&x, f32::trunc).fault(), Some(Rule::Truncation));
        assert_eq!(rounded(&x, |x| x.round() + 1.0).fault(), Some(Rule::Unknown));
        let floor = rounded(&x, f32::floor);
        assert!((floor.mean - 0.5).abs() < 0.1, "{floor:?}");
        // Inputs that are nearly all small have a mean that no average could tell from floor.
        let skewed: Vec<f32> = (0..200).map(|i| if i == 0 { 1.0 } else { 0.003 }).collect();
        assert_eq!(rounded(&skewed, f32::round_ties_even).fault(), None);
    }

    #[test]
    fn ties_are_seen() {
        let x = ties(130);
        let of = |rule: fn(f32) -> f32| {
            let values: Vec<i8> = x.iter().map(|x| rule(*x) as i8).collect();
            ties_to_even(&x, &Activations::from_rows(x.len(), &values, &[1.0]))
        };
        assert!(of(f32::round_ties_even));
        assert!(!of(f32::round), "away from zero");
        assert!(!of(f32::floor) && !of(f32::ceil) && !of(f32::trunc));
    }
}
