//! One task as register values.
//!
//! Each value is what the vendor's compiler emits for a 1×1 convolution of this size, or, for int32 and fp32
//! outputs, what open drivers agree on (docs/npu.md, "Registers of a matrix product"). Every register of the
//! blocks that take part is written in every task, because registers keep their values per bank.

use super::geometry::BANKS;
use super::options::OutputStage;
use super::work::{Reuse, Stage, TaskSize};
use crate::layout::{ATOM, output_surface};
use crate::regcmd::registers::{cna, core, dpu, dpu_rdma};
use crate::regcmd::{AddressSlot, Base, EncodedTask, Field, TaskBuilder, TaskError};
use crate::shape::Precision;

/// Where the weights are.
pub(crate) const WEIGHTS: Base = Base(0);
/// Where the packed input is.
pub(crate) const INPUT: Base = Base(1);
/// Where outputs go.
pub(crate) const OUTPUT: Base = Base(2);
/// Where per-channel operands are.
pub(crate) const OPERANDS: Base = Base(3);
/// Number of bases.
pub(crate) const BASES: usize = 4;

/// Everything a task's words depend on, addresses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TaskForm {
    pub(crate) size: TaskSize,
    pub(crate) data_banks: usize,
    pub(crate) reuse: Reuse,
}

impl TaskForm {
    /// The same task where nothing lies in the buffer.
    pub(crate) fn fetching(self) -> Self {
        TaskForm { reuse: Reuse::default(), ..self }
    }
}

/// Number formats as registers name them: of features and weights, and of the array's arithmetic.
const fn input_code(precision: Precision) -> u32 {
    match precision {
        Precision::Int8 => 0,
        Precision::Fp16 => 2,
        Precision::Int4 => 6,
    }
}

/// The format that the DPU writes.
const fn output_code(precision: Precision, stage: Stage) -> u32 {
    match (precision, stage) {
        (_, Stage::PerTensor | Stage::PerChannel) => 0,
        (Precision::Int8, Stage::Accumulators) => 4,
        (Precision::Fp16, Stage::Accumulators) => 5,
        (Precision::Int4, Stage::Accumulators) => 1,
    }
}

/// Encodes a task; addresses are those of the bases plus 0 until a task's own offsets replace them.
pub(crate) fn encode(form: &TaskForm, output: &OutputStage) -> Result<EncodedTask, TaskError> {
    let mut task = TaskBuilder::new(form.size.stage.kind());
    features(&mut task, form)?;
    weights(&mut task, form)?;
    accumulation(&mut task, form)?;
    stages(&mut task, form)?;
    output_cube(&mut task, form)?;
    if let OutputStage::Requantised(requantise) = output {
        set(
            &mut task,
            &[
                (dpu::out_cvt_scale::OUT_CVT_SCALE, requantise.scale.into()),
                (dpu::out_cvt_shift::OUT_CVT_SHIFT, requantise.shift.into()),
                (dpu::out_cvt_offset::OUT_CVT_OFFSET, requantise.offset.cast_unsigned()),
            ],
        )?;
        operands(&mut task, form)?;
    }
    Ok(task.finish())
}

fn set(task: &mut TaskBuilder, fields: &[(Field, u32)]) -> Result<(), TaskError> {
    for &(field, value) in fields {
        task.set(field, value)?;
    }
    Ok(())
}

