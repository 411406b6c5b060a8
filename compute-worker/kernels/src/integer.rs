//! The integer half of a table: exact int32 products of 64 output channels (a panel) with rows of activations.
//!
//! A panel is two `w8` tile rows or one `w4` tile row. Few rows (decode) go through `direct`, which streams the
//! tiles once; more rows go through `pack`, which brings the panel into `[K/4][64 n][4 k]` order in scratch,
//! and `packed`, which reads that once per block of rows. All sums wrap at 32 bits, so even weights that
//! break the format's bounds (−128, wrong row sums) give the same integers everywhere and never a panic.

use crate::tiles::{TILE_BYTES, TILE_COLS, W4_GROUP};
use crate::weights::Weights;

#[cfg(any(target_arch = "x86_64", test))]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "an accumulator register is named by its two indices")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "an accumulator register is named by its two indices")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

/// Output channels of a panel.
pub(crate) const PANEL: usize = 64;
/// Input channels that a packed panel is padded to.
pub(crate) const PACK_COLS: usize = 64;

/// The accumulators of one activation row: one int32 per output channel of the panel.
pub(crate) type Acc = [i32; PANEL];

/// Up to 64 output channels of a matrix.
pub(crate) struct Panel<'a> {
    /// Valid rows, 1…64.
    pub(crate) rows: usize,
    /// K.
    pub(crate) cols: usize,
    pub(crate) tiles: PanelTiles<'a>,
    /// `[rows]`.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only unsigned × signed needs them"))]
    pub(crate) row_sums: &'a [i32],
}

/// A panel's slice of the stored tiles.
pub(crate) enum PanelTiles<'a> {
    /// One or two rows of tiles, `[1..=2][k_tiles][32][32]`.
    W8(&'a [i8]),
    /// One row of tiles `[k_tiles][64][16]`, and the rows' multipliers `[rows][groups]`.
    W4(&'a [u8], &'a [u8]),
}

/// Rows of activations, padded to 64 bytes with zeros.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `[count][stride]`.
    pub(crate) values: &'a [i8],
    pub(crate) stride: usize,
    pub(crate) count: usize,
    /// `[count]`: Σ_k a.
    pub(crate) sums: &'a [i32],
}

/// Four input channels of a packed panel: `[64 n][4 k]`, what one dot-product instruction per vector consumes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Quad(pub(crate) [i8; 4 * PANEL]);

impl Quad {
    pub(crate) const ZERO: Quad = Quad([0; 4 * PANEL]);
}

/// Pointers to the integer kernels of one instruction set; each may be called only where that was detected.
///
/// Callers hold: `acc` has `Rows::count` entries, `Rows::values` is `count · stride` long with stride ≥ K padded
/// to 64, tiles have the length that rows and cols demand, a packed panel has `packed_quads(cols)`
/// entries.
pub(crate) struct IntegerTable {
    /// Most rows for which `direct` is faster, by form; measured with `examples/kernels.rs`.
    pub(crate) direct_rows_w8: usize,
    pub(crate) direct_rows_w4: usize,
    pub(crate) direct: unsafe fn(&Panel<'_>, Rows<'_>, &mut [Acc]),
    /// The packed values may carry a bias that the same table's `packed` removes.
    pub(crate) pack: unsafe fn(&Panel<'_>, &mut [Quad]),
    pub(crate) packed: unsafe fn(&[Quad], Rows<'_>, &mut [Acc]),
}

/// value(nibble) × multiplier for each multiplier 0…15: what one byte shuffle looks up.
#[cfg(target_arch = "x86_64")]
static W4_TABLES: [[i8; 16]; 16] = {
    let mut tables = [[0; 16]; 16];
    let mut i = 0;
    while i < 256 {
        let value = if i % 16 < 8 { i % 16 } else { i % 16 - 16 };
        tables[i as usize / 16][i as usize % 16] = (i / 16 * value) as i8;
        i += 1;
    }
    tables
};

/// Entries of a packed panel of K columns.
pub(crate) fn packed_quads(cols: usize) -> usize {
    cols.next_multiple_of(PACK_COLS) / 4
}

impl<'a> Panel<'a> {
    /// Panel `index` of checked weights.
    pub(crate) fn of(weights: &Weights<'a>, index: usize) -> Panel<'a> {
        let cols = weights.cols();
        let (first, end) = (index * PANEL, weights.rows().min((index + 1) * PANEL));
        let tile_row = cols.div_ceil(TILE_COLS) * TILE_BYTES;
        let tiles = match weights {
            Weights::W8(w) => {
                let start = index * 2 * tile_row;
                PanelTiles::W8(&w.tiles[start..w.tiles.len().min(start + 2 * tile_row)])
            }
            Weights::W4(w) => {
                let groups = cols.div_ceil(W4_GROUP);
                PanelTiles::W4(
                    &w.tiles[index * tile_row..][..tile_row],
                    &w.multipliers[first * groups..end * groups],
                )
            }
        };
        Panel { rows: end - first, cols, tiles, row_sums: &weights.row_sums()[first..end] }
    }

    /// Most rows for which the table's direct kernel is the faster one.
    pub(crate) fn direct_rows(&self, table: &IntegerTable) -> usize {
        match self.tiles {
            PanelTiles::W8(..) => table.direct_rows_w8,
            PanelTiles::W4(..) => table.direct_rows_w4,
        }
    }

    pub(crate) fn k_tiles(&self) -> usize {
        self.cols.div_ceil(TILE_COLS)
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(W4_GROUP)
    }
}

impl<'a> Rows<'a> {
    /// Rows `first..first + count`.
    pub(crate) fn range(&self, first: usize, count: usize) -> Rows<'a> {
        let values = &self.values[first * self.stride..(first + count) * self.stride];
        Rows { values, stride: self.stride, count, sums: &self.sums[first..first + count] }
    }
}
