//! Checksums of linear layers, by which a result of another device is verified without being computed again.
//!
//! ```text
//! acc[m][n] = Σ_k a[m][k]·w[n][k]          what the device gave
//! v[k]      = Σ_n r[n]·w[n][k]             once per matrix
//! Σ_n r[n]·acc[m][n]  =  Σ_k a[m][k]·v[k]  for every row m, modulo 2^32
//! ```
//! This is the checksum of K.-H. Huang and J. A. Abraham, "Algorithm-Based Fault Tolerance for Matrix Operations" (IEEE
//! Transactions on Computers C-33, 1984), over the ring of integers modulo 2^32, in which int32 accumulators are exact. The
//! factors r[n] are odd, hence units of that ring: an error in a single accumulator of a row can never cancel, and errors
//! in several do so for one in about 2^32 of their values. It costs M·(N + K) multiply-adds beside the product's M·N·K.

use crate::pool::{Pool, SharedMut};
use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP, W4_TILE_ROWS, W8_TILE_ROWS};
use crate::{Kernels, Weights};

/// The factor of output channel n: odd, and as good as random.
#[inline(always)]
pub(crate) fn factor(n: usize) -> u32 {
    // The finaliser of MurmurHash3, which is public domain.
    let mut x = (n as u32).wrapping_add(0x9e37_79b9);
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    (x ^ (x >> 16)) | 1
}

/// Factors of `COUNT` channels from `first` on.
#[inline(always)]
pub(crate) fn factors<const COUNT: usize>(first: usize) -> [u32; COUNT] {
    std::array::from_fn(|i| factor(first + i))
}

/// Σ values·factors mod 2^32.
#[inline(always)]
pub(crate) fn weighted_sum(values: &[i32; 64], factors: &[u32; 64]) -> u32 {
    let products = values.iter().zip(factors).map(|(&value, &factor)| (value as u32).wrapping_mul(factor));
    products.fold(0, u32::wrapping_add)
}

/// Σ_k a[k]·v[k] mod 2^32.
#[inline(always)]
pub(crate) fn dot(a: &[i8], v: &[u32]) -> u32 {
    let products = a.iter().zip(v).map(|(&a, &v)| (i32::from(a) as u32).wrapping_mul(v));
    products.fold(0, u32::wrapping_add)
}

/// v[k] += Σ_n factors[n]·tile[n][k] mod 2^32, for one `w8` tile.
#[inline(always)]
pub(crate) fn add_columns(tile: &[i8; TILE_BYTES], factors: &[u32; W8_TILE_ROWS], v: &mut [u32; TILE_COLS]) {
    let (rows, _) = tile.as_chunks::<TILE_COLS>();
    for (row, &factor) in rows.iter().zip(factors) {
        for (v, &w) in v.iter_mut().zip(row) {
            *v = v.wrapping_add((i32::from(w) as u32).wrapping_mul(factor));
        }
    }
}

/// Expands a `w4` tile of 64 rows, whose rows have these multipliers, into two `w8` tiles: value × multiplier.
#[inline(always)]
pub(crate) fn expand_tile(
    tile: &[u8; TILE_BYTES],
    multipliers: &[u8; W4_TILE_ROWS],
    out: [&mut [i8; TILE_BYTES]; 2],
) {
    let (rows, _) = tile.as_chunks::<{ TILE_COLS / 2 }>();
    let outs = out.into_iter().flat_map(|tile| tile.as_chunks_mut::<TILE_COLS>().0);
    for ((row, &multiplier), out) in rows.iter().zip(multipliers).zip(outs) {
        let multiplier = u16::from(multiplier & 15);
        // One 16-bit lane makes both values of a byte: no instruction set multiplies single bytes.
        for (&byte, pair) in row.iter().zip(out.as_chunks_mut::<2>().0) {
            let byte = u16::from(byte);
            let low = ((byte & 15) ^ 8).wrapping_sub(8).wrapping_mul(multiplier);
            let high = ((byte >> 4) ^ 8).wrapping_sub(8).wrapping_mul(multiplier);
            *pair = ((low & 0xff) | (high << 8)).to_le_bytes().map(u8::cast_signed);
        }
    }
}

