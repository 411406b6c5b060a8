//! Integer kernels for AVX2: rows streamed from the stored tiles.
//!
//! ```text
//! one product of 32 int8 pairs:  s = |w| (unsigned, up to 128);  t = sign(a, w)
//!                                vpmaddubsw(s, t): pairs, at most 2·128·127 = 32,512, so it never saturates
//!                                vpmaddwd(…, 1): int32;  acc += that                    exact, 3 + 1 steps
//! direct, w8, M ≤ 3: for strips of R channels (8, 4, 4):  acc[r][m] over K/32 tiles, one register a channel
//! direct, w4, M ≤ 3: per group of 128 k and register of 2 channels: pshufb(value × multiplier table, nibbles)
//!                    as in the AVX-512 kernel
//! ```

mod pack;
mod packed;

use std::arch::x86_64::*;

use super::{Acc, IntegerTable, PANEL, Panel, PanelTiles, Rows};
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP, W8_TILE_ROWS};

pub(crate) static TABLE: IntegerTable =
    IntegerTable { direct_rows_w8: 3, direct_rows_w4: 3, direct, pack: pack::pack, packed: packed::packed };

/// Tiles in a `w4` group.
const TILES: usize = W4_GROUP / TILE_COLS;
/// Bytes from a line in use to the line fetched meanwhile (see the AVX-512 kernel).
const AHEAD: usize = 2 * TILES * TILE_BYTES;
/// Registers in a `w4` tile, two channels each.
const REGISTERS: usize = TILE_BYTES / 32;

/// What the kernels of this module are compiled with.
macro_rules! avx2 {
    ($($item:item)*) => { $(
        #[target_feature(enable = "avx2,fma,f16c")]
        $item
    )* };
}
use avx2;

