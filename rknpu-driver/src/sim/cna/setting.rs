//! A convolution as the registers of CNA and CORE describe it, checked.

use super::converter::InputConverter;
use super::format::Format;
use crate::regcmd::Field;
use crate::regcmd::registers::cna as reg;
use crate::regcmd::registers::core as core_reg;
use crate::sim::error::{RegisterId, SimError, UndecodedKind};
use crate::sim::options::{Options, Rounding};
use crate::sim::registers::Blocks;

/// Banks of CBUF and the 64-byte entries of a bank.
const BANKS: u32 = 12;
const BANK_ENTRIES: u32 = 512;

/// Bytes of CBUF that a byte of a packed pixel takes (inferred from the banks that all vendor tasks of this kind ask for).
const PACKED_EXPANSION: u64 = 4;

/// Padding right and below is what the output's size leaves; as much as the fields for left and above can say.
const MAX_PAD: usize = 15;

/// The most accumulators that the simulator keeps at once; a vendor task has at most some 4 million.
const MAX_ACCUMULATORS: usize = 1 << 25;

/// The most multiplications of a task, some ten seconds' worth. A feature that fits CBUF under 3×3 kernels for as many
/// outputs as the DPU takes stays below half of it.
const MAX_PRODUCTS: u128 = 1 << 36;

/// Where the feature's pixels lie, in units of 16 bytes (of a pixel's bytes when packed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) struct FeatureLayout {
    /// From a line to the next.
    pub(in crate::sim) line: i64,
    /// From a surface of 16 bytes a pixel to the next.
    pub(in crate::sim) surface: i64,
    /// Channels of a packed pixel, whose bytes lie side by side; `None` for surfaces.
    pub(in crate::sim) packed: Option<usize>,
}

/// A convolution.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct Setting {
    pub(in crate::sim) format: Format,
    pub(in crate::sim) depthwise: bool,
    /// Input pixels and channels, channels as stored (whole atoms).
    pub(in crate::sim) width: usize,
    pub(in crate::sim) height: usize,
    pub(in crate::sim) channels: usize,
    pub(in crate::sim) layout: FeatureLayout,
    pub(in crate::sim) converter: Option<InputConverter>,
    pub(in crate::sim) out_width: usize,
    pub(in crate::sim) out_height: usize,
    /// Output channels, whole kernel groups.
    pub(in crate::sim) out_channels: usize,
    pub(in crate::sim) kernel_width: usize,
    pub(in crate::sim) kernel_height: usize,
    /// Kernels whose weights are stored; 1 when depthwise.
    pub(in crate::sim) kernels: usize,
    pub(in crate::sim) stride: (usize, usize),
    pub(in crate::sim) dilation: (usize, usize),
    pub(in crate::sim) pad: (usize, usize),
    /// PAD_VALUE: what lies around the image.
    pub(in crate::sim) pad_value: u32,
    /// Sums of inputs are wanted (QD_EN).
    pub(in crate::sim) input_sums: bool,
    /// Bits that CORE drops from its sums, and how.
    pub(in crate::sim) clip: (u32, Rounding),
    pub(in crate::sim) data_reuse: bool,
    pub(in crate::sim) weight_reuse: bool,
    pub(in crate::sim) data_banks: u32,
    pub(in crate::sim) weight_banks: u32,
}

