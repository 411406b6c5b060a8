//! DPU_RDMA: the DPU's read engines.
//!
//! MRDMA reads the main input in flying mode, ERDMA the element-wise operand, BRDMA and NRDMA the per-channel
//! operands of BS and BN. Feature cubes lie in surfaces of 16-byte atoms (NC1HWC2); the DPU takes their pixels in
//! raster order, so a cube may be read in one shape and written in another of as many pixels.

use super::dpu::setting::Setting;
use super::float::{Precision, from_bf16, from_f16};
use super::memory::{Memory, Window};
use super::registers::Blocks;
use super::{SimError, UndecodedKind};
use crate::regcmd::registers::dpu_rdma;
use crate::regcmd::{Field, Register};

/// Bytes of an atom: one pixel of one surface.
pub(crate) const ATOM: usize = 16;

/// Lines of pixels: where the pixels of a surface lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raster {
    /// Pixels of a line.
    pub(crate) width: usize,
    /// Bytes from a line to the next.
    pub(crate) line: i64,
}

impl Raster {
    /// Calls `each` with the byte offset and the pixel range (relative to `first`) of every contiguous run of
    /// `count` pixels from pixel `first` on.
    pub(crate) fn runs(
        self,
        first: usize,
        count: usize,
        mut each: impl FnMut(i64, std::ops::Range<usize>) -> Result<(), SimError>,
    ) -> Result<(), SimError> {
        let dense = self.line == (self.width * ATOM) as i64;
        let mut done = 0;
        while done < count {
            let (row, column) = ((first + done) / self.width, (first + done) % self.width);
            let length = if dense { count - done } else { (self.width - column).min(count - done) };
            each(row as i64 * self.line + (column * ATOM) as i64, done..done + length)?;
            done += length;
        }
        Ok(())
    }
}

/// A feature cube as a read engine sees it.
#[derive(Debug)]
pub(crate) struct Feature {
    /// The engines' buffers; a second one reads every other surface (COMB_USE).
    windows: Vec<Window>,
    raster: Raster,
    /// Bytes from a surface to the next one read by the same engine.
    surface: i64,
    /// Format of the elements.
    pub(crate) precision: Precision,
}

/// A number that the DPU's stages work on.
pub(crate) trait Sample: Copy + Default {
    /// Decodes atoms: element `lane` of atom `pixel` goes to `each(pixel, lane, value)` for lanes below `lanes`.
    fn decode(precision: Precision, atoms: &[u8], lanes: usize, each: impl FnMut(usize, usize, Self));
}

fn atoms<const BYTES: usize, T>(
    bytes: &[u8],
    lanes: usize,
    decode: impl Fn([u8; BYTES]) -> T,
    mut each: impl FnMut(usize, usize, T),
) {
    for (pixel, atom) in bytes.as_chunks::<ATOM>().0.iter().enumerate() {
        for (lane, element) in atom.as_chunks::<BYTES>().0.iter().take(lanes).enumerate() {
            each(pixel, lane, decode(*element));
        }
    }
}

impl Sample for i64 {
    /// Floats come as their bit patterns: only the raw 16-bit pass-through reads them so.
    fn decode(precision: Precision, bytes: &[u8], lanes: usize, each: impl FnMut(usize, usize, Self)) {
        match precision {
            Precision::Int8 => atoms(bytes, lanes, |[b]| i64::from(b as i8), each),
            Precision::Int16 | Precision::Float16 | Precision::BFloat16 => {
                atoms(bytes, lanes, |b| i64::from(i16::from_le_bytes(b)), each);
            }
            Precision::Int32 | Precision::Float32 => {
                atoms(bytes, lanes, |b| i64::from(i32::from_le_bytes(b)), each);
            }
        }
    }
}

impl Sample for f32 {
    fn decode(precision: Precision, bytes: &[u8], lanes: usize, each: impl FnMut(usize, usize, Self)) {
        match precision {
            Precision::Int8 => atoms(bytes, lanes, |[b]| f32::from(b as i8), each),
            Precision::Int16 => atoms(bytes, lanes, |b| f32::from(i16::from_le_bytes(b)), each),
            Precision::Float16 => atoms(bytes, lanes, |b| from_f16(u16::from_le_bytes(b)), each),
            Precision::BFloat16 => atoms(bytes, lanes, |b| from_bf16(u16::from_le_bytes(b)), each),
            Precision::Int32 => atoms(bytes, lanes, |b| i32::from_le_bytes(b) as f32, each),
            Precision::Float32 => atoms(bytes, lanes, f32::from_le_bytes, each),
        }
    }
}

