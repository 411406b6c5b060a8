//! Stored tiles → `[K/4][64 n][4 k]` with AVX-512.
//!
//! ```text
//! for each tile column (32 k), each 16 channels:
//!   w8: 8 registers of 2 channels;  a two-source permute makes [4 quads][4 channels] of 4 channels
//!   w4: 4 registers of 4 channels;  nibbles → int8 by table (see `w4`), bytes interleaved, one permute
//!   two further steps join 4 × 4 channels: out[quad] = 16 channels × 4 bytes
//! ```
//! 24 shuffles per 512 bytes of int8, against 8·M dot products: 5 % at M = 64. Lines are prefetched into L2: at
//! M = 5, 896 × 896 from memory takes 63 µs, 81 µs when they go to L1 (the packed panel lives there), 86 µs
//! without.

use std::arch::x86_64::*;

use super::super::{PACK_COLS, PANEL, Panel, PanelTiles, Quad};
use super::{load, prefetch, vnni, w4};
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP, W8_TILE_ROWS};

/// The packed bytes are w + 128 …
pub(in super::super) const UNSIGNED: i8 = -128;
/// … or w.
pub(in super::super) const SIGNED: i8 = 0;

/// Bytes from a line in use to the line fetched meanwhile.
const AHEAD: usize = 28672;
/// Quads in a tile.
const QUADS: usize = TILE_COLS / 4;
/// Channels in one register of dwords.
const CHANNELS: usize = 16;

vnni! {
    pub(in super::super) fn pack<const FLIP: i8>(panel: &Panel<'_>, out: &mut [Quad]) {
        if panel.rows < PANEL || !panel.cols.is_multiple_of(PACK_COLS) {
            out.fill(Quad([FLIP; 4 * PANEL])); // what no tile covers counts as zero
        }
        match panel.tiles {
            PanelTiles::W8(tiles) => {
                for (half, tiles) in tiles.chunks_exact(panel.k_tiles() * TILE_BYTES).enumerate() {
                    for (tile, out) in tiles.as_chunks::<TILE_BYTES>().0.iter().zip(out.chunks_exact_mut(QUADS)) {
                        for part in 0..W8_TILE_ROWS / CHANNELS {
                            let quads = w8_channels(tile, part);
                            store::<FLIP>(quads, out, half * W8_TILE_ROWS / CHANNELS + part);
                        }
                    }
                }
            }
            PanelTiles::W4(tiles, multipliers) => {
                let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
                for (k, (tile, out)) in tiles.iter().zip(out.chunks_exact_mut(QUADS)).enumerate() {
                    let group = k * TILE_COLS / W4_GROUP;
                    for part in 0..PANEL / CHANNELS {
                        let quads = w4_channels(panel, tile, multipliers, group, part);
                        store::<FLIP>(quads, out, part);
                    }
                }
            }
        }
    }

    #[inline]
    fn store<const FLIP: i8>(quads: [__m512i; QUADS], out: &mut [Quad], part: usize) {
        for (quad, out) in quads.into_iter().zip(out) {
            let to = &mut out.0.as_chunks_mut::<64>().0[part];
            // SAFETY: the array is as long as the store.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(quad, _mm512_set1_epi8(FLIP))) };
        }
    }

    /// Channels `16·part..16·(part + 1)` of a `w8` tile, by quads.
    #[inline]
    fn w8_channels(tile: &[i8; TILE_BYTES], part: usize) -> [__m512i; QUADS] {
        // Dwords 0–15 are of the first register (channels c, c+1), 16–31 of the second (c+2, c+3).
        let low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
        let registers = &tile.as_chunks::<64>().0[part * 8..part * 8 + 8];
        for register in registers {
            prefetch::<_MM_HINT_T1>(register.as_ptr().wrapping_add(AHEAD));
        }
        let four: [[__m512i; 2]; 4] = std::array::from_fn(|i| {
            let (a, b) = (load(&registers[2 * i]), load(&registers[2 * i + 1]));
            [_mm512_permutex2var_epi32(a, low, b), _mm512_permutex2var_epi32(a, high, b)]
        });
        join(four)
    }

    /// Channels `16·part..16·(part + 1)` of a `w4` tile, by quads.
    #[inline]
    fn w4_channels(
        panel: &Panel<'_>, tile: &[u8; TILE_BYTES], multipliers: &[u8], group: usize, part: usize,
    ) -> [__m512i; QUADS] {
        // A register holds 4 channels × 4 quads; this makes it 4 quads × 4 channels.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let registers = &tile.as_chunks::<64>().0[part * 4..part * 4 + 4];
        for register in registers {
            prefetch::<_MM_HINT_T1>(register.as_ptr().cast::<i8>().wrapping_add(AHEAD));
        }
        let four: [[__m512i; 2]; 4] = std::array::from_fn(|i| {
            let table = w4::table(panel, multipliers, group, part * 16 + i * 4);
            let [even, odd] = w4::expand(&registers[i], table);
            [
                _mm512_permutexvar_epi32(order, _mm512_unpacklo_epi8(even, odd)),
                _mm512_permutexvar_epi32(order, _mm512_unpackhi_epi8(even, odd)),
            ]
        });
        join(four)
    }

    /// Joins four times `[quads 0–3 and 4–7][4 channels]` into `[8 quads][16 channels]`.
    #[inline]
    fn join(four: [[__m512i; 2]; 4]) -> [__m512i; QUADS] {
        // 128-bit lanes 0 and 1 (2 and 3) of both sources, alternating.
        let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        let mut quads = [_mm512_setzero_si512(); QUADS];
        for half in 0..2 {
            for (pair, order) in [first, second].into_iter().enumerate() {
                let a = _mm512_permutex2var_epi64(four[0][half], order, four[1][half]);
                let b = _mm512_permutex2var_epi64(four[2][half], order, four[3][half]);
                quads[half * 4 + pair * 2] = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
                quads[half * 4 + pair * 2 + 1] = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
            }
        }
        quads
    }
}
