//! What the vendor's compiler says a layer costs.

use super::{MacFormat, mac_cycles};

/// The vendor compiler's static estimate of one layer, in NPU cycles on one core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerCycles {
    /// Cycles of the multiply-accumulator array.
    pub npu: f64,
    /// Cycles of the memory interface.
    pub ddr: f64,
}

impl LayerCycles {
    /// The estimate: both overlap.
    #[must_use]
    pub fn total(self) -> f64 {
        self.npu.max(self.ddr)
    }
}

/// The estimate for `rows` × `inner` · `inner` × `outputs`, compiled as a 1×1 convolution with results as wide as the inputs.
///
/// A kernel longer than [`LONGEST_KERNEL_BYTES`] becomes a chain of convolutions, each but the first adding the one before:
/// every link more writes the results and reads them back.
#[must_use]
pub fn layer_cycles(rows: u64, inner: u64, outputs: u64, format: MacFormat) -> LayerCycles {
    let bytes = |elements: u64| (elements * format.bits()).div_ceil(8);
    let links = bytes(inner).div_ceil(LONGEST_KERNEL_BYTES);
    let weights = bytes(inner * outputs) + BIAS_BYTES * outputs;
    let features = bytes(rows * (inner + outputs)) + links.saturating_sub(1) * 2 * bytes(rows * outputs);
    LayerCycles {
        npu: mac_cycles(rows, inner, outputs, format) as f64,
        ddr: (weights + features) as f64 / BYTES_PER_CYCLE,
    }
}

/// Longest kernel that the vendor's compiler gives to one task (3,072 bytes accepted, 3,584 split, in int8; likewise in fp16).
pub const LONGEST_KERNEL_BYTES: u64 = 3072;

/// Bias, correction and multiplier of an output channel: read off the estimates.
const BIAS_BYTES: u64 = 8;

/// 70 % of LPDDR4x-4224 at 1 GHz: read off the estimates.
const BYTES_PER_CYCLE: f64 = 0.70 * 33.792;
