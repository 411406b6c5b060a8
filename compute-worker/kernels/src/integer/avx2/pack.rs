//! Stored tiles → `[K/4][64 n][4 k]` with AVX2.
//!
//! ```text
//! for each tile column (32 k), each 8 channels: 8 registers of one channel (w4: nibbles by table, bytes
//! interleaved), an 8 × 8 transpose of dwords: out[quad] = 8 channels × 4 bytes
//! ```

use std::arch::x86_64::*;

use super::super::{PANEL, Panel, PanelTiles, Quad};
use super::{avx2, expand, load, table};
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP, W8_TILE_ROWS};

/// Quads in a tile, and channels in a register of dwords.
const EIGHT: usize = 8;

avx2! {
    pub(super) fn pack(panel: &Panel<'_>, out: &mut [Quad]) {
        out.fill(Quad::ZERO);
        match panel.tiles {
            PanelTiles::W8(tiles) => {
                for (half, tiles) in tiles.chunks_exact(panel.k_tiles() * TILE_BYTES).enumerate() {
                    for (tile, out) in tiles.as_chunks::<TILE_BYTES>().0.iter().zip(out.chunks_exact_mut(EIGHT)) {
                        for (part, rows) in tile.as_chunks::<TILE_COLS>().0.chunks_exact(EIGHT).enumerate() {
                            let mut channels = [_mm256_setzero_si256(); EIGHT];
                            for (channel, row) in channels.iter_mut().zip(rows) {
                                *channel = load(row);
                            }
                            store(transpose(channels), out, half * W8_TILE_ROWS / EIGHT + part);
                        }
                    }
                }
            }
            PanelTiles::W4(tiles, multipliers) => {
                let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
                for (k, (tile, out)) in tiles.iter().zip(out.chunks_exact_mut(EIGHT)).enumerate() {
                    for part in 0..PANEL / EIGHT {
                        let mut channels = [_mm256_setzero_si256(); EIGHT];
                        for (pair, two) in channels.chunks_exact_mut(2).enumerate() {
                            let first = part * EIGHT + pair * 2;
                            let table = table(panel, multipliers, k * TILE_COLS / W4_GROUP, first);
                            let [even, odd] = expand(&tile.as_chunks().0[first / 2], table);
                            let (low, high) = (_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd));
                            two[0] = _mm256_permute2x128_si256::<0x20>(low, high);
                            two[1] = _mm256_permute2x128_si256::<0x31>(low, high);
                        }
                        store(transpose(channels), out, part);
                    }
                }
            }
        }
    }

    #[inline]
    fn store(quads: [__m256i; EIGHT], out: &mut [Quad], part: usize) {
        for (quad, out) in quads.into_iter().zip(out) {
            let to = &mut out.0.as_chunks_mut::<32>().0[part];
            // SAFETY: the array is as long as the store.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), quad) };
        }
    }

    /// `[8 channels][8 quads]` → `[8 quads][8 channels]`.
    #[inline]
    fn transpose(c: [__m256i; EIGHT]) -> [__m256i; EIGHT] {
        let mut pairs = [_mm256_setzero_si256(); EIGHT];
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_epi32(c[2 * i], c[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_epi32(c[2 * i], c[2 * i + 1]);
        }
        let mut fours = [_mm256_setzero_si256(); EIGHT];
        for half in 0..2 {
            for i in 0..2 {
                let (a, b) = (pairs[4 * half + i], pairs[4 * half + 2 + i]);
                fours[4 * half + 2 * i] = _mm256_unpacklo_epi64(a, b);
                fours[4 * half + 2 * i + 1] = _mm256_unpackhi_epi64(a, b);
            }
        }
        let mut quads = [_mm256_setzero_si256(); EIGHT];
        for i in 0..4 {
            quads[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[i + 4]);
            quads[i + 4] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[i + 4]);
        }
        quads
    }
}
