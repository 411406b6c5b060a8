//! Rows as a bundle stores them, in memory: what a quantiser hands over in place of rounding by the packer.

use std::fmt;
use std::io;
use std::ops::Range;

use rookery_kernels::{W4, W8, Weights, tiles};

use crate::bundle::{Precision, Segment};

/// Where a matrix's stored form comes from.
#[derive(Clone, Debug)]
pub enum Content {
    /// The source's rows, rounded plainly, chunk by chunk.
    Round,
    /// Rows that are quantised already, one entry for each segment of the matrix.
    Rows(Vec<StoredRows>),
}

/// Consecutive rows of a matrix at one precision: tiles, scales, row sums, multipliers.
///
/// By construction the values are those that readers accept: weights −127…127 or −8…7, multipliers 1…15, row sums that
/// are the sums, padding zero. Scales are checked when the rows are written.
#[derive(Clone, PartialEq)]
pub struct StoredRows {
    precision: Precision,
    rows: usize,
    cols: usize,
    tiles: Vec<u8>,
    /// `[rows][⌈cols/128⌉]`; empty for w8.
    multipliers: Vec<u8>,
    scales: Vec<f32>,
    row_sums: Vec<i32>,
}

impl StoredRows {
    /// int8 rows: `values` is row-major `[rows][cols]` in −127…127, `scales` has one entry for each row.
    ///
    /// # Panics
    /// When lengths do not fit or a value is −128.
    pub fn w8(cols: usize, values: &[i8], scales: &[f32]) -> Self {
        let rows = scales.len();
        assert_eq!(values.len(), rows * cols, "w8 rows: values do not match {rows} x {cols}");
        assert!(!values.contains(&i8::MIN), "w8 rows: -128 is no weight");
        let row_sums = (0..rows).map(|row| sum(&values[row * cols..][..cols])).collect();
        let mut packed = vec![0; tiles::w8_len(rows, cols)];
        tiles::pack_w8(rows, cols, values, &mut packed);
        let tiles = packed.into_iter().map(i8::cast_unsigned).collect();
        Self {
            precision: Precision::W8,
            rows,
            cols,
            tiles,
            multipliers: Vec::new(),
            scales: scales.to_vec(),
            row_sums,
        }
    }

    /// int4 rows: `values` is row-major `[rows][cols]` in −8…7, `multipliers` row-major `[rows][⌈cols/128⌉]` in 1…15,
    /// `scales` has one entry for each row.
    ///
    /// # Panics
    /// When lengths do not fit or a value or multiplier is out of range.
    pub fn w4(cols: usize, values: &[i8], multipliers: &[u8], scales: &[f32]) -> Self {
        let (rows, groups) = (scales.len(), cols.div_ceil(tiles::W4_GROUP));
        assert_eq!(values.len(), rows * cols, "w4 rows: values do not match {rows} x {cols}");
        assert_eq!(multipliers.len(), rows * groups, "w4 rows: multipliers do not match {rows} x {groups}");
        assert!(multipliers.iter().all(|m| (1..=15).contains(m)), "w4 rows: a multiplier is outside 1..=15");
        let row_sum = |row: usize| {
            let groups =
                values[row * cols..][..cols].chunks(tiles::W4_GROUP).zip(&multipliers[row * groups..]);
            groups.map(|(values, &multiplier)| sum(values) * i32::from(multiplier)).sum()
        };
        let row_sums = (0..rows).map(row_sum).collect();
        let mut packed = vec![0; tiles::w4_len(rows, cols)];
        tiles::pack_w4(rows, cols, values, &mut packed);
        Self {
            precision: Precision::W4,
            rows,
            cols,
            tiles: packed,
            multipliers: multipliers.to_vec(),
            scales: scales.to_vec(),
            row_sums,
        }
    }

    /// A copy of a stored segment.
    pub fn of(segment: &Segment) -> Self {
        Self::copy(&segment.view())
    }

    /// A copy of some rows of a stored segment, counted from its first, put in tiles of their own: any rows, not
    /// whole panels only.
    ///
    /// # Panics
    /// When `rows` is empty or reaches past the segment.
    pub fn rows_of(segment: &Segment, rows: Range<usize>) -> Self {
        assert!(rows.start < rows.end && rows.end <= segment.rows, "rows {rows:?} of {}", segment.rows);
        let panel = tiles::W4_TILE_ROWS;
        let end = rows.end.next_multiple_of(panel).min(segment.rows);
        let part = segment.part(rows.start / panel * panel..end);
        if rows.start.is_multiple_of(panel) && rows.end == end {
            return Self::of(&part);
        }
        let (skip, cols) = (rows.start % panel, segment.cols);
        let kept = skip..skip + rows.len();
        let mut values = vec![0; part.rows * cols];
        match part.view() {
            Weights::W8(w) => {
                tiles::unpack_w8(part.rows, cols, w.tiles, &mut values);
                Self::w8(cols, &values[kept.start * cols..kept.end * cols], &w.scales[kept])
            }
            Weights::W4(w) => {
                tiles::unpack_w4(part.rows, cols, w.tiles, &mut values);
                let groups = cols.div_ceil(tiles::W4_GROUP);
                let multipliers = &w.multipliers[kept.start * groups..kept.end * groups];
                Self::w4(cols, &values[kept.start * cols..kept.end * cols], multipliers, &w.scales[kept])
            }
        }
    }

    fn copy(view: &Weights<'_>) -> Self {
        let tiles = view.tile_bytes().to_vec();
        match *view {
            Weights::W8(W8 { rows, cols, scales, row_sums, .. }) => Self {
                precision: Precision::W8,
                rows,
                cols,
                tiles,
                multipliers: Vec::new(),
                scales: scales.to_vec(),
                row_sums: row_sums.to_vec(),
            },
            Weights::W4(W4 { rows, cols, multipliers, scales, row_sums, .. }) => Self {
                precision: Precision::W4,
                rows,
                cols,
                tiles,
                multipliers: multipliers.to_vec(),
                scales: scales.to_vec(),
                row_sums: row_sums.to_vec(),
            },
        }
    }

    /// `w8` or `w4`.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One for each row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// What a kernel takes.
    pub fn view(&self) -> Weights<'_> {
        let Self { rows, cols, ref tiles, ref multipliers, ref scales, ref row_sums, .. } = *self;
        match self.precision {
            Precision::W4 => Weights::W4(W4 { rows, cols, tiles, multipliers, scales, row_sums }),
            Precision::W8 | Precision::F32 => {
                Weights::W8(W8 { rows, cols, tiles: tiles::signed(tiles), scales, row_sums })
            }
        }
    }

    /// The same as a segment of a matrix from row `first_row` on, in memory of its own: what a bundle would hold, without
    /// one.
    ///
    /// # Errors
    /// When the system has no memory for it.
    pub fn segment(&self, first_row: usize) -> io::Result<Segment> {
        Segment::in_memory(first_row, &self.view())
    }

    pub(super) fn tiles(&self) -> &[u8] {
        &self.tiles
    }

    pub(super) fn multipliers(&self) -> &[u8] {
        &self.multipliers
    }

    pub(super) fn row_sums(&self) -> &[i32] {
        &self.row_sums
    }
}

impl fmt::Debug for StoredRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredRows({} x {} {})", self.rows, self.cols, self.precision)
    }
}

fn sum(values: &[i8]) -> i32 {
    values.iter().map(|&value| i32::from(value)).sum()
}
