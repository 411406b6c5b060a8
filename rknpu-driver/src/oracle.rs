//! Scalar reference products and seeded test values: what every device result is compared with.

use half::f16;

use crate::shape::MatmulShape;

/// A counter-based generator: value `i` of a seed is a pure function of both (the splitmix64 finaliser, Steele,
/// Lea & Flood 2014), so a test's data can be made again from two numbers.
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
        (0..len).map(|_| (self.next_u64() >> 56) as i8).collect()
    }

    /// Values −8…7.
    pub fn int4(&mut self, len: usize) -> Vec<i8> {
        (0..len).map(|_| (self.next_u64() >> 60) as i8 - 8).collect()
    }

    /// binary16 values of magnitude below 2.
    pub fn fp16(&mut self, len: usize) -> Vec<f16> {
        (0..len).map(|_| f16::from_f32(((self.next_u64() >> 48) as f32 - 32768.0) / 16384.0)).collect()
    }
}

/// `[M][N]` of an integer product: `a` is `[M][K]`, `w` is `[N][K]`, both row-major.
///
/// # Panics
/// When a slice does not match the shape.
pub fn matmul_int(shape: &MatmulShape, a: &[i8], w: &[i8]) -> Vec<i32> {
    assert_eq!(a.len(), shape.rows * shape.inner, "matmul_int: A of {shape}");
    assert_eq!(w.len(), shape.outputs * shape.inner, "matmul_int: W of {shape}");
    let mut out = Vec::with_capacity(shape.rows * shape.outputs);
    for a in a.chunks_exact(shape.inner) {
        for w in w.chunks_exact(shape.inner) {
            out.push(a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum());
        }
    }
    out
}
