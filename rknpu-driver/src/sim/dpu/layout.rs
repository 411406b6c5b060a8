//! How the output is laid out: WDMA's re-layout modes.
//!
//! No manual describes them. What stands here was read off vendor streams (some 600 such tasks in softmax, norms,
//! products of two activations and attention); under it their chains of re-layouts, convolutions and element-wise
//! tasks give the vendor simulator's results, bit for bit where nothing else rounds. Combinations that no stream has
//! are refused as undecoded. All but the maximum move 16-bit lanes untouched, with every stage off.
//!
//! | mode | registers | effect |
//! |---|---|---|
//! | width to surfaces | TP_EN, TP_PRECISION | pixel `(h, w)` of surface `s` becomes pixel `h` of line `s` of surface `w`; width = SIZE_E + 1 |
//! | 8 × 8 lanes | TP_ORG_EN, TP_PRECISION | of eight pixels in a row, lane `e` of pixel `j` becomes lane `j` of surface `e` |
//! | 16 × 16 bytes | TP_ORG_EN | the same with bytes and 16 pixels; surfaces 8 to 15 are a second line |
//! | first lane | NONALIGN, RGP_TYPE 2 or 3 | the first 8 or 16 bits of every pixel, packed |
//! | maximum | NONALIGN, MINMAX_CTL 7 | the largest channel of every pixel, packed |

use super::config::Shape;
use super::output::Output;
use super::setting::Setting;
use crate::regcmd::registers::dpu;
use crate::sim::SimError;
use crate::sim::rdma::{ATOM, CubeSize, Feature};
use crate::sim::registers::Blocks;
use crate::timing::TaskWork;

/// Where elements of the output go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// To the pixel and channel they belong to.
    Plain,
    /// Pixels of a line to surfaces.
    WidthToSurfaces,
    /// Transposed blocks of eight pixels by eight 16-bit lanes.
    Lanes,
    /// Transposed blocks of 16 pixels by 16 bytes.
    Bytes,
    /// The first lane of every pixel, of so many bytes, packed.
    FirstLane(usize),
    /// The largest channel of every pixel, packed.
    Maximum,
}

/// Atoms worked on at a time.
const CHUNK: usize = 1024;

impl Layout {
    /// Decodes the mode.
    pub(super) fn decode(blocks: &Blocks) -> Result<Self, SimError> {
        use dpu::{bs_ow_cfg, data_cube_height, feature_mode_cfg as mode, wdma_size_0};
        let config = Setting::read(blocks, dpu::FEATURE_MODE_CFG)?;
        let order = Setting::read(blocks, dpu::BS_OW_CFG)?;
        if order.flag(bs_ow_cfg::RGP_CNTER) {
            return Err(order.undecoded_layout("RGP_CNTER other than 0"));
        }
        let height = Setting::read(blocks, dpu::DATA_CUBE_HEIGHT)?;
        let wide = Setting::read(blocks, dpu::WDMA_SIZE_0)?.flag(wdma_size_0::TP_PRECISION);
        let transpose = (config.flag(mode::TP_EN), order.flag(bs_ow_cfg::TP_ORG_EN));
        let regroup = config.bits(mode::RGP_TYPE);
        let maximum = height.bits(data_cube_height::MINMAX_CTL);
        match (transpose, config.flag(mode::NONALIGN), regroup, maximum) {
            ((false, false), false, 0, 0) => Ok(Self::Plain),
            ((true, false), false, 0, 0) if wide => Ok(Self::WidthToSurfaces),
            ((false, true), false, 0, 0) => Ok(if wide { Self::Lanes } else { Self::Bytes }),
            ((false, false), true, 2, 0) => Ok(Self::FirstLane(1)),
            ((false, false), true, 3, 0) => Ok(Self::FirstLane(2)),
            ((false, false), true, 0, 7) => Ok(Self::Maximum),
            (_, _, _, 1..) => Err(height.undecoded_layout("MINMAX_CTL other than 7 with NONALIGN")),
            ((_, true), ..) => Err(order.undecoded_layout("TP_ORG_EN with another re-layout")),
            ((true, _), ..) => Err(config.undecoded_layout("TP_EN of bytes, or with another re-layout")),
            _ => Err(config.undecoded_layout("NONALIGN or RGP_TYPE in this combination")),
        }
    }
}