impl Feature {
    /// Reads pixels `first..first + count` of the first `channels` channels into `out[pixel][stride channels]`;
    /// channels from `channels` up to `stride` are left alone. Returns the bytes read.
    pub(crate) fn read<T: Sample>(
        &self,
        (first, count): (usize, usize),
        channels: usize,
        stride: usize,
        out: &mut [T],
        scratch: &mut Vec<u8>,
    ) -> Result<u64, SimError> {
        let lanes = self.precision.lanes();
        let surfaces = channels.div_ceil(lanes);
        scratch.resize(count * ATOM, 0);
        for surface in 0..surfaces {
            self.read_atoms(surface, first, scratch)?;
            let channel = surface * lanes;
            T::decode(self.precision, scratch, lanes.min(channels - channel), |pixel, lane, value| {
                out[pixel * stride + channel + lane] = value;
            });
        }
        Ok((surfaces * count * ATOM) as u64)
    }

    /// Reads whole atoms of one surface from pixel `first` on.
    pub(crate) fn read_atoms(&self, surface: usize, first: usize, atoms: &mut [u8]) -> Result<(), SimError> {
        let window = &self.windows[surface % self.windows.len()];
        let base = (surface / self.windows.len()) as i64 * self.surface;
        self.raster.runs(first, atoms.len() / ATOM, |offset, pixels| {
            window.read(base + offset, &mut atoms[pixels.start * ATOM..pixels.end * ATOM])
        })
    }
}

/// The cube that DPU_RDMA is set up for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CubeSize {
    /// Pixels of a line.
    pub(crate) width: usize,
    /// Lines.
    pub(crate) height: usize,
    /// Channels.
    pub(crate) channels: usize,
}

impl CubeSize {
    /// The size registers of DPU_RDMA.
    pub(crate) fn decode(blocks: &Blocks) -> Result<Self, SimError> {
        use dpu_rdma::{rdma_data_cube_channel, rdma_data_cube_height, rdma_data_cube_width};
        let size = |field: Field| blocks.field(field).map(|value| value as usize + 1);
        Ok(Self {
            width: size(rdma_data_cube_width::WIDTH)?,
            height: size(rdma_data_cube_height::HEIGHT)?,
            channels: size(rdma_data_cube_channel::CHANNEL)?,
        })
    }

    /// Bytes from surface to surface when lines end in `line` and surfaces in `surface` pixels more.
    fn strides(self, line_notch: u32, surface_notch: Setting, field: Field) -> (Raster, i64) {
        let line = (self.width * ATOM) as i64 + i64::from(line_notch) * ATOM as i64;
        // Notches of surfaces are signed: re-layouts step backwards through a surface they read several times.
        let notch = i64::from(field.get_signed(surface_notch.value())) * ATOM as i64;
        let surface = (self.height as i64 - 1) * line + (self.width * ATOM) as i64 + notch;
        (Raster { width: self.width, line }, surface)
    }
}

/// How the read engines share the surfaces of one cube (COMB_USE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combination {
    /// MRDMA reads the main input, ERDMA the operand.
    None,
    /// 3: both engines read the main input, MRDMA its even and ERDMA its odd surfaces.
    Main,
    /// 5: both engines read the operand, MRDMA its even and ERDMA its odd surfaces.
    Operand,
}

/// DPU_RDMA's feature side.
#[derive(Debug)]
pub(crate) struct FeatureReads {
    /// Cube that both engines walk.
    pub(crate) size: CubeSize,
    /// The main input, in flying mode.
    pub(crate) main: Option<Feature>,
    /// The element-wise operand, one element a pixel and channel.
    pub(crate) operand: Option<Feature>,
    /// The element-wise operand, one element a channel.
    pub(crate) channel_operand: Option<(Window, Precision)>,
}

