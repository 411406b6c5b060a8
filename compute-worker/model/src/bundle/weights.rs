//! Typed views into mapped blobs, and into wherever their tiles were taken.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rookery_kernels::{W4, W8, Weights, tiles};

use super::config::Precision;
use crate::mapping::{self, Mapping};

/// The stored matrix of one linear layer. Cheap to clone; keeps the mapped blob alive.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// Row ranges in order; together they cover `0..rows`.
    pub segments: Vec<Segment>,
}

/// Memory that holds tiles outside of the bundle's files, such as an accelerator's, which processor and accelerator both
/// read. Its bytes never change.
pub trait TileStorage: fmt::Debug + Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];
}

/// Consecutive rows of a matrix at one precision.
#[derive(Clone, Debug)]
pub struct Segment {
    /// First row of the matrix that this segment holds.
    pub first_row: usize,
    /// Rows it holds.
    pub rows: usize,
    /// Input channels.
    pub cols: usize,
    /// How they are stored.
    pub precision: Precision,
    pub(super) map: Arc<Mapping>,
    pub(super) parts: Parts,
    /// Where the tiles are instead of in `map`.
    pub(super) moved: Option<MovedTiles>,
}

/// Tiles outside of the bundle's files.
#[derive(Clone, Debug)]
pub(super) struct MovedTiles {
    storage: Arc<dyn TileStorage>,
    range: Range<usize>,
}

/// Byte ranges of a segment's tensors in its mapped file. Bounds, lengths and 4-byte alignment of `scales` and
/// `row_sums` were checked when the bundle was opened.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) tiles: Range<usize>,
    pub(super) scales: Range<usize>,
    pub(super) row_sums: Range<usize>,
    /// Empty for w8.
    pub(super) multipliers: Range<usize>,
}

impl LinearWeights {
    /// A matrix `[rows][cols]` of segments, which may come from different bundles.
    ///
    /// # Panics
    /// When the segments do not cover `0..rows` in order, or one has other columns.
    pub fn from_segments(rows: usize, cols: usize, segments: Vec<Segment>) -> Self {
        let mut next = 0;
        for segment in &segments {
            assert_eq!(
                (segment.first_row, segment.cols),
                (next, cols),
                "segment does not go on at row {next}"
            );
            next += segment.rows;
        }
        assert_eq!(next, rows, "segments cover {next} of {rows} rows");
        Self { rows, cols, segments }
    }

    /// Bytes of all segments: tiles, scales, row sums, multipliers.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }
}

impl Segment {
    /// Rows that are in memory only, from row `first_row` of their matrix on.
    pub(crate) fn in_memory(first_row: usize, stored: &Weights<'_>) -> io::Result<Self> {
        let (rows, cols, scales, row_sums, multipliers, precision) = match *stored {
            Weights::W8(w) => (w.rows, w.cols, w.scales, w.row_sums, &[][..], Precision::W8),
            Weights::W4(w) => (w.rows, w.cols, w.scales, w.row_sums, w.multipliers, Precision::W4),
        };
        let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let row_sums: Vec<u8> = row_sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        // Tiles take whole multiples of 1,024 bytes, so that all of it is aligned as in a file.
        let stored = [stored.tile_bytes(), &scales, &row_sums, multipliers];
        let mut end = 0;
        let [tiles, scales, row_sums, multipliers] = stored.map(|bytes| {
            end += bytes.len();
            end - bytes.len()..end
        });
        let map = Arc::new(Mapping::of_bytes(&stored)?);
        let parts = Parts { tiles, scales, row_sums, multipliers };
        Ok(Self { first_row, rows, cols, precision, map, parts, moved: None })
    }

    /// The stored tiles, wherever they are.
    pub fn tiles(&self) -> &[u8] {
        match &self.moved {
            Some(moved) => &moved.storage.bytes()[moved.range.clone()],
            None => &self.map.bytes()[self.parts.tiles.clone()],
        }
    }

