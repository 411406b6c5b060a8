use super::*;
use crate::linalg::Hessian;
use crate::linalg::tests::{Random, activations, computes};

struct Case {
    rows: usize,
    cols: usize,
    weights: Vec<f32>,
    hessian: Hessian,
}

impl Case {
    fn new(seed: u64, rows: usize, cols: usize, tokens: usize) -> Case {
        let mut random = Random(seed);
        let hessian = Hessian::of(&Compute::new(2), &activations(&mut random, tokens, cols));
        let weights = random.normals(rows * cols).iter().map(|w| w * 0.02).collect();
        Case { rows, cols, weights, hessian }
    }

    fn feedback(&self, compute: &Compute) -> Feedback {
        Feedback::factor(compute, Hessian { tokens: 0, ..self.hessian.clone() }, 0.01).unwrap()
    }

    fn round(&self, compute: &Compute, range: Range, sweeps: usize) -> Rounded {
        let feedback = self.feedback(compute);
        round(compute, &self.weights, [self.rows, self.cols], range, &feedback, Effort { sweeps })
    }

    /// Ŵ of a row.
    fn back(&self, rounded: &Rounded, row: usize) -> Vec<f64> {
        let groups = self.cols.div_ceil(W4_GROUP);
        let value = |col: usize| {
            let multiplier = rounded.multipliers.get(row * groups + col / W4_GROUP).copied().unwrap_or(1);
            let whole = i32::from(rounded.values[row * self.cols + col]) * i32::from(multiplier);
            f64::from(whole) * f64::from(rounded.scales[row])
        };
        (0..self.cols).map(value).collect()
    }

    /// x·H·yᵀ in f64.
    fn product(&self, x: &[f64], y: &[f64]) -> f64 {
        let h = |i: usize, j: usize| f64::from(self.hessian.values[i * self.cols + j]);
        (0..self.cols).map(|i| x[i] * (0..self.cols).map(|j| h(i, j) * y[j]).sum::<f64>()).sum()
    }

    fn row(&self, row: usize) -> Vec<f64> {
        self.weights[row * self.cols..(row + 1) * self.cols].iter().map(|&w| f64::from(w)).collect()
    }

    /// tr(E·H·Eᵀ) / tr(W·H·Wᵀ) in f64.
    fn error(&self, rounded: &Rounded) -> f64 {
        let (mut wrong, mut whole) = (0.0, 0.0);
        for row in 0..self.rows {
            let (w, back) = (self.row(row), self.back(rounded, row));
            let e: Vec<f64> = w.iter().zip(&back).map(|(w, back)| w - back).collect();
            wrong += self.product(&e, &e);
            whole += self.product(&w, &w);
        }
        wrong / whole
    }
}

/// GPTQ as published, in f64: columns in order, errors over the diagonal of the upper Cholesky factor of the inverse.
fn textbook(case: &Case, lambda: f64, scales: &[f32]) -> Vec<i8> {
    let n = case.cols;
    // The inverse of H + λ by Gauss-Jordan elimination, then its Cholesky factor.
    let mut a: Vec<f64> = case.hessian.values.iter().map(|&v| f64::from(v)).collect();
    (0..n).for_each(|i| a[i * n + i] += lambda);
    let mut inverse = vec![0.0; n * n];
    (0..n).for_each(|i| inverse[i * n + i] = 1.0);
    for pivot in 0..n {
        let d = a[pivot * n + pivot];
        for k in 0..n {
            a[pivot * n + k] /= d;
            inverse[pivot * n + k] /= d;
        }
        for row in (0..n).filter(|&row| row != pivot) {
            let factor = a[row * n + pivot];
            for k in 0..n {
                a[row * n + k] -= factor * a[pivot * n + k];
                inverse[row * n + k] -= factor * inverse[pivot * n + k];
            }
        }
    }
    let mut upper = vec![0.0; n * n];
    for i in 0..n {
        for j in i..n {
            let sum: f64 = (0..i).map(|k| upper[k * n + i] * upper[k * n + j]).sum();
            let rest = inverse[i * n + j] - sum;
            upper[i * n + j] = if i == j { rest.sqrt() } else { rest / upper[i * n + i] };
        }
    }
    let mut values = Vec::new();
    for (row, &scale) in scales.iter().enumerate() {
        let mut w = case.row(row);
        for j in 0..n {
            let value = (w[j] / f64::from(scale)).round_ties_even().clamp(-127.0, 127.0);
            let error = (w[j] - value * f64::from(scale)) / upper[j * n + j];
            (j..n).for_each(|k| w[k] -= error * upper[j * n + k]);
            values.push(value as i8);
        }
    }
    values
}