/// A count as a register value; what does not fit 32 bits fits no field, and the builder says so.
fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// CNA's side of the features: a cube of height 1, tight, read whole.
fn features(task: &mut TaskBuilder, form: &TaskForm) -> Result<(), TaskError> {
    let size = &form.size;
    let (pixels, columns) = (count(size.pixels), size.columns());
    let code = input_code(size.precision);
    set(
        task,
        &[
            (cna::conv_con1::PROC_PRECISION, code),
            (cna::conv_con1::IN_PRECISION, code),
            // Lines fetched ahead: 2 for features of height 1.
            (cna::conv_con2::FEATURE_GRAINS, 2),
            (cna::conv_con3::CONV_X_STRIDE, 1),
            (cna::conv_con3::CONV_Y_STRIDE, 1),
            (cna::data_size0::DATAIN_WIDTH, pixels),
            (cna::data_size0::DATAIN_HEIGHT, 1),
            // The vendor writes the remainder of K here; open code that writes K − 1 works as well.
            (cna::data_size1::DATAIN_CHANNEL_REAL, count((columns - 1) & 63)),
            (cna::data_size1::DATAIN_CHANNEL, count(columns)),
            (cna::data_size2::DATAOUT_WIDTH, pixels),
            (cna::data_size3::DATAOUT_ATOMICS, pixels),
            (
                cna::cbuf_con1::DATA_ENTRIES,
                count(super::geometry::entries(size.channel_bytes(), size.pixels)),
            ),
            (cna::cvt_con0::DATA_SIGN, 1),
            (cna::cvt_con0::CVT_TYPE, 1),
            (cna::cvt_con0::CVT_BYPASS, 1),
            (cna::cvt_con1::CVT_SCALE0, 1),
            (cna::cvt_con2::CVT_SCALE1, 1),
            (cna::cvt_con3::CVT_SCALE2, 1),
            (cna::cvt_con4::CVT_SCALE3, 1),
            (cna::dma_con0::WEIGHT_BURST_LEN, 15),
            (cna::dma_con0::DATA_BURST_LEN, 15),
            (cna::dma_con1::LINE_STRIDE, 4 * pixels),
            (cna::fc_data_size0::DMA_WIDTH, pixels),
            (cna::fc_data_size0::DMA_HEIGHT, 1),
            (cna::fc_data_size1::DMA_CHANNEL, count(columns)),
        ],
    )?;
    // A surface less four lines: negative for a height below 4, in two's complement, as the vendor's compiler
    // writes it.
    let surface = i32::try_from(size.pixels).map_or(i32::MIN, |pixels| -3 * pixels);
    task.set_signed(cna::dma_con2::SURF_STRIDE, surface)?;
    task.address(AddressSlot::Feature, INPUT, 0)?;
    Ok(())
}

/// CNA's side of the weights, and how the buffer is shared.
fn weights(task: &mut TaskBuilder, form: &TaskForm) -> Result<(), TaskError> {
    let size = &form.size;
    set(
        task,
        &[
            (cna::weight_size0::WEIGHT_BYTES, count(size.weight_bytes())),
            (cna::weight_size1::WEIGHT_BYTES_PER_KERNEL, count(size.channel_bytes())),
            (cna::weight_size2::WEIGHT_WIDTH, 1),
            (cna::weight_size2::WEIGHT_HEIGHT, 1),
            (cna::weight_size2::WEIGHT_KERNELS, count(size.kernels())),
            (cna::cbuf_con0::DATA_BANK, count(form.data_banks)),
            (cna::cbuf_con0::WEIGHT_BANK, count(BANKS.saturating_sub(form.data_banks))),
            (cna::cbuf_con0::WEIGHT_REUSE, form.reuse.weights.into()),
            (cna::cbuf_con0::DATA_REUSE, form.reuse.features.into()),
        ],
    )?;
    task.address(AddressSlot::Weights, WEIGHTS, 0)?;
    Ok(())
}

/// CORE: the sizes of the accumulator cube.
fn accumulation(task: &mut TaskBuilder, form: &TaskForm) -> Result<(), TaskError> {
    let size = &form.size;
    set(
        task,
        &[
            (core::misc_cfg::PROC_PRECISION, input_code(size.precision)),
            // Set in every requantising stream of the vendor, clear in open drivers' int32 read-back.
            (core::misc_cfg::QD_EN, u32::from(size.stage != Stage::Accumulators)),
            (core::dataout_size_0::DATAOUT_WIDTH, count(size.pixels - 1)),
            (core::dataout_size_0::DATAOUT_HEIGHT, 0),
            (core::dataout_size_1::DATAOUT_CHANNEL, count(size.kernels() - 1)),
        ],
    )
}

