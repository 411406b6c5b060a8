//! EW, decoded: the look-up table, then one operation with an operand, then a rectifier.

use super::config::{Alu, Relu, Shape};
use super::setting::Setting;
use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::sim::lut::Lut;
use crate::sim::rdma::{Feature, FeatureReads, Sample, channel_elements};
use crate::sim::registers::Blocks;
use crate::sim::{RegisterId, SimError, UndecodedKind};

/// Where an operand comes from.
#[derive(Debug)]
pub(super) enum Operand<T> {
    /// The operation takes none.
    None,
    /// EW_OP_VALUE, the same for all elements.
    Scalar(u32),
    /// ERDMA, one element a channel.
    Channel(Vec<T>),
    /// ERDMA, one element a pixel and channel.
    Pixel(Feature),
}

/// The converter of operands from memory: `((e + offset) · scale) ≫ shift`, or with `offset` added last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OperandConverter {
    pub(super) offset: i64,
    pub(super) scale: i64,
    pub(super) shift: u32,
    pub(super) offset_first: bool,
    pub(super) half_up: bool,
}

impl OperandConverter {
    fn decode(blocks: &Blocks, config: Setting) -> Result<Self, SimError> {
        let scale = Setting::read(blocks, dpu::EW_CVT_SCALE_VALUE)?;
        Ok(Self {
            offset: i64::from(blocks.get(dpu::EW_CVT_OFFSET_VALUE)? as i32),
            scale: i64::from(scale.bits(dpu::ew_cvt_scale_value::EW_OP_CVT_SCALE) as u16 as i16),
            shift: scale.bits(dpu::ew_cvt_scale_value::EW_OP_CVT_SHIFT),
            offset_first: config.flag(dpu::ew_cfg::EW_CVT_TYPE),
            half_up: config.flag(dpu::ew_cfg::EW_CVT_ROUND),
        })
    }

    /// True if operands pass unchanged.
    pub(super) fn is_identity(&self) -> bool {
        (self.offset, self.scale, self.shift) == (0, 1, 0)
    }
}

/// What is done with the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// An operation of the ALU.
    Alu(Alu),
    /// Multiplication; in integers the product is shifted right, by another amount where it is negative. With `prelu`
    /// only negative values are multiplied.
    Mul { shift: u32, shift_negative: u32, prelu: bool },
}

/// EW's operation.
#[derive(Debug)]
pub(super) struct Combine<T> {
    pub(super) operation: Operation,
    pub(super) operand: Operand<T>,
    /// Applies to operands from memory.
    pub(super) converter: Option<OperandConverter>,
}

/// EW.
#[derive(Debug)]
pub(super) struct ElementWise<T> {
    pub(super) lut: Option<Lut>,
    pub(super) combine: Option<Combine<T>>,
    pub(super) relu: Relu,
}

impl<T: Sample> ElementWise<T> {
    /// A stage that changes nothing.
    pub(super) const OFF: Self = Self { lut: None, combine: None, relu: Relu::Off };

    /// True if the stage changes nothing.
    pub(super) fn is_off(&self) -> bool {
        self.lut.is_none() && self.combine.is_none() && self.relu == Relu::Off
    }

    /// Decodes EW; the operand is taken out of `reads`, and a converter other than the identity is refused in
    /// floating point, where vendor streams never have one.
    pub(super) fn decode(
        blocks: &Blocks,
        shape: &Shape,
        reads: Option<&mut FeatureReads>,
        integer: bool,
    ) -> Result<Self, SimError> {
        use dpu::ew_cfg;
        let config = Setting::read(blocks, dpu::EW_CFG)?;
        if config.flag(ew_cfg::EW_BYPASS) {
            return Ok(Self::OFF);
        }
        config.require_zero(ew_cfg::EW_EQUAL_EN, "EW_EQUAL_EN")?;
        config.require_zero(ew_cfg::EW_BINARY_EN, "EW_BINARY_EN")?;
        let lut = if config.flag(ew_cfg::EW_LUT_BYPASS) { None } else { Some(Lut::decode(blocks)?) };
        let combine = if config.flag(ew_cfg::EW_OP_BYPASS) {
            None
        } else {
            let operation = operation(blocks, config, integer)?;
            let operand = match operation {
                Operation::Alu(alu) if !alu.is_binary() => Operand::None,
                _ if config.flag(ew_cfg::EW_OP_SRC) => operand_from_memory(config, shape, reads)?,
                Operation::Alu(_) | Operation::Mul { .. } => Operand::Scalar(scalar(blocks)?),
            };
            let converter = if config.flag(ew_cfg::EW_OP_CVT_BYPASS) {
                None
            } else {
                Some(OperandConverter::decode(blocks, config)?).filter(|converter| !converter.is_identity())
            };
            if !integer && converter.is_some() {
                return Err(config.undecoded("an operand converter in floating point"));
            }
            Some(Combine { operation, operand, converter })
        };
        let (bypass, limited) = (config.flag(ew_cfg::EW_RELU_BYPASS), config.flag(ew_cfg::EW_RELUX_EN));
        let relu = Relu::decode(bypass, limited, || blocks.get(dpu::EW_RELUX_CMP_VALUE))?;
        Ok(Self { lut, combine, relu })
    }
}

