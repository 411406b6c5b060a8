use proptest::prelude::*;

use super::{Matrix, Random, bits, tables};
use crate::{Activations, Kernels, LinearJob, Pool};

/// The definition, from row-major values in i64.
fn expected(matrix: &Matrix, a: &Activations, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = Vec::with_capacity(a.rows() * matrix.rows);
    for m in 0..a.rows() {
        for (n, row) in matrix.values.chunks_exact(matrix.cols).enumerate() {
            let acc: i32 = row.iter().zip(a.row(m)).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
            let t = acc as f32 * a.scale(m);
            out.push(bias.map_or(t * matrix.scales[n], |bias| t.mul_add(matrix.scales[n], bias[n])));
        }
    }
    out
}

fn product(
    kernels: &Kernels,
    pool: &Pool,
    matrix: &Matrix,
    a: &Activations,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut out = vec![7.0; a.rows() * matrix.rows];
    let job =
        LinearJob { weights: matrix.view(), bias, out: &mut out, out_stride: matrix.rows, out_column: 0 };
    kernels.linear(pool, a, &mut [job]);
    out
}

fn quantized(kernels: &Kernels, pool: &Pool, x: &[f32], cols: usize) -> Activations {
    let mut a = Activations::new();
    kernels.quantize(pool, x, cols, &mut a);
    a
}

fn w8_value(random: &mut Random) -> i8 {
    random.int(-127, 127) as i8
}

fn w4_value(random: &mut Random) -> i8 {
    random.int(-8, 7) as i8
}

fn multiplier(random: &mut Random) -> u8 {
    random.int(1, 15) as u8
}

