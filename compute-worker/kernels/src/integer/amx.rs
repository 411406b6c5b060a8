//! Integer kernels for AMX-INT8: many rows against a packed panel, on tiles of 16 rows × 64 bytes.
//!
//! ```text
//! packed panel [K/4][64 n][4 k], K padded to 64: 16 quads × 16 n are one B tile, rows 256 bytes apart
//! for blocks of 32 rows (the last one shorter), for each half of the panel (32 n):
//!   C0..C3 = 0                              (rows 0–15, 16–31) × (n 0–15, 16–31)
//!   for each 64 k:  A4, A5 = 16 rows × 64 k of activations;  B6, B7 = 64 k × 16 n of weights
//!                   C0 += A4·B6;  C1 += A4·B7;  C2 += A5·B6;  C3 += A5·B7       (tdpbssd, signed × signed)
//!   store C into acc
//! ```
//! The tile instructions sit behind [`Tiles`]. No machine with AMX was at hand: the logic of this file runs in
//! the tests over `emulator`, which checks what the hardware would fault on; the six one-instruction wrappers
//! in `hardware`, the permission request and the detection are unproven. Up to 16 rows of 8-bit weights, or 8 of 4-bit
//! ones, go to the AVX-512 kernel, which every CPU with AMX has: a product of so few rows is bound by memory.

#[cfg(test)]
pub(crate) mod emulator;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod hardware;

use super::{Acc, PANEL, Quad, Rows};

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Bytes of a tile's row.
const ROW_BYTES: usize = 64;
/// Bytes of a packed quad, from one row of a B tile to the next.
const QUAD_BYTES: usize = size_of::<Quad>();

/// The memory operand of `ldtilecfg`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes per row of each tile; only the first 8 tiles exist.
    row_bytes: [u16; 16],
    /// Rows of each tile.
    rows: [u8; 16],
}

const _: () = assert!(size_of::<TileConfig>() == 64, "ldtilecfg reads 64 bytes");

impl TileConfig {
    /// C tiles 0–3, A tiles 4 and 5, B tiles 6 and 7, for a block of `low` + `high` rows; with `high` = 0 the
    /// tiles of the upper rows are left out.
    fn for_block(low: usize, high: usize) -> TileConfig {
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let tiles = [low, low, high, high, low, high, TILE_ROWS, TILE_ROWS];
        for (tile, rows) in tiles.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = ROW_BYTES as u16;
        }
        config
    }
}

/// The tile instructions. Tile numbers are constants because the instructions encode them.
///
/// # Safety
/// Callers of every method hold: the CPU has AMX-INT8 and the process may use it (for the hardware), the tiles
/// named are configured, and memory of the configured rows at `stride` bytes is valid.
pub(crate) trait Tiles {
    /// `ldtilecfg`: sets the shapes and zeroes all tiles.
    unsafe fn configure(&mut self, config: &TileConfig);
    /// `tilezero`.
    unsafe fn zero<const T: usize>(&mut self);
    /// `tileloadd`.
    unsafe fn load<const T: usize>(&mut self, from: *const i8, stride: usize);
    /// `tilestored`.
    unsafe fn store<const T: usize>(&mut self, to: *mut i32, stride: usize);
    /// `tdpbssd`: C += A · B.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
    /// `tilerelease`: back to the state that costs nothing to save.
    unsafe fn release(&mut self);
}

/// The kernel, over any tiles.
///
/// # Safety
/// As for [`Tiles`] and [`super::IntegerTable`].
pub(crate) unsafe fn packed<T: Tiles>(tiles: &mut T, panel: &[Quad], rows: Rows<'_>, acc: &mut [Acc]) {
    let mut configured = None;
    for (block, acc) in acc.chunks_mut(2 * TILE_ROWS).enumerate() {
        let rows = rows.range(block * 2 * TILE_ROWS, acc.len());
        let (low, high) = (acc.len().min(TILE_ROWS), acc.len().saturating_sub(TILE_ROWS));
        if configured != Some((low, high)) {
            // SAFETY: the caller vouches for the instructions.
            unsafe { tiles.configure(&TileConfig::for_block(low, high)) };
            configured = Some((low, high));
        }
        for half in 0..PANEL / (2 * TILE_ROWS) {
            // SAFETY: configured for exactly these rows just now.
            unsafe { block_half(tiles, panel, half, rows, acc, high > 0) };
        }
    }
    // SAFETY: the caller vouches for the instructions.
    unsafe { tiles.release() };
}

/// 32 output channels of up to 32 rows.
///
/// # Safety
/// As for [`Tiles`]; the tiles are configured for `acc.len()` rows, `high` says whether there are more than 16.
unsafe fn block_half<T: Tiles>(
    tiles: &mut T,
    panel: &[Quad],
    half: usize,
    rows: Rows<'_>,
    acc: &mut [Acc],
    high: bool,
) {
    assert!(
        rows.values.len() >= acc.len() * rows.stride && rows.stride >= panel.len() * 4,
        "amx: rows too short"
    );
    let upper = TILE_ROWS * rows.stride;
    // SAFETY: A tiles read 64 bytes of each of acc.len() rows at k·64 < stride, B tiles 16 quads of the panel
    // (its length is a multiple of 16) at channels half·32 and half·32 + 16, C tiles write 16 int32 of each of
    // acc.len() accumulators at the same channels: all inside their slices. The rest is the caller's promise.
    unsafe {
        tiles.zero::<0>();
        tiles.zero::<1>();
        if high {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
        for k in 0..panel.len() / TILE_ROWS {
            let a = rows.values.as_ptr().add(k * ROW_BYTES);
            let b = panel.as_ptr().cast::<i8>().add(k * TILE_ROWS * QUAD_BYTES + half * 2 * ROW_BYTES);
            tiles.load::<6>(b, QUAD_BYTES);
            tiles.load::<7>(b.add(ROW_BYTES), QUAD_BYTES);
            tiles.load::<4>(a, rows.stride);
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 7>();
            if high {
                tiles.load::<5>(a.add(upper), rows.stride);
                tiles.dot::<2, 5, 6>();
                tiles.dot::<3, 5, 7>();
            }
        }
        let c = acc.as_mut_ptr().cast::<i32>().add(half * 2 * TILE_ROWS);
        tiles.store::<0>(c, size_of::<Acc>());
        tiles.store::<1>(c.add(TILE_ROWS), size_of::<Acc>());
        if high {
            let c = c.add(TILE_ROWS * PANEL);
            tiles.store::<2>(c, size_of::<Acc>());
            tiles.store::<3>(c.add(TILE_ROWS), size_of::<Acc>());
        }
    }
}
