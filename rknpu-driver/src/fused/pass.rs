//! Element-wise tasks: one pass of a cube through the DPU's stages.
//!
//! ```text
//! main ─► BS: + operand, × operand, ReLU ─► BN: × constant, + constant ─► EW: table, then + × ÷ operand ─► out
//! ```
//!
//! Register values are those of the vendor's element-wise tasks; see docs/npu-fused.md, "Tasks".

use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::regcmd::{AddressSlot, Base, EncodedTask, Field, Register, TaskBuilder, TaskError, TaskKind};

use super::table::{Index, Table};

/// A place in memory: bytes from a base that is known when the kernel is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) base: Base,
    pub(super) offset: u32,
}

impl Place {
    /// `bytes` further on.
    pub(super) fn plus(self, bytes: usize) -> Place {
        // Kernels are limited to buffers of 32-bit sizes before places are made.
        Place { offset: self.offset + bytes as u32, ..self }
    }
}

/// Pixels and channels of a cube of 16-bit elements whose surfaces lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Pixels of the only line.
    pub(super) pixels: usize,
    /// Channels, a multiple of 8.
    pub(super) channels: usize,
}

impl Extent {
    /// Bytes of one surface: 8 channels of all pixels.
    pub(super) fn surface(self) -> u32 {
        (self.pixels * 16) as u32
    }

    /// Bytes of the cube.
    pub(super) fn bytes(self) -> usize {
        self.pixels * self.channels * 2
    }
}

/// What 16 bits of the cube are to the pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// fp16, computed in floating point.
    Float,
    /// The bits of fp16 numbers taken as int16, so that integer stages see exponent and mantissa as one number.
    Bits,
}

/// Operands of the first stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum First {
    /// Nothing happens.
    Off,
    /// One fp32 addend for all, then negative values become 0.
    AddRectified(f32),
    /// Addends (fp32) and factors (fp16) per channel from memory, in runs of 8 channels: addends, then factors.
    Channels { place: Place, add: bool, multiply: bool },
}

/// What the last stage does with an operand cube of the same extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Sum.
    Add,
    /// Product.
    Multiply,
    /// Main divided by operand.
    Divide,
}

/// One element-wise task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass<'a> {
    pub(super) extent: Extent,
    pub(super) elements: Elements,
    pub(super) source: Place,
    pub(super) output: Place,
    pub(super) first: First,
    pub(super) table: Option<&'a Table>,
    pub(super) operand: Option<(Operation, Place)>,
}

impl<'a> Pass<'a> {
    /// A pass that copies.
    pub(super) fn new(extent: Extent, source: Place, output: Place) -> Self {
        Pass {
            extent,
            elements: Elements::Float,
            source,
            output,
            first: First::Off,
            table: None,
            operand: None,
        }
    }

    /// With an operand cube.
    pub(super) fn with(self, operation: Operation, operand: Place) -> Self {
        Pass { operand: Some((operation, operand)), ..self }
    }

    /// Through a table, with the stages before it that bring elements into its range.
    pub(super) fn through(self, table: &'a Table) -> Self {
        let first = match table.index {
            Index::Float { shift, .. } => First::AddRectified(shift),
            Index::Bits { .. } => First::Off,
        };
        let elements = match table.index {
            Index::Float { .. } => Elements::Float,
            Index::Bits { .. } => Elements::Bits,
        };
        Pass { first, elements, table: Some(table), ..self }
    }

    /// The task.
    pub(super) fn encode(&self) -> Result<EncodedTask, TaskError> {
        let mut task = TaskBuilder::new(TaskKind::Elementwise);
        self.shape(&mut task)?;
        self.formats(&mut task)?;
        self.first_stage(&mut task)?;
        self.second_stage(&mut task)?;
        self.last_stage(&mut task)?;
        Ok(task.finish())
    }

