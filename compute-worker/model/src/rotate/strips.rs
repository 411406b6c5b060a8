//! Matrices in strips of columns, to be transformed along either side with the same code.

use std::ops::Range;

use super::hadamard::{Hadamard, LANES, Lanes};
use crate::source::parallel::parallel;

/// One side of a matrix and what it is rotated by.
pub(super) struct Side<'a> {
    /// What each row, or each column, is multiplied by first: the sign, the scale that makes the transform orthonormal,
    /// a norm's weight.
    pub(super) factors: Vec<f32>,
    pub(super) hadamard: &'a Hadamard,
}

impl Side<'_> {
    fn apply(&self, strip: &mut [Lanes]) {
        for (lanes, factor) in strip.iter_mut().zip(&self.factors) {
            lanes.iter_mut().for_each(|value| *value *= factor);
        }
        self.hadamard.apply(strip);
    }

    /// Transforms every row of `values`, which are as long as there are factors.
    pub(super) fn apply_to_rows(&self, values: &mut [f32]) {
        let columns = self.factors.len();
        let mut strip = vec![[0.0; LANES]; columns];
        for rows in values.chunks_mut(LANES * columns) {
            // Square tiles: each line of memory is read and written once while it is in the cache.
            for (tile, strip) in strip.chunks_mut(LANES).enumerate() {
                let part = tile * LANES..tile * LANES + strip.len();
                for (lane, row) in rows.chunks_exact(columns).enumerate() {
                    strip.iter_mut().zip(&row[part.clone()]).for_each(|(lanes, &value)| lanes[lane] = value);
                }
            }
            self.apply(&mut strip);
            for (tile, strip) in strip.chunks(LANES).enumerate() {
                let part = tile * LANES..tile * LANES + strip.len();
                for (lane, row) in rows.chunks_exact_mut(columns).enumerate() {
                    row[part.clone()].iter_mut().zip(strip).for_each(|(value, lanes)| *value = lanes[lane]);
                }
            }
        }
    }
}

/// A matrix as `[ceil(columns / 16)][rows][16]`, padded with zeros.
#[derive(Debug)]
pub(super) struct Strips {
    rows: usize,
    columns: usize,
    values: Vec<Lanes>,
}

impl Strips {
    pub(super) fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![[0.0; LANES]; columns.div_ceil(LANES) * rows] }
    }

    /// Stores whole rows, row-major, from row `first` on.
    pub(super) fn put(&mut self, first: usize, values: &[f32], threads: usize) {
        let columns = self.columns;
        parallel(self.values.chunks_exact_mut(self.rows).enumerate(), threads, |(index, strip)| {
            let part = index * LANES..columns.min((index + 1) * LANES);
            for (lanes, row) in strip[first..].iter_mut().zip(values.chunks_exact(columns)) {
                lanes[..part.len()].copy_from_slice(&row[part.clone()]);
            }
        });
    }

    /// Transforms every column.
    pub(super) fn apply(&mut self, side: &Side<'_>, threads: usize) {
        parallel(self.values.chunks_exact_mut(self.rows), threads, |strip| side.apply(strip));
    }

    /// Rows, row-major.
    pub(super) fn rows(&self, rows: Range<usize>) -> Vec<f32> {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let mut out = vec![0.0; rows.len() * self.columns];
        for (index, strip) in self.values.chunks_exact(self.rows).enumerate() {
            let part = index * LANES..self.columns.min((index + 1) * LANES);
            for (row, lanes) in out.chunks_exact_mut(self.columns).zip(&strip[rows.clone()]) {
                row[part.clone()].copy_from_slice(&lanes[..part.len()]);
            }
        }
        out
    }
}
