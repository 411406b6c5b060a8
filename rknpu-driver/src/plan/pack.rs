//! Rows into the input buffer, results out of the output buffer.

use std::ops::Range;

use half::f16;

use super::MatmulPlan;
use super::tasks::Block;
use crate::layout::Cube;
use crate::shape::{Precision, TILE_COLUMNS};

/// Rows read together: as many pixels as share a cache line of a cube.
const TOGETHER: usize = 4;

/// Results that lie in neighbouring channels of neighbouring pixels: some columns of some rows, of one slice
/// of K.
#[derive(Clone, Copy)]
struct Run<'a> {
    block: &'a Block,
    /// First row, and how many.
    row: usize,
    rows: usize,
    /// First column, and how many.
    column: usize,
    columns: usize,
    /// Which of all slices of K.
    slice: usize,
    /// Where the first result is in the block's output cube.
    pixel: usize,
    channel: usize,
}

impl Run<'_> {
    /// The block's cube in the output buffer.
    fn bytes<'b>(&self, output: &'b [u8]) -> &'b [u8] {
        &output[self.block.output_at..][..self.block.output.bytes()]
    }

    /// Calls `read` with the run's part of each of its rows.
    fn with_rows<T>(&self, out: &mut [T], stride: usize, read: impl FnOnce(&mut [&mut [T]])) {
        let end = out.len().min((self.row + self.rows) * stride);
        let mut rows = out[self.row * stride..end].chunks_mut(stride);
        let mut taken: [&mut [T]; TOGETHER] = Default::default();
        for (taken, row) in taken.iter_mut().zip(&mut rows) {
            *taken = &mut row[self.column..self.column + self.columns];
        }
        read(&mut taken[..self.rows]);
    }
}

type IntegerReader = fn(&Cube, &[u8], usize, usize, &mut [&mut [i32]], bool);

impl MatmulPlan {
    /// Packs int8 rows (for int4: values −8…7, one a byte), `stride` elements apart, into the input buffer's
    /// layout. Every byte of `out` up to [`input_bytes`](Self::input_bytes) that the device reads is written.
    ///
    /// # Panics
    /// When `rows` or `out` is shorter than the shape needs, or the precision is not an integer one.
    pub fn pack_input_i8(&self, rows: &[i8], stride: usize, out: &mut [u8]) {
        match self.shape.precision {
            Precision::Int8 => self.pack(rows, stride, out, Cube::write_i8),
            Precision::Int4 => self.pack(rows, stride, out, Cube::write_i4),
            Precision::Fp16 => panic!("pack_input_i8: {} takes no integers", self.shape),
        }
    }

    /// As [`pack_input_i8`](Self::pack_input_i8) for fp16.
    ///
    /// # Panics
    /// As [`pack_input_i8`](Self::pack_input_i8), with the precision fp16.
    pub fn pack_input_f16(&self, rows: &[f16], stride: usize, out: &mut [u8]) {
        assert_eq!(self.shape.precision, Precision::Fp16, "pack_input_f16: {}", self.shape);
        self.pack(rows, stride, out, Cube::write_f16);
    }

    fn pack<T>(
        &self,
        rows: &[T],
        stride: usize,
        out: &mut [u8],
        write: impl Fn(&Cube, usize, &[T], &mut [u8]),
    ) {
        let inner = self.shape.inner;
        self.check_rows(rows.len(), inner, stride);
        for block in &self.blocks {
            let out = &mut out[block.input_at..][..block.input.bytes()];
            for slice in 0..block.stack.slices {
                let first = ((block.stack.first + slice * block.stack.tiles) * TILE_COLUMNS).min(inner);
                let columns = first..inner.min(first + block.input.channels);
                for (index, row) in block.rows.clone().enumerate() {
                    let row = &rows[row * stride..][columns.clone()];
                    write(&block.input, slice * block.rows.len() + index, row, out);
                }
            }
        }
    }

    /// Reads the output buffer of an integer product into int32 rows `stride` elements apart, adding slices
    /// of K.
    ///
    /// # Panics
    /// When `bytes` or `out` is shorter than the shape needs, or the device does not write integer
    /// accumulators.
    pub fn read_output_i32(&self, bytes: &[u8], out: &mut [i32], stride: usize) {
        let read = self.integer_reader();
        self.check_rows(out.len(), self.shape.outputs, stride);
        self.for_each_run(|run| {
            run.with_rows(out, stride, |rows| {
                read(&run.block.output, run.bytes(bytes), run.pixel, run.channel, rows, run.slice > 0);
            });
        });
    }

