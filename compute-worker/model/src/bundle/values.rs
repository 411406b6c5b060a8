//! Checks of stored values. Kernels rely on them: a weight of −128, a multiplier of 0 or a wrong row sum would make
//! instruction sets disagree, and a NaN scale would spread through a whole generation.
//!
//! Verifying a row sum reads every tile once more after hashing, at several GB/s a core; it is what tells a packer's
//! fault from a model's.

use super::blob::LocatedSegment;
use super::config::Precision;
use super::layout::{GROUP, Role};

type Fault = (Role, String);

/// Checks all values of a segment in the file `bytes`. The error says which part is at fault.
pub(crate) fn check(segment: &LocatedSegment<'_>, bytes: &[u8]) -> Result<(), Fault> {
    let part = |role| &bytes[segment.range(role)];
    let rows = segment.entry.segments[segment.index].rows;
    let matrix = Matrix {
        rows,
        cols: segment.entry.cols,
        tiles: part(Role::Tiles),
        row_sums: part(Role::RowSums),
        multipliers: part(Role::Multipliers),
    };
    match segment.precision() {
        Precision::F32 => return check_finite(part(Role::Values)),
        Precision::W8 => matrix.check_w8()?,
        Precision::W4 => {
            matrix.check_multipliers()?;
            matrix.check_w4()?;
        }
    }
    check_scales(part(Role::Scales))
}

fn check_finite(values: &[u8]) -> Result<(), Fault> {
    match f32s(values).enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, value)) => Err((Role::Values, format!("element {index} is {value}"))),
        None => Ok(()),
    }
}

fn check_scales(scales: &[u8]) -> Result<(), Fault> {
    match f32s(scales).enumerate().find(|(_, scale)| !scale.is_finite() || scale.is_sign_negative()) {
        Some((row, scale)) => Err((Role::Scales, format!("scale of row {row} is {scale}"))),
        None => Ok(()),
    }
}

/// Quantised rows as stored; all lengths fit the shape.
struct Matrix<'a> {
    rows: usize,
    cols: usize,
    tiles: &'a [u8],
    row_sums: &'a [u8],
    multipliers: &'a [u8],
}

impl Matrix<'_> {
    fn check_multipliers(&self) -> Result<(), Fault> {
        match self.multipliers.iter().position(|multiplier| !(1..=15).contains(multiplier)) {
            Some(at) => {
                let (groups, multiplier) = (self.cols.div_ceil(GROUP), self.multipliers[at]);
                let (row, group) = (at / groups, at % groups);
                Err((Role::Multipliers, format!("multiplier of row {row}, group {group} is {multiplier}")))
            }
            None => Ok(()),
        }
    }

    /// Tiles `[N/32][K/32][32 n][32 k]` of int8.
    fn check_w8(&self) -> Result<(), Fault> {
        let k_tiles = self.cols.div_ceil(32);
        for (n_block, block) in self.tiles.chunks_exact(k_tiles * 1024).enumerate() {
            let first_row = n_block * 32;
            let mut sums = [0i32; 32];
            let mut lowest = [u8::MAX; 32];
            for tiles in block.chunks(W8_TILES_PER_FOLD * 1024) {
                add_w8_tiles(tiles, &mut sums, &mut lowest);
            }
            if lowest.contains(&0) {
                return Err((Role::Tiles, format!("a weight in rows {first_row}.. is -128")));
            }
            self.check_sums(first_row, &sums)?;
            for n in 0..32 {
                let first_zero = if first_row + n >= self.rows { 0 } else { self.cols };
                let value = |k: usize| block[k / 32 * 1024 + n * 32 + k % 32];
                check_padding(first_row + n, first_zero..k_tiles * 32, value)?;
            }
        }
        Ok(())
    }

    /// Tiles `[N/64][K/32][64 n][16 bytes]`, two int4 values a byte, the even column in the low nibble.
    fn check_w4(&self) -> Result<(), Fault> {
        let (k_tiles, groups) = (self.cols.div_ceil(32), self.cols.div_ceil(GROUP));
        for (n_block, block) in self.tiles.chunks_exact(k_tiles * 1024).enumerate() {
            let first_row = n_block * 64;
            let mut sums = [0i32; 64];
            for (group, tiles) in block.chunks(GROUP / 32 * 1024).enumerate() {
                for (n, (sum, group_sum)) in sums.iter_mut().zip(w4_group_sums(tiles)).enumerate() {
                    // Rows past the end have no multiplier; that they are zero is checked below.
                    let multiplier =
                        self.multipliers.get((first_row + n) * groups + group).copied().unwrap_or(1);
                    *sum += group_sum * i32::from(multiplier);
                }
            }
            self.check_sums(first_row, &sums)?;
            for n in 0..64 {
                let first_zero = if first_row + n >= self.rows { 0 } else { self.cols };
                let value = |k: usize| block[k / 32 * 1024 + n * 16 + k % 32 / 2] >> (k % 2 * 4) & 15;
                check_padding(first_row + n, first_zero..k_tiles * 32, value)?;
            }
        }
        Ok(())
    }

    fn check_sums(&self, first_row: usize, sums: &[i32]) -> Result<(), Fault> {
        let stored = self.row_sums[first_row * 4..].as_chunks::<4>().0;
        for (n, (sum, stored)) in sums.iter().zip(stored).enumerate() {
            let stored = i32::from_le_bytes(*stored);
            if *sum != stored {
                return Err((
                    Role::RowSums,
                    format!("row {} is {stored}, its weights add up to {sum}", first_row + n),
                ));
            }
        }
        Ok(())
    }
}

