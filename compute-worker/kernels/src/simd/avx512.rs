//! [`Simd`] on AVX-512: one register per vector.

use std::arch::x86_64::*;

use super::{LANES, Simd};

/// Proof of AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU and the system support AVX-512 F, BW, DQ and VL.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

/// One or more intrinsics that need AVX-512 and read or write no memory but through the arrays given.
macro_rules! isa {
    ($e:expr) => {
        // SAFETY: a value of `Avx512` exists (the method's self), so the instructions do; pointers come from
        // references to arrays of exactly the accessed size.
        unsafe { $e }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    const ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        isa!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        isa!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        isa!(_mm512_storeu_ps(to.as_mut_ptr(), v))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        isa!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        isa!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> __m512 {
        isa!(_mm512_cvtepi32_ps(_mm512_loadu_si512(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn store_i8(self, v: __m512, to: &mut [i8; LANES]) {
        isa!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        isa!(_mm512_fmadd_ps(a, b, c))
    }

    // `vmaxps` and `vminps` give the second operand when the comparison is false, as the trait asks.
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        isa!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn pow2(self, a: __m512) -> __m512 {
        isa!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            _mm512_cvtps_epi32(a),
            _mm512_set1_epi32(127)
        ))))
    }

    #[inline(always)]
    fn max_magnitude(self, a: __m512, b: __m512) -> __m512 {
        isa!({
            let magnitude = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fff_ffff));
            _mm512_castsi512_ps(_mm512_max_epu32(magnitude, _mm512_castps_si512(b)))
        })
    }

    #[inline(always)]
    fn butterfly<const STRIDE: usize>(self, v: __m512) -> __m512 {
        let (other, upper) = match STRIDE {
            8 => (isa!(_mm512_shuffle_f32x4::<0b01_00_11_10>(v, v)), 0xff00),
            4 => (isa!(_mm512_shuffle_f32x4::<0b10_11_00_01>(v, v)), 0xf0f0),
            2 => (isa!(_mm512_permute_ps::<0b01_00_11_10>(v)), 0xcccc),
            _ => (isa!(_mm512_permute_ps::<0b10_11_00_01>(v)), 0xaaaa),
        };
        isa!(_mm512_mask_sub_ps(_mm512_add_ps(v, other), upper, other, v))
    }
}