    /// Reads one row of the sums of one slice of K (see [`slices`](Self::slices)) of an integer product, not
    /// added to others'.
    ///
    /// # Panics
    /// As [`read_output_i32`](Self::read_output_i32), or when there is no such slice or row.
    pub fn read_slice_i32(&self, bytes: &[u8], slice: usize, row: usize, out: &mut [i32]) {
        assert_eq!(out.len(), self.shape.outputs, "read_slice_i32: a row of {}", self.shape);
        let read = self.integer_reader();
        // Blocks are in the order of row tiles, then slices.
        let first = self.blocks.partition_point(|block| block.rows.end <= row);
        let tile = self.blocks[first..].iter().take(self.choice.stacks.len());
        let mut holds =
            tile.filter(|block| (block.first_slice..).take(block.stack.slices).any(|s| s == slice));
        let Some(block) = holds.next() else {
            panic!("read_slice_i32: row {row}, slice {slice} of {}", self.shape);
        };
        self.for_each_run_of(block, slice - block.first_slice, row..row + 1, &mut |run| {
            let row = &mut out[run.column..][..run.columns];
            read(&block.output, run.bytes(bytes), run.pixel, run.channel, &mut [row], false);
        });
    }

    /// As [`read_output_i32`](Self::read_output_i32) for fp16's binary32 results; slices are added in the
    /// order of K.
    ///
    /// # Panics
    /// As [`read_output_i32`](Self::read_output_i32), with the precision fp16.
    pub fn read_output_f32(&self, bytes: &[u8], out: &mut [f32], stride: usize) {
        assert_eq!(self.shape.precision, Precision::Fp16, "read_output_f32: {}", self.shape);
        self.check_rows(out.len(), self.shape.outputs, stride);
        self.for_each_run(|run| {
            run.with_rows(out, stride, |rows| {
                run.block.output.read_f32(run.bytes(bytes), run.pixel, run.channel, rows, run.slice > 0);
            });
        });
    }

    /// Reads the int8 outputs of a requantised product.
    ///
    /// # Panics
    /// When `bytes` or `out` is shorter than the shape needs, or the device writes accumulators.
    pub fn read_output_i8(&self, bytes: &[u8], out: &mut [i8], stride: usize) {
        assert!(self.options.is_requantised(), "read_output_i8: {} writes accumulators", self.shape);
        self.check_rows(out.len(), self.shape.outputs, stride);
        self.for_each_run(|run| {
            run.with_rows(out, stride, |rows| {
                run.block.output.read_i8(run.bytes(bytes), run.pixel, run.channel, rows);
            });
        });
    }

    fn integer_reader(&self) -> IntegerReader {
        match self.shape.precision {
            _ if self.options.is_requantised() => panic!("{} writes int8, not int32", self.shape),
            Precision::Int8 => Cube::read_i32,
            Precision::Int4 => Cube::read_i16,
            Precision::Fp16 => panic!("{} writes binary32, not int32", self.shape),
        }
    }

    /// Every run of results; those of a row come in the order of K.
    fn for_each_run(&self, mut take: impl FnMut(&Run<'_>)) {
        for block in &self.blocks {
            for slice in 0..block.stack.slices {
                for first in block.rows.clone().step_by(TOGETHER) {
                    let rows = first..block.rows.end.min(first + TOGETHER);
                    self.for_each_run_of(block, slice, rows, &mut take);
                }
            }
        }
    }

    /// The runs of some rows of one slice: one where slices are not stacked, else one a kernel group.
    fn for_each_run_of(
        &self,
        block: &Block,
        slice: usize,
        rows: Range<usize>,
        take: &mut impl FnMut(&Run<'_>),
    ) {
        let (outputs, slices) = (self.shape.outputs, block.stack.slices);
        let pixel = slice * block.rows.len() + rows.start - block.rows.start;
        let (row, rows, slice_of_all) = (rows.start, rows.len(), block.first_slice + slice);
        let run =
            Run { block, row, rows, column: 0, columns: outputs, slice: slice_of_all, pixel, channel: 0 };
        if slices == 1 {
            return take(&run);
        }
        let group_rows = self.shape.precision.tile_rows();
        for group in 0..self.shape.groups() {
            let column = group * group_rows;
            let channel = (group * slices + slice) * group_rows;
            take(&Run { column, channel, columns: group_rows.min(outputs - column), ..run });
        }
    }

    fn check_rows(&self, len: usize, columns: usize, stride: usize) {
        let needed = (self.shape.rows - 1).checked_mul(stride).and_then(|start| start.checked_add(columns));
        assert!(
            stride >= columns && needed.is_some_and(|needed| needed <= len),
            "{}: {len} values in rows of {columns}, {stride} apart",
            self.shape
        );
    }
}
