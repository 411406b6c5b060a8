//! Sixteen f32 lanes on every instruction set, so that each f32 kernel is written once.
//!
//! A value of a type that implements [`Simd`] is the proof that the CPU has the instructions: its constructor
//! is unsafe, everything after it is safe. The methods are `inline(always)` and carry no target feature
//! themselves; they are compiled inside the `#[target_feature]` functions of `float::table`, where the
//! intrinsics become single instructions. Each method is one IEEE operation per lane (or says otherwise), so
//! the bits are the same everywhere; NaN is one value, its payload is not promised.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

/// Lanes of a [`Simd`] vector.
pub(crate) const LANES: usize = 16;

/// Proof of an instruction set, and its operations on 16 f32 lanes.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes.
    type V: Copy;
    /// Vectors that attention keeps in accumulators at once, within the register file.
    const ROWS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// Loads 16 values.
    fn load(self, from: &[f32; LANES]) -> Self::V;
    /// Stores 16 values.
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    /// Loads 16 binary16 values, exactly.
    fn load_f16(self, from: &[u16; LANES]) -> Self::V;
    /// Loads 16 bytes, exactly.
    fn load_i8(self, from: &[i8; LANES]) -> Self::V;
    /// Loads 16 integers, rounded to nearest even.
    fn load_i32(self, from: &[i32; LANES]) -> Self::V;
    /// Stores integral lanes of −127…127 as bytes.
    fn store_i8(self, v: Self::V, to: &mut [i8; LANES]);
    /// a + b.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a − b.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a > b ? a : b (so a NaN in either gives b).
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// a < b ? a : b (so a NaN in either gives b).
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// 2^a for integral a in −126…127; unspecified but harmless elsewhere.
    fn pow2(self, a: Self::V) -> Self::V;
    /// The greater of |a| and b ≥ 0, compared as bits, so that NaN is greatest and never lost.
    fn max_magnitude(self, a: Self::V, b: Self::V) -> Self::V;

    /// For each pair of lanes (i, i + STRIDE) with i / STRIDE even: a + b in the lower, a − b in the upper. STRIDE is
    /// 8, 4, 2 or 1.
    fn butterfly<const STRIDE: usize>(self, v: Self::V) -> Self::V;

    /// Sum of the lanes by the fixed tree: halves added until one is left (i + i+8, i + i+4, i + i+2, 0 + 1).
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// Loads up to 16 values; the other lanes are `fill`.
    #[inline(always)]
    fn load_part(self, from: &[f32], fill: f32) -> Self::V {
        if let Ok(whole) = from.try_into() {
            return self.load(whole);
        }
        let mut lanes = [fill; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Stores the first `to.len()` (at most 16) lanes.
    #[inline(always)]
    fn store_part(self, v: Self::V, to: &mut [f32]) {
        if let Ok(whole) = (&mut *to).try_into() {
            return self.store(v, whole);
        }
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}