#[test]
fn every_table_gives_the_defined_bits_at_awkward_shapes() {
    let mut random = Random(1);
    let pools = [Pool::new(1), Pool::new(3)];
    let tables = tables();
    for cols in [1, 31, 32, 33, 127, 129, 896] {
        for rows in [1, 31, 33, 63, 65, 130] {
            let w8 = Matrix::w8(rows, cols, &mut random, w8_value);
            let w4 = Matrix::w4(rows, cols, &mut random, w4_value, multiplier);
            let bias = random.floats(rows, 3.0);
            // All sizes at one shape, and elsewhere those that differ in path or tail on some table.
            let all = rows == 65 && cols == 129;
            let few = [1, 2, 3, 4, 5, 8, 17, 33].into_iter().filter(|_| !all);
            for m in (1..=17).chain([64, 97, 100]).filter(|_| all).chain(few) {
                let x = random.floats(m * cols, 5.0);
                let a = quantized(tables[0], &pools[0], &x, cols);
                for (matrix, bias) in [(&w8, None), (&w8, Some(&*bias)), (&w4, None)] {
                    let expected = bits(&expected(matrix, &a, bias));
                    for kernels in &tables {
                        let out = product(kernels, &pools[m % 2], matrix, &a, bias);
                        assert!(
                            bits(&out) == expected,
                            "{kernels:?} N={rows} K={cols} M={m} {}",
                            bias.is_some()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn sums_are_exact_at_the_limits_of_the_formats() {
    let mut random = Random(2);
    let pool = Pool::new(2);
    // 133,144 is the largest K; all products ±127·127 there reach 2,147,438,... just below 2^31.
    for (cols, sign) in [(4864, 1), (4864, -1), (133_144, 1), (133_144, -1)] {
        let w8 = Matrix::w8(3, cols, &mut random, |_| 127 * sign);
        let low = Matrix::w4(3, cols, &mut random, |_| -8, |_| 15);
        let high = Matrix::w4(3, cols, &mut random, |_| 7, |_| 15);
        for m in [1, 3, 5] {
            let a = quantized(Kernels::detect(), &pool, &vec![1.0; m * cols], cols);
            for matrix in [&w8, &low, &high] {
                for kernels in tables() {
                    let out = product(kernels, &pool, matrix, &a, None);
                    assert_eq!(bits(&out), bits(&expected(matrix, &a, None)), "{kernels:?} K={cols} M={m}");
                }
            }
        }
    }
}

#[test]
fn weights_that_break_the_format_give_the_same_integers_everywhere() {
    // −128 and multipliers with high bits never come from the packer, but may come from a hostile file.
    let mut random = Random(3);
    let pool = Pool::new(1);
    let w8 = Matrix::w8(65, 200, &mut random, |random| if random.next() % 2 == 0 { -128 } else { 127 });
    let mut w4 = Matrix::w4(65, 200, &mut random, w4_value, multiplier);
    if let super::Form::W4(_, multipliers) = &mut w4.form {
        multipliers.iter_mut().for_each(|m| *m |= 0xa0);
    }
    for m in [1, 2, 3, 4, 5, 30] {
        let a = quantized(Kernels::detect(), &pool, &random.floats(m * 200, 1.0), 200);
        for matrix in [&w8, &w4] {
            for kernels in tables() {
                let out = product(kernels, &pool, matrix, &a, None);
                assert_eq!(bits(&out), bits(&expected(matrix, &a, None)), "{kernels:?} M={m}");
            }
        }
    }
}

#[test]
fn several_jobs_write_their_own_columns_only() {
    let mut random = Random(4);
    let pool = Pool::new(2);
    let matrices: Vec<Matrix> = (0..10).map(|i| Matrix::w8(40 + i * 9, 96, &mut random, w8_value)).collect();
    let x = random.floats(5 * 96, 1.0);
    for kernels in tables() {
        let a = quantized(kernels, &pool, &x, 96);
        let mut outs: Vec<Vec<f32>> = matrices.iter().map(|m| vec![7.0; 5 * (m.rows + 11)]).collect();
        let mut jobs: Vec<LinearJob<'_>> = matrices
            .iter()
            .zip(&mut outs)
            .map(|(m, out)| LinearJob {
                weights: m.view(),
                bias: None,
                out,
                out_stride: m.rows + 11,
                out_column: 4,
            })
            .collect();
        kernels.linear(&pool, &a, &mut jobs);
        for (matrix, out) in matrices.iter().zip(&outs) {
            let alone = product(kernels, &pool, matrix, &a, None);
            for (row, alone) in out.chunks_exact(matrix.rows + 11).zip(alone.chunks_exact(matrix.rows)) {
                assert_eq!(bits(&row[4..4 + matrix.rows]), bits(alone), "{kernels:?}");
                assert!(row[..4].iter().chain(&row[4 + matrix.rows..]).all(|&v| v == 7.0), "{kernels:?}");
            }
        }
    }
}

#[test]
fn quantisation_is_the_same_everywhere_and_as_documented() {
    let mut random = Random(5);
    let pool = Pool::new(2);
    for cols in [1, 15, 16, 17, 64, 100, 896] {
        let mut x = random.floats(40 * cols, 10.0);
        x[..cols].fill(0.0);
        x[cols..2 * cols].fill(-0.0);
        x[2 * cols..3 * cols].fill(1e-37);
        x[3 * cols..4 * cols].fill(f32::MAX);
        x[4 * cols + cols / 2] = f32::NAN;
        x[5 * cols + cols - 1] = f32::NEG_INFINITY;
        x[6 * cols..7 * cols].iter_mut().enumerate().for_each(|(i, x)| *x = [127.0, 0.5, 1.5, 2.5][i % 4]);
        let first = quantized(Kernels::detect(), &pool, &x, cols);
        for kernels in tables() {
            let a = quantized(kernels, &pool, &x, cols);
            for m in 0..40 {
                assert_eq!(a.row(m), first.row(m), "{kernels:?} K={cols} row {m}");
                assert_eq!(bits(&[a.scale(m)]), bits(&[first.scale(m)]), "{kernels:?} K={cols} row {m}");
                assert_eq!(a.sums()[m], a.row(m).iter().map(|&v| i32::from(v)).sum::<i32>());
            }
        }
        for m in 0..3 {
            assert!(first.scale(m) == 0.0 && first.row(m).iter().all(|&v| v == 0), "row {m}");
        }
        for m in [4, 5] {
            assert!(first.scale(m).is_nan() && first.row(m).iter().all(|&v| v == 0), "row {m}");
        }
        assert!(!first.is_finite());
        assert!(first.row(3).iter().all(|&v| v == 127));
        assert_eq!(first.row(6)[..cols.min(4)], [127, 0, 2, 2][..cols.min(4)]);
    }
}

#[test]
fn rows_that_are_int8_already_are_as_quantised_ones() {
    let mut random = Random(8);
    let pool = Pool::new(2);
    for (m, cols) in [(0, 5), (1, 1), (3, 64), (2, 65), (19, 200), (4, 0)] {
        let x = random.floats(m * cols, 4.0);
        let matrix = Matrix::w8(70, cols.max(1), &mut random, w8_value);
        for kernels in tables() {
            let a = quantized(kernels, &pool, &x, cols.max(1));
            if cols == 0 {
                assert_eq!(Activations::from_rows(0, &[], &[0.5; 4]).rows(), m);
                continue;
            }
            let values: Vec<i8> = (0..m).flat_map(|row| a.row(row)).copied().collect();
            let scales: Vec<f32> = (0..m).map(|row| a.scale(row)).collect();
            let b = Activations::from_rows(cols, &values, &scales);
            assert_eq!([b.rows(), b.cols()], [m, cols]);
            assert_eq!([a.values(), b.values()].map(<[i8]>::len), [m * a.stride(); 2]);
            assert_eq!((a.values(), a.sums()), (b.values(), b.sums()));
            let [y, z] = [&a, &b].map(|a| bits(&product(kernels, &pool, &matrix, a, None)));
            assert_eq!(y, z, "{kernels:?} {m} rows of {cols}");
        }
    }
}

#[test]
#[should_panic(expected = "activations: a value is −128")]
fn a_value_without_a_negative_is_refused() {
    Activations::from_rows(2, &[1, -127, -128, 127], &[1.0; 2]);
}

#[test]
#[should_panic(expected = "activations: 7 values are not 2 rows of 4")]
fn rows_that_are_not_whole_are_refused() {
    Activations::from_rows(4, &[0; 7], &[1.0; 2]);
}

#[test]
fn a_row_that_is_not_finite_spoils_itself_only() {
    let mut random = Random(6);
    let pool = Pool::new(1);
    let matrix = Matrix::w8(70, 64, &mut random, w8_value);
    let clean = random.floats(6 * 64, 1.0);
    let mut dirty = clean.clone();
    dirty[2 * 64 + 9] = f32::INFINITY;
    for kernels in tables() {
        let good = product(kernels, &pool, &matrix, &quantized(kernels, &pool, &clean, 64), None);
        let bad = product(kernels, &pool, &matrix, &quantized(kernels, &pool, &dirty, 64), None);
        assert!(bad[2 * 70..3 * 70].iter().all(|v| v.is_nan()), "{kernels:?}");
        assert_eq!(bits(&bad[..2 * 70]), bits(&good[..2 * 70]), "{kernels:?}");
        assert_eq!(bits(&bad[3 * 70..]), bits(&good[3 * 70..]), "{kernels:?}");
    }
}

#[test]
fn embedding_rows_are_the_dequantised_weights() {
    let mut random = Random(7);
    for matrix in
        [Matrix::w8(70, 300, &mut random, w8_value), Matrix::w4(70, 300, &mut random, w4_value, multiplier)]
    {
        let mut out = vec![0.0; 300];
        for row in [0, 31, 64, 69] {
            Kernels::detect().embed_row(&matrix.view(), row, &mut out);
            let expected: Vec<f32> = matrix.values[row * 300..(row + 1) * 300]
                .iter()
                .map(|&v| f32::from(v) * matrix.scales[row])
                .collect();
            assert_eq!(bits(&out), bits(&expected));
        }
    }
}

#[test]
#[should_panic(expected = "linear: output of 9 is too short")]
fn an_output_that_is_too_short_is_refused() {
    let pool = Pool::new(1);
    let matrix = Matrix::w8(10, 4, &mut Random(8), w8_value);
    let a = quantized(Kernels::detect(), &pool, &[1.0; 4], 4);
    let mut out = [0.0; 9];
    let job = LinearJob { weights: matrix.view(), bias: None, out: &mut out, out_stride: 10, out_column: 0 };
    Kernels::detect().linear(&pool, &a, &mut [job]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_gives_the_defined_bits(rows in 1usize..150, cols in 1usize..200, m in 1usize..20, seed: u64) {
        let mut random = Random(seed);
        let pool = Pool::new(2);
        let matrix = if seed % 2 == 0 {
            Matrix::w8(rows, cols, &mut random, w8_value)
        } else {
            Matrix::w4(rows, cols, &mut random, w4_value, multiplier)
        };
        let x = random.floats(m * cols, 1.0);
        for kernels in tables() {
            let a = quantized(kernels, &pool, &x, cols);
            let out = product(kernels, &pool, &matrix, &a, None);
            prop_assert_eq!(bits(&out), bits(&expected(&matrix, &a, None)));
        }
    }
}
