//! Number formats of the NPU and the conversions between them.
//!
//! Float work in DPU and PPU happens in f32; fp16 and bf16 appear only at the edges (operands read, results written),
//! where one rounding to the nearest, ties to even, is applied. Conversions are IEEE 754: overflow becomes infinity,
//! subnormals are kept. No source documents a flush to zero.

use half::{bf16, f16};

/// A three-bit precision code of DATA_FORMAT, RDMA_FEATURE_MODE_CFG and CONV_CON1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// 0: signed 8-bit integers.
    Int8,
    /// 1: signed 16-bit integers.
    Int16,
    /// 2: IEEE half precision.
    Float16,
    /// 3: bfloat16.
    BFloat16,
    /// 4: signed 32-bit integers.
    Int32,
    /// 5: IEEE single precision.
    Float32,
}

impl Precision {
    /// The precision of a code as DPU, DPU_RDMA, PPU and PPU_RDMA take it; `None` for int4, tf32 and what has no
    /// name.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Int8),
            1 => Some(Self::Int16),
            2 => Some(Self::Float16),
            3 => Some(Self::BFloat16),
            4 => Some(Self::Int32),
            5 => Some(Self::Float32),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Int16 | Self::Float16 | Self::BFloat16 => 2,
            Self::Int32 | Self::Float32 => 4,
        }
    }

    /// Channels in a 16-byte atom.
    pub(crate) fn lanes(self) -> usize {
        16 / self.bytes()
    }

    /// Whether the elements are floating-point numbers.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::Float16 | Self::BFloat16 | Self::Float32)
    }
}

/// The value of 16 bits in half precision.
pub(crate) fn from_f16(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// `value` in half precision.
pub(crate) fn to_f16(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}

/// The value of 16 bits in bfloat16.
pub(crate) fn from_bf16(bits: u16) -> f32 {
    bf16::from_bits(bits).to_f32()
}

/// `value` in bfloat16.
pub(crate) fn to_bf16(value: f32) -> u16 {
    bf16::from_f32(value).to_bits()
}

/// `value` as an integer of `bits` bits: to the nearest, ties to even, saturating; NaN is 0.
///
/// That the conversion rounds to even is the reading under which the vendor's softmax stream (exponential by bit
/// pattern) comes out; no source measured it on silicon.
pub(crate) fn to_int(value: f32, bits: u32) -> i64 {
    let limit = (1i64 << (bits - 1)) as f64;
    f64::from(value).round_ties_even().clamp(-limit, limit - 1.0) as i64
}

/// `value` limited to what `bits` bits (at most 63) hold in two's complement.
pub(crate) fn saturate(value: i64, bits: u32) -> i64 {
    let limit = 1i64 << (bits - 1);
    value.clamp(-limit, limit - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_sizes() {
        let sizes: Vec<_> =
            (0..8).map(|code| Precision::from_code(code).map(|p| (p.bytes(), p.lanes()))).collect();
        let expected =
            [Some((1, 16)), Some((2, 8)), Some((2, 8)), Some((2, 8)), Some((4, 4)), Some((4, 4)), None, None];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn halves_round_to_even_and_overflow_to_infinity() {
        // One unit in the last place at 1.0 is 2^-10.
        assert_eq!(to_f16(1.0 + 0.5 / 1024.0), 0x3c00);
        assert_eq!(to_f16(1.0 + 1.5 / 1024.0), 0x3c02);
        assert_eq!(to_f16(65519.9), 0x7bff);
        assert_eq!(to_f16(65520.0), 0x7c00);
        assert_eq!(to_f16(f32::from_bits(0x3300_0000)), 0); // 2^-25 is half the smallest subnormal
        assert_eq!(from_f16(0x0001), 2f32.powi(-24));
        assert_eq!(to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(from_bf16(0xbf80), -1.0);
    }

    #[test]
    fn integers_saturate() {
        for (value, expected) in [(2.5, 2), (3.5, 4), (-2.5, -2), (127.6, 127), (-129.0, -128), (f32::NAN, 0)]
        {
            assert_eq!(to_int(value, 8), expected, "{value}");
        }
        assert_eq!(to_int(f32::INFINITY, 32), i64::from(i32::MAX));
        assert_eq!(saturate(40_000, 16), 32_767);
        assert_eq!(saturate(-40_000, 16), -32_768);
    }
}
