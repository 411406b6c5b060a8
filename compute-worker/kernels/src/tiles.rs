//! The stored order of weights: the NPU's own tiles, padded with zeros.
//!
//! * `w8`: `[ceil(N/32)][ceil(K/32)][32 n][32 k]`, one signed byte a value.
//! * `w4`: `[ceil(N/64)][ceil(K/32)][64 n][16 bytes]`, two signed nibbles a byte, the low one is the even k.

/// Output channels in a `w8` tile.
pub const W8_TILE_ROWS: usize = 32;
/// Output channels in a `w4` tile.
pub const W4_TILE_ROWS: usize = 64;
/// Input channels in a tile of either kind.
pub const TILE_COLS: usize = 32;
/// Bytes in a tile of either kind.
pub const TILE_BYTES: usize = 1024;
/// Input channels that share one multiplier of a `w4` row.
pub const W4_GROUP: usize = 128;

/// Bytes of a `[rows][cols]` matrix in `w8` tiles.
pub const fn w8_len(rows: usize, cols: usize) -> usize {
    rows.div_ceil(W8_TILE_ROWS) * cols.div_ceil(TILE_COLS) * TILE_BYTES
}

/// Bytes of a `[rows][cols]` matrix in `w4` tiles.
pub const fn w4_len(rows: usize, cols: usize) -> usize {
    rows.div_ceil(W4_TILE_ROWS) * cols.div_ceil(TILE_COLS) * TILE_BYTES
}

/// Where element (row, col) lies in `w8` tiles.
pub(crate) const fn w8_index(row: usize, col: usize, cols: usize) -> usize {
    let tile = row / W8_TILE_ROWS * cols.div_ceil(TILE_COLS) + col / TILE_COLS;
    tile * TILE_BYTES + row % W8_TILE_ROWS * TILE_COLS + col % TILE_COLS
}

/// The byte that holds element (row, col) in `w4` tiles; an even col is its low nibble.
pub(crate) const fn w4_index(row: usize, col: usize, cols: usize) -> usize {
    let tile = row / W4_TILE_ROWS * cols.div_ceil(TILE_COLS) + col / TILE_COLS;
    tile * TILE_BYTES + row % W4_TILE_ROWS * (TILE_COLS / 2) + col % TILE_COLS / 2
}

