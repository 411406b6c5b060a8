//! WDMA: writes the output cube.
//!
//! Surfaces of 16-byte atoms. A kernel group fills SIZE_E + 1 surfaces that lie DST_SURF_STRIDE apart; the next group
//! begins SURFACE_ADD further on (vendor streams set SURFACE_ADD to exactly those surfaces, except where a re-layout
//! steps otherwise). Lines end in NOTCH_ADDR pixels that are left alone.

use super::config::{MAX_ELEMENTS, Shape};
use super::layout::Layout;
use super::setting::Setting;
use crate::regcmd::registers::dpu;
use crate::sim::SimError;
use crate::sim::float::Precision;
use crate::sim::memory::{Memory, Window};
use crate::sim::rdma::{ATOM, Raster};
use crate::sim::registers::Blocks;

/// The output cube in memory.
#[derive(Debug)]
pub(super) struct Output {
    window: Window,
    raster: Raster,
    height: usize,
    surface: i64,
    group: usize,
    group_step: i64,
    surfaces: usize,
    real_channels: usize,
    precision: Precision,
    pad: u16,
}

impl Output {
    /// Decodes the write side.
    pub(super) fn decode(
        blocks: &Blocks,
        memory: &Memory,
        shape: &Shape,
        layout: Layout,
    ) -> Result<Self, SimError> {
        use dpu::{bs_ow_cfg as groups, data_cube_notch_addr as notch, wdma_size_0, wdma_size_1};
        let config = Setting::read(blocks, dpu::BS_OW_CFG)?;
        let sizes = [groups::SIZE_E_0, groups::SIZE_E_1, groups::SIZE_E_2].map(|field| config.size(field));
        if sizes != [sizes[0]; 3] {
            return Err(config.undecoded("SIZE_E fields that differ"));
        }
        let lines = Setting::read(blocks, dpu::WDMA_SIZE_1)?;
        let (width, height) = (lines.size(wdma_size_1::WIDTH_WDMA), lines.size(wdma_size_1::HEIGHT_WDMA));
        if layout == Layout::Plain && width * height != shape.pixels() {
            return Err(lines.illegal(format!("{width} x {height} pixels are written of {}", shape.pixels())));
        }
        let notches = Setting::read(blocks, dpu::DATA_CUBE_NOTCH_ADDR)?;
        if notches.bits(notch::NOTCH_ADDR_0) != notches.bits(notch::NOTCH_ADDR_1) {
            return Err(notches.undecoded("NOTCH_ADDR fields that differ"));
        }
        let line = (width + notches.bits(notch::NOTCH_ADDR_0) as usize) * ATOM;
        // The address registers hold bytes whose low four bits are zero.
        let bytes = |register| Ok(i64::from(blocks.get(register)? & !0xf));
        let channels = Setting::read(blocks, dpu::WDMA_SIZE_0)?;
        let surfaces = channels.size(wdma_size_0::CHANNEL_WDMA).div_ceil(shape.output.lanes());
        if shape.pixels().saturating_mul(surfaces * shape.output.lanes()) > MAX_ELEMENTS {
            return Err(channels.illegal(format!("a cube of more than {MAX_ELEMENTS} elements")));
        }
        Ok(Self {
            window: blocks.window(dpu::DST_BASE_ADDR, memory)?,
            raster: Raster { width, line: line as i64 },
            height,
            surface: bytes(dpu::DST_SURF_STRIDE)?,
            group: sizes[0],
            group_step: bytes(dpu::SURFACE_ADD)?,
            surfaces,
            real_channels: shape.real_channels,
            precision: shape.output,
            pad: shape.pad,
        })
    }

    /// Writes pixels `first..first + count` from `bits[pixel][stride channels]`, the low bits of each element.
    /// Returns the bytes written.
    pub(super) fn write(
        &self,
        first: usize,
        count: usize,
        bits: &[u32],
        stride: usize,
        scratch: &mut Vec<u8>,
    ) -> Result<u64, SimError> {
        let lanes = self.precision.lanes();
        scratch.resize(count * ATOM, 0);
        for surface in 0..self.surfaces {
            let channel = surface * lanes;
            let real = self.real_channels.saturating_sub(channel).min(lanes);
            let rows = bits
                .chunks_exact(stride)
                .map(|row| &row[channel.min(row.len())..(channel + real).min(row.len())]);
            match self.precision.bytes() {
                1 => pack(rows, scratch, self.pad as u8, |value| [value as u8], |pad| [pad]),
                2 => pack(rows, scratch, self.pad, |value| (value as u16).to_le_bytes(), u16::to_le_bytes),
                _ => pack(rows, scratch, u32::from(self.pad), u32::to_le_bytes, u32::to_le_bytes),
            }
            self.write_surface(surface, first, scratch)?;
        }
        Ok((self.surfaces * count * ATOM) as u64)
    }

    /// Writes whole atoms of one surface from pixel `first` on.
    pub(super) fn write_surface(&self, surface: usize, first: usize, atoms: &[u8]) -> Result<(), SimError> {
        let base =
            (surface / self.group) as i64 * self.group_step + (surface % self.group) as i64 * self.surface;
        self.raster.runs(first, atoms.len() / ATOM, |offset, pixels| {
            self.window.write(base + offset, &atoms[pixels.start * ATOM..pixels.end * ATOM])
        })
    }

    /// Surfaces written.
    pub(super) fn surfaces(&self) -> usize {
        self.surfaces
    }

    /// True if the surfaces of a cube of one pixel follow each other without a gap.
    pub(super) fn is_contiguous(&self) -> bool {
        self.surface == ATOM as i64 && self.group_step == (self.group * ATOM) as i64
    }

    /// Writes bytes `offset` bytes behind DST_BASE_ADDR.
    pub(super) fn write_bytes(&self, offset: usize, bytes: &[u8]) -> Result<(), SimError> {
        self.window.write(offset as i64, bytes)
    }

    /// Pixels of a line and lines that WDMA writes.
    pub(super) fn lines(&self) -> (usize, usize) {
        (self.raster.width, self.height)
    }

    /// Surfaces of a group: SIZE_E + 1.
    pub(super) fn group(&self) -> usize {
        self.group
    }
}

/// Fills one atom a row: the row's elements, then padding.
fn pack<'a, const BYTES: usize, P: Copy>(
    rows: impl Iterator<Item = &'a [u32]>,
    atoms: &mut [u8],
    pad: P,
    element: impl Fn(u32) -> [u8; BYTES],
    padding: impl Fn(P) -> [u8; BYTES],
) {
    for (row, atom) in rows.zip(atoms.as_chunks_mut::<ATOM>().0) {
        let lanes = atom.as_chunks_mut::<BYTES>().0;
        for (lane, value) in lanes.iter_mut().zip(row) {
            *lane = element(*value);
        }
        lanes[row.len()..].fill(padding(pad));
    }
}