avx2! {
    fn direct(panel: &Panel<'_>, rows: Rows<'_>, acc: &mut [Acc]) {
        match rows.count {
            1 => direct_rows::<1, 8>(panel, rows, acc),
            2 => direct_rows::<2, 4>(panel, rows, acc),
            3 => direct_rows::<3, 4>(panel, rows, acc),
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

    /// acc + the products of 32 pairs, added by fours; `magnitude` is |w|.
    #[inline]
    fn dot(acc: __m256i, w: __m256i, magnitude: __m256i, a: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }

    /// Asks for a line; a hint, so the address may lie beyond the weights.
    #[inline]
    fn prefetch<const HINT: i32>(at: *const i8) {
        _mm_prefetch::<HINT>(at)
    }

    #[inline]
    fn load(bytes: &[i8; 32]) -> __m256i {
        // SAFETY: the array is as long as the load.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// Channels `R·strip..R·(strip + 1)` of tile row `half`.
    #[inline]
    fn w8_strip<const M: usize, const R: usize>(
        tiles: &[i8], strip: usize, half: usize, rows: Rows<'_>, acc: &mut [Acc],
    ) {
        let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
        // Each strip fetches its share of the next row of tiles, in the order of memory.
        let next = tiles.as_ptr_range().end.cast::<i8>().wrapping_add(strip * tiles.len() * R * TILE_COLS);
        let mut sums = [[_mm256_setzero_si256(); R]; M];
        for (k, tile) in tiles.iter().enumerate() {
            let (channels, _) = tile.as_chunks::<TILE_COLS>();
            for r in 0..R {
                if r % 2 == 0 {
                    prefetch::<_MM_HINT_T1>(next.wrapping_add((k * R + r) * TILE_COLS));
                }
                let w = load(&channels[strip * R + r]);
                let magnitude = _mm256_abs_epi8(w);
                for m in 0..M {
                    let a = load(&rows.values[m * rows.stride..].as_chunks().0[k]);
                    sums[m][r] = dot(sums[m][r], w, magnitude, a);
                }
            }
        }
        for m in 0..M {
            for (four, s) in sums[m].chunks_exact(4).enumerate() {
                let x = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
                let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
                let n = half * W8_TILE_ROWS + strip * R + four * 4;
                // SAFETY: n + 4 ≤ 64: half ≤ 1, and the strips of a tile row cover 32 channels.
                unsafe { _mm_storeu_si128(acc[m].as_mut_ptr().add(n).cast(), x) };
            }
        }
    }

    #[inline]
    fn w4<const M: usize>(
        panel: &Panel<'_>, tiles: &[u8], multipliers: &[u8], rows: Rows<'_>, acc: &mut [Acc],
    ) {
        let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
        let mut sums = [[_mm256_setzero_si256(); M]; REGISTERS];
        for (group, tiles) in tiles.chunks(TILES).enumerate() {
            let mut a = [[[_mm256_setzero_si256(); 2]; M]; TILES];
            for (tile, a) in a.iter_mut().take(tiles.len()).enumerate() {
                for (m, a) in a.iter_mut().enumerate() {
                    let at = m * rows.stride + (group * TILES + tile) * TILE_COLS;
                    *a = apart(&rows.values[at..at + TILE_COLS]);
                }
            }
            let next = tiles.as_ptr().cast::<i8>().wrapping_add(AHEAD);
            for (z, sums) in sums.iter_mut().enumerate() {
                let table = table(panel, multipliers, group, z * 2);
                for (i, (tile, a)) in tiles.iter().zip(&a).enumerate() {
                    if i % 2 == 0 {
                        prefetch::<_MM_HINT_T0>(next.wrapping_add((z * TILES + i) * 32));
                    }
                    let w = expand(&tile.as_chunks().0[z], table);
                    for (part, w) in w.into_iter().enumerate() {
                        let magnitude = _mm256_abs_epi8(w);
                        for m in 0..M {
                            sums[m] = dot(sums[m], w, magnitude, a[m][part]);
                        }
                    }
                }
            }
        }
        for (m, acc) in acc.iter_mut().enumerate() {
            for eight in 0..PANEL / 8 {
                let s: [__m256i; 4] = std::array::from_fn(|i| sums[eight * 4 + i][m]);
                let x = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
                // The low half holds channels 0, 2, 4, 6, the high half 1, 3, 5, 7.
                let (even, odd) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
                let x = _mm256_set_m128i(_mm_unpackhi_epi32(even, odd), _mm_unpacklo_epi32(even, odd));
                // SAFETY: eight < 8, and an `Acc` is 64 int32.
                unsafe { _mm256_storeu_si256(acc.as_mut_ptr().add(8 * eight).cast(), x) };
            }
        }
    }

    /// The tables of channels `first` and `first + 1` for a group; zeros beyond the panel's rows.
    #[inline]
    fn table(panel: &Panel<'_>, multipliers: &[u8], group: usize, first: usize) -> __m256i {
        let lane = |n: usize| {
            let multiplier = if n < panel.rows { multipliers[n * panel.groups() + group] & 15 } else { 0 };
            // SAFETY: each table is 16 bytes, as long as the load.
            unsafe { _mm_loadu_si128(super::W4_TABLES[usize::from(multiplier)].as_ptr().cast()) }
        };
        _mm256_set_m128i(lane(first + 1), lane(first))
    }

    /// The even and the odd k of two channels as int8.
    #[inline]
    fn expand(bytes: &[u8; 32], table: __m256i) -> [__m256i; 2] {
        // SAFETY: the array is as long as the load.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(bytes, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        [_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)]
    }

    /// The even k of 32 activations, twice, and the odd k, twice.
    #[inline]
    fn apart(a: &[i8]) -> [__m256i; 2] {
        assert!(a.len() == TILE_COLS);
        // SAFETY: `a` is 32 bytes, as long as the load.
        let a = unsafe { _mm256_loadu_si256(a.as_ptr().cast()) };
        let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
        let a = _mm256_shuffle_epi8(a, order);
        [_mm256_permute4x64_epi64::<0b10_00_10_00>(a), _mm256_permute4x64_epi64::<0b11_01_11_01>(a)]
    }
}
