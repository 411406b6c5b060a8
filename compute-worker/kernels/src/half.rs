//! IEEE binary16 conversions in plain Rust: exact upwards, ties to even downwards.
//!
//! The vector units' own conversions (`vcvtph2ps`, `fcvtl`, …) give the same bits for every number; for NaN
//! only the fact of being NaN is promised.

/// Converts binary16 bits to `f32`, exactly.
#[inline(always)]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let normal = (magnitude << 13) + (112 << 23);
    let subnormal = (magnitude as f32 * f32::from_bits(103 << 23)).to_bits();
    let quiet = if magnitude > 0x7c00 { 0x0040_0000 } else { 0 };
    let special = 0x7f80_0000 | quiet | ((magnitude & 0x3ff) << 13);
    let bits = match magnitude {
        0..0x400 => subnormal,
        0x400..0x7c00 => normal,
        _ => special,
    };
    f32::from_bits(sign | bits)
}

/// Converts to the nearest binary16, ties to even; beyond 65,519.99… becomes infinity, NaN stays NaN.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Adding 0.5 puts the unit of the last place of the sum at 2^-24, binary16's smallest step.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = (magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13).wrapping_sub(112 << 10);
    let special = if magnitude > 0x7f80_0000 { 0x7e00 | ((magnitude >> 13) & 0x3ff) } else { 0x7c00 };
    let half = match magnitude {
        0..0x3880_0000 => subnormal,
        0x3880_0000..0x4780_0000 => normal,
        _ => special,
    };
    (sign | half) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of binary16 bits by definition, in f64.
    fn by_definition(half: u16) -> f64 {
        let exponent = i32::from((half >> 10) & 0x1f);
        let fraction = f64::from(half & 0x3ff);
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        };
        if half & 0x8000 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_half_converts_exactly_and_comes_back() {
        for half in 0..=u16::MAX {
            let value = f16_to_f32(half);
            let expected = by_definition(half);
            assert!(f64::from(value) == expected || (value.is_nan() && expected.is_nan()), "{half:#06x}");
            if !value.is_nan() {
                assert_eq!(f32_to_f16(value), half, "{half:#06x}");
            } else {
                assert!(f16_to_f32(f32_to_f16(value)).is_nan(), "{half:#06x}");
            }
        }
    }

    #[test]
    fn midpoints_go_to_even_and_their_neighbours_to_the_nearest() {
        for half in 0..0x7bff_u16 {
            let (low, high) = (f16_to_f32(half), f16_to_f32(half + 1));
            let middle = (low + high) / 2.0; // exact: one more bit than binary16 has
            let even = if half & 1 == 0 { half } else { half + 1 };
            assert_eq!(f32_to_f16(middle), even, "{half:#06x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), half, "{half:#06x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), half + 1, "{half:#06x}");
            assert_eq!(f32_to_f16(-middle), even | 0x8000, "{half:#06x}");
        }
        assert_eq!(f32_to_f16(65_519.996), 0x7bff);
        assert_eq!(f32_to_f16(65_520.0), 0x7c00);
        assert_eq!(f32_to_f16(f32::MAX), 0x7c00);
        assert_eq!(f32_to_f16(f32::NEG_INFINITY), 0xfc00);
    }
}
