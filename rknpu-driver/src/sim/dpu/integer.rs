//! The stages on integers.
//!
//! Values are kept to 48 bits, the width of the widest accumulators, and saturate there after every step. Whether the
//! silicon has narrower registers between its stages is not known; no vendor stream comes near such a limit.

use super::config::{Alu, Channels, Multiplier, Relu, Stage};
use super::element_wise::{Combine, ElementWise, Operand, OperandConverter, Operation};
use super::output_converter::OutputConverter;
use crate::sim::float::saturate;
use crate::sim::rdma::Feature;
use crate::sim::{Cube, Options, Rounding, SimError};

/// Width of a value between stages.
const VALUE_BITS: u32 = 48;

/// Where main values come from.
pub(super) enum Main<'a> {
    /// int8 and int4 accumulators.
    Accumulators(&'a Cube<i32>),
    /// int16 accumulators.
    Wide(&'a Cube<i64>),
    /// MRDMA: the cube and how many channels it has.
    Flying(&'a Feature, usize),
}

/// All stages of a task on integers.
pub(super) struct Integers<'a> {
    pub(super) main: Main<'a>,
    /// Channels computed.
    pub(super) channels: usize,
    /// Channels that mean something: as many are read of an operand.
    pub(super) real_channels: usize,
    /// Σ of the inputs where CPEND is on: one a pixel, or one an element.
    pub(super) input_sums: &'a [i64],
    /// Whether `input_sums` has one an element.
    pub(super) sum_per_element: bool,
    pub(super) cpend: Option<Vec<i16>>,
    pub(super) bs: Stage,
    pub(super) bn: Stage,
    pub(super) ew: ElementWise<i64>,
    pub(super) out: OutputConverter,
    pub(super) options: &'a Options,
}

/// Buffers of one chunk, reused by the next.
#[derive(Default)]
pub(super) struct Scratch {
    values: Vec<i64>,
    operands: Vec<i64>,
    pub(super) bytes: Vec<u8>,
}

impl<'a> Integers<'a> {
    /// Cpend operands out of the decoded streams.
    pub(super) fn take_cpend(channels: &mut Channels) -> Option<Vec<i16>> {
        channels.cpend.take().filter(|operands| operands.iter().any(|operand| *operand != 0))
    }

    /// Computes pixels `first..first + count` into `bits[pixel][channel]`; returns the bytes read.
    pub(super) fn run(
        &self,
        first: usize,
        count: usize,
        bits: &mut [u32],
        scratch: &mut Scratch,
    ) -> Result<u64, SimError> {
        let channels = self.channels;
        let Scratch { values, operands, bytes } = scratch;
        values.resize(count * channels, 0);
        let mut read = self.load(first, count, values, bytes)?;
        if let Some(factors) = &self.cpend {
            self.add_input_sums(factors, first, values);
        }
        let rounding = self.options.shift_rounding;
        if !self.bs.is_off() {
            alu_stage(&self.bs.alu, values, channels, true);
            mul_stage(&self.bs.mul, values, channels, true, rounding);
            relu(self.bs.relu, values);
        }
        if !self.bn.is_off() {
            mul_stage(&self.bn.mul, values, channels, false, rounding);
            alu_stage(&self.bn.alu, values, channels, self.bn.mul.is_none());
            if let Some(mul) = &self.bn.mul {
                shift_stage(mul, values, rounding);
            }
            relu(self.bn.relu, values);
        }
        if !self.ew.is_off() {
            read += self.element_wise(first, count, values, operands, bytes)?;
        }
        self.out.integers(values, bits, self.options);
        Ok(read)
    }

    /// CPEND: adds the sum of the inputs under the kernel times a factor a channel.
    fn add_input_sums(&self, factors: &[i16], first: usize, values: &mut [i64]) {
        let channels = self.channels;
        // A depthwise convolution has a sum for every element, a direct one for every pixel.
        let stride = if self.sum_per_element { channels } else { 1 };
        let sums = &self.input_sums[first * stride..];
        for (row, sums) in values.chunks_exact_mut(channels).zip(sums.chunks_exact(stride)) {
            for (channel, (value, factor)) in row.iter_mut().zip(factors).enumerate() {
                let sum = saturate(sums[if stride == 1 { 0 } else { channel }], VALUE_BITS - 16);
                *value = clip(*value + sum * i64::from(*factor));
            }
        }
    }

    fn load(
        &self,
        first: usize,
        count: usize,
        values: &mut [i64],
        bytes: &mut Vec<u8>,
    ) -> Result<u64, SimError> {
        let range = first * self.channels..(first + count) * self.channels;
        match &self.main {
            Main::Accumulators(cube) => {
                for (value, accumulator) in values.iter_mut().zip(&cube.data[range]) {
                    *value = i64::from(*accumulator);
                }
                Ok(0)
            }
            Main::Wide(cube) => {
                for (value, accumulator) in values.iter_mut().zip(&cube.data[range]) {
                    *value = clip(*accumulator);
                }
                Ok(0)
            }
            Main::Flying(feature, channels) => {
                if *channels < self.channels {
                    values.fill(0);
                }
                feature.read((first, count), *channels, self.channels, values, bytes)
            }
        }
    }

    fn element_wise(
        &self,
        first: usize,
        count: usize,
        values: &mut [i64],
        operands: &mut Vec<i64>,
        bytes: &mut Vec<u8>,
    ) -> Result<u64, SimError> {
        let mut read = 0;
        if let Some(lut) = &self.ew.lut {
            for value in values.iter_mut() {
                *value = clip(lut.integer(*value, self.options.shift_rounding));
            }
        }
        if let Some(combine) = &self.ew.combine {
            operands.clear();
            match &combine.operand {
                Operand::None => operands.resize(values.len(), 0),
                Operand::Scalar(bits) => operands.resize(values.len(), i64::from(*bits as i16)),
                Operand::Channel(elements) => (0..count).for_each(|_| operands.extend_from_slice(elements)),
                Operand::Pixel(feature) => {
                    operands.resize(values.len(), 0);
                    read +=
                        feature.read((first, count), self.real_channels, self.channels, operands, bytes)?;
                }
            }
            if let (Some(converter), Operand::Channel(_) | Operand::Pixel(_)) =
                (combine.converter, &combine.operand)
            {
                convert(converter, operands);
            }
            operate(combine, values, operands, self.options.shift_rounding);
        }
        relu(self.ew.relu, values);
        Ok(read)
    }
}

/// A value at the width between stages.
fn clip(value: i64) -> i64 {
    saturate(value, VALUE_BITS)
}

/// The ALU of BS or BN. Products of BN on their way to its shift are wider than values: they are not clipped.
fn alu_stage(alu: &Option<(Alu, Vec<u32>)>, values: &mut [i64], channels: usize, clipped: bool) {
    let Some((algorithm, operands)) = alu else { return };
    for row in values.chunks_exact_mut(channels) {
        for (value, operand) in row.iter_mut().zip(operands) {
            let result = alu_integer(*algorithm, *value, i64::from(*operand as i32));
            *value = if clipped { clip(result) } else { result };
        }
    }
}

/// Products; with `shift` also the shift behind them. Values of 48 bits times 16 bits fit into 63.
fn mul_stage(mul: &Option<Multiplier>, values: &mut [i64], channels: usize, shift: bool, rounding: Rounding) {
    let Some(mul) = mul else { return };
    for row in values.chunks_exact_mut(channels) {
        for (value, operand) in row.iter_mut().zip(&mul.operands) {
            if mul.prelu && *value >= 0 {
                continue;
            }
            let product = *value * i64::from(*operand as i16);
            let amount = if product < 0 { mul.shift_negative } else { mul.shift };
            let amount = if mul.prelu { mul.shift_negative } else { amount };
            *value = if shift { clip(rounding.shift(product, amount)) } else { product };
        }
    }
}

/// The shift of BN, which follows its ALU.
fn shift_stage(mul: &Multiplier, values: &mut [i64], rounding: Rounding) {
    for value in values {
        let amount = if *value < 0 { mul.shift_negative } else { mul.shift };
        if !(mul.prelu && *value >= 0) {
            *value = rounding.shift(*value, amount);
        }
        *value = clip(*value);
    }
}

fn alu_integer(algorithm: Alu, value: i64, operand: i64) -> i64 {
    match algorithm {
        Alu::Max => value.max(operand),
        Alu::Min => value.min(operand),
        Alu::Add => value.saturating_add(operand),
        Alu::Minus => value.saturating_sub(operand),
        Alu::Abs => value.saturating_abs(),
        Alu::Neg => value.saturating_neg(),
        // Integers have no fraction; division is refused when the task is decoded.
        Alu::Floor | Alu::Ceil | Alu::Div => value,
    }
}

fn relu(relu: Relu, values: &mut [i64]) {
    let limit = match relu {
        Relu::Off => return,
        Relu::Zero => i64::MAX,
        Relu::Upto(limit) => i64::from(limit as i32).max(0),
    };
    for value in values {
        *value = (*value).clamp(0, limit);
    }
}

fn convert(converter: OperandConverter, operands: &mut [i64]) {
    let OperandConverter { offset, scale, shift, offset_first, half_up } = converter;
    let rounding = if half_up { Rounding::HalfUp } else { Rounding::TiesToEven };
    for operand in operands {
        // 33 bits times 16 bits fit into 49.
        *operand = if offset_first {
            rounding.shift((*operand + offset) * scale, shift)
        } else {
            rounding.shift(*operand * scale, shift) + offset
        };
    }
}

fn operate(combine: &Combine<i64>, values: &mut [i64], operands: &[i64], rounding: Rounding) {
    match combine.operation {
        Operation::Alu(algorithm) => {
            for (value, operand) in values.iter_mut().zip(operands) {
                *value = clip(alu_integer(algorithm, *value, *operand));
            }
        }
        Operation::Mul { shift, shift_negative, prelu } => {
            for (value, operand) in values.iter_mut().zip(operands) {
                if prelu && *value >= 0 {
                    continue;
                }
                let product = i128::from(*value) * i128::from(*operand);
                let amount = if product < 0 { shift_negative } else { shift };
                let limit = 1i128 << (VALUE_BITS - 1);
                *value = rounding.shift(product, amount).clamp(-limit, limit - 1) as i64;
            }
        }
    }
}