/// A re-layout of 16-bit lanes: what is read, and where it goes.
pub(super) struct Relayout<'a> {
    pub(super) blocks: &'a Blocks,
    pub(super) main: &'a Feature,
    pub(super) size: CubeSize,
    pub(super) output: &'a Output,
}

impl Relayout<'_> {
    /// Moves the whole cube.
    pub(super) fn run(&self, layout: Layout, shape: &Shape, work: &mut TaskWork) -> Result<(), SimError> {
        let surfaces = self.size.channels.div_ceil(self.main.precision.lanes());
        work.read_bytes += (surfaces * shape.pixels() * ATOM) as u64;
        match layout {
            Layout::WidthToSurfaces => self.width_to_surfaces(surfaces, work),
            Layout::Lanes => self.lanes(surfaces * shape.pixels(), work),
            Layout::Bytes => self.bytes(surfaces * shape.pixels(), work),
            Layout::FirstLane(bytes) => self.first_lane(bytes, surfaces, shape.pixels(), work),
            Layout::Plain | Layout::Maximum => Ok(()),
        }
    }

    fn width_to_surfaces(&self, surfaces: usize, work: &mut TaskWork) -> Result<(), SimError> {
        let CubeSize { width, height, .. } = self.size;
        let size = self.output.lines();
        if (self.output.group(), size.0, size.1) != (width, height, surfaces) {
            let config = Setting::read(self.blocks, dpu::FEATURE_MODE_CFG)?;
            return Err(config.undecoded_layout("TP_EN with sizes that do not agree"));
        }
        let step = (CHUNK / width).max(1);
        let (mut atoms, mut column) = (vec![0; step * width * ATOM], vec![0; step * ATOM]);
        for (surface, first) in (0..surfaces).flat_map(|s| (0..height).step_by(step).map(move |h| (s, h))) {
            let count = step.min(height - first);
            let atoms = &mut atoms[..count * width * ATOM];
            self.main.read_atoms(surface, first * width, atoms)?;
            for w in 0..width {
                let column = &mut column[..count * ATOM];
                for (to, from) in
                    column.as_chunks_mut::<ATOM>().0.iter_mut().zip(atoms.chunks_exact(width * ATOM))
                {
                    to.copy_from_slice(&from[w * ATOM..(w + 1) * ATOM]);
                }
                self.output.write_surface(w, surface * height + first, column)?;
            }
            work.write_bytes += atoms.len() as u64;
        }
        Ok(())
    }

    /// The atoms of all surfaces one after the other are cut into blocks; a block's atoms, eight at a time, become
    /// one atom in each of eight surfaces.
    fn lanes(&self, atoms: usize, work: &mut TaskWork) -> Result<(), SimError> {
        let size = self.output.lines();
        let block = size.0 * size.1 * 8;
        let blocks = self.blocks_of(atoms, block)?;
        let (mut source, mut plane) = (vec![0; CHUNK * ATOM], vec![0; CHUNK / 8 * ATOM]);
        for (index, first) in (0..blocks).flat_map(|b| (0..block).step_by(CHUNK).map(move |at| (b, at))) {
            let source = &mut source[..CHUNK.min(block - first) * ATOM];
            self.stream(index * block + first, source)?;
            let plane = &mut plane[..source.len() / 8];
            for lane in 0..8 {
                let octets = source.as_chunks::<{ 8 * ATOM }>().0;
                for (to, octet) in plane.as_chunks_mut::<ATOM>().0.iter_mut().zip(octets) {
                    for (to, from) in to.as_chunks_mut::<2>().0.iter_mut().zip(octet.as_chunks::<ATOM>().0) {
                        to.copy_from_slice(&from[2 * lane..2 * lane + 2]);
                    }
                }
                self.output.write_surface(index * 8 + lane, first / 8, plane)?;
            }
            work.write_bytes += source.len() as u64;
        }
        Ok(())
    }

    /// As [`Relayout::lanes`], with blocks of 16 atoms whose bytes are transposed.
    fn bytes(&self, atoms: usize, work: &mut TaskWork) -> Result<(), SimError> {
        if self.output.lines() != (1, 2) {
            let config = Setting::read(self.blocks, dpu::WDMA_SIZE_1)?;
            return Err(config.undecoded_layout("TP_ORG_EN of bytes with other than one pixel of two lines"));
        }
        let blocks = self.blocks_of(atoms, 16)?;
        for index in 0..blocks {
            let mut source = [0; 16 * ATOM];
            self.stream(index * 16, &mut source)?;
            for byte in 0..16 {
                let mut atom = [0; ATOM];
                for (to, from) in atom.iter_mut().zip(source.as_chunks::<ATOM>().0) {
                    *to = from[byte];
                }
                self.output.write_surface(index * 8 + byte % 8, byte / 8, &atom)?;
            }
        }
        work.write_bytes += (blocks * 16 * ATOM) as u64;
        Ok(())
    }

    fn first_lane(
        &self,
        bytes: usize,
        surfaces: usize,
        pixels: usize,
        work: &mut TaskWork,
    ) -> Result<(), SimError> {
        if surfaces != 1 {
            let config = Setting::read(self.blocks, dpu::FEATURE_MODE_CFG)?;
            return Err(config.undecoded_layout("RGP_TYPE of several surfaces"));
        }
        let mut packed = Packed::new(self.blocks, self.output, pixels * bytes)?;
        let mut atoms = vec![0; CHUNK * ATOM];
        for first in (0..pixels).step_by(CHUNK) {
            let atoms = &mut atoms[..CHUNK.min(pixels - first) * ATOM];
            self.main.read_atoms(0, first, atoms)?;
            let lanes = atoms.as_chunks::<ATOM>().0.iter().flat_map(|atom| &atom[..bytes]).copied();
            packed.write(lanes.collect())?;
        }
        work.write_bytes += packed.finish()? as u64;
        Ok(())
    }

    /// Atoms `first..` of the stream that has the surfaces one after the other.
    fn stream(&self, first: usize, atoms: &mut [u8]) -> Result<(), SimError> {
        let pixels = self.size.width * self.size.height;
        let mut done = 0;
        while done < atoms.len() {
            let (surface, pixel) = ((first + done / ATOM) / pixels, (first + done / ATOM) % pixels);
            let length = ((pixels - pixel) * ATOM).min(atoms.len() - done);
            self.main.read_atoms(surface, pixel, &mut atoms[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// Blocks of a transposition; SIZE_C_WDMA must name their number and SIZE_E eight surfaces.
    fn blocks_of(&self, atoms: usize, block: usize) -> Result<usize, SimError> {
        let sizes = Setting::read(self.blocks, dpu::WDMA_SIZE_0)?;
        let blocks = sizes.size(dpu::wdma_size_0::SIZE_C_WDMA);
        if blocks * block != atoms || self.output.group() != 8 {
            return Err(sizes.undecoded_layout("TP_ORG_EN with sizes that do not agree"));
        }
        Ok(blocks)
    }
}

/// Bytes written one after the other from DST_BASE_ADDR on, whole atoms in the end: SURF_LEN of them.
pub(super) struct Packed<'a> {
    output: &'a Output,
    written: usize,
    length: usize,
}

impl<'a> Packed<'a> {
    /// For `bytes` bytes, which SURF_LEN must hold.
    pub(super) fn new(blocks: &Blocks, output: &'a Output, bytes: usize) -> Result<Self, SimError> {
        let config = Setting::read(blocks, dpu::FEATURE_MODE_CFG)?;
        let length = config.bits(dpu::feature_mode_cfg::SURF_LEN) as usize * ATOM;
        if length != bytes.next_multiple_of(ATOM) {
            return Err(config.undecoded_layout("NONALIGN with a SURF_LEN that is not the output's"));
        }
        Ok(Self { output, written: 0, length })
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, bytes: Vec<u8>) -> Result<(), SimError> {
        self.output.write_bytes(self.written, &bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    /// Fills the last atom with zeros; returns the bytes written in all.
    pub(super) fn finish(mut self) -> Result<usize, SimError> {
        let rest = self.length.saturating_sub(self.written);
        self.write(vec![0; rest])?;
        Ok(self.length)
    }
}