impl Setting {
    /// Reads and checks the registers of the task being executed.
    pub(in crate::sim) fn read(blocks: &Blocks, options: &Options) -> Result<Self, SimError> {
        refuse_undecoded(blocks)?;
        let format = format(blocks)?;
        let depthwise = depthwise(blocks)?;
        let size = |field| blocks.field(field).map(|value| value as usize);
        let positive = |field: Field| match blocks.field(field)? {
            0 => Err(SimError::illegal(field, 0, "is zero")),
            value => Ok(value as usize),
        };
        let pixels = positive(reg::data_size3::DATAOUT_ATOMICS)?;
        let out_width = positive(reg::data_size2::DATAOUT_WIDTH)?;
        let (width, height) =
            (positive(reg::data_size0::DATAIN_WIDTH)?, positive(reg::data_size0::DATAIN_HEIGHT)?);
        let packed = packed(blocks)?;
        let (clip, round_up) = (
            blocks.field(core_reg::clip_truncate::CLIP_TRUNCATE),
            blocks.flag(core_reg::clip_truncate::ROUND_TYPE),
        );
        let setting = Self {
            format,
            depthwise,
            width,
            height,
            channels: positive(reg::data_size1::DATAIN_CHANNEL)?,
            layout: layout(blocks, width, packed)?,
            converter: InputConverter::read(blocks, format, packed)?,
            out_width,
            out_height: pixels / out_width,
            out_channels: size(core_reg::dataout_size_1::DATAOUT_CHANNEL)? + 1,
            kernel_width: positive(reg::weight_size2::WEIGHT_WIDTH)?,
            kernel_height: positive(reg::weight_size2::WEIGHT_HEIGHT)?,
            kernels: positive(reg::weight_size2::WEIGHT_KERNELS)?,
            stride: (positive(reg::conv_con3::CONV_X_STRIDE)?, positive(reg::conv_con3::CONV_Y_STRIDE)?),
            // The field counts the pixels left out between two taps.
            dilation: (
                size(reg::conv_con3::ATROUS_X_DILATION)? + 1,
                size(reg::conv_con3::ATROUS_Y_DILATION)? + 1,
            ),
            pad: (size(reg::pad_con0::PAD_LEFT)?, size(reg::pad_con0::PAD_TOP)?),
            pad_value: blocks.get(reg::PAD_CON1)?,
            input_sums: blocks.flag(core_reg::misc_cfg::QD_EN)?,
            clip: (clip?, if round_up? { Rounding::HalfUp } else { Rounding::TiesToEven }),
            data_reuse: blocks.flag(reg::cbuf_con0::DATA_REUSE)?,
            weight_reuse: blocks.flag(reg::cbuf_con0::WEIGHT_REUSE)?,
            data_banks: blocks.field(reg::cbuf_con0::DATA_BANK)?,
            weight_banks: blocks.field(reg::cbuf_con0::WEIGHT_BANK)?,
        };
        setting.check_input(blocks)?;
        setting.check_output(blocks, pixels)?;
        setting.check_weights(blocks)?;
        setting.check_buffer(blocks, options)?;
        Ok(setting)
    }

    /// Taps of a kernel.
    pub(in crate::sim) fn taps(&self) -> usize {
        self.kernel_width * self.kernel_height
    }

    /// Bytes of all weights.
    pub(in crate::sim) fn weight_bytes(&self) -> usize {
        self.kernels * self.kernel_bytes()
    }

    /// Bytes of the feature as fetched.
    pub(in crate::sim) fn feature_bytes(&self) -> usize {
        let channels = self.layout.packed.unwrap_or(self.channels);
        self.width * self.height * self.format.bytes(channels)
    }

    /// Weights of one kernel; of all channels when depthwise.
    fn kernel_bytes(&self) -> usize {
        self.format.bytes(self.channels) * self.taps()
    }

    fn check_input(&self, blocks: &Blocks) -> Result<(), SimError> {
        let channel = reg::data_size1::DATAIN_CHANNEL;
        if !self.channels.is_multiple_of(self.format.lanes()) {
            return Err(SimError::illegal(
                channel,
                self.channels as u32,
                "is no whole number of 16-byte atoms",
            ));
        }
        if self.layout.packed.is_some() && self.channels != self.format.lanes() {
            return Err(SimError::illegal(
                channel,
                self.channels as u32,
                "packed input has one atom of channels",
            ));
        }
        let dma = [
            (reg::fc_data_size0::DMA_WIDTH, self.width),
            (reg::fc_data_size0::DMA_HEIGHT, self.height),
            (reg::fc_data_size1::DMA_CHANNEL, self.channels),
        ];
        for (field, size) in dma {
            equal(blocks, field, size, "differs from DATA_SIZE0 and DATA_SIZE1")?;
        }
        Ok(())
    }

