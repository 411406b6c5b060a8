//! OUT_CVT: what the stages computed becomes bits of the output format.
//!
//! Integers: `saturate(round(x · SCALE / 2^SHIFT) + OFFSET)`; with CVT_TYPE the offset is added first. CVT_ROUND 0
//! rounds ties to even (the manual's "carry if odd"; measurements on three chips of the family agree), 1 rounds them
//! up. Floats: `(x + OFFSET) · 2^-MINUS_EXP`, an integer offset, then one rounding to the output format. SCALE plays
//! no part there: every vendor stream has 1. FP32TOFP16_EN accompanies fp16 and bf16 outputs; vendor streams also set
//! it for integer outputs of floating-point stages. With outputs other than 16-bit floats it is taken to do nothing
//! (through fp16 the softmax's exponentials would lose three of their ten bits).

use super::config::{Processing, Shape};
use super::setting::Setting;
use crate::regcmd::registers::dpu;
use crate::sim::float::{Precision, saturate, to_bf16, to_f16, to_int};
use crate::sim::options::{IntToFloat, OutRounding};
use crate::sim::registers::Blocks;
use crate::sim::{Options, Rounding, SimError};

/// The output converter of one task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OutputConverter {
    pub(super) scale: i64,
    pub(super) shift: u32,
    pub(super) offset: i64,
    pub(super) offset_first: bool,
    pub(super) half_up: bool,
    pub(super) minus_exp: u32,
    pub(super) output: Precision,
}

impl OutputConverter {
    /// Decodes the three OUT_CVT registers.
    pub(super) fn decode(blocks: &Blocks, shape: &Shape) -> Result<Self, SimError> {
        use dpu::{out_cvt_scale, out_cvt_shift};
        let scale = Setting::read(blocks, dpu::OUT_CVT_SCALE)?;
        let shift = Setting::read(blocks, dpu::OUT_CVT_SHIFT)?;
        let converter = Self {
            scale: i64::from(scale.bits(out_cvt_scale::OUT_CVT_SCALE) as u16 as i16),
            shift: shift.bits(out_cvt_shift::OUT_CVT_SHIFT),
            offset: i64::from(blocks.get(dpu::OUT_CVT_OFFSET)? as i32),
            offset_first: shift.flag(out_cvt_shift::CVT_TYPE),
            half_up: shift.flag(out_cvt_shift::CVT_ROUND),
            minus_exp: shift.bits(out_cvt_shift::MINUS_EXP),
            output: shape.output,
        };
        let float = shape.processing != Processing::Integer;
        if float && (converter.scale != 1 || converter.shift != 0) {
            return Err(scale.undecoded("an integer scale or shift in floating point"));
        }
        Ok(converter)
    }

    /// True if integers pass unchanged (into a format that holds them).
    pub(super) fn is_identity(&self) -> bool {
        (self.scale, self.shift, self.offset) == (1, 0, 0)
    }

    /// Converts values of at most 48 bits.
    pub(super) fn integers(&self, values: &[i64], bits: &mut [u32], options: &Options) {
        let rounding = match (options.out_rounding, self.half_up) {
            (OutRounding::Always(rounding), _) => rounding,
            (OutRounding::AsConfigured, false) => Rounding::TiesToEven,
            (OutRounding::AsConfigured, true) => Rounding::HalfUp,
        };
        let convert = |value: i64| self.rescale(value, rounding);
        match self.output {
            Precision::Int8 => each(values, bits, |value| saturate(convert(value), 8) as u32),
            Precision::Int16 => each(values, bits, |value| saturate(convert(value), 16) as u32),
            Precision::Int32 => each(values, bits, |value| saturate(convert(value), 32) as u32),
            Precision::Float16 | Precision::BFloat16 | Precision::Float32 => {
                each(values, bits, |value| self.float_bits(self.as_float(convert(value), options)));
            }
        }
    }

    /// Converts floats.
    pub(super) fn floats(&self, values: &[f32], bits: &mut [u32]) {
        let offset = self.offset as f32;
        each(values, bits, |value| self.float_bits(self.scaled(value + offset)));
    }

    fn rescale(&self, value: i64, rounding: Rounding) -> i64 {
        if self.offset_first {
            // 49 bits times 16 bits.
            saturate_wide(
                rounding.shift(i128::from(value + self.offset) * i128::from(self.scale), self.shift),
            )
        } else {
            rounding.shift(value * self.scale, self.shift) + self.offset
        }
    }

    fn as_float(&self, value: i64, options: &Options) -> f32 {
        let nearest = value as f32;
        let above = options.int_to_float == IntToFloat::Floor && nearest as i64 > value;
        self.scaled(if above { nearest.next_down() } else { nearest })
    }

    fn scaled(&self, value: f32) -> f32 {
        value * exponent(self.minus_exp)
    }

    /// Bits of the output format; integers are rounded to the nearest, ties to even, and saturate.
    fn float_bits(&self, value: f32) -> u32 {
        match self.output {
            Precision::Float16 => u32::from(to_f16(value)),
            Precision::BFloat16 => u32::from(to_bf16(value)),
            Precision::Float32 => value.to_bits(),
            Precision::Int8 => to_int(value, 8) as u32,
            Precision::Int16 => to_int(value, 16) as u32,
            Precision::Int32 => to_int(value, 32) as u32,
        }
    }
}

/// A product of 65 bits at most, as 63 of them.
fn saturate_wide(value: i128) -> i64 {
    value.clamp(i128::from(i64::MIN >> 1), i128::from(i64::MAX >> 1)) as i64
}

/// 2^-minus_exp for the eight-bit field, exact down to the subnormals.
fn exponent(minus_exp: u32) -> f32 {
    if minus_exp == 0 { 1.0 } else { 2f64.powi(-(minus_exp as i32)) as f32 }
}

fn each<T: Copy>(values: &[T], bits: &mut [u32], convert: impl Fn(T) -> u32) {
    for (value, out) in values.iter().zip(bits) {
        *out = convert(*value);
    }
}