    fn shape(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        let Extent { pixels, channels } = self.extent;
        write_output_shape(task, self.extent, channels)?;
        let surface = self.extent.surface();
        set(
            task,
            &[
                (dpu::feature_mode_cfg::BURST_LEN, 15),
                (dpu::feature_mode_cfg::OUTPUT_MODE, 2),
                (dpu::feature_mode_cfg::FLYING_MODE, 1),
                (dpu::bs_ow_cfg::OD_BYPASS, 1),
                (dpu_rdma::rdma_data_cube_width::WIDTH, pixels as u32 - 1),
                (dpu_rdma::rdma_data_cube_channel::CHANNEL, channels as u32 - 1),
                (dpu_rdma::rdma_feature_mode_cfg::BURST_LEN, 15),
                (dpu_rdma::rdma_feature_mode_cfg::FLYING_MODE, 1),
            ],
        )?;
        task.write(dpu::SURFACE_ADD, surface)?;
        task.write(dpu_rdma::RDMA_WEIGHT, 0x0101_0101)?;
        task.address(AddressSlot::Source, self.source.base, self.source.offset)?;
        task.address(AddressSlot::Output, self.output.base, self.output.offset)?;
        Ok(())
    }

    fn formats(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        let code = match self.elements {
            Elements::Float => FP16,
            Elements::Bits => INT16,
        };
        // The vendor divides without widening operands; both ways mean the same numbers.
        let widen = self.elements == Elements::Float && !matches!(self.operand, Some((Operation::Divide, _)));
        set(
            task,
            &[
                (dpu::data_format::IN_PRECISION, code),
                (dpu::data_format::PROC_PRECISION, code),
                (dpu::data_format::OUT_PRECISION, code),
                (dpu_rdma::rdma_feature_mode_cfg::IN_PRECISION, code),
                (dpu_rdma::rdma_feature_mode_cfg::PROC_PRECISION, code),
                (dpu_rdma::rdma_feature_mode_cfg::MRDMA_FP16TOFP32_EN, widen.into()),
                (dpu::out_cvt_scale::OUT_CVT_SCALE, 1),
                (dpu::out_cvt_scale::FP32TOFP16_EN, widen.into()),
            ],
        )
    }

    fn first_stage(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        use dpu::{bs_cfg as cfg, bs_mul_cfg};
        match self.first {
            First::Off => bypass(task, dpu::BS_CFG, STAGE_OFF),
            First::AddRectified(addend) => {
                set(task, &[(cfg::BS_ALU_ALGO, ALU_ADD), (cfg::BS_MUL_BYPASS, 1)])?;
                task.write(dpu::BS_ALU_CFG, addend.to_bits()).map(drop)
            }
            First::Channels { place, add, multiply } => {
                set(
                    task,
                    &[
                        (cfg::BS_ALU_ALGO, ALU_ADD),
                        (cfg::BS_ALU_SRC, add.into()),
                        (cfg::BS_ALU_BYPASS, (!add).into()),
                        (cfg::BS_MUL_BYPASS, (!multiply).into()),
                        (cfg::BS_RELU_BYPASS, 1),
                        (bs_mul_cfg::BS_MUL_SRC, multiply.into()),
                        (dpu_rdma::rdma_brdma_cfg::BRDMA_DATA_USE, u32::from(add) | u32::from(multiply) << 2),
                    ],
                )?;
                task.address(AddressSlot::Bias, place.base, place.offset).map(drop)
            }
        }
    }

    fn second_stage(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        use dpu::{bn_cfg as cfg, bn_mul_cfg};
        let Some(table) = self.table else { return bypass(task, dpu::BN_CFG, STAGE_OFF) };
        set(task, &[(cfg::BN_ALU_ALGO, ALU_ADD), (cfg::BN_RELU_BYPASS, 1)])?;
        match table.index {
            Index::Float { scale, offset, .. } => {
                set(task, &[(bn_mul_cfg::BN_MUL_OPERAND, scale.to_bits().into())])?;
                task.write(dpu::BN_ALU_CFG, offset.to_bits())?;
            }
            Index::Bits { offset } => {
                set(task, &[(cfg::BN_MUL_BYPASS, 1)])?;
                task.write(dpu::BN_ALU_CFG, offset.cast_unsigned())?;
            }
        }
        Ok(())
    }