/// Bytes as the signed values that `w8` tiles are.
pub fn signed(bytes: &[u8]) -> &[i8] {
    // SAFETY: u8 and i8 have the same size and alignment, and every bit pattern is valid for both. The result borrows
    // `bytes`.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// The signed value of the nibble of `byte` that column `col` uses.
#[inline(always)]
pub(crate) const fn nibble(byte: u8, col: usize) -> i8 {
    let high = if col.is_multiple_of(2) { byte << 4 } else { byte };
    (high as i8) >> 4
}

/// Packs row-major `[rows][cols]` int8 values into tiles; padding becomes zero.
///
/// # Panics
/// When `values` is not `rows * cols` long or `out` not [`w8_len`].
pub fn pack_w8(rows: usize, cols: usize, values: &[i8], out: &mut [i8]) {
    assert_eq!(values.len(), rows * cols, "pack_w8: values do not match {rows} x {cols}");
    assert_eq!(out.len(), w8_len(rows, cols), "pack_w8: output does not match {rows} x {cols}");
    out.fill(0);
    if cols == 0 {
        return;
    }
    for (row, line) in values.chunks_exact(cols).enumerate() {
        for (part, piece) in line.chunks(TILE_COLS).enumerate() {
            let start = w8_index(row, part * TILE_COLS, cols);
            out[start..start + piece.len()].copy_from_slice(piece);
        }
    }
}

/// Packs row-major `[rows][cols]` values −8…7 into nibble tiles; padding becomes zero.
///
/// # Panics
/// When lengths do not match (see [`pack_w8`]) or a value is outside −8…7.
pub fn pack_w4(rows: usize, cols: usize, values: &[i8], out: &mut [u8]) {
    assert_eq!(values.len(), rows * cols, "pack_w4: values do not match {rows} x {cols}");
    assert_eq!(out.len(), w4_len(rows, cols), "pack_w4: output does not match {rows} x {cols}");
    out.fill(0);
    if cols == 0 {
        return;
    }
    for (row, line) in values.chunks_exact(cols).enumerate() {
        for (part, piece) in line.chunks(TILE_COLS).enumerate() {
            let start = w4_index(row, part * TILE_COLS, cols);
            for (i, &value) in piece.iter().enumerate() {
                assert!((-8..=7).contains(&value), "pack_w4: {value} is outside -8..=7");
                let bits = value as u8 & 0xf;
                out[start + i / 2] |= if i % 2 == 0 { bits } else { bits << 4 };
            }
        }
    }
}

/// Reads `w8` tiles back into row-major `[rows][cols]`; padding is dropped.
///
/// # Panics
/// When lengths do not match, as in [`pack_w8`].
pub fn unpack_w8(rows: usize, cols: usize, tiles: &[i8], out: &mut [i8]) {
    assert_eq!(out.len(), rows * cols, "unpack_w8: output does not match {rows} x {cols}");
    assert_eq!(tiles.len(), w8_len(rows, cols), "unpack_w8: tiles do not match {rows} x {cols}");
    if cols == 0 {
        return;
    }
    for (row, line) in out.chunks_exact_mut(cols).enumerate() {
        for (part, piece) in line.chunks_mut(TILE_COLS).enumerate() {
            let start = w8_index(row, part * TILE_COLS, cols);
            piece.copy_from_slice(&tiles[start..start + piece.len()]);
        }
    }
}

/// Reads `w4` tiles back into row-major `[rows][cols]` values −8…7 (multipliers not applied).
///
/// # Panics
/// When lengths do not match, as in [`pack_w8`].
pub fn unpack_w4(rows: usize, cols: usize, tiles: &[u8], out: &mut [i8]) {
    assert_eq!(out.len(), rows * cols, "unpack_w4: output does not match {rows} x {cols}");
    assert_eq!(tiles.len(), w4_len(rows, cols), "unpack_w4: tiles do not match {rows} x {cols}");
    if cols == 0 {
        return;
    }
    for (row, line) in out.chunks_exact_mut(cols).enumerate() {
        for (col, value) in line.iter_mut().enumerate() {
            *value = nibble(tiles[w4_index(row, col, cols)], col);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_round_trips_at_awkward_shapes() {
        for (rows, cols) in [(1, 1), (31, 33), (32, 32), (33, 31), (65, 127), (64, 128), (1, 129), (0, 5)] {
            let values: Vec<i8> = (0..rows * cols).map(|i| (i * 37 % 255) as i8).collect();
            let mut tiles = vec![1; w8_len(rows, cols)];
            pack_w8(rows, cols, &values, &mut tiles);
            let mut back = vec![0; rows * cols];
            unpack_w8(rows, cols, &tiles, &mut back);
            assert_eq!(back, values);

            let values: Vec<i8> = values.iter().map(|v| v.rem_euclid(16) - 8).collect();
            let mut tiles = vec![1; w4_len(rows, cols)];
            pack_w4(rows, cols, &values, &mut tiles);
            unpack_w4(rows, cols, &tiles, &mut back);
            assert_eq!(back, values);
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        // Element (33, 34) of a 64 x 64 matrix: second row of tiles, second tile in it, n = 1, k = 2.
        let mut values = vec![0i8; 64 * 64];
        values[33 * 64 + 34] = 7;
        let mut tiles = vec![0; w8_len(64, 64)];
        pack_w8(64, 64, &values, &mut tiles);
        assert_eq!(tiles.iter().position(|&v| v == 7), Some(3 * 1024 + 32 + 2));
        let mut tiles = vec![0; w4_len(64, 64)];
        values[33 * 64 + 35] = -1;
        pack_w4(64, 64, &values, &mut tiles);
        assert_eq!(tiles.iter().position(|&v| v == 0xf7), Some(1024 + 33 * 16 + 1));
    }

    #[test]
    #[should_panic(expected = "outside -8..=7")]
    fn a_value_that_has_no_nibble_is_refused() {
        pack_w4(1, 1, &[8], &mut [0; 1024]);
    }
}
