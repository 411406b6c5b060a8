//! The compute-bound half of NEON: many rows against a packed panel.
//!
//! ```text
//! packed panel [K/4][64 n][4 k];  strips of 16 n (4 registers), blocks of 4 rows: 16 accumulators
//!   for each 16 k (4 quads):  a[m] = 16 activations;  for each quad i: 4 registers of weights
//!       acc[m][z] += sdot(w[z], a[m].4b[i])            one lane of activations against 4 channels
//! ```

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::{Acc, PANEL, Quad, Rows};
use super::{dotprod, load};

/// Rows in registers at once.
const BLOCK: usize = 4;

dotprod! {
    pub(super) fn packed(panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
        for (block, acc) in acc.chunks_mut(BLOCK).enumerate() {
            let rows = rows.range(block * BLOCK, acc.len());
            for strip in 0..PANEL / 16 {
                match acc.len() {
                    1 => packed_rows::<1>(panel, strip, rows, acc),
                    2 => packed_rows::<2>(panel, strip, rows, acc),
                    3 => packed_rows::<3>(panel, strip, rows, acc),
                    _ => packed_rows::<BLOCK>(panel, strip, rows, acc),
                }
            }
        }
    }

    /// acc[i] + Σ_4 of products of w's bytes 4i…4i + 3 and the four of a's lane `LANE`.
    #[inline]
    fn sdot_lane<const LANE: usize>(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the function is compiled with dotprod; the instruction touches these registers only.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]", inout(vreg) acc, in(vreg) w, in(vreg) a, const LANE,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    #[inline]
    fn quad<const LANE: usize, const M: usize>(
        sums: &mut [[int32x4_t; 4]; M], quad: &Quad, strip: usize, a: &[int8x16_t; M],
    ) {
        let (parts, _) = quad.0.as_chunks::<16>();
        for z in 0..4 {
            let w = load(&parts[strip * 4 + z]);
            for (sums, &a) in sums.iter_mut().zip(a) {
                sums[z] = sdot_lane::<LANE>(sums[z], w, a);
            }
        }
    }

    #[inline]
    fn packed_rows<const M: usize>(panel: &[Quad], strip: usize, rows: Rows<'_>, acc: &mut [Acc]) {
        let mut sums = [[vdupq_n_s32(0); 4]; M];
        // A packed panel's K is a multiple of 64, so no quad is left over.
        for (k, quads) in panel.as_chunks::<4>().0.iter().enumerate() {
            let mut a = [vdupq_n_s8(0); M];
            for (m, a) in a.iter_mut().enumerate() {
                *a = load(&rows.values[m * rows.stride..].as_chunks().0[k]);
            }
            quad::<0, M>(&mut sums, &quads[0], strip, &a);
            quad::<1, M>(&mut sums, &quads[1], strip, &a);
            quad::<2, M>(&mut sums, &quads[2], strip, &a);
            quad::<3, M>(&mut sums, &quads[3], strip, &a);
        }
        for (acc, sums) in acc.iter_mut().zip(sums) {
            for (to, sum) in acc.as_chunks_mut::<4>().0[strip * 4..].iter_mut().zip(sums) {
                // SAFETY: the array is as long as the store.
                unsafe { vst1q_s32(to.as_mut_ptr(), sum) };
            }
        }
    }
}