    fn last_stage(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        use dpu::ew_cfg as cfg;
        task.write(dpu::EW_CVT_SCALE_VALUE, 1)?;
        if let Some(table) = self.table {
            table.configure(task)?;
        }
        let off = |on: bool| u32::from(!on);
        set(
            task,
            &[
                (cfg::EW_BYPASS, off(self.table.is_some() || self.operand.is_some())),
                (cfg::EW_OP_BYPASS, off(self.operand.is_some())),
                (cfg::EW_LUT_BYPASS, off(self.table.is_some())),
                (cfg::EW_OP_CVT_BYPASS, 1),
                (cfg::EW_RELU_BYPASS, 1),
                (dpu_rdma::rdma_erdma_cfg::ERDMA_DISABLE, off(self.operand.is_some())),
            ],
        )?;
        let Some((operation, place)) = self.operand else { return Ok(()) };
        let (multiply, algorithm) = match operation {
            Operation::Add => (0, ALU_ADD),
            Operation::Multiply => (1, 0),
            Operation::Divide => (0, ALU_DIVIDE),
        };
        set(
            task,
            &[
                (cfg::EW_OP_TYPE, multiply),
                (cfg::EW_ALU_ALGO, algorithm),
                (cfg::EW_OP_SRC, 1),
                // The vendor's sums pass the operand through its converter with scale 1, products and quotients not.
                (cfg::EW_OP_CVT_BYPASS, (operation != Operation::Add).into()),
                (cfg::EW_DATA_MODE, PER_PIXEL),
                (cfg::EDATA_SIZE, TWO_BYTES),
                (dpu_rdma::rdma_erdma_cfg::ERDMA_DATA_MODE, PER_PIXEL),
                (dpu_rdma::rdma_erdma_cfg::ERDMA_DATA_SIZE, TWO_BYTES),
            ],
        )?;
        task.write(dpu_rdma::RDMA_EW_SURF_STRIDE, self.extent.surface())?;
        task.address(AddressSlot::Operand, place.base, place.offset).map(drop)
    }
}

/// Precision codes.
pub(super) const INT16: u32 = 1;
pub(super) const FP16: u32 = 2;
/// ALU_ALGO.
const ALU_ADD: u32 = 2;
const ALU_DIVIDE: u32 = 3;
/// EW_DATA_MODE and ERDMA_DATA_MODE: an operand for every element.
const PER_PIXEL: u32 = 1;
/// EDATA_SIZE and ERDMA_DATA_SIZE.
const TWO_BYTES: u32 = 2;
/// BS_CFG and BN_CFG of a stage that is off, and EW_CFG: everything bypassed.
pub(super) const STAGE_OFF: u32 = 0x53;
pub(super) const EW_OFF: u32 = 0x383;

/// Size and stride registers of an output cube in the DPU; `channels` is what the DPU computes.
pub(super) fn write_output_shape(
    task: &mut TaskBuilder,
    extent: Extent,
    channels: usize,
) -> Result<(), TaskError> {
    let (width, last) = (extent.pixels as u32 - 1, channels as u32 - 1);
    set(
        task,
        &[
            (dpu::data_cube_width::WIDTH, width),
            (dpu::data_cube_channel::CHANNEL, last),
            (dpu::data_cube_channel::ORIG_CHANNEL, last),
            (dpu::wdma_size_0::CHANNEL_WDMA, last),
            (dpu::wdma_size_1::WIDTH_WDMA, width),
        ],
    )?;
    task.write(dpu::DST_SURF_STRIDE, extent.surface()).map(drop)
}

pub(super) fn set(task: &mut TaskBuilder, fields: &[(Field, u32)]) -> Result<(), TaskError> {
    fields.iter().try_for_each(|&(field, value)| task.set(field, value).map(drop))
}

pub(super) fn bypass(task: &mut TaskBuilder, register: Register, value: u32) -> Result<(), TaskError> {
    task.write(register, value).map(drop)
}

/// The task that loads a table. Its blocks have to do something, so it copies 16 bytes within `scratch`.
pub(super) fn upload(table: &Table, scratch: Place) -> Result<EncodedTask, TaskError> {
    let extent = Extent { pixels: 1, channels: 8 };
    let mut task = TaskBuilder::new(TaskKind::Elementwise);
    let copy = Pass::new(extent, scratch, scratch.plus(64));
    copy.shape(&mut task)?;
    copy.formats(&mut task)?;
    copy.first_stage(&mut task)?;
    copy.second_stage(&mut task)?;
    copy.last_stage(&mut task)?;
    task.upload_table(&table.negative, &table.positive)?;
    Ok(task.finish())
}