fn operation(blocks: &Blocks, config: Setting, integer: bool) -> Result<Operation, SimError> {
    use dpu::ew_cfg;
    if config.flag(ew_cfg::EW_OP_TYPE) {
        return Ok(Operation::Mul {
            shift: blocks.field(dpu::ew_cvt_scale_value::EW_TRUNCATE)?,
            shift_negative: blocks.field(dpu::data_format::EW_TRUNCATE_NEG)?,
            prelu: config.flag(ew_cfg::EW_MUL_PRELU),
        });
    }
    let alu = Alu::from_code(config.bits(ew_cfg::EW_ALU_ALGO))
        .ok_or_else(|| config.illegal("EW_ALU_ALGO has no such operation"))?;
    if integer && alu == Alu::Div {
        return Err(config.undecoded("EW_ALU_ALGO 3 (division) on integers"));
    }
    Ok(Operation::Alu(alu))
}

fn operand_from_memory<T: Sample>(
    config: Setting,
    shape: &Shape,
    reads: Option<&mut FeatureReads>,
) -> Result<Operand<T>, SimError> {
    let reads = reads.ok_or_else(|| config.illegal("EW_OP_SRC is memory, but DPU_RDMA is not enabled"))?;
    let cube = reads.size;
    if cube.width * cube.height != shape.pixels() || cube.channels < shape.real_channels {
        let reason = format!("DPU_RDMA reads {cube:?} for an output of {} pixels", shape.pixels());
        return Err(SimError::illegal(dpu_rdma::RDMA_DATA_CUBE_WIDTH, cube.width as u32 - 1, reason));
    }
    let per_pixel = config.bits(dpu::ew_cfg::EW_DATA_MODE) == 1;
    match (reads.operand.take(), reads.channel_operand.take()) {
        (Some(feature), _) if per_pixel => Ok(Operand::Pixel(feature)),
        (_, Some((window, precision))) if !per_pixel => {
            let mut operands = channel_elements(&window, precision, shape.real_channels)?;
            operands.resize(shape.channels, T::default());
            Ok(Operand::Channel(operands))
        }
        (None, None) => Err(config.illegal("EW_OP_SRC is memory, but ERDMA is disabled")),
        _ => Err(config.illegal("EW_DATA_MODE differs from ERDMA_DATA_MODE")),
    }
}

/// EW_OP_VALUE as one operand for all elements, as raw bits. In floating point the ALU takes it as f32 and the
/// multiplier its low half as fp16; integers are its low 16 bits, signed (probed on silicon by one source). There are
/// eight such registers and no source says which lanes take which, so they must agree, or all but the first be zero
/// (vendor streams have zeros throughout).
fn scalar(blocks: &Blocks) -> Result<u32, SimError> {
    let first = blocks.get(dpu::EW_OP_VALUE_0)?;
    let others = [
        dpu::EW_OP_VALUE_1,
        dpu::EW_OP_VALUE_2,
        dpu::EW_OP_VALUE_3,
        dpu::EW_OP_VALUE_4,
        dpu::EW_OP_VALUE_5,
        dpu::EW_OP_VALUE_6,
        dpu::EW_OP_VALUE_7,
    ];
    let values = others.into_iter().map(|register| blocks.get(register)).collect::<Result<Vec<_>, _>>()?;
    if let Some(index) = values.iter().position(|value| *value != first && *value != 0) {
        return Err(SimError::Undecoded {
            register: RegisterId::from(others[index]),
            value: values[index],
            kind: UndecodedKind::Other,
            mode: "EW_OP_VALUE registers that differ",
        });
    }
    Ok(first)
}