impl Kernels {
    /// `v[k] = Σ_n r[n]·w[n][k]` mod 2^32, `[K]`: what [`Kernels::finish`] verifies results of these weights with.
    ///
    /// # Panics
    /// When the weights' slices do not fit their shape.
    pub fn checksum(&self, pool: &Pool, weights: &Weights<'_>) -> Vec<u32> {
        weights.check();
        let (rows, cols) = (weights.rows(), weights.cols());
        let k_tiles = cols.div_ceil(TILE_COLS);
        let mut v = vec![0u32; k_tiles * TILE_COLS];
        let base = SharedMut(v.as_mut_ptr());
        // Reading the tiles of one row of tiles in sequence matters more than few passes over v, which fits L1.
        let parts = pool.threads().min(k_tiles.max(1));
        pool.run(parts, &|part| {
            let span = k_tiles * part / parts..k_tiles * (part + 1) / parts;
            // SAFETY: span is within the k_tiles tiles that v has room for; parts do not overlap, and v is borrowed by
            // nobody else until `run` returns.
            let v = unsafe {
                std::slice::from_raw_parts_mut(base.get().add(span.start * TILE_COLS), span.len() * TILE_COLS)
            };
            let (v, _) = v.as_chunks_mut::<TILE_COLS>();
            for first in (0..rows).step_by(W8_TILE_ROWS) {
                let factors = factors::<W8_TILE_ROWS>(first);
                for (k_tile, v) in span.clone().zip(v.iter_mut()) {
                    let tile = w8_tile(self, weights, first / W8_TILE_ROWS, k_tile);
                    // SAFETY: this table exists only where its instruction set was detected.
                    unsafe { (self.float.add_columns)(&tile, &factors, v) };
                }
            }
        });
        v.truncate(cols);
        v
    }

    /// Writes `w4` weights as the int8 values that they stand for, in `w8` tiles: `out` is the bytes of
    /// `[2·ceil(N/64)][ceil(K/32)][32][32]`, rows padded to a multiple of 64.
    ///
    /// # Panics
    /// When the weights are not `w4` or `out` is not 2 · the length of their tiles.
    pub fn expand_w4(&self, pool: &Pool, weights: &Weights<'_>, out: &mut [u8]) {
        weights.check();
        let Weights::W4(w) = weights else { panic!("expand_w4: weights are w8") };
        assert_eq!(out.len(), 2 * w.tiles.len(), "expand_w4: output length");
        let k_tiles = w.cols.div_ceil(TILE_COLS);
        let base = SharedMut(out.as_mut_ptr().cast::<i8>());
        pool.run(w.rows.div_ceil(W4_TILE_ROWS), &|group| {
            for k_tile in 0..k_tiles {
                let (tile, multipliers) = w4_tile(weights, group, k_tile);
                let at = [(2 * group * k_tiles + k_tile), ((2 * group + 1) * k_tiles + k_tile)];
                // SAFETY: both tiles lie in `out`, whose length was asserted, and belong to this group alone; they are
                // different ones, and `out` is borrowed mutably until `run` returns.
                let out = at.map(|tile| unsafe {
                    &mut *base.get().add(tile * TILE_BYTES).cast::<[i8; TILE_BYTES]>()
                });
                // SAFETY: this table exists only where its instruction set was detected.
                unsafe { (self.float.expand_tile)(tile, &multipliers, out) };
            }
        });
    }
}

/// Tile `k_tile` of `w8` tile row `index`, expanded where the weights are `w4`.
fn w8_tile(kernels: &Kernels, weights: &Weights<'_>, index: usize, k_tile: usize) -> [i8; TILE_BYTES] {
    match weights {
        Weights::W8(w) => {
            let at = (index * w.cols.div_ceil(TILE_COLS) + k_tile) * TILE_BYTES;
            w.tiles[at..].first_chunk().copied().unwrap_or([0; TILE_BYTES])
        }
        Weights::W4(_) => {
            let (tile, multipliers) = w4_tile(weights, index / 2, k_tile);
            let mut both = [[0; TILE_BYTES]; 2];
            // SAFETY: this table exists only where its instruction set was detected.
            unsafe { (kernels.float.expand_tile)(tile, &multipliers, both.each_mut()) };
            both[index % 2]
        }
    }
}

/// Tile `k_tile` of `w4` tile row `group`, and the multipliers of its rows (0 for padding).
fn w4_tile<'a>(
    weights: &Weights<'a>,
    group: usize,
    k_tile: usize,
) -> (&'a [u8; TILE_BYTES], [u8; W4_TILE_ROWS]) {
    let Weights::W4(w) = weights else { unreachable!("callers have matched w4") };
    let (groups, at) =
        (w.cols.div_ceil(W4_GROUP), (group * w.cols.div_ceil(TILE_COLS) + k_tile) * TILE_BYTES);
    let multiplier = |row: usize| match group * W4_TILE_ROWS + row {
        row if row < w.rows => w.multipliers[row * groups + k_tile * TILE_COLS / W4_GROUP],
        _ => 0,
    };
    let tile = w.tiles[at..].first_chunk().expect("lengths were checked");
    (tile, std::array::from_fn(multiplier))
}
