//! Weight tiles: `[N / group][K / 32][group][32]`, a tile of 1,024 bytes whatever the precision.
//!
//! The group is 32 rows for int8, 16 for fp16, 64 for int4 (two values a byte, the low nibble is the even k).
//! All tiles are whole, padded with zeros: for N and K that are multiples of the tile this is what the
//! vendor's compiler writes (int8, fp16 agreed by many; int4 by one source). Its own tails are shorter than a
//! tile; ours never are, because a task is told the padded sizes.

use std::ops::Range;

use half::f16;

use crate::shape::{Precision, TILE_BYTES, TILE_COLUMNS};

/// Rows of a matrix of K columns that share one multiplier of `w4`: values along K.
pub const W4_GROUP: usize = 128;

/// Bytes of an `[rows][columns]` matrix in tiles.
pub const fn tile_bytes(rows: usize, columns: usize, precision: Precision) -> usize {
    rows.div_ceil(precision.tile_rows()) * columns.div_ceil(TILE_COLUMNS) * TILE_BYTES
}

/// Byte offset of the 32 columns from `column / 32 * 32` on of a row.
const fn line_offset(row: usize, column: usize, columns: usize, precision: Precision) -> usize {
    let rows = precision.tile_rows();
    let tile = row / rows * columns.div_ceil(TILE_COLUMNS) + column / TILE_COLUMNS;
    tile * TILE_BYTES + row % rows * (TILE_BYTES / rows)
}

/// Packs row-major int8 values into int8 tiles.
///
/// # Panics
/// When `values` is not `rows · columns` long or `out` not [`tile_bytes`].
pub fn pack_i8(rows: usize, columns: usize, values: &[i8], out: &mut [u8]) {
    pack(rows, columns, Precision::Int8, values, out, |piece, line| {
        for (to, &value) in line.iter_mut().zip(piece) {
            *to = value as u8;
        }
    });
}

/// Packs row-major values −8…7 into int4 tiles; only the low four bits of a value are used.
///
/// # Panics
/// As [`pack_i8`].
pub fn pack_i4(rows: usize, columns: usize, values: &[i8], out: &mut [u8]) {
    pack(rows, columns, Precision::Int4, values, out, |piece, line| {
        for (to, pair) in line.iter_mut().zip(piece.chunks(2)) {
            *to = (pair[0] as u8 & 0xf) | (pair.get(1).copied().unwrap_or(0) as u8) << 4;
        }
    });
}

/// Packs row-major binary16 values into fp16 tiles.
///
/// # Panics
/// As [`pack_i8`].
pub fn pack_f16(rows: usize, columns: usize, values: &[f16], out: &mut [u8]) {
    pack(rows, columns, Precision::Fp16, values, out, |piece, line| {
        for (to, value) in line.as_chunks_mut::<2>().0.iter_mut().zip(piece) {
            *to = value.to_le_bytes();
        }
    });
}

fn pack<T>(
    rows: usize,
    columns: usize,
    precision: Precision,
    values: &[T],
    out: &mut [u8],
    put: impl Fn(&[T], &mut [u8]),
) {
    assert_eq!(values.len(), rows * columns, "values of a {rows} x {columns} matrix");
    assert_eq!(out.len(), tile_bytes(rows, columns, precision), "tiles of a {rows} x {columns} matrix");
    out.fill(0);
    let line = TILE_BYTES / precision.tile_rows();
    for (row, values) in values.chunks_exact(columns.max(1)).enumerate() {
        for (part, piece) in values.chunks(TILE_COLUMNS).enumerate() {
            let at = line_offset(row, part * TILE_COLUMNS, columns, precision);
            put(piece, &mut out[at..at + line]);
        }
    }
}

/// Reads int8 tiles back into row-major values; padding is dropped.
///
/// # Panics
/// As [`pack_i8`].
pub fn unpack_i8(rows: usize, columns: usize, tiles: &[u8], out: &mut [i8]) {
    unpack(rows, columns, Precision::Int8, tiles, out, |line, piece| {
        for (to, &byte) in piece.iter_mut().zip(line) {
            *to = byte as i8;
        }
    });
}

/// Reads int4 tiles back into row-major values −8…7; padding is dropped.
///
/// # Panics
/// As [`pack_i8`].
pub fn unpack_i4(rows: usize, columns: usize, tiles: &[u8], out: &mut [i8]) {
    unpack(rows, columns, Precision::Int4, tiles, out, |line, piece| {
        for (pair, &byte) in piece.chunks_mut(2).zip(line) {
            let both = nibbles(byte);
            pair.copy_from_slice(&both[..pair.len()]);
        }
    });
}

/// Reads fp16 tiles back into row-major values; padding is dropped.
///
/// # Panics
/// As [`pack_i8`].
pub fn unpack_f16(rows: usize, columns: usize, tiles: &[u8], out: &mut [f16]) {
    unpack(rows, columns, Precision::Fp16, tiles, out, |line, piece| {
        for (to, bytes) in piece.iter_mut().zip(line.as_chunks::<2>().0) {
            *to = f16::from_le_bytes(*bytes);
        }
    });
}

