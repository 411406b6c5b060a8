//! Integer kernels for AArch64 with dot product (Cortex-A76 and A55): rows streamed from the stored tiles.
//!
//! ```text
//! direct, w8, 1 ≤ M ≤ 4: for strips of R channels (16, 8, 4, 4), each tile, each channel (2 registers of 16 k):
//!     acc[r][m] += sdot(w, a)        4 partial sums, joined by pairwise adds at the end
//! direct, w4: per group of 128 k (4 tiles) and channel (one register of 32 nibbles a tile):
//!     part[m] += sdot(w << 4, a.even) + sdot(w & 0xf0, a.odd)          both 16 times too large
//!     acc[m] += (part[m] >> 4) · multiplier                            exact: 16 divides part
//! ```
//! `sdot` is signed × signed, so nothing needs a correction. The Rust intrinsic is unstable; the instruction is
//! written as inline assembly. No board was at hand: tested under qemu, never timed.

mod pack;
mod packed;

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Acc, IntegerTable, PANEL, Panel, PanelTiles, Rows};
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP, W8_TILE_ROWS};

pub(crate) static TABLE: IntegerTable =
    IntegerTable { direct_rows_w8: 4, direct_rows_w4: 4, direct, pack: pack::pack, packed: packed::packed };

/// Tiles in a `w4` group.
const TILES: usize = W4_GROUP / TILE_COLS;
/// Bytes from a line in use to the line fetched meanwhile (see the AVX-512 kernel).
const AHEAD: usize = 2 * TILES * TILE_BYTES;

/// What the kernels of this module are compiled with.
macro_rules! dotprod {
    ($($item:item)*) => { $(
        #[target_feature(enable = "neon,dotprod")]
        $item
    )* };
}
use dotprod;

