//! Results beside scalar arithmetic.

use rknpu_driver::oracle::matmul_int;
use rknpu_driver::shape::MatmulShape;

use super::product::{Outputs, Values};

/// The first element of a result that is wrong.
#[derive(Debug, PartialEq)]
pub(super) struct Mismatch {
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) got: f64,
    pub(super) expected: f64,
    /// How many elements are wrong altogether.
    pub(super) count: usize,
}

/// Compares a result with scalar arithmetic.
///
/// Integers must be equal. fp16 sums may be off by the rounding of fp32 additions in any order: K · 2⁻²³ of the
/// sum of magnitudes.
pub(super) fn check(shape: &MatmulShape, values: &Values, outputs: &Outputs) -> Option<Mismatch> {
    let mut wrong = match (values, outputs) {
        (Values::Integer { a, w }, Outputs::Integer(got)) => {
            let expected = matmul_int(shape, a, w);
            differences(
                shape,
                got.iter().zip(expected).map(|(got, expected)| (f64::from(*got), f64::from(expected), 0.0)),
            )
        }
        (Values::Float { a, w }, Outputs::Float(got)) => {
            let dot = |index: usize| {
                let (row, column) = (index / shape.outputs, index % shape.outputs);
                let a = &a[row * shape.inner..][..shape.inner];
                let w = &w[column * shape.inner..][..shape.inner];
                let products = a.iter().zip(w).map(|(a, w)| a.to_f64() * w.to_f64());
                products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
            };
            let slack = shape.inner as f64 * f64::from(f32::EPSILON);
            differences(
                shape,
                got.iter().enumerate().map(|(index, got)| {
                    let (expected, size) = dot(index);
                    (f64::from(*got), expected, size * slack)
                }),
            )
        }
        (Values::Integer { .. }, Outputs::Float(_)) | (Values::Float { .. }, Outputs::Integer(_)) => {
            unreachable!("a product's results have the kind of its values")
        }
    };
    let count = wrong.len();
    (count > 0).then(|| Mismatch { count, ..wrong.swap_remove(0) })
}

fn differences(shape: &MatmulShape, elements: impl Iterator<Item = (f64, f64, f64)>) -> Vec<Mismatch> {
    // A NaN is not within anything.
    let is_right = |(got, expected, slack): (f64, f64, f64)| (got - expected).abs() <= slack;
    let wrong = elements.enumerate().filter(|(_, element)| !is_right(*element));
    wrong
        .map(|(index, (got, expected, _))| Mismatch {
            row: index / shape.outputs,
            column: index % shape.outputs,
            got,
            expected,
            count: 1,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rknpu_driver::shape::Precision;

    use super::*;

    #[test]
    fn a_wrong_element_is_named() {
        let shape = MatmulShape::new(2, 32, 3, Precision::Int8).unwrap();
        let values = Values::random(&shape, 7);
        let Values::Integer { a, w } = &values else { unreachable!("int8 values are integers") };
        let mut right = matmul_int(&shape, a, w);
        assert_eq!(check(&shape, &values, &Outputs::Integer(right.clone())), None);
        right[4] += 1;
        let mismatch = check(&shape, &values, &Outputs::Integer(right)).unwrap();
        assert_eq!((mismatch.row, mismatch.column, mismatch.count), (1, 1, 1));
        assert_eq!(mismatch.got, mismatch.expected + 1.0);
    }

    #[test]
    fn fp16_sums_may_round_and_not_be_wrong() {
        let shape = MatmulShape::new(1, 64, 2, Precision::Fp16).unwrap();
        let values = Values::random(&shape, 7);
        let Values::Float { a, w } = &values else { unreachable!("fp16 values are floats") };
        let sum = |column: usize| -> f32 {
            a.iter().zip(&w[column * 64..]).map(|(a, w)| a.to_f32() * w.to_f32()).sum()
        };
        let right = vec![sum(0), sum(1)];
        assert_eq!(check(&shape, &values, &Outputs::Float(right.clone())), None);
        assert!(check(&shape, &values, &Outputs::Float(vec![right[0], right[1] + 0.01])).is_some());
        assert!(check(&shape, &values, &Outputs::Float(vec![f32::NAN, right[1]])).is_some());
    }
}
