//! Rows of f32 as cubes of fp16, several where one is too large for a task.

use half::f16;

use super::error::FusedError;
use super::pass::Extent;

/// Channels in an atom of 16 bytes.
const ATOM: usize = 8;
/// Channels of a cube are a multiple of this: what CORE computes together.
const CHANNELS: usize = 16;
/// Most channels: fields of 13 bits hold the number less one; the largest value is left alone, as reports say that
/// tables corrupt there.
pub(super) const MAX_CHANNELS: usize = 8176;
/// Most pixels of one cube: widths have 11 bits.
const MAX_PIXELS: usize = 1024;
/// Most rows of an operation.
const MAX_ROWS: usize = 16384;
/// Rows from which on an operation is worth spreading over cores.
const ROWS_PER_CORE: usize = 16;

/// How rows and columns become the pixels and channels of equal cubes, one after another in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) cubes: usize,
    pub(super) extent: Extent,
}

impl Grid {
    /// A grid of cubes of at most `limit` pixels, at least one a core where rows are many. `extra` channels follow
    /// the columns.
    pub(super) fn new(
        rows: usize,
        columns: usize,
        extra: usize,
        cores: usize,
        limit: impl Fn(usize) -> usize,
    ) -> Result<Grid, FusedError> {
        let max_columns = MAX_CHANNELS - extra;
        if !(1..=MAX_ROWS).contains(&rows) || !(1..=max_columns).contains(&columns) {
            return Err(FusedError::Shape { rows, columns, max_rows: MAX_ROWS, max_columns });
        }
        let channels = (columns + extra).next_multiple_of(CHANNELS);
        let limit = limit(channels).clamp(4, MAX_PIXELS);
        let cubes = rows.div_ceil(limit).max((rows / ROWS_PER_CORE).clamp(1, cores));
        // Four pixels at a time: surfaces of other sizes are rounded up by the vendor's tools.
        let pixels = rows.div_ceil(cubes).next_multiple_of(4);
        let cubes = rows.div_ceil(pixels);
        Ok(Grid { rows, columns, cubes, extent: Extent { pixels, channels } })
    }

    /// Bytes of all cubes.
    pub(super) fn bytes(&self) -> usize {
        self.cubes * self.extent.bytes()
    }

    /// Fills all cubes: `line(row, channels)` writes one of the first `rows` rows into channels that are 0; all else is 0.
    pub(super) fn pack<E>(
        &self,
        rows: usize,
        bytes: &mut [u8],
        mut line: impl FnMut(usize, &mut [f16]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut channels = vec![f16::ZERO; self.extent.channels];
        for row in 0..self.cubes * self.extent.pixels {
            channels.fill(f16::ZERO);
            if row < rows {
                line(row, &mut channels)?;
            }
            for (atom, values) in channels.chunks_exact(ATOM).enumerate() {
                let at = self.atom(row, atom);
                for (slot, value) in bytes[at..at + 16].as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *slot = value.to_le_bytes();
                }
            }
        }
        Ok(())
    }

    /// Reads the columns of the first `rows` rows.
    pub(super) fn unpack<E>(
        &self,
        rows: usize,
        bytes: &[u8],
        mut line: impl FnMut(usize, &[f16]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut channels = vec![f16::ZERO; self.extent.channels];
        for row in 0..rows {
            for (atom, values) in channels.chunks_exact_mut(ATOM).enumerate() {
                let at = self.atom(row, atom);
                for (value, slot) in values.iter_mut().zip(bytes[at..at + 16].as_chunks::<2>().0) {
                    *value = f16::from_le_bytes(*slot);
                }
            }
            line(row, &channels[..self.columns])?;
        }
        Ok(())
    }

    /// Byte offset of an atom of a row.
    fn atom(&self, row: usize, atom: usize) -> usize {
        let Extent { pixels, .. } = self.extent;
        row / pixels * self.extent.bytes() + (atom * pixels + row % pixels) * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_their_cubes() {
        for (rows, columns, limit, cores) in [(1, 1, 64, 1), (5, 17, 4, 1), (50, 40, 64, 3), (7, 8176, 8, 2)]
        {
            let grid = Grid::new(rows, columns, 0, cores, |_| limit).unwrap();
            assert!(grid.extent.pixels <= limit && grid.cubes * grid.extent.pixels >= rows, "{grid:?}");
            let value = |row: usize, column: usize| f16::from_f32((row * 31 + column) as f32 % 1024.0);
            let mut bytes = vec![0xff; grid.bytes()];
            let fill = |row: usize, line: &mut [f16]| {
                (0..columns).for_each(|column| line[column] = value(row, column));
                Ok::<_, FusedError>(())
            };
            grid.pack(rows, &mut bytes, fill).unwrap();
            let check = |row: usize, line: &[f16]| {
                assert!((0..columns).all(|column| line[column] == value(row, column)));
                Ok::<_, FusedError>(())
            };
            grid.unpack(rows, &bytes, check).unwrap();
        }
        assert!(Grid::new(0, 1, 0, 1, |_| 4).is_err());
        assert!(Grid::new(1, MAX_CHANNELS, 1, 1, |_| 4).is_err());
    }
}
