//! One shared, seeded suite: every table that can run here against the scalar oracle, bit for bit.

mod attention;
mod digest;
mod finish;
mod float;
mod gemm;
mod hadamard;
mod linear;

use crate::{Kernels, tiles};

/// Tables under test: all that this machine can run, and AMX over emulated tiles.
fn tables() -> Vec<&'static Kernels> {
    let mut tables = Kernels::available();
    tables.push(crate::kernels::emulated_amx());
    println!("tables under test: {tables:?}");
    tables
}

/// A small deterministic generator (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −scale…scale.
    fn float(&mut self, scale: f32) -> f32 {
        ((self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale
    }

    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(scale)).collect()
    }

    /// Uniform in low…high.
    fn int(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }
}

/// Bits with every NaN alike: payloads are not part of the contract.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
}

/// A matrix with everything that a view of it needs.
struct Matrix {
    rows: usize,
    cols: usize,
    /// Row-major int8 weights, multipliers applied.
    values: Vec<i8>,
    form: Form,
    scales: Vec<f32>,
    row_sums: Vec<i32>,
}

enum Form {
    W8(Vec<i8>),
    W4(Vec<u8>, Vec<u8>),
}

impl Matrix {
    fn w8(rows: usize, cols: usize, random: &mut Random, mut value: impl FnMut(&mut Random) -> i8) -> Matrix {
        let values: Vec<i8> = (0..rows * cols).map(|_| value(random)).collect();
        let mut packed = vec![0; tiles::w8_len(rows, cols)];
        tiles::pack_w8(rows, cols, &values, &mut packed);
        Matrix::with(rows, cols, values, Form::W8(packed), random)
    }

    fn w4(
        rows: usize,
        cols: usize,
        random: &mut Random,
        mut value: impl FnMut(&mut Random) -> i8,
        mut multiplier: impl FnMut(&mut Random) -> u8,
    ) -> Matrix {
        let mut values: Vec<i8> = (0..rows * cols).map(|_| value(random)).collect();
        let groups = cols.div_ceil(tiles::W4_GROUP);
        let multipliers: Vec<u8> = (0..rows * groups).map(|_| multiplier(random)).collect();
        let mut packed = vec![0; tiles::w4_len(rows, cols)];
        tiles::pack_w4(rows, cols, &values, &mut packed);
        for (i, value) in values.iter_mut().enumerate() {
            *value *= multipliers[i / cols * groups + i % cols / tiles::W4_GROUP] as i8;
        }
        Matrix::with(rows, cols, values, Form::W4(packed, multipliers), random)
    }

    fn with(rows: usize, cols: usize, values: Vec<i8>, form: Form, random: &mut Random) -> Matrix {
        let scales = (0..rows).map(|_| random.float(0.01).abs() + 1e-4).collect();
        let row_sums = values.chunks_exact(cols).map(|row| row.iter().map(|&v| i32::from(v)).sum()).collect();
        Matrix { rows, cols, values, form, scales, row_sums }
    }

    fn view(&self) -> crate::Weights<'_> {
        let Matrix { rows, cols, scales, row_sums, .. } = self;
        let (rows, cols) = (*rows, *cols);
        match &self.form {
            Form::W8(tiles) => crate::Weights::W8(crate::W8 { rows, cols, tiles, scales, row_sums }),
            Form::W4(tiles, multipliers) => {
                crate::Weights::W4(crate::W4 { rows, cols, tiles, multipliers, scales, row_sums })
            }
        }
    }
}
