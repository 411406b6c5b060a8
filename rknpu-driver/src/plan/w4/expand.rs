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

/// Writes the int8 tiles of output channels `rows` of a `w4` matrix; `rows` begins with an int4 tile. `tiles`
/// and `multipliers` (`[N][ceil(K / 128)]`, low four bits used) are those of the whole matrix. The tiles come
/// region by region of K, as the plan that will read them says
/// ([`MatmulPlan::weight_regions`](crate::plan::MatmulPlan::weight_regions)).
///
/// # Panics
/// When `rows` begins elsewhere, the regions do not make up K, or a slice is shorter than it must be.
pub fn expand(
    tiles: &[u8],
    multipliers: &[u8],
    inner: usize,
    rows: Range<usize>,
    regions: &[Range<usize>],
    out: &mut [u8],
) {
    let columns = inner.div_ceil(TILE_COLUMNS);
    assert!(rows.start.is_multiple_of(ROWS), "rows {rows:?} do not begin with a tile");
    assert_eq!(regions.iter().map(Range::len).sum::<usize>(), columns, "tiles of K in {regions:?}");
    assert_eq!(out.len(), expanded_bytes(rows.clone(), inner), "int8 tiles of rows {rows:?}");
    let groups = multipliers_per_row(inner);
    let multipliers = &multipliers[rows.start * groups..rows.end * groups];
    let first = rows.start / ROWS * columns;
    let halves = rows.len().div_ceil(HALF);
    let mut out = out.chunks_exact_mut(TILE_BYTES);
    for region in regions {
        for half in 0..halves {
            let row = half * HALF;
            let within = row % ROWS * (TILE_BYTES / ROWS);
            for (column, out) in region.clone().zip(&mut out) {
                let tile = first + row / ROWS * columns + column;
                let lines = &tiles[tile * TILE_BYTES + within..][..TILE_BYTES / 2];
                let group = column * TILE_COLUMNS / W4_GROUP;
                expand_tile(lines, multipliers.iter().skip(row * groups + group).step_by(groups), out);
            }
        }
    }
}

/// Half an int4 tile times one multiplier a row. Rows past the last have no multiplier: they are padding and
/// hold zeros.
fn expand_tile<'a>(lines: &[u8], multipliers: impl Iterator<Item = &'a u8>, out: &mut [u8]) {
    let multipliers = multipliers.copied().chain(std::iter::repeat(0));
    let rows = lines.chunks_exact(16).zip(out.chunks_exact_mut(TILE_COLUMNS));
    for ((line, out), multiplier) in rows.zip(multipliers) {
        expand_line(line, (multiplier & 15) as i8, out);
    }
}

/// Sixteen bytes of nibbles times one multiplier: −8·15 … 7·15 fit int8.
fn expand_line(line: &[u8], multiplier: i8, out: &mut [u8]) {
    for (&byte, pair) in line.iter().zip(out.as_chunks_mut::<2>().0) {
        *pair = nibbles(byte).map(|value| (value * multiplier) as u8);
    }
}
