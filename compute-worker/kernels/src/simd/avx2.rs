//! [`Simd`] on AVX2 with FMA and F16C: two registers per vector.

use std::arch::x86_64::*;

use super::{LANES, Simd};

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU and the system support AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

/// One or more intrinsics that need AVX2, FMA or F16C and touch no memory but the arrays given.
macro_rules! isa {
    ($e:expr) => {
        // SAFETY: a value of `Avx2` exists (the method's self), so the instructions do; pointers come from
        // references to arrays of 16 elements, of which the first and the second 8 are accessed.
        unsafe { $e }
    };
}

/// The same intrinsic on both halves.
macro_rules! both {
    ($f:ident, $($v:ident),+) => {
        isa!(Two($f($($v.0),+), $f($($v.1),+)))
    };
}

/// Lanes 0–7 and 8–15.
#[derive(Clone, Copy)]
pub(crate) struct Two(__m256, __m256);

impl Simd for Avx2 {
    type V = Two;
    const ROWS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Two {
        isa!(Two(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Two {
        isa!(Two(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))))
    }

    #[inline(always)]
    fn store(self, v: Two, to: &mut [f32; LANES]) {
        isa!({
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Two {
        isa!({
            let (low, high) = (from.as_ptr().cast(), from.as_ptr().add(8).cast());
            Two(_mm256_cvtph_ps(_mm_loadu_si128(low)), _mm256_cvtph_ps(_mm_loadu_si128(high)))
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Two {
        isa!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            Two(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        })
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Two {
        isa!({
            let (low, high) = (from.as_ptr().cast(), from.as_ptr().add(8).cast());
            Two(_mm256_cvtepi32_ps(_mm256_loadu_si256(low)), _mm256_cvtepi32_ps(_mm256_loadu_si256(high)))
        })
    }

    #[inline(always)]
    fn store_i8(self, v: Two, to: &mut [i8; LANES]) {
        isa!({
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
        })
    }

    #[inline(always)]
    fn add(self, a: Two, b: Two) -> Two {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Two, b: Two) -> Two {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Two, b: Two) -> Two {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Two, b: Two) -> Two {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Two, b: Two, c: Two) -> Two {
        both!(_mm256_fmadd_ps, a, b, c)
    }

    // `vmaxps` and `vminps` give the second operand when the comparison is false, as the trait asks.
    #[inline(always)]
    fn max(self, a: Two, b: Two) -> Two {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Two, b: Two) -> Two {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn round(self, a: Two) -> Two {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        isa!(Two(_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)))
    }

    #[inline(always)]
    fn pow2(self, a: Two) -> Two {
        isa!({
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(a.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(a.1), bias));
            Two(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        })
    }

    #[inline(always)]
    fn max_magnitude(self, a: Two, b: Two) -> Two {
        isa!({
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
            let max = |a, b| {
                _mm256_castsi256_ps(_mm256_max_epu32(
                    _mm256_castps_si256(_mm256_and_ps(a, mask)),
                    _mm256_castps_si256(b),
                ))
            };
            Two(max(a.0, b.0), max(a.1, b.1))
        })
    }

    #[inline(always)]
    fn butterfly<const STRIDE: usize>(self, v: Two) -> Two {
        if STRIDE == 8 {
            return isa!(Two(_mm256_add_ps(v.0, v.1), _mm256_sub_ps(v.0, v.1)));
        }
        let swap = |v| match STRIDE {
            4 => isa!(_mm256_permute2f128_ps::<0x01>(v, v)),
            2 => isa!(_mm256_permute_ps::<0b01_00_11_10>(v)),
            _ => isa!(_mm256_permute_ps::<0b10_11_00_01>(v)),
        };
        let join = |plus, minus| match STRIDE {
            4 => isa!(_mm256_blend_ps::<0b1111_0000>(plus, minus)),
            2 => isa!(_mm256_blend_ps::<0b1100_1100>(plus, minus)),
            _ => isa!(_mm256_blend_ps::<0b1010_1010>(plus, minus)),
        };
        let half = |v| {
            let other = swap(v);
            join(isa!(_mm256_add_ps(v, other)), isa!(_mm256_sub_ps(other, v)))
        };
        Two(half(v.0), half(v.1))
    }
}
