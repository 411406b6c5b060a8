//! The compute-bound half of AVX2: many rows against a packed panel.
//!
//! ```text
//! packed panel [K/4][64 n][4 k];  strips of 16 n (2 registers), blocks of 4 rows: 8 accumulators
//!   for each quad:  w, |w| for 2 registers;  for m in 0..4:  a = broadcast a[m][4 k];  acc[m] += dot(w, a)
//! ```

use std::arch::x86_64::*;

use super::super::{Acc, PANEL, Quad, Rows};
use super::{avx2, dot};

/// Rows in registers at once.
const BLOCK: usize = 4;

avx2! {
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

    #[inline]
    fn packed_rows<const M: usize>(panel: &[Quad], strip: usize, rows: Rows<'_>, acc: &mut [Acc]) {
        let mut a: [&[[i8; 4]]; M] = [&[]; M];
        for (m, a) in a.iter_mut().enumerate() {
            *a = &rows.values[m * rows.stride..].as_chunks().0[..panel.len()];
        }
        let mut sums = [[_mm256_setzero_si256(); 2]; M];
        for (k, quad) in panel.iter().enumerate() {
            // SAFETY: a `Quad` is 256 bytes, aligned to 64; strip < 4.
            let w = unsafe {
                let at = quad.0.as_ptr().add(64 * strip);
                [_mm256_load_si256(at.cast()), _mm256_load_si256(at.add(32).cast())]
            };
            let magnitude = [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])];
            for m in 0..M {
                // SAFETY: each a[m] was cut to panel.len() entries, and k is below that.
                let a = unsafe { *a[m].get_unchecked(k) }.map(|a| a as u8);
                let a = _mm256_set1_epi32(i32::from_le_bytes(a));
                for z in 0..2 {
                    sums[m][z] = dot(sums[m][z], w[z], magnitude[z], a);
                }
            }
        }
        for m in 0..M {
            for z in 0..2 {
                // SAFETY: strip < 4, so 16·strip + 8·z + 8 ≤ 64, the length of an `Acc`.
                unsafe { _mm256_storeu_si256(acc[m].as_mut_ptr().add(16 * strip + 8 * z).cast(), sums[m][z]) };
            }
        }
    }
}
