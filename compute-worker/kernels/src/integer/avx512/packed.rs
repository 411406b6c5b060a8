//! The compute-bound half of AVX-512 VNNI: many rows against a packed panel.
//!
//! ```text
//! packed panel [K/4][64 n][4 k], unsigned (w + 128), 57 KiB at K = 896, 304 KiB at K = 4864: L2
//! for blocks of 6 rows:                         24 accumulators, 4 registers of weights, 1 of activations
//!   for each quad:  load 4 registers of weights (64 n)
//!                   for m in 0..6:  a = broadcast a[m][4 k];  4 × acc[m][n] += vpdpbusd(w, a)
//!   acc −= 128 · Σ_k a[m]
//! ```
//! Here the weights carry the shift of 128, so that an activation is a plain broadcast load: 10 loads for 24
//! dot products, of which Zen 4 starts one per cycle.

use std::arch::x86_64::*;

use super::super::{Acc, Quad, Rows};
use super::vnni;

/// Rows in registers at once.
const BLOCK: usize = 6;

vnni! {
    pub(in super::super) fn packed(panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
        for (block, acc) in acc.chunks_mut(BLOCK).enumerate() {
            let rows = rows.range(block * BLOCK, acc.len());
            match acc.len() {
                1 => packed_rows::<1>(panel, rows, acc),
                2 => packed_rows::<2>(panel, rows, acc),
                3 => packed_rows::<3>(panel, rows, acc),
                4 => packed_rows::<4>(panel, rows, acc),
                5 => packed_rows::<5>(panel, rows, acc),
                _ => packed_rows::<BLOCK>(panel, rows, acc),
            }
        }
    }

    fn packed_rows<const M: usize>(panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
        let a: [&[[i8; 4]]; M] =
            std::array::from_fn(|m| &rows.values[m * rows.stride..].as_chunks().0[..panel.len()]);
        let mut sums = [[_mm512_setzero_si512(); 4]; M];
        for (k, quad) in panel.iter().enumerate() {
            // SAFETY: a `Quad` is 256 bytes, aligned to 64.
            let w: [__m512i; 4] =
                std::array::from_fn(|z| unsafe { _mm512_load_si512(quad.0.as_ptr().add(64 * z).cast()) });
            for m in 0..M {
                // SAFETY: each a[m] was cut to panel.len() entries, and k is below that.
                let a = _mm512_set1_epi32(i32::from_le_bytes(unsafe { *a[m].get_unchecked(k) }.map(|a| a as u8)));
                for z in 0..4 {
                    sums[m][z] = _mm512_dpbusd_epi32(sums[m][z], w[z], a);
                }
            }
        }
        for m in 0..M {
            let shift = _mm512_set1_epi32(rows.sums[m].wrapping_mul(128));
            for z in 0..4 {
                // SAFETY: an `Acc` is 64 int32, four registers.
                unsafe {
                    let to = acc[m].as_mut_ptr().add(16 * z).cast();
                    _mm512_storeu_si512(to, _mm512_sub_epi32(sums[m][z], shift));
                }
            }
        }
    }
}