    /// From now on the tiles are read from `storage`, from byte `start` on, where the caller has copied them. The memory of
    /// the mapped ones is given back to the system.
    ///
    /// # Panics
    /// When they do not fit there.
    pub fn move_tiles(&mut self, storage: Arc<dyn TileStorage>, start: usize) {
        let range = start..start + self.parts.tiles.len();
        assert!(range.end <= storage.bytes().len(), "moved tiles {range:?} beyond their storage");
        debug_assert_eq!(self.tiles(), &storage.bytes()[range.clone()], "moved tiles differ");
        self.moved = Some(MovedTiles { storage, range });
        self.map.release(self.parts.tiles.clone());
    }

    /// Some of its rows, counted from its first: the same memory. Tiles of either precision are whole at multiples of
    /// 64 rows.
    ///
    /// # Panics
    /// When `rows` is empty, begins or ends at no multiple of 64 (or the segment's end), or reaches past the segment.
    pub fn part(&self, rows: Range<usize>) -> Segment {
        const PANEL: usize = tiles::W4_TILE_ROWS;
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let whole = |row: usize| row.is_multiple_of(PANEL);
        assert!(whole(rows.start) && (whole(rows.end) || rows.end == self.rows), "rows {rows:?} cut a panel");
        let mut part = self.clone();
        part.first_row += rows.start;
        part.rows = rows.len();
        let tile_rows =
            if self.precision == Precision::W4 { tiles::W4_TILE_ROWS } else { tiles::W8_TILE_ROWS };
        let tile_row_bytes = self.cols.div_ceil(tiles::TILE_COLS) * tiles::TILE_BYTES;
        let of_tiles = rows.start / tile_rows * tile_row_bytes..rows.end.div_ceil(tile_rows) * tile_row_bytes;
        if let Some(moved) = &mut part.moved {
            moved.range = within(&moved.range, &of_tiles);
        }
        let of_rows = |bytes: usize| rows.start * bytes..rows.end * bytes;
        let parts = &mut part.parts;
        parts.tiles = within(&parts.tiles, &of_tiles);
        parts.scales = within(&parts.scales, &of_rows(size_of::<f32>()));
        parts.row_sums = within(&parts.row_sums, &of_rows(size_of::<i32>()));
        if self.precision == Precision::W4 {
            parts.multipliers = within(&parts.multipliers, &of_rows(self.cols.div_ceil(tiles::W4_GROUP)));
        }
        part
    }

    /// What a kernel takes: the stored bytes themselves, no copy.
    pub fn view(&self) -> Weights<'_> {
        let bytes = self.map.bytes();
        let aligned = "alignment and length were checked when the bundle was opened";
        let tiles = self.tiles();
        let scales = mapping::as_f32(&bytes[self.parts.scales.clone()]).expect(aligned);
        let row_sums = mapping::as_i32(&bytes[self.parts.row_sums.clone()]).expect(aligned);
        let (rows, cols) = (self.rows, self.cols);
        if self.precision == Precision::W4 {
            let multipliers = &bytes[self.parts.multipliers.clone()];
            Weights::W4(W4 { rows, cols, tiles, multipliers, scales, row_sums })
        } else {
            Weights::W8(W8 { rows, cols, tiles: mapping::as_i8(tiles), scales, row_sums })
        }
    }

    /// Bytes of tiles, scales, row sums and multipliers.
    pub fn bytes(&self) -> u64 {
        let parts = &self.parts;
        [&parts.tiles, &parts.scales, &parts.row_sums, &parts.multipliers]
            .map(|range| range.len() as u64)
            .iter()
            .sum()
    }
}

/// `inner`, counted from the start of `outer`.
fn within(outer: &Range<usize>, inner: &Range<usize>) -> Range<usize> {
    debug_assert!(inner.end <= outer.len(), "{inner:?} reaches past {outer:?}");
    outer.start + inner.start..outer.start + inner.end
}

/// A norm or bias in its mapped file.
#[derive(Clone, Debug)]
pub(super) struct Vector {
    pub(super) map: Arc<Mapping>,
    /// Byte range; 4-aligned as checked when the bundle was opened.
    pub(super) values: Range<usize>,
}

impl Vector {
    /// A copy: vectors are small and callers want to own them.
    pub(super) fn values(&self) -> Vec<f32> {
        let (values, _) = self.map.bytes()[self.values.clone()].as_chunks::<4>();
        values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}