#[test]
fn one_pass_is_gptq_as_published() {
    let compute = Compute::new(2);
    for (rows, cols) in [(5, 24), (3, 200)] {
        let case = Case::new(21, rows, cols, 3 * cols);
        let feedback = case.feedback(&compute);
        let scales: Vec<f32> = case
            .weights
            .chunks_exact(cols)
            .map(|row| scales::w8_scale(row, Some(feedback.importance())))
            .collect();
        let expected = textbook(&case, f64::from(feedback.lambda()), &scales);
        assert_eq!(case.round(&compute, Range::W8, 0).values, expected, "{rows} x {cols}");
    }
}

#[test]
fn errors_fall_with_every_step_and_are_those_reported() {
    let compute = Compute::new(2);
    for (rows, cols) in [(17, 128), (33, 300), (4, 40)] {
        let case = Case::new(22, rows, cols, 2 * cols);
        let nearest = nearest_w4(&compute, &case.weights, rows, cols, Some(&case.hessian.diagonal()));
        let mut last = case.error(&nearest);
        for sweeps in [0, 1, 3] {
            let rounded = case.round(&compute, Range::W4, sweeps);
            let error = case.error(&rounded);
            println!("{rows} x {cols}, {sweeps} sweeps: {error:.6} after {last:.6}");
            assert!(error < if sweeps == 0 { 0.8 * last } else { last * 1.0005 }, "{sweeps}: {error} {last}");
            assert!((rounded.error / error - 1.0).abs() < 1e-3, "reported {} for {error}", rounded.error);
            let losses: f64 = rounded.losses.iter().sum();
            let whole: f64 = (0..rows).map(|row| case.product(&case.row(row), &case.row(row))).sum();
            assert!((losses / whole / error - 1.0).abs() < 1e-3);
            last = error;
        }
    }
}

#[test]
fn slopes_are_one() {
    let compute = Compute::new(2);
    let case = Case::new(23, 20, 260, 500);
    for range in [Range::W4, Range::W8] {
        let rounded = case.round(&compute, range, 1);
        for row in 0..case.rows {
            let w = case.row(row);
            let slope = case.product(&case.back(&rounded, row), &w) / case.product(&w, &w);
            assert!((slope - 1.0).abs() < 1e-5, "{range:?} row {row}: {slope}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_machine() {
    let case = Case::new(24, 37, 280, 400);
    for range in [Range::W4, Range::W8] {
        let all: Vec<Rounded> = computes().iter().map(|compute| case.round(compute, range, 2)).collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{range:?}");
    }
    let nearest = |compute: &Compute| {
        nearest_w4(compute, &case.weights, case.rows, case.cols, Some(&case.hessian.diagonal()))
    };
    let all: Vec<Rounded> = computes().iter().map(nearest).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn rows_are_rounded_by_themselves() {
    let compute = Compute::new(2);
    let mut case = Case::new(25, 37, 200, 300);
    let whole = case.round(&compute, Range::W4, 1);
    case.weights.drain(..20 * case.cols);
    case.rows = 17;
    let part = case.round(&compute, Range::W4, 1);
    assert_eq!(part.values, whole.values[20 * case.cols..]);
    assert_eq!(part.multipliers, whole.multipliers[20 * 2..]);
    assert_eq!(part.scales, whole.scales[20..]);
}

#[test]
fn rows_and_inputs_without_anything_do_no_harm() {
    let compute = Compute::new(2);
    let mut case = Case::new(26, 18, 150, 400);
    case.weights[150..300].fill(0.0);
    for i in 0..150 {
        (case.hessian.values[7 * 150 + i], case.hessian.values[i * 150 + 7]) = (0.0, 0.0);
    }
    for range in [Range::W4, Range::W8] {
        let rounded = case.round(&compute, range, 2);
        assert!(rounded.values[150..300].iter().all(|&value| value == 0));
        assert_eq!(rounded.scales[1], 0.0);
        assert!(rounded.scales.iter().all(|scale| scale.is_finite()));
        let range_of = |value: &i8| f32::from(*value) >= range.low() && f32::from(*value) <= range.high();
        assert!(rounded.values.iter().all(range_of));
        assert!(rounded.multipliers.iter().all(|m| (1..=15).contains(m)));
        assert!(rounded.error < 0.01, "{range:?}: {}", rounded.error);
    }
}