dotprod! {
    fn direct(panel: &Panel<'_>, rows: Rows<'_>, acc: &mut [Acc]) {
        match rows.count {
            1 => direct_rows::<1, 16>(panel, rows, acc),
            2 => direct_rows::<2, 8>(panel, rows, acc),
            3 => direct_rows::<3, 4>(panel, rows, acc),
            4 => direct_rows::<4, 4>(panel, rows, acc),
            _ => unreachable!("direct takes up to `direct_rows` rows"),
        }
    }

    fn direct_rows<const M: usize, const R: usize>(panel: &Panel<'_>, rows: Rows<'_>, acc: &mut [Acc]) {
        match panel.tiles {
            PanelTiles::W8(tiles) => {
                for (half, tiles) in tiles.chunks_exact(panel.k_tiles() * TILE_BYTES).enumerate() {
                    for strip in 0..W8_TILE_ROWS / R {
                        w8_strip::<M, R>(tiles, strip, half, rows, acc);
                    }
                }
            }
            PanelTiles::W4(tiles, multipliers) => w4::<M>(panel, tiles, multipliers, rows, acc),
        }
    }

    /// acc[i] + Σ_4 of products of bytes 4i…4i + 3.
    #[inline]
    fn sdot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the function is compiled with dotprod; the instruction touches these registers only.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) w, in(vreg) a,
                 options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }

    /// Asks for a line in L2; the address may lie beyond the weights.
    #[inline]
    fn prefetch(at: *const i8) {
        // SAFETY: a prefetch is a hint; it faults for no address.
        unsafe { asm!("prfm pldl2keep, [{0}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }

    #[inline]
    fn load(bytes: &[i8; 16]) -> int8x16_t {
        // SAFETY: the array is as long as the load.
        unsafe { vld1q_s8(bytes.as_ptr()) }
    }

    /// Joins four channels' partial sums and stores them at `n`.
    #[inline]
    fn store(s: [int32x4_t; 4], acc: &mut Acc, n: usize) {
        let to = &mut acc.as_chunks_mut::<4>().0[n / 4];
        let joined = vpaddq_s32(vpaddq_s32(s[0], s[1]), vpaddq_s32(s[2], s[3]));
        // SAFETY: the array is as long as the store.
        unsafe { vst1q_s32(to.as_mut_ptr(), joined) };
    }

    /// Channels `R·strip..R·(strip + 1)` of tile row `half`.
    #[inline]
    fn w8_strip<const M: usize, const R: usize>(
        tiles: &[i8], strip: usize, half: usize, rows: Rows<'_>, acc: &mut [Acc],
    ) {
        let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
        // Each strip fetches its share of the next row of tiles, in the order of memory.
        let next = tiles.as_ptr_range().end.cast::<i8>().wrapping_add(strip * tiles.len() * R * TILE_COLS);
        let mut sums = [[vdupq_n_s32(0); R]; M];
        for (k, tile) in tiles.iter().enumerate() {
            let (channels, _) = tile.as_chunks::<16>();
            let mut a = [[vdupq_n_s8(0); 2]; M];
            for (m, a) in a.iter_mut().enumerate() {
                let (parts, _) = rows.values[m * rows.stride..].as_chunks::<16>();
                *a = [load(&parts[2 * k]), load(&parts[2 * k + 1])];
            }
            for r in 0..R {
                if r % 2 == 0 {
                    prefetch(next.wrapping_add((k * R + r) * TILE_COLS));
                }
                let w = [load(&channels[2 * (strip * R + r)]), load(&channels[2 * (strip * R + r) + 1])];
                for m in 0..M {
                    sums[m][r] = sdot(sdot(sums[m][r], w[0], a[m][0]), w[1], a[m][1]);
                }
            }
        }
        for m in 0..M {
            for (four, s) in sums[m].chunks_exact(4).enumerate() {
                store([s[0], s[1], s[2], s[3]], &mut acc[m], half * W8_TILE_ROWS + strip * R + four * 4);
            }
        }
    }

    #[inline]
    fn w4<const M: usize>(
        panel: &Panel<'_>, tiles: &[u8], multipliers: &[u8], rows: Rows<'_>, acc: &mut [Acc],
    ) {
        let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
        let mut sums = [[vdupq_n_s32(0); PANEL]; M];
        for (group, tiles) in tiles.chunks(TILES).enumerate() {
            let mut a = [[[vdupq_n_s8(0); 2]; M]; TILES];
            for (tile, a) in a.iter_mut().take(tiles.len()).enumerate() {
                for (m, a) in a.iter_mut().enumerate() {
                    let (parts, _) = rows.values[m * rows.stride..].as_chunks::<16>();
                    let at = (group * TILES + tile) * 2;
                    let (x, y) = (load(&parts[at]), load(&parts[at + 1]));
                    *a = [vuzp1q_s8(x, y), vuzp2q_s8(x, y)];
                }
            }
            let next = tiles.as_ptr().cast::<i8>().wrapping_add(AHEAD);
            for n in 0..panel.rows {
                prefetch(next.wrapping_add(n * 64));
                let multiplier = i32::from(multipliers[n * panel.groups() + group] & 15);
                let mut part = [vdupq_n_s32(0); M];
                for (tile, a) in tiles.iter().zip(&a) {
                    let bytes = &tile.as_chunks::<16>().0[n];
                    // SAFETY: the array is as long as the load.
                    let bytes = unsafe { vld1q_u8(bytes.as_ptr()) };
                    let even = vreinterpretq_s8_u8(vshlq_n_u8::<4>(bytes));
                    let odd = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0xf0)));
                    for m in 0..M {
                        part[m] = sdot(sdot(part[m], even, a[m][0]), odd, a[m][1]);
                    }
                }
                for m in 0..M {
                    sums[m][n] = vmlaq_n_s32(sums[m][n], vshrq_n_s32::<4>(part[m]), multiplier);
                }
            }
        }
        for m in 0..M {
            for (four, s) in sums[m].chunks_exact(4).enumerate() {
                store([s[0], s[1], s[2], s[3]], &mut acc[m], four * 4);
            }
        }
    }
}