    fn check_output(&self, blocks: &Blocks, pixels: usize) -> Result<(), SimError> {
        let atomics = reg::data_size3::DATAOUT_ATOMICS;
        if pixels != self.out_width * self.out_height {
            return Err(SimError::illegal(atomics, pixels as u32, "is no whole number of output lines"));
        }
        let core = core_reg::dataout_size_0::DATAOUT_WIDTH;
        equal(blocks, core, self.out_width - 1, "differs from CNA's output")?;
        let core = core_reg::dataout_size_0::DATAOUT_HEIGHT;
        equal(blocks, core, self.out_height - 1, "differs from CNA's output")?;
        let (last_x, last_y) = ((self.out_width - 1) * self.stride.0, (self.out_height - 1) * self.stride.1);
        if last_x > self.width + self.pad.0 + MAX_PAD || last_y > self.height + self.pad.1 + MAX_PAD {
            return Err(SimError::illegal(
                atomics,
                pixels as u32,
                "the last kernel lies outside of the input",
            ));
        }
        if pixels.saturating_mul(self.out_channels) > MAX_ACCUMULATORS {
            let reason = format!("{pixels} pixels of {} channels exceed the simulator", self.out_channels);
            return Err(SimError::illegal(atomics, pixels as u32, reason));
        }
        let outputs = if self.depthwise { 1 } else { self.kernels };
        let products = [pixels, outputs, self.channels, self.taps()].map(|factor| factor as u128);
        if products.into_iter().product::<u128>() > MAX_PRODUCTS {
            return Err(SimError::illegal(
                atomics,
                pixels as u32,
                "more products than the simulator computes",
            ));
        }
        Ok(())
    }

    fn check_weights(&self, blocks: &Blocks) -> Result<(), SimError> {
        let kernels = reg::weight_size2::WEIGHT_KERNELS;
        let channels = core_reg::dataout_size_1::DATAOUT_CHANNEL;
        let group = self.format.kernel_group();
        let (stored, whole) = match self.depthwise {
            true if self.kernels != 1 => {
                return Err(SimError::illegal(
                    kernels,
                    self.kernels as u32,
                    "depthwise weights are one kernel",
                ));
            }
            true => (self.channels, self.out_channels >= self.channels),
            false => (self.kernels, self.out_channels == self.kernels.next_multiple_of(group)),
        };
        if !whole || !self.out_channels.is_multiple_of(group) {
            let reason = format!("{stored} channels are computed, in groups of {group}");
            return Err(SimError::illegal(channels, self.out_channels as u32 - 1, reason));
        }
        let per_kernel = reg::weight_size1::WEIGHT_BYTES_PER_KERNEL;
        equal(blocks, per_kernel, self.kernel_bytes(), "is not what input channels and kernel need")?;
        let all = reg::weight_size0::WEIGHT_BYTES;
        equal(blocks, all, self.weight_bytes(), "is not the bytes of all kernels")
    }

    /// CBUF: the banks are all given away, and the feature fits its own. Weights that exceed theirs are streamed.
    fn check_buffer(&self, blocks: &Blocks, options: &Options) -> Result<(), SimError> {
        let register = reg::CBUF_CON0;
        let value = blocks.get(register)?;
        if self.data_banks == 0 || self.weight_banks == 0 || self.data_banks + self.weight_banks != BANKS {
            return Err(SimError::illegal(register, value, "data and weight banks are not 12 together"));
        }
        let capacity = u64::from(self.data_banks * BANK_ENTRIES);
        if let Some(channels) = self.layout.packed {
            let pixel = self.format.bytes(channels) as u64 * PACKED_EXPANSION;
            let used = (self.width * self.height) as u64 * pixel;
            return match used > capacity * 64 {
                true => Err(SimError::illegal(register, value, format!("the feature takes {used} bytes"))),
                false => Ok(()),
            };
        }
        let entries = u64::from(blocks.field(reg::cbuf_con1::DATA_ENTRIES)?);
        let needed = self.line_entries();
        if entries < needed {
            let reason = format!("a line takes {needed} entries");
            return Err(SimError::illegal(reg::cbuf_con1::DATA_ENTRIES, entries as u32, reason));
        }
        let used = entries * self.height as u64;
        if used > capacity {
            let reason = format!("the feature takes {used} entries of the {capacity} in its banks");
            return Err(SimError::illegal(register, value, reason));
        }
        let spare = options.spare_bank && self.width == 1 && self.format == Format::Int8;
        if spare && used * 100 > capacity * 97 && used != capacity {
            return Err(SimError::illegal(register, value, "no spare bank behind a feature of width 1"));
        }
        Ok(())
    }

    /// 64-byte entries of an input line: four atoms share one; three left over take one a pixel.
    fn line_entries(&self) -> u64 {
        let (atoms, width) = (self.channels / self.format.lanes(), self.width);
        let rest = match atoms % 4 {
            3 => width,
            rest => (rest * width).div_ceil(4),
        };
        (atoms / 4 * width + rest) as u64
    }
}