/// DPU: which stages work on an accumulator.
fn stages(task: &mut TaskBuilder, form: &TaskForm) -> Result<(), TaskError> {
    let size = &form.size;
    let per_channel = u32::from(size.stage == Stage::PerChannel);
    let code = input_code(size.precision);
    if size.stage == Stage::Accumulators {
        set(
            task,
            &[
                (dpu::bs_cfg::BS_BYPASS, 1),
                (dpu::bs_cfg::BS_ALU_BYPASS, 1),
                (dpu::bs_cfg::BS_MUL_BYPASS, 1),
                // Without per-channel zero points there is nothing to add for them.
                (dpu::bs_ow_cfg::OD_BYPASS, 1),
            ],
        )?;
    } else {
        set(
            task,
            &[
                (dpu::bs_cfg::BS_ALU_ALGO, 2),
                (dpu::bs_cfg::BS_ALU_SRC, 1),
                (dpu::bs_cfg::BS_MUL_BYPASS, 1 - per_channel),
                (dpu::bs_mul_cfg::BS_MUL_SRC, per_channel),
                (dpu::bs_mul_cfg::BS_MUL_SHIFT_VALUE, per_channel * super::requantise::MULTIPLIER_SHIFT),
                (dpu::data_format::BS_MUL_SHIFT_VALUE_NEG, per_channel * super::requantise::MULTIPLIER_SHIFT),
                (dpu::bs_ow_cfg::OW_SRC, per_channel),
            ],
        )?;
    }
    set(
        task,
        &[
            (dpu::feature_mode_cfg::BURST_LEN, 15),
            (dpu::feature_mode_cfg::OUTPUT_MODE, 2),
            (dpu::data_format::OUT_PRECISION, output_code(size.precision, size.stage)),
            (dpu::data_format::IN_PRECISION, code),
            (dpu::data_format::PROC_PRECISION, code),
            (dpu::bs_cfg::BS_RELU_BYPASS, 1),
            (dpu::bn_cfg::BN_BYPASS, 1),
            (dpu::bn_cfg::BN_ALU_BYPASS, 1),
            (dpu::bn_cfg::BN_MUL_BYPASS, 1),
            (dpu::bn_cfg::BN_RELU_BYPASS, 1),
            (dpu::ew_cfg::EW_BYPASS, 1),
            (dpu::ew_cfg::EW_OP_BYPASS, 1),
            (dpu::ew_cfg::EW_LUT_BYPASS, 1),
            (dpu::ew_cfg::EW_OP_CVT_BYPASS, 1),
            (dpu::ew_cfg::EW_RELU_BYPASS, 1),
            (dpu::ew_cvt_scale_value::EW_OP_CVT_SCALE, 1),
            (dpu::out_cvt_scale::OUT_CVT_SCALE, 1),
        ],
    )
}

/// DPU: where outputs go.
fn output_cube(task: &mut TaskBuilder, form: &TaskForm) -> Result<(), TaskError> {
    let size = &form.size;
    let (width, channels) = (count(size.pixels - 1), count(size.kernels() - 1));
    // Surfaces, of 16 bytes a pixel, that a kernel group's outputs take.
    let surfaces = count(size.precision.tile_rows() * size.output_bytes() / ATOM);
    let stride = count(output_surface(size.pixels));
    set(
        task,
        &[
            (dpu::dst_surf_stride::DST_SURF_STRIDE, stride),
            (dpu::surface_add::SURF_ADD, stride * surfaces),
            (dpu::data_cube_width::WIDTH, width),
            (dpu::data_cube_channel::ORIG_CHANNEL, channels),
            (dpu::data_cube_channel::CHANNEL, channels),
            (dpu::wdma_size_0::CHANNEL_WDMA, channels),
            (dpu::wdma_size_1::WIDTH_WDMA, width),
            (dpu::bs_ow_cfg::SIZE_E_0, surfaces - 1),
            (dpu::bs_ow_cfg::SIZE_E_1, surfaces - 1),
            (dpu::bs_ow_cfg::SIZE_E_2, surfaces - 1),
        ],
    )?;
    task.address(AddressSlot::Output, OUTPUT, 0)?;
    Ok(())
}

/// DPU_RDMA: the per-channel operands.
fn operands(task: &mut TaskBuilder, form: &TaskForm) -> Result<(), TaskError> {
    let size = &form.size;
    // Bit 0 addends, bit 1 zero points, bit 2 multipliers.
    let parts = if size.stage == Stage::PerChannel { 7 } else { 1 };
    set(
        task,
        &[
            (dpu_rdma::rdma_data_cube_width::WIDTH, count(size.pixels - 1)),
            (dpu_rdma::rdma_data_cube_channel::CHANNEL, count(size.kernels() - 1)),
            (dpu_rdma::rdma_brdma_cfg::BRDMA_DATA_USE, parts),
            (dpu_rdma::rdma_erdma_cfg::ERDMA_DISABLE, 1),
            (dpu_rdma::rdma_feature_mode_cfg::BURST_LEN, 15),
            (dpu_rdma::rdma_feature_mode_cfg::MRDMA_DISABLE, 1),
            (dpu_rdma::rdma_weight::E_WEIGHT, 1),
            (dpu_rdma::rdma_weight::N_WEIGHT, 1),
            (dpu_rdma::rdma_weight::B_WEIGHT, 1),
            (dpu_rdma::rdma_weight::M_WEIGHT, 1),
        ],
    )?;
    task.address(AddressSlot::Bias, OPERANDS, 0)?;
    Ok(())
}
