//! The stages in floating point.
//!
//! Everything between the main input and the output converter is f32, one rounding an operation, nothing fused. ALU
//! operands are f32, multiplier operands fp16 or bf16; both are exact in f32.

use super::config::{Alu, Processing, Relu, Stage};
use super::element_wise::{Combine, ElementWise, Operand, Operation};
use super::output_converter::OutputConverter;
use crate::sim::float::{from_bf16, from_f16};
use crate::sim::rdma::Feature;
use crate::sim::{Cube, SimError};

/// Where main values come from.
pub(super) enum Main<'a> {
    /// fp16, bf16 and tf32 accumulators.
    Accumulators(&'a Cube<f32>),
    /// MRDMA: the cube and how many channels it has.
    Flying(&'a Feature, usize),
}

/// BS or BN with operands as f32, one a channel.
pub(super) struct FloatStage {
    alu: Option<(Alu, Vec<f32>)>,
    mul: Option<(Vec<f32>, bool)>,
    relu: Relu,
}

impl FloatStage {
    /// Operands of a decoded stage as numbers.
    pub(super) fn new(stage: &Stage, processing: Processing) -> Self {
        let half =
            |bits: &u16| if processing == Processing::BFloat16 { from_bf16(*bits) } else { from_f16(*bits) };
        let single = |bits: &u32| f32::from_bits(*bits);
        Self {
            alu: stage.alu.as_ref().map(|(alu, operands)| (*alu, operands.iter().map(single).collect())),
            mul: stage.mul.as_ref().map(|mul| (mul.operands.iter().map(half).collect(), mul.prelu)),
            relu: stage.relu,
        }
    }

    fn alu(&self, values: &mut [f32], channels: usize) {
        let Some((algorithm, operands)) = &self.alu else { return };
        for row in values.chunks_exact_mut(channels) {
            for (value, operand) in row.iter_mut().zip(operands) {
                *value = alu_float(*algorithm, *value, *operand);
            }
        }
    }

    fn mul(&self, values: &mut [f32], channels: usize) {
        let Some((operands, prelu)) = &self.mul else { return };
        for row in values.chunks_exact_mut(channels) {
            for (value, operand) in row.iter_mut().zip(operands) {
                if !prelu || *value < 0.0 {
                    *value *= operand;
                }
            }
        }
    }
}

/// All stages of a task in floating point.
pub(super) struct Floats<'a> {
    pub(super) main: Main<'a>,
    /// Channels computed.
    pub(super) channels: usize,
    /// Channels that mean something: as many are read of an operand.
    pub(super) real_channels: usize,
    pub(super) bs: FloatStage,
    pub(super) bn: FloatStage,
    pub(super) ew: ElementWise<f32>,
    pub(super) processing: Processing,
    pub(super) out: OutputConverter,
}

/// Buffers of one chunk, reused by the next.
#[derive(Default)]
pub(super) struct Scratch {
    values: Vec<f32>,
    operands: Vec<f32>,
    pub(super) bytes: Vec<u8>,
}

impl Floats<'_> {
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
        values.resize(count * channels, 0.0);
        let mut read = match &self.main {
            Main::Accumulators(cube) => {
                values.copy_from_slice(&cube.data[first * channels..(first + count) * channels]);
                0
            }
            Main::Flying(feature, present) => {
                if *present < channels {
                    values.fill(0.0);
                }
                feature.read((first, count), *present, channels, values, bytes)?
            }
        };
        self.bs.alu(values, channels);
        self.bs.mul(values, channels);
        relu(self.bs.relu, values);
        self.bn.mul(values, channels);
        self.bn.alu(values, channels);
        relu(self.bn.relu, values);
        if let Some(lut) = &self.ew.lut {
            values.iter_mut().for_each(|value| *value = lut.float(*value));
        }
        if let Some(combine) = &self.ew.combine {
            operands.clear();
            match &combine.operand {
                Operand::None => operands.resize(values.len(), 0.0),
                Operand::Scalar(bits) => {
                    operands.resize(values.len(), scalar(*bits, combine.operation, self.processing));
                }
                Operand::Channel(elements) => (0..count).for_each(|_| operands.extend_from_slice(elements)),
                Operand::Pixel(feature) => {
                    operands.resize(values.len(), 0.0);
                    read += feature.read((first, count), self.real_channels, channels, operands, bytes)?;
                }
            }
            operate(combine, values, operands);
        }
        relu(self.ew.relu, values);
        self.out.floats(values, bits);
        Ok(read)
    }
}

/// EW_OP_VALUE as a number: f32 for the ALU, 16 bits for the multiplier.
fn scalar(bits: u32, operation: Operation, processing: Processing) -> f32 {
    match (operation, processing) {
        (Operation::Alu(_), _) => f32::from_bits(bits),
        (Operation::Mul { .. }, Processing::BFloat16) => from_bf16(bits as u16),
        (Operation::Mul { .. }, _) => from_f16(bits as u16),
    }
}

fn alu_float(algorithm: Alu, value: f32, operand: f32) -> f32 {
    match algorithm {
        Alu::Max => value.max(operand),
        Alu::Min => value.min(operand),
        Alu::Add => value + operand,
        Alu::Div => value / operand,
        Alu::Minus => value - operand,
        Alu::Abs => value.abs(),
        Alu::Neg => -value,
        Alu::Floor => value.floor(),
        Alu::Ceil => value.ceil(),
    }
}

fn relu(relu: Relu, values: &mut [f32]) {
    let limit = match relu {
        Relu::Off => return,
        Relu::Zero => f32::INFINITY,
        Relu::Upto(limit) => f32::from_bits(limit),
    };
    for value in values {
        // A NaN becomes 0, and so does everything if the limit is negative or NaN.
        *value = value.max(0.0).min(limit.max(0.0));
    }
}

fn operate(combine: &Combine<f32>, values: &mut [f32], operands: &[f32]) {
    let pairs = values.iter_mut().zip(operands);
    match combine.operation {
        Operation::Alu(algorithm) => {
            pairs.for_each(|(value, operand)| *value = alu_float(algorithm, *value, *operand))
        }
        Operation::Mul { prelu: false, .. } => pairs.for_each(|(value, operand)| *value *= operand),
        Operation::Mul { prelu: true, .. } => {
            pairs.filter(|(value, _)| **value < 0.0).for_each(|(value, operand)| *value *= operand);
        }
    }
}
