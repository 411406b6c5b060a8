//! Scalar reference products and seeded test values: what every device result is compared with.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::layout::weights::W4_GROUP;
use crate::shape::MatmulShape;

/// A counter-based generator: value `i` of a seed is a pure function of both (the splitmix64 finaliser,
/// Steele, Lea & Flood 2014), so a test's data can be made again from two numbers.
#[derive(Clone, Debug)]
pub struct Generator {
    seed: u64,
    counter: u64,
}

impl Generator {
    /// The stream of a seed, from its beginning.
    pub const fn new(seed: u64) -> Self {
        Generator { seed, counter: 0 }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        let mut z =
            self.counter.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.seed.wrapping_mul(0xD134_2543_DE82_EF95);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for a bound of 0); its bias is below bound/2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// int8 values over the whole range −128…127.
    pub fn int8(&mut self, len: usize) -> Vec<i8> {
        let mut out = vec![0; len];
        for values in out.chunks_mut(8) {
            for (value, byte) in values.iter_mut().zip(self.next_u64().to_le_bytes()) {
                *value = byte as i8;
            }
        }
        out
    }

    /// Values −8…7.
    pub fn int4(&mut self, len: usize) -> Vec<i8> {
        let mut out = self.int8(len);
        for value in &mut out {
            *value >>= 4;
        }
        out
    }

    /// binary16 values, multiples of 1/512 of magnitude up to 2: sums of up to 2^20 of their products are
    /// exact in binary64, so that no order of additions matters before the one rounding to binary32.
    pub fn fp16(&mut self, len: usize) -> Vec<f16> {
        let mut out = vec![f16::ZERO; len];
        for values in out.chunks_mut(4) {
            for (value, bits) in values.iter_mut().zip(self.next_u64().to_le_bytes().as_chunks::<2>().0) {
                let code = i16::from_le_bytes(*bits) >> 5;
                *value = f16::from_f32(f32::from(code) / 512.0);
            }
        }
        out
    }
}

/// `[M][N]` of an integer product: `a` is `[M][K]`, `w` is `[N][K]`, both row-major.
///
/// # Panics
/// When a slice does not match the shape.
pub fn matmul_int(shape: &MatmulShape, a: &[i8], w: &[i8]) -> Vec<i32> {
    check(shape, a.len(), w.len());
    let widen = |values: &[i8]| -> Vec<i16> { values.iter().map(|&value| i16::from(value)).collect() };
    let a = widen(a);
    let mut out = vec![0; shape.rows * shape.outputs];
    for (n, w) in w.chunks_exact(shape.inner).enumerate() {
        let w = widen(w);
        for (m, a) in a.chunks_exact(shape.inner).enumerate() {
            let products = a.iter().zip(&w).map(|(&a, &w)| i32::from(a) * i32::from(w));
            out[m * shape.outputs + n] = products.sum();
        }
    }
    out
}

/// `[M][N]` of an fp16 product: each of `slices` of K is summed in binary64 in the order of K and rounded to
/// binary32, as the simulator does by default; the slices are then added in binary32, in order, as the host
/// does.
///
/// # Panics
/// When a slice does not match the shape.
pub fn matmul_f16(shape: &MatmulShape, a: &[f16], w: &[f16], slices: &[Range<usize>]) -> Vec<f32> {
    check(shape, a.len(), w.len());
    let widen = |values: &[f16]| {
        let mut single = vec![0f32; values.len()];
        values.convert_to_f32_slice(&mut single);
        single
    };
    let a = widen(a);
    let mut out = vec![0.0; shape.rows * shape.outputs];
    for (n, w) in w.chunks_exact(shape.inner).enumerate() {
        let w = widen(w);
        for (m, a) in a.chunks_exact(shape.inner).enumerate() {
            let sums = slices.iter().map(|slice| {
                let pairs = a[slice.clone()].iter().zip(&w[slice.clone()]);
                pairs.fold(0f64, |sum, (&a, &w)| sum + f64::from(a) * f64::from(w)) as f32
            });
            out[m * shape.outputs + n] = sums.reduce(|sum, part| sum + part).unwrap_or(0.0);
        }
    }
    out
}

/// The int8 weights of a `w4` matrix: `[N][K]` values times `[N][ceil(K / 128)]` multipliers.
///
/// # Panics
/// When a slice does not match the sizes.
pub fn expand_w4(outputs: usize, inner: usize, values: &[i8], multipliers: &[u8]) -> Vec<i8> {
    let groups = inner.div_ceil(W4_GROUP);
    assert_eq!((values.len(), multipliers.len()), (outputs * inner, outputs * groups), "a w4 matrix");
    let rows = values.chunks_exact(inner).zip(multipliers.chunks_exact(groups));
    let expanded = rows.flat_map(|(values, multipliers)| {
        values.iter().enumerate().map(|(k, &value)| value * (multipliers[k / W4_GROUP] & 15) as i8)
    });
    expanded.collect()
}

fn check(shape: &MatmulShape, a: usize, w: usize) {
    assert_eq!(a, shape.rows * shape.inner, "values of A of {shape}");
    assert_eq!(w, shape.outputs * shape.inner, "values of W of {shape}");
}
