//! Tiles in plain memory, for the tests: the manual's semantics, and a panic where the hardware would fault or
//! where the result would be undefined.

use super::super::{Acc, IntegerTable, Quad, Rows, scalar};
use super::{ROW_BYTES, TILE_ROWS, TileConfig, Tiles};

/// No direct kernel: every number of rows takes the path over tiles.
pub(crate) static TABLE: IntegerTable = IntegerTable {
    direct_rows_w8: 0,
    direct_rows_w4: 0,
    direct: scalar::TABLE.direct,
    pack: scalar::pack,
    packed,
};

fn packed(panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
    let mut tiles = Emulated { config: None, tiles: [[[0; ROW_BYTES]; TILE_ROWS]; 8] };
    // SAFETY: the emulator needs no instruction; the caller's slices are as `IntegerTable` demands.
    unsafe { super::packed(&mut tiles, panel, rows, acc) };
    assert!(tiles.config.is_none(), "the kernel must release the tiles");
}

struct Emulated {
    config: Option<TileConfig>,
    tiles: [[[u8; ROW_BYTES]; TILE_ROWS]; 8],
}

impl Emulated {
    /// Rows and bytes per row of a configured tile.
    fn shape(&self, tile: usize) -> (usize, usize) {
        let config = self.config.as_ref().expect("tiles must be configured");
        let (rows, bytes) = (usize::from(config.rows[tile]), usize::from(config.row_bytes[tile]));
        assert!(rows > 0 && bytes > 0, "tile {tile} is not configured");
        (rows, bytes)
    }
}

impl Tiles for Emulated {
    unsafe fn configure(&mut self, config: &TileConfig) {
        assert_eq!((config.palette, config.start_row, config.reserved), (1, 0, [0; 14]));
        assert!(config.row_bytes[8..].iter().all(|&b| b == 0) && config.rows[8..].iter().all(|&r| r == 0));
        for (&bytes, &rows) in config.row_bytes.iter().zip(&config.rows) {
            assert!(usize::from(bytes) <= ROW_BYTES && usize::from(rows) <= TILE_ROWS);
            assert_eq!(bytes == 0, rows == 0);
        }
        self.config = Some(*config);
        // The hardware zeroes the tiles; rubbish shows a kernel that relies on what it did not load.
        self.tiles = [[[0x5a; ROW_BYTES]; TILE_ROWS]; 8];
    }

    unsafe fn zero<const T: usize>(&mut self) {
        self.shape(T);
        self.tiles[T] = [[0; ROW_BYTES]; TILE_ROWS];
    }

    unsafe fn load<const T: usize>(&mut self, from: *const i8, stride: usize) {
        let (rows, bytes) = self.shape(T);
        for (row, to) in self.tiles[T].iter_mut().enumerate() {
            to.fill(0);
            if row < rows {
                // SAFETY: the caller vouches for the configured rows.
                let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(row * stride), bytes) };
                to[..bytes].copy_from_slice(from);
            }
        }
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut i32, stride: usize) {
        let (rows, bytes) = self.shape(T);
        for (row, from) in self.tiles[T].iter().take(rows).enumerate() {
            // SAFETY: the caller vouches for the configured rows.
            let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>().add(row * stride), bytes) };
            to.copy_from_slice(&from[..bytes]);
        }
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let ((m, c_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) =
            (self.shape(C), self.shape(A), self.shape(B));
        assert!(C != A && C != B && A != B, "tdpbssd faults on equal tiles");
        assert_eq!(
            (m, c_bytes, a_bytes),
            (a_rows, b_bytes, b_rows * 4),
            "tdpbssd faults on shapes that differ"
        );
        let (a, b) = (self.tiles[A], self.tiles[B]);
        for (row, a) in a.iter().enumerate().take(m) {
            for n in 0..c_bytes / 4 {
                let at = 4 * n..4 * n + 4;
                let bytes = self.tiles[C][row][at.clone()].try_into().expect("four bytes");
                let products =
                    (0..a_bytes).map(|k| i32::from(a[k] as i8) * i32::from(b[k / 4][4 * n + k % 4] as i8));
                let sum = products.fold(i32::from_le_bytes(bytes), i32::wrapping_add);
                self.tiles[C][row][at].copy_from_slice(&sum.to_le_bytes());
            }
        }
    }

    unsafe fn release(&mut self) {
        self.config = None;
    }
}