fn equal(blocks: &Blocks, field: Field, expected: usize, reason: &str) -> Result<(), SimError> {
    match blocks.field(field)? {
        value if value as usize == expected => Ok(()),
        value => Err(SimError::illegal(field, value, format!("{} {reason} ({expected})", field.name))),
    }
}

fn refuse_undecoded(blocks: &Blocks) -> Result<(), SimError> {
    let modes = [
        (reg::conv_con1::DECONV, "deconvolution"),
        (reg::conv_con3::DECONV_X_STRIDE, "deconvolution"),
        (reg::conv_con3::DECONV_Y_STRIDE, "deconvolution"),
        (reg::conv_con2::CSC_WO_EN, "weights withheld from CORE"),
        (reg::conv_con2::CSC_DO_EN, "features withheld from CORE"),
        (reg::conv_con3::NN_MODE, "co-work of several cores"),
        (reg::fc_con0::FC_SKIP_EN, "skipping of zeros"),
        (reg::cbuf_con0::FC_DATA_BANK, "skipping of zeros"),
        (reg::data_size3::SURF_MODE, "serial surfaces"),
        (reg::dcomp_ctrl::DECOMP_CONTROL, "compressed weights"),
    ];
    for (field, mode) in modes {
        let value = blocks.field(field)?;
        if value != 0 {
            let kind = match field == reg::dcomp_ctrl::DECOMP_CONTROL {
                true => UndecodedKind::Compressed,
                false => UndecodedKind::Other,
            };
            return Err(SimError::Undecoded { register: RegisterId::from(field), value, kind, mode });
        }
    }
    Ok(())
}

fn format(blocks: &Blocks) -> Result<Format, SimError> {
    let field = reg::conv_con1::PROC_PRECISION;
    let code = blocks.field(field)?;
    let format =
        Format::from_code(code).ok_or_else(|| SimError::illegal(field, code, "is a reserved precision"))?;
    equal(blocks, reg::conv_con1::IN_PRECISION, code as usize, "differs from PROC_PRECISION")?;
    equal(blocks, core_reg::misc_cfg::PROC_PRECISION, code as usize, "differs from the CNA's")?;
    Ok(format)
}

fn depthwise(blocks: &Blocks) -> Result<bool, SimError> {
    let field = reg::conv_con1::CONV_MODE;
    let depthwise = match blocks.field(field)? {
        0 => false,
        3 => true,
        mode => return Err(SimError::illegal(field, mode, "is a reserved convolution mode")),
    };
    equal(blocks, core_reg::misc_cfg::DW_EN, usize::from(depthwise), "differs from the CNA's mode")?;
    Ok(depthwise)
}

/// ARGB_IN: the number of packed channels.
fn packed(blocks: &Blocks) -> Result<Option<usize>, SimError> {
    let field = reg::conv_con1::ARGB_IN;
    let channels = match blocks.field(field)? {
        0 => None,
        mode @ 8..=11 => Some(mode as usize - 7),
        mode => return Err(SimError::illegal(field, mode, "is a reserved input mode")),
    };
    let nonalign = blocks.field(reg::conv_con1::NONALIGN_DMA)?;
    if (nonalign != 0) != channels.is_some() {
        let reason = "packed input is fetched continuously, other input is not";
        return Err(SimError::illegal(reg::conv_con1::NONALIGN_DMA, nonalign, reason));
    }
    Ok(channels)
}

/// Strides as the DMA takes them. A full-width tile is fetched in groups of four lines, and SURF_STRIDE is what is left
/// from there to the next surface (negative where a surface has fewer than four lines); with GROUP_LINE_OFF it is what
/// is left from the tile's width on.
fn layout(blocks: &Blocks, width: usize, packed: Option<usize>) -> Result<FeatureLayout, SimError> {
    let line = i64::from(blocks.field(reg::dma_con1::LINE_STRIDE)?);
    let surface = i64::from(blocks.signed(reg::dma_con2::SURF_STRIDE)?);
    if packed.is_some() || blocks.flag(reg::conv_con1::GROUP_LINE_OFF)? {
        return Ok(FeatureLayout { line, surface: surface + width as i64, packed });
    }
    if line != 4 * width as i64 {
        let reason = format!("groups of four lines of {width} pixels are {} pixels long", 4 * width);
        return Err(SimError::illegal(reg::dma_con1::LINE_STRIDE, line as u32, reason));
    }
    Ok(FeatureLayout { line: width as i64, surface: surface + line, packed })
}
