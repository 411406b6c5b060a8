//! What a task's DPU registers ask for, decoded and checked.

use super::setting::Setting;
use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::regcmd::{Block, Field, Register};
use crate::sim::float::Precision;
use crate::sim::rdma::ChannelOperands;
use crate::sim::registers::Blocks;
use crate::sim::{Memory, SimError};

/// Largest cube that one task may walk, in elements: 2^28 are seconds of simulation and more than any buffer holds.
pub(super) const MAX_ELEMENTS: usize = 1 << 28;

/// Arithmetic of the stages, by PROC_PRECISION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processing {
    /// int8, int16 and int4 inputs.
    Integer,
    /// fp16, f32 and tf32: multiplier operands are fp16.
    Float16,
    /// bf16: multiplier operands are bf16.
    BFloat16,
}

/// The cube and its formats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Pixels of a line of the output.
    pub(super) width: usize,
    /// Lines of the output.
    pub(super) height: usize,
    /// Channels computed, whole kernel groups behind a convolution.
    pub(super) channels: usize,
    /// Channels that mean something; lanes behind them are written as OFFSET_PEND.
    pub(super) real_channels: usize,
    /// Format of the main input.
    pub(super) input: Precision,
    /// Arithmetic of the stages.
    pub(super) processing: Processing,
    /// Format of the output.
    pub(super) output: Precision,
    /// The main input comes from MRDMA.
    pub(super) flying: bool,
    /// Fills the lanes of an atom behind the last channel.
    pub(super) pad: u16,
}

impl Shape {
    /// Pixels of the cube.
    pub(super) fn pixels(&self) -> usize {
        self.width * self.height
    }

    /// Decodes shape and formats.
    pub(super) fn decode(blocks: &Blocks) -> Result<Self, SimError> {
        use dpu::{data_cube_channel as channel, data_cube_height, data_format, feature_mode_cfg as mode};
        let config = Setting::read(blocks, dpu::FEATURE_MODE_CFG)?;
        if config.bits(mode::OUTPUT_MODE) != 2 {
            return Err(config.undecoded("OUTPUT_MODE other than 2 (to memory)"));
        }
        let format = Setting::read(blocks, dpu::DATA_FORMAT)?;
        format.require_zero(data_format::MC_SURF_OUT, "MC_SURF_OUT")?;
        let precision = |field: Field| {
            Precision::from_code(format.bits(field))
                .ok_or_else(|| format.illegal(format!("{} has no such format here", field.name)))
        };
        let processing = match format.bits(data_format::PROC_PRECISION) {
            0 | 1 | 6 => Processing::Integer,
            2 | 5 | 7 => Processing::Float16,
            3 => Processing::BFloat16,
            _ => return Err(format.illegal("PROC_PRECISION has no such format")),
        };
        // int4 and tf32 inputs exist in front of the accumulators only; what arrives here is their sum.
        let input = match format.bits(data_format::IN_PRECISION) {
            6 => Precision::Int8,
            7 => Precision::Float32,
            _ => precision(data_format::IN_PRECISION)?,
        };
        let height = Setting::read(blocks, dpu::DATA_CUBE_HEIGHT)?;
        let channels = Setting::read(blocks, dpu::DATA_CUBE_CHANNEL)?;
        let shape = Self {
            width: Setting::read(blocks, dpu::DATA_CUBE_WIDTH)?.size(dpu::data_cube_width::WIDTH),
            height: height.size(data_cube_height::HEIGHT),
            channels: channels.size(channel::CHANNEL),
            real_channels: channels.size(channel::ORIG_CHANNEL),
            input,
            processing,
            output: precision(data_format::OUT_PRECISION)?,
            flying: config.flag(mode::FLYING_MODE),
            pad: blocks.field(dpu::offset_pend::OFFSET_PEND)? as u16,
        };
        if shape.real_channels > shape.channels {
            return Err(channels.illegal("ORIG_CHANNEL exceeds CHANNEL"));
        }
        if shape.pixels().saturating_mul(shape.channels) > MAX_ELEMENTS {
            return Err(channels.illegal(format!("a cube of more than {MAX_ELEMENTS} elements")));
        }
        Ok(shape)
    }
}

/// An operation between the value and an operand, or on the value alone: ALU_ALGO of EW by the technical reference
/// manual; BS and BN have the same field and are taken to mean the same (vendor streams only add there).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alu {
    Max,
    Min,
    Add,
    Div,
    Minus,
    Abs,
    Neg,
    Floor,
    Ceil,
}

