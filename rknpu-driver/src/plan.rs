//! Matrix products planned onto the NPU: which tasks, over which parts of the matrices, on which core.
//!
//! A [`MatmulPlan`] knows no addresses: it is made once per shape (see [`PlanCache`]) and bound to buffers as often as
//! wanted.

mod cache;
mod options;

pub use cache::PlanCache;
pub use options::{Limits, PlanError, PlanOptions};

use half::f16;

use crate::shape::MatmulShape;

/// How one matrix product is computed.
#[derive(Debug)]
pub struct MatmulPlan {
    shape: MatmulShape,
}

impl MatmulPlan {
    /// Plans a product.
    pub fn new(shape: MatmulShape, options: &PlanOptions) -> Result<Self, PlanError> {
        let _ = options;
        Ok(MatmulPlan { shape })
    }

    /// The product this is the plan of.
    pub fn shape(&self) -> MatmulShape {
        self.shape
    }

    /// Cores that have something to do.
    pub fn cores(&self) -> usize {
        unimplemented!()
    }

    /// Bytes of the input buffer, padding included.
    pub fn input_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Bytes of the output buffer, padding included.
    pub fn output_bytes(&self) -> usize {
        unimplemented!()
    }

    /// Packs int8 rows (for int4: values −8…7, one a byte), `stride` elements apart, into the input buffer's layout.
    ///
    /// # Panics
    /// When `rows` or `out` is shorter than the shape needs, or the precision is not an integer one.
    pub fn pack_input_i8(&self, rows: &[i8], stride: usize, out: &mut [u8]) {
        let _ = (rows, stride, out);
        unimplemented!()
    }

    /// As [`pack_input_i8`](Self::pack_input_i8) for fp16.
    pub fn pack_input_f16(&self, rows: &[f16], stride: usize, out: &mut [u8]) {
        let _ = (rows, stride, out);
        unimplemented!()
    }

    /// Reads the output buffer into int32 rows `stride` elements apart, adding slices of K.
    pub fn read_output_i32(&self, bytes: &[u8], out: &mut [i32], stride: usize) {
        let _ = (bytes, out, stride);
        unimplemented!()
    }

    /// As [`read_output_i32`](Self::read_output_i32) for fp16's binary32 results.
    pub fn read_output_f32(&self, bytes: &[u8], out: &mut [f32], stride: usize) {
        let _ = (bytes, out, stride);
        unimplemented!()
    }
}