impl FeatureReads {
    /// Decodes MRDMA and ERDMA. `flying` is DPU's flying mode, `operands` the format that DPU takes 16-bit operands
    /// in: the main input's format is DPU_RDMA's to say, the operand's is DPU's (vendor streams mix fp16 and bf16
    /// so).
    pub(crate) fn decode(
        blocks: &Blocks,
        memory: &Memory,
        flying: bool,
        operands: Precision,
    ) -> Result<Self, SimError> {
        use dpu_rdma::{rdma_erdma_cfg as erdma, rdma_feature_mode_cfg as mode, rdma_src_dma_cfg as source};
        let size = CubeSize::decode(blocks)?;
        let config = Setting::read(blocks, dpu_rdma::RDMA_FEATURE_MODE_CFG)?;
        let element = Setting::read(blocks, dpu_rdma::RDMA_ERDMA_CFG)?;
        let main_on = !config.flag(mode::MRDMA_DISABLE);
        let element_on = !element.flag(erdma::ERDMA_DISABLE);
        let combination = match config.bits(mode::COMB_USE) {
            0 => Combination::None,
            3 if flying && main_on && element_on => Combination::Main,
            5 if !flying && main_on && element_on => Combination::Operand,
            3 | 5 => return Err(config.illegal("COMB_USE without both engines, or in the wrong mode")),
            _ => return Err(config.undecoded("COMB_USE other than 3 and 5")),
        };
        if flying != config.flag(mode::FLYING_MODE) {
            return Err(config.illegal("FLYING_MODE differs from the DPU's"));
        }
        if main_on && !flying && combination == Combination::None {
            return Err(config
                .illegal("MRDMA is on behind a convolution that takes nothing from it: the board hangs"));
        }
        let input = Precision::from_code(config.bits(mode::IN_PRECISION))
            .ok_or_else(|| config.illegal("IN_PRECISION is not a format of this engine"))?;
        let main = main_on.then(|| {
            let dma = Setting::read(blocks, dpu_rdma::RDMA_SRC_DMA_CFG)?;
            dma.require_zero(source::UNPOOLING_EN, "UNPOOLING_EN")?;
            let notch = Setting::read(blocks, dpu_rdma::RDMA_SURF_NOTCH)?;
            let line_notch = dma.bits(source::LINE_NOTCH_ADDR);
            let (raster, surface) =
                size.strides(line_notch, notch, dpu_rdma::rdma_surf_notch::SURF_NOTCH_ADDR);
            let window = blocks.window(dpu_rdma::RDMA_SRC_BASE_ADDR, memory)?;
            Ok(Feature { windows: vec![window], raster, surface, precision: input })
        });
        let main: Option<Feature> = main.transpose()?;
        let mut reads = Self { size, main: None, operand: None, channel_operand: None };
        if element_on {
            reads.element(blocks, memory, element, operands)?;
        }
        match (combination, main) {
            (Combination::None, main) => reads.main = main,
            (Combination::Main, Some(main)) => {
                let odd = reads
                    .operand
                    .take()
                    .ok_or_else(|| element.illegal("COMB_USE with a per-channel ERDMA"))?;
                reads.main = Some(interleave(main, odd, element)?);
            }
            (Combination::Operand, Some(even)) => {
                let odd = reads
                    .operand
                    .take()
                    .ok_or_else(|| element.illegal("COMB_USE with a per-channel ERDMA"))?;
                reads.operand = Some(interleave(Feature { precision: odd.precision, ..even }, odd, element)?);
            }
            (_, None) => return Err(config.illegal("COMB_USE without MRDMA")),
        }
        Ok(reads)
    }

    /// Sets up ERDMA.
    fn element(
        &mut self,
        blocks: &Blocks,
        memory: &Memory,
        config: Setting,
        operands: Precision,
    ) -> Result<(), SimError> {
        use dpu_rdma::rdma_erdma_cfg as erdma;
        config.require_zero(erdma::ERDMA_SURF_MODE, "ERDMA_SURF_MODE")?;
        config.require_zero(erdma::ERDMA_NONALIGN, "ERDMA_NONALIGN")?;
        let precision = match (config.bits(erdma::ERDMA_DATA_SIZE), operands.is_float()) {
            (1, _) => Precision::Int8,
            (2, _) => operands,
            (3, false) => Precision::Int32,
            (3, true) => Precision::Float32,
            _ => return Err(config.undecoded("ERDMA_DATA_SIZE 0")),
        };
        let window = blocks.window(dpu_rdma::RDMA_EW_BASE_ADDR, memory)?;
        match config.bits(erdma::ERDMA_DATA_MODE) {
            0 => self.channel_operand = Some((window, precision)),
            1 => {
                let line_notch = blocks.field(dpu_rdma::rdma_data_cube_height::EW_LINE_NOTCH_ADDR)?;
                let notch = Setting::read(blocks, dpu_rdma::RDMA_EW_SURF_NOTCH)?;
                let (raster, surface) =
                    self.size.strides(line_notch, notch, dpu_rdma::rdma_ew_surf_notch::EW_SURF_NOTCH);
                self.operand = Some(Feature { windows: vec![window], raster, surface, precision });
            }
            _ => return Err(config.undecoded("ERDMA_DATA_MODE other than 0 and 1")),
        }
        Ok(())
    }
}

