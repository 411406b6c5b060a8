//! CORE: multiplies features with weights and accumulates.

mod arithmetic;
mod convolution;
mod floating;

pub(super) use arithmetic::{Arithmetic, Int4, Int8, Int16};
pub(super) use convolution::{Features, convolution};
pub(super) use floating::{Bf16, ByEntry, Double, Fp16, Sequential, Tf32};

/// A feature cube, `data[(h * width + w) * channels + c]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cube<T> {
    /// Pixels of a line.
    pub(crate) width: usize,
    /// Lines.
    pub(crate) height: usize,
    /// Channels of a pixel, padded ones included.
    pub(crate) channels: usize,
    /// Elements, channels innermost.
    pub(crate) data: Vec<T>,
}

/// What the accumulators hold, one cell an output element.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Accumulators {
    /// int8 and int4.
    Int(Cube<i32>),
    /// int16 (48 bits in hardware).
    Wide(Cube<i64>),
    /// fp16, bf16, tf32.
    Float(Cube<f32>),
}

/// What CORE gives to the DPU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Products {
    /// The accumulators. Channels are whole kernel groups: DATAOUT_CHANNEL + 1 of CORE.
    pub(crate) accumulators: Accumulators,
    /// Σ of all inputs under the kernel, padding included: what CPEND and OW_OP multiply. One per output pixel (`[h][w]`),
    /// in depthwise convolutions one per output element. Empty unless QD_EN (integer formats).
    pub(crate) input_sums: Vec<i64>,
}
