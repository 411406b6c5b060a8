//! [`Simd`] on AArch64: four registers per vector.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, Simd};

/// Proof of Advanced SIMD, which every AArch64 target of Rust's has.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU supports Advanced SIMD.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Neon(())
    }
}

/// One or more intrinsics that touch no memory but the arrays given.
macro_rules! isa {
    ($e:expr) => {
        // SAFETY: a value of `Neon` exists (the method's self), so the instructions do; pointers come from
        // references to arrays of 16 elements, of which 4 at i·4, i < 4, are accessed.
        unsafe { $e }
    };
}

/// Lanes 0–3, 4–7, 8–11 and 12–15.
#[derive(Clone, Copy)]
pub(crate) struct Four([float32x4_t; 4]);

/// An expression for each quarter i.
macro_rules! each {
    ($i:ident => $e:expr) => {
        isa!(Four([
            { const $i: usize = 0; $e },
            { const $i: usize = 1; $e },
            { const $i: usize = 2; $e },
            { const $i: usize = 3; $e },
        ]))
    };
}

impl Simd for Neon {
    type V = Four;
    const ROWS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Four {
        isa!(Four([vdupq_n_f32(x); 4]))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Four {
        each!(I => vld1q_f32(from.as_ptr().add(4 * I)))
    }

    #[inline(always)]
    fn store(self, v: Four, to: &mut [f32; LANES]) {
        for (i, v) in v.0.into_iter().enumerate() {
            isa!(vst1q_f32(to.as_mut_ptr().add(4 * i), v));
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Four {
        each!(I => widen(vld1_u16(from.as_ptr().add(4 * I))))
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Four {
        isa!({
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            let words = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            Four(words.map(|word| vcvtq_f32_s32(vmovl_s16(word))))
        })
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Four {
        each!(I => vcvtq_f32_s32(vld1q_s32(from.as_ptr().add(4 * I))))
    }

    #[inline(always)]
    fn store_i8(self, v: Four, to: &mut [i8; LANES]) {
        isa!({
            let [a, b, c, d] = v.0.map(|v| vmovn_s32(vcvtq_s32_f32(v)));
            let (low, high) = (vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d)));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(low, high));
        })
    }

    #[inline(always)]
    fn add(self, a: Four, b: Four) -> Four {
        each!(I => vaddq_f32(a.0[I], b.0[I]))
    }

    #[inline(always)]
    fn sub(self, a: Four, b: Four) -> Four {
        each!(I => vsubq_f32(a.0[I], b.0[I]))
    }

    #[inline(always)]
    fn mul(self, a: Four, b: Four) -> Four {
        each!(I => vmulq_f32(a.0[I], b.0[I]))
    }

    #[inline(always)]
    fn div(self, a: Four, b: Four) -> Four {
        each!(I => vdivq_f32(a.0[I], b.0[I]))
    }

    #[inline(always)]
    fn fma(self, a: Four, b: Four, c: Four) -> Four {
        each!(I => vfmaq_f32(c.0[I], a.0[I], b.0[I]))
    }

    // `fmax` would prefer numbers to NaN or the reverse; compare and select is what the trait says.
    #[inline(always)]
    fn max(self, a: Four, b: Four) -> Four {
        each!(I => vbslq_f32(vcgtq_f32(a.0[I], b.0[I]), a.0[I], b.0[I]))
    }

    #[inline(always)]
    fn min(self, a: Four, b: Four) -> Four {
        each!(I => vbslq_f32(vcltq_f32(a.0[I], b.0[I]), a.0[I], b.0[I]))
    }

    #[inline(always)]
    fn round(self, a: Four) -> Four {
        each!(I => vrndnq_f32(a.0[I]))
    }

    #[inline(always)]
    fn pow2(self, a: Four) -> Four {
        each!(I => vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(a.0[I]), vdupq_n_s32(127)))))
    }

    #[inline(always)]
    fn max_magnitude(self, a: Four, b: Four) -> Four {
        each!(I => vreinterpretq_f32_u32(vmaxq_u32(
            vreinterpretq_u32_f32(vabsq_f32(a.0[I])),
            vreinterpretq_u32_f32(b.0[I]),
        )))
    }

    #[inline(always)]
    fn butterfly<const STRIDE: usize>(self, v: Four) -> Four {
        let Four([a, b, c, d]) = v;
        let pair = |a, b| isa!((vaddq_f32(a, b), vsubq_f32(a, b)));
        match STRIDE {
            8 => {
                let ((a, c), (b, d)) = (pair(a, c), pair(b, d));
                Four([a, b, c, d])
            }
            4 => {
                let ((a, b), (c, d)) = (pair(a, b), pair(c, d));
                Four([a, b, c, d])
            }
            2 => Four(v.0.map(|v| {
                let (plus, minus) = pair(v, isa!(vextq_f32::<2>(v, v)));
                // The difference's lower half is a − b.
                isa!(vcombine_f32(vget_low_f32(plus), vget_low_f32(minus)))
            })),
            _ => Four(v.0.map(|v| {
                let (plus, minus) = pair(v, isa!(vrev64q_f32(v)));
                // Lanes 0 and 2 of the sum and of the difference are a + b and a − b.
                isa!(vtrn1q_f32(plus, minus))
            })),
        }
    }
}

/// Four binary16 values to f32. The intrinsic needs the unstable `f16` type; the instruction does not.
#[inline(always)]
fn widen(half: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: `fcvtl` is base Advanced SIMD, reads one register and writes another.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) half,
             options(pure, nomem, nostack, preserves_flags));
    }
    wide
}
