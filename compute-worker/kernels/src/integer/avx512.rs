//! Integer kernels for AVX-512 VNNI: `w8` rows streamed from the stored tiles.
//!
//! ```text
//! direct, w8, blocks of M ≤ 6 rows, a row of tiles [K/32][32 n][32 k]:
//!   for strips of 2Z output channels (Z = 16, 8, 8, 4, 4, 4 registers for M = 1…6):
//!     for each tile:  u[m] = (a[m][32 k] + 128) in both halves of a register
//!                     prefetch into L2 this strip's share of the next row of tiles
//!                     acc[z][m] += vpdpbusd(u[m], tile[2 n][32 k])      the tile is read in its stored order
//!     a tree of unpacks joins the 8 partial sums of each channel;  acc −= 128 · Σ_k w
//! ```
//! `vpdpbusd` takes unsigned × signed, so activations are shifted by 128 and the stored row sums take that
//! back, exactly. Nothing is repacked: at M = 1 the loop is one load and one dot product per 64 bytes.
//!
//! Measured with `examples/kernels.rs` on one core of a Zen 4 EPYC that reads 20 GB/s, 896 × 896 from memory:
//! 39 µs at M = 1 and 41 µs at M = 6. Without the prefetch M = 2 took 94 µs, as strips that skip through a tile
//! defeat the hardware's prefetchers. Up to 48 rows (8 for `w4`) this beats packing, which cannot overlap its
//! reads with arithmetic: M = 12 takes 61 µs here and 91 µs packed.

mod pack;
mod packed;
mod w4;

use std::arch::x86_64::*;

use super::{Acc, IntegerTable, PANEL, Panel, PanelTiles, Quad, Rows};
use crate::tiles::{TILE_BYTES, TILE_COLS, W8_TILE_ROWS};

pub(crate) static TABLE: IntegerTable = IntegerTable {
    direct_rows_w8: 48,
    direct_rows_w4: 8,
    direct,
    pack: pack::pack::<{ pack::UNSIGNED }>,
    packed: packed::packed,
};

/// Rows that `direct` holds in registers at once.
const BLOCK: usize = 6;

/// For AMX, whose products are signed × signed.
pub(super) const PACK_SIGNED: unsafe fn(&Panel<'_>, &mut [Quad]) = pack::pack::<{ pack::SIGNED }>;

/// What the kernels of this module are compiled with.
macro_rules! vnni {
    ($($item:item)*) => { $(
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        $item
    )* };
}
use vnni;

vnni! {
    pub(super) fn direct(panel: &Panel<'_>, rows: Rows<'_>, acc: &mut [Acc]) {
        for (block, acc) in acc.chunks_mut(BLOCK).enumerate() {
            let rows = rows.range(block * BLOCK, acc.len());
            match acc.len() {
                1 => direct_rows::<1, 16>(panel, rows, acc),
                2 => direct_rows::<2, 8>(panel, rows, acc),
                3 => direct_rows::<3, 8>(panel, rows, acc),
                4 => direct_rows::<4, 4>(panel, rows, acc),
                5 => direct_rows::<5, 4>(panel, rows, acc),
                _ => direct_rows::<6, 4>(panel, rows, acc),
            }
        }
    }

    fn direct_rows<const M: usize, const Z: usize>(
        panel: &Panel<'_>, rows: Rows<'_>, acc: &mut [Acc],
    ) {
        match panel.tiles {
            PanelTiles::W8(tiles) => {
                for (half, tiles) in tiles.chunks_exact(panel.k_tiles() * TILE_BYTES).enumerate() {
                    for strip in 0..W8_TILE_ROWS / (2 * Z) {
                        w8_strip::<M, Z>(tiles, strip, half, rows, acc);
                    }
                }
            }
            PanelTiles::W4(tiles, multipliers) => w4::direct::<M>(panel, tiles, multipliers, rows, acc),
        }
        for acc in acc {
            for (acc, sum) in acc.iter_mut().zip(panel.row_sums) {
                *acc = acc.wrapping_sub(sum.wrapping_mul(128));
            }
        }
    }

    /// Channels `2Z·strip..2Z·(strip + 1)` of tile row `half`.
    #[inline]
    fn w8_strip<const M: usize, const Z: usize>(
        tiles: &[i8], strip: usize, half: usize, rows: Rows<'_>, acc: &mut [Acc],
    ) {
        let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
        let a: [&[[i8; TILE_COLS]]; M] =
            std::array::from_fn(|m| &rows.values[m * rows.stride..].as_chunks().0[..tiles.len()]);
        // Each strip fetches its share of the next row of tiles, in the order of memory.
        let next = tiles.as_ptr_range().end.cast::<i8>().wrapping_add(strip * tiles.len() * Z * 64);
        let mut sums = [[_mm512_setzero_si512(); Z]; M];
        for (k, tile) in tiles.iter().enumerate() {
            let (registers, _) = tile.as_chunks::<64>();
            let u: [__m512i; M] = std::array::from_fn(|m| unsigned(&a[m][k]));
            for z in 0..Z {
                prefetch::<_MM_HINT_T1>(next.wrapping_add((k * Z + z) * 64));
                let w = load(&registers[strip * Z + z]);
                for m in 0..M {
                    sums[m][z] = _mm512_dpbusd_epi32(sums[m][z], u[m], w);
                }
            }
        }
        for m in 0..M {
            for (four, sums) in sums[m].chunks_exact(4).enumerate() {
                let n = half * W8_TILE_ROWS + strip * 2 * Z + four * 8;
                let joined = join([sums[0], sums[1], sums[2], sums[3]]);
                // SAFETY: n + 8 ≤ 64: half ≤ 1, and the strips of a tile row cover 32 channels.
                unsafe { _mm256_storeu_si256(acc[m].as_mut_ptr().add(n).cast(), joined) };
            }
        }
        const { assert!(PANEL == 2 * W8_TILE_ROWS) };
    }

    /// a + 128 as unsigned bytes, in both halves of a register.
    #[inline]
    fn unsigned(a: &[i8; TILE_COLS]) -> __m512i {
        // SAFETY: the array is as long as the load.
        let a = unsafe { _mm256_loadu_si256(a.as_ptr().cast()) };
        _mm512_xor_si512(_mm512_broadcast_i64x4(a), _mm512_set1_epi8(-128))
    }

    /// Asks for a line; a hint, so the address may lie beyond the weights.
    #[inline]
    fn prefetch<const HINT: i32>(at: *const i8) {
        _mm_prefetch::<HINT>(at)
    }

    #[inline]
    fn load(bytes: &[i8; 64]) -> __m512i {
        // SAFETY: the array is as long as the load.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    /// From four registers, each 8 partial sums of channel 2z and 8 of channel 2z + 1: the 8 channels' sums.
    #[inline]
    fn join(s: [__m512i; 4]) -> __m256i {
        let x = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
        let y = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
        // Each 128-bit lane now becomes [s0, s1, s2, s3] of that lane.
        let v = _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
        let v = _mm512_add_epi32(v, _mm512_shuffle_i32x4::<0b10_11_00_01>(v, v));
        let (even, odd) = (_mm512_castsi512_si128(v), _mm512_extracti32x4_epi32::<2>(v));
        _mm256_set_m128i(_mm_unpackhi_epi32(even, odd), _mm_unpacklo_epi32(even, odd))
    }
}