impl Alu {
    /// The operation of a code, 0 to 8.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        const ALL: [Alu; 9] =
            [Alu::Max, Alu::Min, Alu::Add, Alu::Div, Alu::Minus, Alu::Abs, Alu::Neg, Alu::Floor, Alu::Ceil];
        ALL.get(code as usize).copied()
    }

    /// Whether the operation takes an operand.
    pub(super) fn is_binary(self) -> bool {
        matches!(self, Self::Max | Self::Min | Self::Add | Self::Div | Self::Minus)
    }
}

/// The rectifier of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relu {
    /// Bypassed.
    Off,
    /// Negatives become 0.
    Zero,
    /// Between 0 and the 32 bits of RELUX_CMP_VALUE (i32, or f32 in floating point).
    Upto(u32),
}

impl Relu {
    pub(super) fn decode(
        bypass: bool,
        limited: bool,
        limit: impl FnOnce() -> Result<u32, SimError>,
    ) -> Result<Self, SimError> {
        match (bypass, limited) {
            (true, _) => Ok(Self::Off),
            (false, false) => Ok(Self::Zero),
            (false, true) => Ok(Self::Upto(limit()?)),
        }
    }
}

/// The multiplier of BS or BN, operands as raw bits, one a channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Multiplier {
    pub(super) operands: Vec<u16>,
    /// Right shift of values from 0 up (integers).
    pub(super) shift: u32,
    /// Right shift of negative values (integers).
    pub(super) shift_negative: u32,
    /// Only negative values are multiplied and shifted.
    pub(super) prelu: bool,
}

/// BS or BN, operands as raw bits, one a channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    pub(super) alu: Option<(Alu, Vec<u32>)>,
    pub(super) mul: Option<Multiplier>,
    pub(super) relu: Relu,
}

/// The registers and fields of one of the two stages.
pub(super) struct StageFields {
    bypass: Field,
    alu_bypass: Field,
    mul_bypass: Field,
    relu_bypass: Field,
    relux: Field,
    prelu: Field,
    alu_stream: Field,
    algorithm: Field,
    config: Register,
    alu: Register,
    mul: Register,
    mul_operand: Field,
    mul_stream: Field,
    truncate_stream: Field,
    shift: Field,
    shift_negative: Field,
    limit: Register,
}

/// BS: the first stage.
pub(super) const BS: StageFields = StageFields {
    bypass: dpu::bs_cfg::BS_BYPASS,
    alu_bypass: dpu::bs_cfg::BS_ALU_BYPASS,
    mul_bypass: dpu::bs_cfg::BS_MUL_BYPASS,
    relu_bypass: dpu::bs_cfg::BS_RELU_BYPASS,
    relux: dpu::bs_cfg::BS_RELUX_EN,
    prelu: dpu::bs_cfg::BS_MUL_PRELU,
    alu_stream: dpu::bs_cfg::BS_ALU_SRC,
    algorithm: dpu::bs_cfg::BS_ALU_ALGO,
    config: dpu::BS_CFG,
    alu: dpu::BS_ALU_CFG,
    mul: dpu::BS_MUL_CFG,
    mul_operand: dpu::bs_mul_cfg::BS_MUL_OPERAND,
    mul_stream: dpu::bs_mul_cfg::BS_MUL_SRC,
    truncate_stream: dpu::bs_mul_cfg::BS_TRUNCATE_SRC,
    shift: dpu::bs_mul_cfg::BS_MUL_SHIFT_VALUE,
    shift_negative: dpu::data_format::BS_MUL_SHIFT_VALUE_NEG,
    limit: dpu::BS_RELUX_CMP_VALUE,
};

/// BN: the second stage.
pub(super) const BN: StageFields = StageFields {
    bypass: dpu::bn_cfg::BN_BYPASS,
    alu_bypass: dpu::bn_cfg::BN_ALU_BYPASS,
    mul_bypass: dpu::bn_cfg::BN_MUL_BYPASS,
    relu_bypass: dpu::bn_cfg::BN_RELU_BYPASS,
    relux: dpu::bn_cfg::BN_RELUX_EN,
    prelu: dpu::bn_cfg::BN_MUL_PRELU,
    alu_stream: dpu::bn_cfg::BN_ALU_SRC,
    algorithm: dpu::bn_cfg::BN_ALU_ALGO,
    config: dpu::BN_CFG,
    alu: dpu::BN_ALU_CFG,
    mul: dpu::BN_MUL_CFG,
    mul_operand: dpu::bn_mul_cfg::BN_MUL_OPERAND,
    mul_stream: dpu::bn_mul_cfg::BN_MUL_SRC,
    truncate_stream: dpu::bn_mul_cfg::BN_TRUNCATE_SRC,
    shift: dpu::bn_mul_cfg::BN_MUL_SHIFT_VALUE,
    shift_negative: dpu::data_format::BN_MUL_SHIFT_VALUE_NEG,
    limit: dpu::BN_RELUX_CMP_VALUE,
};

