//! Stored tiles → `[K/4][64 n][4 k]` with NEON.
//!
//! ```text
//! for each tile column (32 k), each 4 channels, each 16 k: a 4 × 4 transpose of dwords
//! w4 first: even = (w << 4) >> 4, odd = w >> 4, both × multiplier, interleaved
//! ```

use std::arch::aarch64::*;

use super::super::{PANEL, Panel, PanelTiles, Quad};
use super::{dotprod, load};
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP, W8_TILE_ROWS};

/// Quads in a tile.
const QUADS: usize = TILE_COLS / 4;

dotprod! {
    pub(super) fn pack(panel: &Panel<'_>, out: &mut [Quad]) {
        out.fill(Quad::ZERO);
        match panel.tiles {
            PanelTiles::W8(tiles) => {
                for (half, tiles) in tiles.chunks_exact(panel.k_tiles() * TILE_BYTES).enumerate() {
                    for (tile, out) in tiles.as_chunks::<TILE_BYTES>().0.iter().zip(out.chunks_exact_mut(QUADS)) {
                        let (parts, _) = tile.as_chunks::<16>();
                        for n in (0..W8_TILE_ROWS).step_by(4) {
                            for side in 0..2 {
                                let mut c = [vdupq_n_s8(0); 4];
                                for (i, c) in c.iter_mut().enumerate() {
                                    *c = load(&parts[2 * (n + i) + side]);
                                }
                                store(c, &mut out[4 * side..], half * W8_TILE_ROWS + n);
                            }
                        }
                    }
                }
            }
            PanelTiles::W4(tiles, multipliers) => {
                let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
                for (k, (tile, out)) in tiles.iter().zip(out.chunks_exact_mut(QUADS)).enumerate() {
                    let group = k * TILE_COLS / W4_GROUP;
                    for n in (0..PANEL).step_by(4) {
                        let [mut first, mut second] = [[vdupq_n_s8(0); 4]; 2];
                        for (i, (first, second)) in first.iter_mut().zip(&mut second).enumerate() {
                            let row = n + i;
                            let multiplier =
                                if row < panel.rows { multipliers[row * panel.groups() + group] & 15 } else { 0 };
                            [*first, *second] = expand(&tile.as_chunks().0[row], multiplier as i8);
                        }
                        store(first, out, n);
                        store(second, &mut out[4..], n);
                    }
                }
            }
        }
    }

    /// 32 nibbles as int8, times the multiplier, in the order of k.
    #[inline]
    fn expand(bytes: &[u8; 16], multiplier: i8) -> [int8x16_t; 2] {
        // SAFETY: the array is as long as the load.
        let bytes = unsafe { vld1q_u8(bytes.as_ptr()) };
        let multiplier = vdupq_n_s8(multiplier);
        let even = vmulq_s8(vshrq_n_s8::<4>(vreinterpretq_s8_u8(vshlq_n_u8::<4>(bytes))), multiplier);
        let odd = vmulq_s8(vshrq_n_s8::<4>(vreinterpretq_s8_u8(bytes)), multiplier);
        [vzip1q_s8(even, odd), vzip2q_s8(even, odd)]
    }

    /// Four channels of 16 k each become channels `n..n + 4` of the four first quads.
    #[inline]
    fn store(channels: [int8x16_t; 4], out: &mut [Quad], n: usize) {
        let c = channels.map(|c| vreinterpretq_s32_s8(c));
        let (a, b) = (vtrn1q_s32(c[0], c[1]), vtrn2q_s32(c[0], c[1]));
        let (d, e) = (vtrn1q_s32(c[2], c[3]), vtrn2q_s32(c[2], c[3]));
        let wide = |v| vreinterpretq_s64_s32(v);
        let quads = [
            vtrn1q_s64(wide(a), wide(d)),
            vtrn1q_s64(wide(b), wide(e)),
            vtrn2q_s64(wide(a), wide(d)),
            vtrn2q_s64(wide(b), wide(e)),
        ];
        for (quad, out) in quads.into_iter().zip(out) {
            let to = &mut out.0.as_chunks_mut::<16>().0[n / 4];
            // SAFETY: the array is as long as the store.
            unsafe { vst1q_s8(to.as_mut_ptr(), vreinterpretq_s8_s64(quad)) };
        }
    }
}
