//! Sums over channels and their way back: 1×1 convolutions with constant weights.
//!
//! The DPU works on each element alone; what a row has in common comes from CORE. A kernel of equal weights sums the
//! channels of a pixel, a kernel with a single 1 copies one channel to all. Both are fp16 products accumulated in
//! fp32, in an order that is not known of the silicon.

use half::f16;

use crate::regcmd::registers::{cna, core, dpu};
use crate::regcmd::{AddressSlot, EncodedTask, TaskBuilder, TaskError, TaskKind};

use super::pass::{EW_OFF, Extent, FP16, Place, STAGE_OFF, bypass, set, write_output_shape};

/// Channels that one kernel takes at most: 3,072 bytes, the vendor's own limit. Longer kernels are reported to work by
/// one source.
pub(super) const SLICE: usize = 1536;
/// Output channels that CORE computes together in fp16.
pub(super) const GROUP: usize = 16;
/// Channels that a broadcast reads of each group of sums: one atom.
const ATOM: usize = 8;
/// Bytes of one bank of CBUF, and of one entry in it.
const BANK: usize = 32 * 1024;
const ENTRY: usize = 64;
const BANKS: usize = 12;
/// Banks left to the features; kernels stream through the rest.
const FEATURE_BANKS: usize = 10;

/// Rows (pixels) that one task can sum: a slice of their channels has to fit into CBUF.
pub(super) fn rows_that_fit(channels: usize) -> usize {
    FEATURE_BANKS * BANK / (channels.min(SLICE) * 2) / 4 * 4
}

/// Kernels that sum: 16 rows of `weight`, as long as the longest slice. All weights are the same, so their order does
/// not matter.
pub(super) fn sum_weights(channels: usize, weight: f16) -> Vec<u8> {
    weight.to_le_bytes().repeat(GROUP * channels.min(SLICE))
}

/// Kernels that add up one channel of each of `groups` groups of sums, for `outputs` channels: a 1 in front of each
/// group's zeros. Tiles of `[outputs / 16][16][channels]`; up to 32 channels make one tile, which is why `groups` ≤ 2
/// per tile.
pub(super) fn spread_weights(groups: usize, outputs: usize) -> Vec<u8> {
    let channels = spread_channels(groups);
    let mut weights = vec![f16::ZERO; outputs * channels];
    for (output, group) in (0..outputs).flat_map(|output| (0..groups).map(move |group| (output, group))) {
        let channel = group * GROUP;
        // Columns go in tiles of 32; the last tile is as wide as what is left.
        let (tile, width) = (channel / 32, (channels - channel / 32 * 32).min(32));
        let start = output / GROUP * GROUP * channels + tile * GROUP * 32;
        weights[start + output % GROUP * width + channel % 32] = f16::ONE;
    }
    weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
}

/// Channels that a task over `groups` groups of sums reads: whole groups, but of a single one its first atom.
fn spread_channels(groups: usize) -> usize {
    if groups == 1 { ATOM } else { groups * GROUP }
}

/// A 1×1 convolution of a cube in fp16.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) pixels: usize,
    /// Channels read, a multiple of 8.
    pub(super) inputs: usize,
    /// Channels written, a multiple of 16.
    pub(super) outputs: usize,
    pub(super) source: Place,
    pub(super) weights: Place,
    pub(super) output: Place,
}

impl Product {
    /// The task.
    pub(super) fn encode(&self) -> Result<EncodedTask, TaskError> {
        let mut task = TaskBuilder::new(TaskKind::Convolution);
        self.features(&mut task)?;
        self.kernels(&mut task)?;
        self.results(&mut task)?;
        Ok(task.finish())
    }

    fn features(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        let (width, inputs) = (self.pixels as u32, self.inputs as u32);
        // A line's entries, 64 bytes each: four atoms of a pixel, or four pixels of a lone atom.
        let atoms = self.inputs / ATOM;
        let partial = if atoms % 4 == 3 { self.pixels } else { (atoms % 4 * self.pixels).div_ceil(4) };
        let entries = atoms / 4 * self.pixels + partial;
        let banks = entries.div_ceil(BANK / ENTRY);
        set(
            task,
            &[
                (cna::conv_con1::PROC_PRECISION, FP16),
                (cna::conv_con1::IN_PRECISION, FP16),
                (cna::conv_con2::FEATURE_GRAINS, 2),
                (cna::conv_con3::CONV_X_STRIDE, 1),
                (cna::conv_con3::CONV_Y_STRIDE, 1),
                (cna::data_size0::DATAIN_WIDTH, width),
                (cna::data_size0::DATAIN_HEIGHT, 1),
                (cna::data_size1::DATAIN_CHANNEL_REAL, (inputs - 1) & 63),
                (cna::data_size1::DATAIN_CHANNEL, inputs),
                (cna::data_size2::DATAOUT_WIDTH, width),
                (cna::data_size3::DATAOUT_ATOMICS, width),
                (cna::cbuf_con0::DATA_BANK, banks as u32),
                (cna::cbuf_con0::WEIGHT_BANK, BANKS.saturating_sub(banks) as u32),
                (cna::cbuf_con1::DATA_ENTRIES, entries as u32),
                (cna::cvt_con0::DATA_SIGN, 1),
                (cna::cvt_con0::CVT_TYPE, 1),
                (cna::cvt_con0::CVT_BYPASS, 1),
                (cna::cvt_con1::CVT_SCALE0, 1),
                (cna::cvt_con2::CVT_SCALE1, 1),
                (cna::cvt_con3::CVT_SCALE2, 1),
                (cna::cvt_con4::CVT_SCALE3, 1),
                (cna::dma_con0::DATA_BURST_LEN, 15),
                (cna::dma_con0::WEIGHT_BURST_LEN, 15),
                (cna::dma_con1::LINE_STRIDE, width * 4),
                (cna::fc_data_size0::DMA_WIDTH, width),
                (cna::fc_data_size0::DMA_HEIGHT, 1),
                (cna::fc_data_size1::DMA_CHANNEL, inputs),
            ],
        )?;
        // From the end of four lines to the next surface; negative, as a surface is one line.
        task.set_signed(cna::dma_con2::SURF_STRIDE, -3 * width.cast_signed())?;
        task.address(AddressSlot::Feature, self.source.base, self.source.offset).map(drop)
    }

