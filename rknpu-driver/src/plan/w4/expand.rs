//! The int8 way: values times multipliers, in int8 tiles.

use std::ops::Range;

use crate::layout::weights::{W4_GROUP, nibbles, tile_bytes};
use crate::plan::w4::multipliers_per_row;
use crate::shape::{Precision, TILE_BYTES, TILE_COLUMNS};

/// Rows of an int4 tile; they become two int8 tiles, one above the other.
const ROWS: usize = Precision::Int4.tile_rows();
/// Rows of an int8 tile.
const HALF: usize = Precision::Int8.tile_rows();

/// Bytes of the int8 tiles of rows `rows`.
pub const fn expanded_bytes(rows: Range<usize>, inner: usize) -> usize {
    tile_bytes(rows.end - rows.start, inner, Precision::Int8)
}

/// Runs of output channels whose int8 tiles fit `staging` bytes, each beginning with an int4 tile.
///
/// A staging buffer that cannot hold one row of int4 tiles gets runs of one all the same.
pub fn stages(outputs: usize, inner: usize, staging: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = (staging / expanded_bytes(0..ROWS, inner).max(1)).max(1) * ROWS;
    (0..outputs).step_by(rows).map(move |first| first..outputs.min(first + rows))
}

/// Writes the int8 tiles of output channels `rows` of a `w4` matrix; `rows` begins with an int4 tile. `tiles` and `multipliers`
/// (`[N][ceil(K / 128)]`, low four bits used) are those of the whole matrix.
///
/// # Panics
/// When `rows` begins elsewhere or a slice is shorter than it must be.
pub fn expand(tiles: &[u8], multipliers: &[u8], inner: usize, rows: Range<usize>, out: &mut [u8]) {
    assert!(rows.start.is_multiple_of(ROWS), "rows {rows:?} do not begin with a tile");
    assert_eq!(out.len(), expanded_bytes(rows.clone(), inner), "int8 tiles of rows {rows:?}");
    let (columns, groups) = (inner.div_ceil(TILE_COLUMNS), multipliers_per_row(inner));
    let multipliers = &multipliers[rows.start * groups..rows.end * groups];
    let first = rows.start / ROWS * columns * TILE_BYTES;
    // One int8 row of tiles after another; rows beyond the last channel are padding.
    for (half, out) in out.chunks_exact_mut(columns * TILE_BYTES).enumerate() {
        let tile_row = half * HALF;
        let source = first + tile_row / ROWS * columns * TILE_BYTES + tile_row % ROWS * (TILE_BYTES / ROWS);
        for (column, out) in out.chunks_exact_mut(TILE_BYTES).enumerate() {
            let lines = &tiles[source + column * TILE_BYTES..][..TILE_BYTES / 2];
            let group = column * TILE_COLUMNS / W4_GROUP;
            for (row, (line, out)) in
                lines.chunks_exact(16).zip(out.chunks_exact_mut(TILE_COLUMNS)).enumerate()
            {
                // Padding rows hold zeros; any multiplier keeps them.
                let multiplier =
                    multipliers.get((tile_row + row) * groups + group).copied().unwrap_or(0) & 15;
                expand_line(line, multiplier as i8, out);
            }
        }
    }
}

/// Sixteen bytes of nibbles times one multiplier: −8·15 … 7·15 fit int8.
fn expand_line(line: &[u8], multiplier: i8, out: &mut [u8]) {
    for (&byte, pair) in line.iter().zip(out.as_chunks_mut::<2>().0) {
        *pair = nibbles(byte).map(|value| (value * multiplier) as u8);
    }
}
