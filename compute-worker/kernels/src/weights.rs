//! Views of stored weights.

use std::ops::Range;

use crate::tiles::{self, TILE_BYTES, TILE_COLS, W4_GROUP, W4_TILE_ROWS, W8_TILE_ROWS};

/// Largest K: beyond it Σ 127·127 leaves int32.
pub const MAX_COLS: usize = 133_144;

/// An int8 matrix `[rows = N][cols = K]` in NPU tiles, one scale per row.
#[derive(Clone, Copy, Debug)]
pub struct W8<'a> {
    /// Output channels, N.
    pub rows: usize,
    /// Input channels, K, at most [`MAX_COLS`].
    pub cols: usize,
    /// `[ceil(N/32)][ceil(K/32)][32 n][32 k]`, padded with zeros.
    pub tiles: &'a [i8],
    /// `[N]`.
    pub scales: &'a [f32],
    /// `[N]`: Σ_k w.
    pub row_sums: &'a [i32],
}

/// An int4 matrix `[rows = N][cols = K]` in NPU tiles: the int8 weight is value × multiplier.
#[derive(Clone, Copy, Debug)]
pub struct W4<'a> {
    /// Output channels, N.
    pub rows: usize,
    /// Input channels, K, at most [`MAX_COLS`].
    pub cols: usize,
    /// `[ceil(N/64)][ceil(K/32)][64 n][16 bytes]`, the low nibble is the even k, padded with zeros.
    pub tiles: &'a [u8],
    /// `[N][ceil(K/128)]`, 1…15; only the low four bits are used.
    pub multipliers: &'a [u8],
    /// `[N]`.
    pub scales: &'a [f32],
    /// `[N]`: Σ_k value × multiplier.
    pub row_sums: &'a [i32],
}

/// Weights of a linear layer in either form.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// One byte a value.
    W8(W8<'a>),
    /// Half a byte a value.
    W4(W4<'a>),
}

impl<'a> Weights<'a> {
    /// Output channels, N.
    pub fn rows(&self) -> usize {
        match self {
            Weights::W8(w) => w.rows,
            Weights::W4(w) => w.rows,
        }
    }

    /// Input channels, K.
    pub fn cols(&self) -> usize {
        match self {
            Weights::W8(w) => w.cols,
            Weights::W4(w) => w.cols,
        }
    }

    /// Output channels `rows` by themselves, over the same memory.
    ///
    /// # Panics
    /// When `rows` does not start and end at a multiple of 64, or at N.
    pub fn part(&self, rows: Range<usize>) -> Weights<'a> {
        let (all, cols) = (self.rows(), self.cols());
        let whole = |row: usize| row.is_multiple_of(W4_TILE_ROWS) || row == all;
        assert!(rows.start <= rows.end && rows.end <= all, "weights: rows {rows:?} of {all}");
        assert!(whole(rows.start) && whole(rows.end), "weights: rows {rows:?} are not whole panels of {all}");
        let tile_row = cols.div_ceil(TILE_COLS) * TILE_BYTES;
        let (scales, row_sums) = (&self.scales()[rows.clone()], &self.row_sums()[rows.clone()]);
        match self {
            Weights::W8(w) => {
                let tiles = rows.start.div_ceil(W8_TILE_ROWS)..rows.end.div_ceil(W8_TILE_ROWS);
                let tiles = &w.tiles[tiles.start * tile_row..tiles.end * tile_row];
                Weights::W8(W8 { rows: rows.len(), cols, tiles, scales, row_sums })
            }
            Weights::W4(w) => {
                let tiles = rows.start.div_ceil(W4_TILE_ROWS)..rows.end.div_ceil(W4_TILE_ROWS);
                let tiles = &w.tiles[tiles.start * tile_row..tiles.end * tile_row];
                let groups = cols.div_ceil(W4_GROUP);
                let multipliers = &w.multipliers[rows.start * groups..rows.end * groups];
                Weights::W4(W4 { rows: rows.len(), cols, tiles, multipliers, scales, row_sums })
            }
        }
    }

    /// The stored tiles as bytes, by whose place in memory a matrix is known.
    pub fn tile_bytes(&self) -> &'a [u8] {
        match self {
            // SAFETY: i8 and u8 have the same size and alignment, and every bit pattern is valid for both.
            Weights::W8(w) => unsafe { std::slice::from_raw_parts(w.tiles.as_ptr().cast(), w.tiles.len()) },
            Weights::W4(w) => w.tiles,
        }
    }

    /// Bytes that one pass over the weights reads.
    pub fn bytes(&self) -> usize {
        let rows = self.rows() * (size_of::<f32>() + size_of::<i32>());
        match self {
            Weights::W8(w) => w.tiles.len() + rows,
            Weights::W4(w) => w.tiles.len() + w.multipliers.len() + rows,
        }
    }

    /// Scale per row, `[N]`.
    pub fn scales(&self) -> &'a [f32] {
        match self {
            Weights::W8(w) => w.scales,
            Weights::W4(w) => w.scales,
        }
    }

    pub(crate) fn row_sums(&self) -> &'a [i32] {
        match self {
            Weights::W8(w) => w.row_sums,
            Weights::W4(w) => w.row_sums,
        }
    }

    /// Asserts that every slice has the length that rows and cols demand.
    pub(crate) fn check(&self) {
        let (rows, cols) = (self.rows(), self.cols());
        assert!(cols <= MAX_COLS, "weights: {cols} columns, int32 holds {MAX_COLS}");
        assert_eq!(self.scales().len(), rows, "weights: wrong number of scales");
        assert_eq!(self.row_sums().len(), rows, "weights: wrong number of row sums");
        match self {
            Weights::W8(w) => {
                assert_eq!(w.tiles.len(), tiles::w8_len(rows, cols), "weights: w8 tiles of {rows} x {cols}");
            }
            Weights::W4(w) => {
                assert_eq!(w.tiles.len(), tiles::w4_len(rows, cols), "weights: w4 tiles of {rows} x {cols}");
                let multipliers = rows * cols.div_ceil(W4_GROUP);
                assert_eq!(w.multipliers.len(), multipliers, "weights: w4 multipliers of {rows} x {cols}");
            }
        }
    }

    /// The int8 weight at (row, col).
    pub(crate) fn value(&self, row: usize, col: usize) -> i8 {
        match self {
            Weights::W8(w) => w.tiles[tiles::w8_index(row, col, w.cols)],
            Weights::W4(w) => {
                let multiplier = w.multipliers[row * w.cols.div_ceil(W4_GROUP) + col / W4_GROUP];
                tiles::nibble(w.tiles[tiles::w4_index(row, col, w.cols)], col) * (multiplier & 15) as i8
            }
        }
    }
}