    fn kernels(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        let bytes = self.inputs as u32 * 2;
        set(
            task,
            &[
                (cna::weight_size0::WEIGHT_BYTES, bytes * self.outputs as u32),
                (cna::weight_size1::WEIGHT_BYTES_PER_KERNEL, bytes),
                (cna::weight_size2::WEIGHT_WIDTH, 1),
                (cna::weight_size2::WEIGHT_HEIGHT, 1),
                (cna::weight_size2::WEIGHT_KERNELS, self.outputs as u32),
                (core::misc_cfg::PROC_PRECISION, FP16),
                (core::dataout_size_0::DATAOUT_WIDTH, self.pixels as u32 - 1),
                (core::dataout_size_1::DATAOUT_CHANNEL, self.outputs as u32 - 1),
            ],
        )?;
        task.address(AddressSlot::Weights, self.weights.base, self.weights.offset).map(drop)
    }

    fn results(&self, task: &mut TaskBuilder) -> Result<(), TaskError> {
        let extent = Extent { pixels: self.pixels, channels: self.outputs };
        write_output_shape(task, extent, self.outputs)?;
        // A kernel group fills two surfaces of 8 channels.
        let surfaces = (GROUP / ATOM) as u32;
        set(
            task,
            &[
                (dpu::feature_mode_cfg::BURST_LEN, 15),
                (dpu::feature_mode_cfg::OUTPUT_MODE, 2),
                (dpu::data_format::IN_PRECISION, FP16),
                (dpu::data_format::PROC_PRECISION, FP16),
                (dpu::data_format::OUT_PRECISION, FP16),
                (dpu::bs_ow_cfg::SIZE_E_0, surfaces - 1),
                (dpu::bs_ow_cfg::SIZE_E_1, surfaces - 1),
                (dpu::bs_ow_cfg::SIZE_E_2, surfaces - 1),
                (dpu::bs_ow_cfg::OD_BYPASS, 1),
                (dpu::out_cvt_scale::OUT_CVT_SCALE, 1),
                (dpu::out_cvt_scale::FP32TOFP16_EN, 1),
            ],
        )?;
        task.write(dpu::SURFACE_ADD, extent.surface() * surfaces)?;
        bypass(task, dpu::BS_CFG, STAGE_OFF)?;
        bypass(task, dpu::BN_CFG, STAGE_OFF)?;
        bypass(task, dpu::EW_CFG, EW_OFF)?;
        task.write(dpu::EW_CVT_SCALE_VALUE, 1)?;
        task.address(AddressSlot::Output, self.output.base, self.output.offset).map(drop)
    }
}

/// Sums over the channels of a cube, and where they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    pub(super) cube: Extent,
    pub(super) source: Place,
    pub(super) weights: Place,
    /// [`Sums::partial_bytes`] of room.
    pub(super) partial: Place,
}

impl Sums {
    /// Tasks that leave, for slice i of the channels, its sum in all channels of group i of the partial cube.
    pub(super) fn encode(&self) -> Result<Vec<EncodedTask>, TaskError> {
        (0..slices(self.cube.channels))
            .map(|slice| {
                let first = slice * SLICE;
                let group = Extent { pixels: self.cube.pixels, channels: GROUP };
                Product {
                    pixels: self.cube.pixels,
                    inputs: (self.cube.channels - first).min(SLICE),
                    outputs: GROUP,
                    source: self.source.plus(first / ATOM * self.cube.surface() as usize),
                    weights: self.weights,
                    output: self.partial.plus(slice * group.bytes()),
                }
                .encode()
            })
            .collect()
    }

    /// Bytes of the partial sums of a cube.
    pub(super) fn partial_bytes(cube: Extent) -> usize {
        Extent { pixels: cube.pixels, channels: slices(cube.channels) * GROUP }.bytes()
    }
}

/// Slices that the channels of a cube are summed in.
pub(super) fn slices(channels: usize) -> usize {
    channels.div_ceil(SLICE)
}

/// The task that adds up `groups` groups of sums and writes the total to every one of `outputs` channels.
pub(super) fn spread(
    pixels: usize,
    groups: usize,
    outputs: usize,
    [source, weights, output]: [Place; 3],
) -> Result<EncodedTask, TaskError> {
    Product { pixels, inputs: spread_channels(groups), outputs, source, weights, output }.encode()
}
