//! Rows into the input buffer, results out of the output buffer.

use half::f16;

use super::MatmulPlan;
use super::tasks::Block;
use crate::layout::Cube;
use crate::shape::{Precision, TILE_COLUMNS};

impl MatmulPlan {
    /// Packs int8 rows (for int4: values −8…7, one a byte), `stride` elements apart, into the input buffer's layout. Every byte of
    /// `out` up to [`input_bytes`](Self::input_bytes) that the device reads is written.
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

    /// Reads the output buffer of an integer product into int32 rows `stride` elements apart, adding slices of K.
    ///
    /// # Panics
    /// When `bytes` or `out` is shorter than the shape needs, or the device does not write integer accumulators.
    pub fn read_output_i32(&self, bytes: &[u8], out: &mut [i32], stride: usize) {
        let read = match self.shape.precision {
            _ if self.options.is_requantised() => panic!("read_output_i32: {} writes int8", self.shape),
            Precision::Int8 => Cube::read_i32,
            Precision::Int4 => Cube::read_i16,
            Precision::Fp16 => panic!("read_output_i32: {} writes binary32", self.shape),
        };
        self.check_rows(out.len(), self.shape.outputs, stride);
        self.read_output(bytes, |row, first, slice, cube, cube_bytes, pixel, channel, len| {
            let out = &mut out[row * stride + first..][..len];
            read(cube, cube_bytes, pixel, channel, out, slice > 0);
        });
    }

    /// Reads the sums of one slice of K (see [`slices`](Self::slices)) of an integer product, not added to others'.
    ///
    /// # Panics
    /// As [`read_output_i32`](Self::read_output_i32).
    pub fn read_slice_i32(&self, bytes: &[u8], slice: usize, row: usize, out: &mut [i32]) {
        assert_eq!(out.len(), self.shape.outputs, "read_slice_i32: a row of {}", self.shape);
        let read = match self.shape.precision {
            Precision::Int4 => Cube::read_i16,
            Precision::Int8 => Cube::read_i32,
            Precision::Fp16 => panic!("read_slice_i32: {} writes binary32", self.shape),
        };
        // Blocks are in the order of row tiles, then slices.
        let first = self.blocks.partition_point(|block| block.rows.end <= row);
        let tile = self.blocks[first..].iter().take(self.choice.stacks.len());
        let mut holds =
            tile.filter(|block| (block.first_slice..).take(block.stack.slices).any(|s| s == slice));
        let Some(block) = holds.next() else {
            panic!("read_slice_i32: row {row}, slice {slice} of {}", self.shape);
        };
        let within = slice - block.first_slice;
        let pixel = within * block.rows.len() + row - block.rows.start;
        let bytes = &bytes[block.output_at..][..block.output.bytes()];
        self.runs(block, within, |first, channel, len| {
            read(&block.output, bytes, pixel, channel, &mut out[first..first + len], false);
        });
    }

    /// As [`read_output_i32`](Self::read_output_i32) for fp16's binary32 results; slices are added in the order of K.
    ///
    /// # Panics
    /// As [`read_output_i32`](Self::read_output_i32), with the precision fp16.
    pub fn read_output_f32(&self, bytes: &[u8], out: &mut [f32], stride: usize) {
        assert_eq!(self.shape.precision, Precision::Fp16, "read_output_f32: {}", self.shape);
        self.check_rows(out.len(), self.shape.outputs, stride);
        self.read_output(bytes, |row, first, slice, cube, cube_bytes, pixel, channel, len| {
            let out = &mut out[row * stride + first..][..len];
            cube.read_f32(cube_bytes, pixel, channel, out, slice > 0);
        });
    }

    /// Reads the int8 outputs of a requantised product.
    ///
    /// # Panics
    /// When `bytes` or `out` is shorter than the shape needs, or the device writes accumulators.
    pub fn read_output_i8(&self, bytes: &[u8], out: &mut [i8], stride: usize) {
        assert!(self.options.is_requantised(), "read_output_i8: {} writes accumulators", self.shape);
        self.check_rows(out.len(), self.shape.outputs, stride);
        self.read_output(bytes, |row, first, _, cube, cube_bytes, pixel, channel, len| {
            cube.read_i8(cube_bytes, pixel, channel, &mut out[row * stride + first..][..len]);
        });
    }

    /// Calls `take(row, first column, slice, cube, its bytes, pixel, channel, columns)` for every run of columns that lie in neighbouring
    /// channels, slices of a row in the order of K.
    fn read_output(
        &self,
        bytes: &[u8],
        mut take: impl FnMut(usize, usize, usize, &Cube, &[u8], usize, usize, usize),
    ) {
        for block in &self.blocks {
            let bytes = &bytes[block.output_at..][..block.output.bytes()];
            for slice in 0..block.stack.slices {
                for (index, row) in block.rows.clone().enumerate() {
                    let pixel = slice * block.rows.len() + index;
                    self.runs(block, slice, |first, channel, len| {
                        let slice = block.first_slice + slice;
                        take(row, first, slice, &block.output, bytes, pixel, channel, len);
                    });
                }
            }
        }
    }

    /// Calls `take(first column, channel, columns)` for the columns of one slice: all at once where slices are not stacked, else kernel group
    /// by kernel group.
    fn runs(&self, block: &Block, slice: usize, mut take: impl FnMut(usize, usize, usize)) {
        let (outputs, slices) = (self.shape.outputs, block.stack.slices);
        if slices == 1 {
            return take(0, 0, outputs);
        }
        let rows = self.shape.precision.tile_rows();
        for group in 0..self.shape.groups() {
            let first = group * rows;
            take(first, (group * slices + slice) * rows, rows.min(outputs - first));
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
