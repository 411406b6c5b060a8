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
            let mut sums = [0i32; 32];
            let mut lowest = 0i8;
            for tile in block.chunks_exact(1024) {
                let (rows, _) = tile.as_chunks::<32>();
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum += row.iter().map(|&byte| i32::from(byte.cast_signed())).sum::<i32>();
                    lowest = row.iter().fold(lowest, |lowest, &byte| lowest.min(byte.cast_signed()));
                }
            }
            if lowest == i8::MIN {
                return Err((Role::Tiles, format!("a weight in rows {}.. is -128", n_block * 32)));
            }
            self.check_sums(n_block * 32, &sums)?;
            let row_padded = (0..32).map(|n| n_block * 32 + n >= self.rows);
            for (n, outside) in row_padded.enumerate() {
                let first_zero = if outside { 0 } else { self.cols };
                let value = |k: usize| block[k / 32 * 1024 + n * 32 + k % 32];
                self.check_padding(n_block * 32 + n, first_zero..k_tiles * 32, value)?;
            }
        }
        Ok(())
    }

    /// Tiles `[N/64][K/32][64 n][16 bytes]`, two int4 values a byte, the even column in the low nibble.
    fn check_w4(&self) -> Result<(), Fault> {
        let (k_tiles, groups) = (self.cols.div_ceil(32), self.cols.div_ceil(GROUP));
        for (n_block, block) in self.tiles.chunks_exact(k_tiles * 1024).enumerate() {
            let mut sums = [0i32; 64];
            for (group, tiles) in block.chunks(GROUP / 32 * 1024).enumerate() {
                let mut group_sums = [0i32; 64];
                for tile in tiles.chunks_exact(1024) {
                    let (rows, _) = tile.as_chunks::<16>();
                    for (sum, row) in group_sums.iter_mut().zip(rows) {
                        *sum += row.iter().map(|&byte| nibble_sum(byte)).sum::<i32>();
                    }
                }
                for (n, (sum, group_sum)) in sums.iter_mut().zip(group_sums).enumerate() {
                    // Rows past the end have no multiplier; their padding is checked below.
                    let multiplier =
                        self.multipliers.get((n_block * 64 + n) * groups + group).copied().unwrap_or(1);
                    *sum += group_sum * i32::from(multiplier);
                }
            }
            self.check_sums(n_block * 64, &sums)?;
            for n in 0..64 {
                let first_zero = if n_block * 64 + n >= self.rows { 0 } else { self.cols };
                let value = |k: usize| block[k / 32 * 1024 + n * 16 + k % 32 / 2] >> (k % 2 * 4) & 15;
                self.check_padding(n_block * 64 + n, first_zero..k_tiles * 32, value)?;
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

    fn check_padding(
        &self,
        row: usize,
        columns: std::ops::Range<usize>,
        value: impl Fn(usize) -> u8,
    ) -> Result<(), Fault> {
        match columns.into_iter().find(|&k| value(k) != 0) {
            Some(k) => Err((Role::Tiles, format!("padding at row {row}, column {k} is not zero"))),
            None => Ok(()),
        }
    }
}

fn nibble_sum(byte: u8) -> i32 {
    let (low, high) = ((byte << 4).cast_signed() >> 4, byte.cast_signed() >> 4);
    i32::from(low) + i32::from(high)
}

fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}
