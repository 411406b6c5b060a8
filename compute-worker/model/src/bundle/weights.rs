//! Typed views into mapped blobs.

use std::ops::Range;
use std::sync::Arc;

use rookery_kernels::{W4, W8, Weights};

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
    /// Bytes of all segments: tiles, scales, row sums, multipliers.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }
}

impl Segment {
    /// What a kernel takes: the mapped bytes themselves, no copy.
    pub fn view(&self) -> Weights<'_> {
        let bytes = self.map.bytes();
        let aligned = "alignment and length were checked when the bundle was opened";
        let tiles = &bytes[self.parts.tiles.clone()];
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