fn unpack<T>(
    rows: usize,
    columns: usize,
    precision: Precision,
    tiles: &[u8],
    out: &mut [T],
    take: impl Fn(&[u8], &mut [T]),
) {
    assert_eq!(out.len(), rows * columns, "values of a {rows} x {columns} matrix");
    assert_eq!(tiles.len(), tile_bytes(rows, columns, precision), "tiles of a {rows} x {columns} matrix");
    let line = TILE_BYTES / precision.tile_rows();
    for (row, values) in out.chunks_exact_mut(columns.max(1)).enumerate() {
        for (part, piece) in values.chunks_mut(TILE_COLUMNS).enumerate() {
            let at = line_offset(row, part * TILE_COLUMNS, columns, precision);
            take(&tiles[at..at + line], piece);
        }
    }
}

/// Copies stored tiles of any precision region by region of K, `[region][N / group][its tiles]`: what a plan
/// with [`WeightOrder::Sliced`](crate::plan::WeightOrder::Sliced) reads.
///
/// # Panics
/// When the regions do not make up `columns` tiles of K, or lengths differ.
pub fn retile(stored: &[u8], columns: usize, regions: &[Range<usize>], out: &mut [u8]) {
    assert_eq!(regions.iter().map(Range::len).sum::<usize>(), columns, "tiles of K in {regions:?}");
    assert_eq!(stored.len(), out.len(), "tiles copied");
    let mut out = out;
    for region in regions {
        for row in stored.chunks_exact(columns * TILE_BYTES) {
            let piece = &row[region.start * TILE_BYTES..region.end * TILE_BYTES];
            let (to, rest) = out.split_at_mut(piece.len());
            to.copy_from_slice(piece);
            out = rest;
        }
    }
}

/// The two values of a byte of int4 tiles, even k first.
pub(crate) const fn nibbles(byte: u8) -> [i8; 2] {
    [((byte << 4) as i8) >> 4, (byte as i8) >> 4]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oracle::Generator;

    proptest! {
        #[test]
        fn packing_round_trips(rows in 1usize..140, columns in 1usize..140, seed: u64) {
            let mut random = Generator::new(seed);
            let values = random.int8(rows * columns);
            let mut tiles = vec![1; tile_bytes(rows, columns, Precision::Int8)];
            pack_i8(rows, columns, &values, &mut tiles);
            let mut back = vec![0; values.len()];
            unpack_i8(rows, columns, &tiles, &mut back);
            prop_assert_eq!(&back, &values);
            let sum = |bytes: &[i8]| bytes.iter().map(|&value| i64::from(value)).sum::<i64>();
            let stored: Vec<i8> = tiles.iter().map(|&byte| byte as i8).collect();
            prop_assert_eq!(sum(&stored), sum(&values), "padding is zero");

            let values = random.int4(rows * columns);
            let mut tiles = vec![1; tile_bytes(rows, columns, Precision::Int4)];
            pack_i4(rows, columns, &values, &mut tiles);
            unpack_i4(rows, columns, &tiles, &mut back);
            prop_assert_eq!(&back, &values);

            let values = random.fp16(rows * columns);
            let mut tiles = vec![1; tile_bytes(rows, columns, Precision::Fp16)];
            pack_f16(rows, columns, &values, &mut tiles);
            let mut back = vec![f16::ONE; values.len()];
            unpack_f16(rows, columns, &tiles, &mut back);
            prop_assert_eq!(&back, &values);
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        // Element (33, 34) of 64 x 64: int8 second row of tiles, second tile in it, n = 1, k = 2.
        let mut values = vec![0i8; 64 * 64];
        values[33 * 64 + 34] = 7;
        let mut tiles = vec![0; tile_bytes(64, 64, Precision::Int8)];
        pack_i8(64, 64, &values, &mut tiles);
        assert_eq!(tiles.iter().position(|&byte| byte == 7), Some(3 * 1024 + 32 + 2));
        // int4: one row of tiles; k = 2 is the low nibble of byte 1 of line 33 in the second tile.
        let mut tiles = vec![0; tile_bytes(64, 64, Precision::Int4)];
        pack_i4(64, 64, &values, &mut tiles);
        assert_eq!(tiles.iter().position(|&byte| byte == 7), Some(1024 + 33 * 16 + 1));
        // fp16: third row of tiles (33 = 2·16 + 1).
        let mut values = vec![f16::ZERO; 64 * 64];
        values[33 * 64 + 34] = f16::from_bits(7);
        let mut tiles = vec![0; tile_bytes(64, 64, Precision::Fp16)];
        pack_f16(64, 64, &values, &mut tiles);
        assert_eq!(tiles.iter().position(|&byte| byte == 7), Some(5 * 1024 + 64 + 4));
    }
}
