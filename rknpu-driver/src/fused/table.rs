//! Look-up tables: how an element becomes an index, and what the entries hold.
//!
//! The hardware has 513 entries for indices −16384…0 and 513 for 0…16384, one every 32, linear in between. Entries are
//! 16-bit integers. Two quirks are reported of the silicon (one source): the very first entry reads wrong, and index 0
//! shows spikes when the output's offset is negative. So no element ever reaches the first entries (a rectifier in
//! front of the table sees to it), and no output has a negative offset.

use half::f16;

use crate::regcmd::registers::dpu;
use crate::regcmd::{LUT_ENTRIES, TaskBuilder, TaskError};

use super::pass::set;

/// Indices from one entry to the next.
const STEP: i32 = 32;
/// First index of the negative half, and minus the last of the positive one.
const START: i32 = -16384;

/// How elements become indices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Index {
    /// `max(x + shift, 0) · scale + offset`, in floating point.
    Float { shift: f32, scale: f16, offset: f32 },
    /// The 16 bits of x as an integer, plus `offset`: a logarithmic scale of 1,024 indices an octave.
    Bits { offset: i32 },
}

/// A function as a table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) index: Index,
    pub(super) negative: Box<[i16; LUT_ENTRIES]>,
    pub(super) positive: Box<[i16; LUT_ENTRIES]>,
    /// Added to an entry before it is scaled (floating point only).
    out_offset: u32,
    /// The entry's value is divided by 2 to this power (floating point only).
    out_exponent: u32,
}

/// Entries of floating-point tables are fractions of this.
const ONE: f64 = 32768.0;
const ONE_EXPONENT: u32 = 15;

impl Table {
    /// e^(x/4) for x ≤ 0; its fourth power is e^x. Below −17.22, where e^x would round to 0 in fp16, it is 0.
    pub(super) fn quarter_exponential() -> Table {
        // 508 steps of 32 from index −16320 (entry 2) to −64 (entry 510), where x is 0.
        let (scale, first, last) = (f16::from_f32(944.0), START + 2 * STEP, -2 * STEP);
        let shift = (last - first) as f32 / scale.to_f32();
        let value = |index: i32| {
            let x = f64::from(index - last) / scale.to_f64();
            if index <= first { 0.0 } else { (x.min(0.0) / 4.0).exp() }
        };
        Table::float(Index::Float { shift, scale, offset: first as f32 }, 1, value)
    }

    /// 1/(1 + e^−x), 0 below −10.98.
    pub(super) fn sigmoid() -> Table {
        Table::float(SIGMOID, 1, sigmoid)
    }

    /// The same for a product behind it: no offset on the output, so that 0 stays 0.
    pub(super) fn sigmoid_factor() -> Table {
        Table::float(SIGMOID, 0, sigmoid)
    }

    fn float(index: Index, out_offset: u32, value: impl Fn(i32) -> f64) -> Table {
        // An entry of k gives (k + out_offset) / 32768.
        let entry = |index: i32| {
            let code = (value(index) * ONE).round() - f64::from(out_offset);
            code.clamp(-ONE, ONE - 1.0) as i16
        };
        Table {
            index,
            negative: Box::new(std::array::from_fn(|at| entry(START + STEP * at as i32))),
            positive: Box::new(std::array::from_fn(|at| entry(STEP * at as i32))),
            out_offset,
            out_exponent: ONE_EXPONENT,
        }
    }

    /// fp16 bits of 1/√x from fp16 bits of x, for 2⁻¹² < x < 16: as exponent and mantissa are one number here, 32
    /// entries serve every octave, and where the result crosses a power of two x does too, at an entry. That the
    /// table works on int16 like on int8 is inferred: the vendor's streams have int16 stages and int8 tables.
    pub(super) fn inverse_square_root() -> Table {
        // x = 16 has the bits 19456 and the index −64.
        let offset = -2 * STEP - 19456;
        let entry = |index: i32| {
            let bits = (index - offset).clamp(1, 0x7bff) as u16;
            f16::from_f64(f16::from_bits(bits).to_f64().sqrt().recip()).to_bits().cast_signed()
        };
        Table {
            index: Index::Bits { offset },
            negative: Box::new(std::array::from_fn(|at| entry(START + STEP * at as i32))),
            positive: Box::new(std::array::from_fn(|at| entry(STEP * at as i32))),
            out_offset: 0,
            out_exponent: 0,
        }
    }

    /// Sets the registers of a pass that goes through this table.
    pub(super) fn configure(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        use dpu::{lut_cfg, lut_info, out_cvt_shift};
        set(
            task,
            &[
                // The vendor's choice between the halves.
                (lut_cfg::LUT_HYBRID_PRIORITY, 1),
                (lut_cfg::LUT_OFLOW_PRIORITY, 1),
                (lut_cfg::LUT_LO_LE_MUX, 2),
                (lut_info::LUT_LE_INDEX_SELECT, STEP.ilog2()),
                (lut_info::LUT_LO_INDEX_SELECT, STEP.ilog2()),
                (out_cvt_shift::MINUS_EXP, self.out_exponent),
            ],
        )?;
        // Slopes beyond both ends stay 0: the end's value goes on.
        task.write(dpu::LUT_LE_START, START.cast_unsigned())?;
        task.write(dpu::LUT_LO_END, (-START).cast_unsigned())?;
        task.write(dpu::OUT_CVT_OFFSET, self.out_offset).map(drop)
    }
}

const SIGMOID_SCALE: f16 = f16::from_f32_const(1480.0);
/// Where the sigmoid is cut off: entry 4.
const SIGMOID_FIRST: i32 = START + 4 * STEP;

const SIGMOID: Index = Index::Float {
    shift: -SIGMOID_FIRST as f32 / 1480.0,
    scale: SIGMOID_SCALE,
    offset: SIGMOID_FIRST as f32,
};

fn sigmoid(index: i32) -> f64 {
    let x = f64::from(index) / SIGMOID_SCALE.to_f64();
    if index <= SIGMOID_FIRST { 0.0 } else { 1.0 / (1.0 + (-x).exp()) }
}