/// w8 tiles whose biased sums fit 16 bits: 255 · 257 = 65,535.
const W8_TILES_PER_FOLD: usize = 257;

/// Adds up to [`W8_TILES_PER_FOLD`] tiles to the sums of their 32 rows, and notes the lowest weight of each column of
/// a tile, plus 128.
///
/// Biased by 128 the bytes are unsigned, and unsigned bytes widen and compare in one instruction on every x86: a
/// plain signed sum ran at a third of the speed.
fn add_w8_tiles(tiles: &[u8], sums: &mut [i32; 32], lowest: &mut [u8; 32]) {
    let mut lanes = [[0u16; 32]; 32];
    for tile in tiles.chunks_exact(1024) {
        for (lanes, row) in lanes.iter_mut().zip(tile.as_chunks::<32>().0) {
            for ((lane, lowest), byte) in lanes.iter_mut().zip(lowest.iter_mut()).zip(row) {
                let biased = byte ^ 0x80;
                *lane += u16::from(biased);
                *lowest = biased.min(*lowest);
            }
        }
    }
    let bias = (tiles.len() / 1024 * 32 * 128) as i32;
    for (sum, lanes) in sums.iter_mut().zip(&lanes) {
        *sum += lanes.iter().map(|&lane| i32::from(lane)).sum::<i32>() - bias;
    }
}

/// Sums of the 64 rows of up to four w4 tiles, a group. Biased by 8 a byte's two nibbles add up to at most 30, so
/// four tiles fit 8 bits.
fn w4_group_sums(tiles: &[u8]) -> [i32; 64] {
    let mut lanes = [[0u8; 16]; 64];
    for tile in tiles.chunks_exact(1024) {
        for (lanes, row) in lanes.iter_mut().zip(tile.as_chunks::<16>().0) {
            for (lane, byte) in lanes.iter_mut().zip(row) {
                let biased = byte ^ 0x88;
                *lane += (biased & 15) + (biased >> 4);
            }
        }
    }
    let bias = (tiles.len() / 1024 * 32 * 8) as i32;
    lanes.map(|lanes| lanes.iter().map(|&lane| i32::from(lane)).sum::<i32>() - bias)
}

fn check_padding(
    row: usize,
    columns: std::ops::Range<usize>,
    value: impl Fn(usize) -> u8,
) -> Result<(), Fault> {
    match columns.into_iter().find(|&k| value(k) != 0) {
        Some(k) => Err((Role::Tiles, format!("padding at row {row}, column {k} is not zero"))),
        None => Ok(()),
    }
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}
