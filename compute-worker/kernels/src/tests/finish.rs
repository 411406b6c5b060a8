//! Accumulators of another device: outputs, checksums, expanded weights, parts of a matrix.

use proptest::prelude::*;

use super::{Matrix, Random, bits, tables};
use crate::{Accumulators, Activations, Kernels, LinearJob, Pool, tiles};

/// The accumulators by definition, row-major.
fn accumulate(matrix: &Matrix, a: &Activations) -> Vec<i32> {
    let rows = (0..a.rows()).flat_map(|m| matrix.values.chunks_exact(matrix.cols).map(move |row| (m, row)));
    rows.map(|(m, row)| row.iter().zip(a.row(m)).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum()).collect()
}

/// The same in surfaces of four channels, `surface` values apart.
fn cube(acc: &[i32], rows: usize, channels: usize, surface: usize) -> Vec<i32> {
    let mut out = vec![-1; channels.div_ceil(4) * surface];
    for (i, &acc) in acc.iter().enumerate() {
        let (m, n) = (i / channels, i % channels);
        assert!(m < rows);
        out[n / 4 * surface + m * 4 + n % 4] = acc;
    }
    out
}

fn job<'a>(matrix: &'a Matrix, bias: Option<&'a [f32]>, out: &'a mut [f32]) -> LinearJob<'a> {
    LinearJob { weights: matrix.view(), bias, out, out_stride: matrix.rows, out_column: 0 }
}

fn case(seed: u64, rows: usize, cols: usize, m: usize) -> (Matrix, Activations, Vec<f32>) {
    let mut random = Random(seed);
    let matrix = if seed.is_multiple_of(2) {
        Matrix::w8(rows, cols, &mut random, |random| random.int(-127, 127) as i8)
    } else {
        Matrix::w4(rows, cols, &mut random, |r| r.int(-8, 7) as i8, |r| r.int(1, 15) as u8)
    };
    let mut a = Activations::new();
    let bias = random.floats(rows, 2.0);
    Kernels::detect().quantize(&Pool::new(1), &random.floats(m * cols, 3.0), cols, &mut a);
    (matrix, a, bias)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn finishing_gives_the_bits_of_linear_and_a_flipped_bit_is_always_seen(
        rows in 1usize..200, cols in 1usize..300, m in 1usize..20, seed: u64, pad in 0usize..3, flip: u64,
    ) {
        let (matrix, a, bias) = case(seed, rows, cols, m);
        let bias = (seed % 3 != 0).then_some(bias.as_slice());
        let pool = Pool::new(2);
        let acc = accumulate(&matrix, &a);
        let surface = (m + pad) * 4;
        let surfaces = cube(&acc, m, rows, surface);
        for kernels in tables() {
            let mut expected = vec![0.0; m * rows];
            kernels.linear(&pool, &a, &mut [job(&matrix, bias, &mut expected)]);
            let columns = kernels.checksum(&pool, &matrix.view());
            let views = [
                Accumulators { values: &acc, row_stride: rows, group_stride: 4 },
                Accumulators { values: &surfaces, row_stride: 4, group_stride: surface },
            ];
            for view in &views {
                let mut out = vec![7.0; m * rows];
                prop_assert!(kernels.finish(&pool, &a, view, &mut job(&matrix, bias, &mut out), Some(&columns)));
                prop_assert_eq!(bits(&out), bits(&expected));
            }
            let mut wrong = acc.clone();
            wrong[flip as usize % acc.len()] ^= 1 << (flip >> 59);
            let view = Accumulators { values: &wrong, ..views[0] };
            let mut out = vec![0.0; m * rows];
            prop_assert!(!kernels.finish(&pool, &a, &view, &mut job(&matrix, bias, &mut out), Some(&columns)));
            prop_assert!(kernels.finish(&pool, &a, &view, &mut job(&matrix, bias, &mut out), None));
        }
    }

    #[test]
    fn parts_and_expanded_weights_are_the_same_weights(
        rows in 1usize..260, cols in 1usize..200, m in 1usize..4, seed: u64, cut in 0usize..5,
    ) {
        let (matrix, a, _) = case(seed | 1, rows, cols, m);
        let (pool, kernels) = (Pool::new(2), Kernels::detect());
        let mut expected = vec![0.0; m * rows];
        kernels.linear(&pool, &a, &mut [job(&matrix, None, &mut expected)]);
        let cut = (cut * 64).min(rows);
        let mut out = vec![0.0; m * rows];
        for part in [0..cut, cut..rows] {
            let first = part.start;
            let weights = matrix.view().part(part);
            kernels.linear(&pool, &a, &mut [LinearJob { weights, bias: None, out: &mut out, out_stride: rows, out_column: first }]);
        }
        prop_assert_eq!(bits(&out), bits(&expected));

        let mut expanded = vec![1; 2 * tiles::w4_len(rows, cols)];
        kernels.expand_w4(&pool, &matrix.view(), &mut expanded);
        let mut values = vec![0; rows * cols];
        tiles::unpack_w8(rows, cols, &tiles::signed(&expanded)[..tiles::w8_len(rows, cols)], &mut values);
        prop_assert_eq!(values, matrix.values);
    }
}

#[test]
fn every_table_gives_the_same_checksum() {
    for seed in [2, 3] {
        let (matrix, ..) = case(seed, 170, 333, 1);
        let expected: Vec<u32> = (0..333)
            .map(|k| {
                let products = (0..170).map(|n| {
                    (i32::from(matrix.values[n * 333 + k]) as u32).wrapping_mul(crate::checksum::factor(n))
                });
                products.fold(0, u32::wrapping_add)
            })
            .collect();
        for kernels in tables() {
            for threads in [1, 3] {
                assert_eq!(kernels.checksum(&Pool::new(threads), &matrix.view()), expected, "{kernels:?}");
            }
        }
    }
}

#[test]
fn factors_are_odd() {
    assert!((0..100_000).all(|n| crate::checksum::factor(n) % 2 == 1));
}

#[test]
#[should_panic(expected = "finish: 9 accumulators are not 1 rows of 10")]
fn accumulators_that_are_too_few_are_refused() {
    let (matrix, a, _) = case(2, 10, 4, 1);
    let acc = Accumulators { values: &[0; 9], row_stride: 10, group_stride: 4 };
    let _ = Kernels::detect().finish(&Pool::new(1), &a, &acc, &mut job(&matrix, None, &mut [0.0; 10]), None);
}