impl Stage {
    /// A stage that changes nothing.
    pub(super) const OFF: Stage = Stage { alu: None, mul: None, relu: Relu::Off };

    /// True if the stage changes nothing.
    pub(super) fn is_off(&self) -> bool {
        *self == Self::OFF
    }

    /// Decodes one stage for `channels` channels; `streams` is what its read engine brought.
    pub(super) fn decode(
        blocks: &Blocks,
        fields: &StageFields,
        streams: &ChannelOperands,
        channels: usize,
        integer: bool,
    ) -> Result<Self, SimError> {
        let config = Setting::read(blocks, fields.config)?;
        if config.flag(fields.bypass) {
            return Ok(Self::OFF);
        }
        let missing = |what: &str| {
            config.illegal(format!("{what} operands are to come from memory, but no stream brings them"))
        };
        let alu = if config.flag(fields.alu_bypass) {
            None
        } else {
            let algorithm = Alu::from_code(config.bits(fields.algorithm))
                .ok_or_else(|| config.illegal("ALU_ALGO has no such operation"))?;
            if integer && algorithm == Alu::Div {
                return Err(config.undecoded("ALU_ALGO 3 (division) on integers"));
            }
            let operands = if !algorithm.is_binary() {
                vec![0; channels]
            } else if config.flag(fields.alu_stream) {
                padded(streams.alu.as_ref().ok_or_else(|| missing("ALU"))?, channels)
            } else {
                vec![blocks.get(fields.alu)?; channels]
            };
            Some((algorithm, operands))
        };
        let mul = if config.flag(fields.mul_bypass) {
            None
        } else {
            let settings = Setting::read(blocks, fields.mul)?;
            settings.require_zero(fields.truncate_stream, "MUL shifts from memory (TRUNCATE_SRC)")?;
            let operands = if settings.flag(fields.mul_stream) {
                padded(streams.mul.as_ref().ok_or_else(|| missing("MUL"))?, channels)
            } else {
                vec![settings.bits(fields.mul_operand) as u16; channels]
            };
            Some(Multiplier {
                operands,
                shift: settings.bits(fields.shift),
                shift_negative: blocks.field(fields.shift_negative)?,
                prelu: config.flag(fields.prelu),
            })
        };
        let relu = Relu::decode(config.flag(fields.relu_bypass), config.flag(fields.relux), || {
            blocks.get(fields.limit)
        })?;
        Ok(Self { alu, mul, relu })
    }
}

/// Exactly `channels` operands: channels without one get zero.
fn padded<T: Copy + Default>(operands: &[T], channels: usize) -> Vec<T> {
    let mut out = operands.to_vec();
    out.resize(channels, T::default());
    out
}

/// The per-channel streams of both stages, and CPEND.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) bs: ChannelOperands,
    pub(super) bn: ChannelOperands,
    /// Factors of the sum of the inputs, one a channel. `None` where OD_BYPASS is set.
    pub(super) cpend: Option<Vec<i16>>,
}

impl Channels {
    /// Reads the streams that are in use.
    pub(super) fn read(blocks: &Blocks, memory: &Memory, shape: &Shape) -> Result<Self, SimError> {
        use dpu_rdma::{rdma_brdma_cfg, rdma_nrdma_cfg};
        let stream = |uses: Field, base: Register| {
            if !blocks.enabled(Block::DpuRdma) {
                return Ok(ChannelOperands::default());
            }
            ChannelOperands::read(blocks, memory, uses, base, shape.real_channels)
        };
        let bs = stream(rdma_brdma_cfg::BRDMA_DATA_USE, dpu_rdma::RDMA_BS_BASE_ADDR)?;
        let bn = stream(rdma_nrdma_cfg::NRDMA_DATA_USE, dpu_rdma::RDMA_BN_BASE_ADDR)?;
        let config = Setting::read(blocks, dpu::BS_OW_CFG)?;
        let cpend = if config.flag(dpu::bs_ow_cfg::OD_BYPASS) {
            None
        } else if config.flag(dpu::bs_ow_cfg::OW_SRC) {
            let operands = bs
                .cpend
                .as_ref()
                .ok_or_else(|| config.illegal("OW_SRC, but BRDMA brings no CPEND operands"))?;
            Some(padded(operands, shape.channels))
        } else {
            Some(vec![blocks.field(dpu::bs_ow_op::OW_OP)? as i16; shape.channels])
        };
        Ok(Self { bs, bn, cpend })
    }
}