fn interleave(mut even: Feature, odd: Feature, config: Setting) -> Result<Feature, SimError> {
    if even.surface != odd.surface || even.raster.line != odd.raster.line {
        return Err(config.illegal("COMB_USE with engines of different strides"));
    }
    even.windows.extend(odd.windows);
    Ok(even)
}

/// The per-channel operands of one stage. Absent streams are `None`.
#[derive(Debug, Default)]
pub(crate) struct ChannelOperands {
    /// 32 bits a channel: i32, or f32 in floating point.
    pub(crate) alu: Option<Vec<u32>>,
    /// What CPEND multiplies the sum of the inputs by.
    pub(crate) cpend: Option<Vec<i16>>,
    /// 16 bits a channel: i16, or fp16/bf16 in floating point.
    pub(crate) mul: Option<Vec<u16>>,
    /// Bytes read.
    pub(crate) bytes: u64,
}

impl ChannelOperands {
    /// Reads BRDMA's or NRDMA's stream: for every eight channels the 32-bit ALU operands (use bit 0), the CPEND
    /// operands (bit 1) and the MUL operands (bit 2) of those that are in use.
    pub(crate) fn read(
        blocks: &Blocks,
        memory: &Memory,
        uses: Field,
        base: Register,
        channels: usize,
    ) -> Result<Self, SimError> {
        let mask = blocks.field(uses)?;
        if mask & 8 != 0 {
            let mode = "bit 3 of a per-channel stream's DATA_USE";
            let kind = UndecodedKind::Other;
            return Err(SimError::Undecoded { register: uses.into(), value: mask, kind, mode });
        }
        let part = |bit: u32, bytes: usize| if mask >> bit & 1 == 1 { bytes } else { 0 };
        let (alu, cpend, mul) = (part(0, 32), part(1, 16), part(2, 16));
        let record = alu + cpend + mul;
        if record == 0 {
            return Ok(Self::default());
        }
        let cube = Setting::read(blocks, dpu_rdma::RDMA_DATA_CUBE_CHANNEL)?;
        if cube.size(dpu_rdma::rdma_data_cube_channel::CHANNEL) < channels {
            return Err(cube.illegal(format!("operands of {channels} channels are needed")));
        }
        let mut bytes = vec![0; channels.div_ceil(8) * record];
        blocks.window(base, memory)?.read(0, &mut bytes)?;
        let records = || bytes.chunks_exact(record);
        let halves = |record: &[u8]| {
            record.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>()
        };
        let words = |record: &[u8]| {
            record.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<_>>()
        };
        let cpend_values = || records().flat_map(|r| halves(&r[alu..alu + cpend])).map(|value| value as i16);
        Ok(Self {
            alu: (alu > 0).then(|| records().flat_map(|r| words(&r[..alu])).collect()),
            cpend: (cpend > 0).then(|| cpend_values().collect()),
            mul: (mul > 0).then(|| records().flat_map(|r| halves(&r[alu + cpend..])).collect()),
            bytes: bytes.len() as u64,
        })
    }
}

/// Reads ERDMA's operand of one element a channel.
pub(crate) fn channel_elements<T: Sample>(
    window: &Window,
    precision: Precision,
    channels: usize,
) -> Result<Vec<T>, SimError> {
    let mut bytes = vec![0; (channels * precision.bytes()).next_multiple_of(ATOM)];
    window.read(0, &mut bytes)?;
    let lanes = precision.lanes();
    let mut out = vec![T::default(); channels.next_multiple_of(lanes)];
    T::decode(precision, &bytes, lanes, |atom, lane, value| out[atom * lanes + lane] = value);
    Ok(out)
}
