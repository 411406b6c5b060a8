//! DPU: works on values element by element and writes the output.
//!
//! ```text
//!  accumulators ─┐
//!  or MRDMA ─────┴▶ CPEND ▶ BS: ALU, MUL, ≫, ReLU ▶ BN: MUL, ALU, ≫, ReLU ▶ EW: LUT, ALU or MUL, ReLU ▶ OUT_CVT ▶ WDMA
//!                    │      │                       │                       │ operand
//!                  BRDMA  BRDMA                   NRDMA                    ERDMA (or both engines, COMB_USE)
//! ```
//!
//! The order of the stages and what each computes follow vendor streams, which an independent interpreter executed
//! under the same reading with the vendor's results. The cube is worked off in chunks of pixels that fit into a
//! cache; nothing is allocated in proportion to what a stream asks for.

#[cfg(test)]
pub(crate) mod bench;
mod config;
mod element_wise;
mod floating;
mod integer;
mod layout;
mod output;
mod output_converter;
mod read_back;
pub(crate) mod setting;

use config::{Channels, Processing, Shape, Stage};
use element_wise::ElementWise;
use layout::{Layout, Packed, Relayout};
use output::Output;
use output_converter::OutputConverter;
use setting::Setting;

use super::float::{Precision, from_f16, to_f16};
use super::rdma::{FeatureReads, Sample};
use super::registers::Blocks;
use super::{Accumulators, Memory, Options, Products, SimError};
use crate::regcmd::Block;
use crate::regcmd::registers::{dpu, dpu_rdma};
use crate::timing::TaskWork;

/// Elements of a chunk.
const CHUNK: usize = 1 << 14;

/// Runs the DPU's part of a task.
///
/// `main` is what CORE accumulated; `None` in flying mode, where DPU_RDMA reads the main input.
pub(crate) fn run(
    blocks: &Blocks,
    main: Option<Products>,
    memory: &Memory,
    options: &Options,
    work: &mut TaskWork,
) -> Result<(), SimError> {
    let task = Task::decode(blocks, main.as_ref(), memory)?;
    match (task.shape.processing, main) {
        (Processing::Integer, main) => task.integers(main.as_ref(), options, work),
        (Processing::Float16 | Processing::BFloat16, main) => task.floats(main.as_ref(), options, work),
    }
}

/// What both kinds of arithmetic share of a decoded task.
struct Task<'a> {
    blocks: &'a Blocks,
    shape: Shape,
    layout: Layout,
    /// 16-bit integers pass floating-point arithmetic as they are: vendor re-layouts move fp16 so.
    raw: bool,
    reads: Option<FeatureReads>,
    channels: Channels,
    bs: Stage,
    bn: Stage,
    out: OutputConverter,
    output: Output,
}

impl<'a> Task<'a> {
    fn decode(blocks: &'a Blocks, main: Option<&Products>, memory: &Memory) -> Result<Self, SimError> {
        let mut shape = Shape::decode(blocks)?;
        let mode = Setting::read(blocks, dpu::FEATURE_MODE_CFG)?;
        if shape.flying != main.is_none() {
            return Err(mode.illegal("FLYING_MODE does not agree with the blocks that the task enables"));
        }
        let raw = shape.processing != Processing::Integer
            && shape.input == Precision::Int16
            && shape.output == Precision::Int16;
        if raw {
            shape.processing = Processing::Integer;
        }
        let integer = shape.processing == Processing::Integer;
        let operands = match shape.processing {
            Processing::Integer => Precision::Int16,
            Processing::Float16 => Precision::Float16,
            Processing::BFloat16 => Precision::BFloat16,
        };
        let reads = blocks
            .enabled(Block::DpuRdma)
            .then(|| FeatureReads::decode(blocks, memory, shape.flying, operands))
            .transpose()?;
        let channels = Channels::read(blocks, memory, &shape)?;
        let bs = Stage::decode(blocks, &config::BS, &channels.bs, shape.channels, integer)?;
        let bn = Stage::decode(blocks, &config::BN, &channels.bn, shape.channels, integer)?;
        let out = OutputConverter::decode(blocks, &shape)?;
        let layout = Layout::decode(blocks)?;
        let output = Output::decode(blocks, memory, &shape, layout)?;
        let task = Self { blocks, shape, layout, raw, reads, channels, bs, bn, out, output };
        task.check_main(main, mode)?;
        Ok(task)
    }

    /// Refuses a main input whose shape or format is not the one the DPU was told.
    fn check_main(&self, main: Option<&Products>, mode: Setting) -> Result<(), SimError> {
        let Shape { width, height, channels, processing, input, .. } = self.shape;
        let integer = processing == Processing::Integer;
        let layout = Setting::read(self.blocks, dpu::BS_OW_CFG)?;
        let sums_missing = |sums: usize| self.channels.cpend.is_some() && integer && sums == 0;
        let Some(products) = main else {
            if sums_missing(0) {
                return Err(layout.illegal("CPEND in flying mode, which has no sum of inputs"));
            }
            let Some(FeatureReads { main: Some(main), size, .. }) = &self.reads else {
                return Err(mode.illegal("flying mode without MRDMA"));
            };
            if size.width * size.height != width * height || size.channels > channels {
                let reason =
                    format!("DPU_RDMA reads {size:?} for an output of {width} x {height} x {channels}");
                return Err(SimError::illegal(dpu_rdma::RDMA_DATA_CUBE_WIDTH, size.width as u32 - 1, reason));
            }
            let raw = integer && input == Precision::Int16 && main.precision.bytes() == 2;
            if integer == main.precision.is_float() && !raw {
                let mode = Setting::read(self.blocks, dpu_rdma::RDMA_FEATURE_MODE_CFG)?;
                return Err(mode.undecoded("integer arithmetic on floats, or the other way round"));
            }
            return Ok(());
        };
        let (w, h, c, float) = match &products.accumulators {
            Accumulators::Int(cube) => (cube.width, cube.height, cube.channels, false),
            Accumulators::Wide(cube) => (cube.width, cube.height, cube.channels, false),
            Accumulators::Float(cube) => (cube.width, cube.height, cube.channels, true),
        };
        if (w * h, c) != (width * height, channels) {
            let size = Setting::read(self.blocks, dpu::DATA_CUBE_CHANNEL)?;
            return Err(size
                .illegal(format!("CORE gives {w} x {h} x {c}, DPU takes {width} x {height} x {channels}")));
        }
        if float == integer {
            let format = Setting::read(self.blocks, dpu::DATA_FORMAT)?;
            return Err(format.illegal("PROC_PRECISION differs from CORE's kind of numbers"));
        }
        let sums = products.input_sums.len();
        if sums_missing(sums) || ![0, w * h, w * h * c].contains(&sums) {
            return Err(layout.illegal("CPEND needs CORE's QD_EN"));
        }
        Ok(())
    }

    fn element_wise<T: Sample>(&mut self, integer: bool) -> Result<ElementWise<T>, SimError> {
        ElementWise::decode(self.blocks, &self.shape, self.reads.as_mut(), integer)
    }

    fn integers(
        mut self,
        main: Option<&Products>,
        options: &Options,
        work: &mut TaskWork,
    ) -> Result<(), SimError> {
        let ew = self.element_wise(true)?;
        let cpend = integer::Integers::take_cpend(&mut self.channels);
        let plain =
            cpend.is_none() && self.bs.is_off() && self.bn.is_off() && ew.is_off() && self.out.is_identity();
        work.read_bytes += self.channels.bs.bytes + self.channels.bn.bytes;
        if self.raw && !plain {
            let format = Setting::read(self.blocks, dpu::DATA_FORMAT)?;
            return Err(format.undecoded("stages on 16-bit integers within floating-point arithmetic"));
        }
        if self.layout != Layout::Plain {
            return self.relayout(plain, work);
        }
        if plain
            && self.shape.output == Precision::Int32
            && self.shape.pad == 0
            && let Some(Products { accumulators: Accumulators::Int(cube), .. }) = main
        {
            return read_back::run(cube, &self.output, self.shape.real_channels, work);
        }
        let flying;
        let main_values = match main.map(|products| &products.accumulators) {
            Some(Accumulators::Int(cube)) => integer::Main::Accumulators(cube),
            Some(Accumulators::Wide(cube)) => integer::Main::Wide(cube),
            Some(Accumulators::Float(_)) | None => {
                flying = self.flying()?;
                integer::Main::Flying(&flying.0, flying.1)
            }
        };
        let stages = integer::Integers {
            main: main_values,
            channels: self.shape.channels,
            real_channels: self.shape.real_channels,
            input_sums: main.map_or(&[], |products| &products.input_sums),
            sum_per_element: main.is_some_and(|products| products.input_sums.len() > self.shape.pixels()),
            cpend,
            bs: self.bs,
            bn: self.bn,
            ew,
            out: self.out,
            options,
        };
        let mut scratch = integer::Scratch::default();
        chunks(&self.shape, &self.output, work, |first, count, bits| {
            stages.run(first, count, bits, &mut scratch)
        })
    }

    fn floats(
        mut self,
        main: Option<&Products>,
        _options: &Options,
        work: &mut TaskWork,
    ) -> Result<(), SimError> {
        let ew = self.element_wise(false)?;
        work.read_bytes += self.channels.bs.bytes + self.channels.bn.bytes;
        let flying;
        let main_values = match main.map(|products| &products.accumulators) {
            Some(Accumulators::Float(cube)) => floating::Main::Accumulators(cube),
            Some(Accumulators::Int(_) | Accumulators::Wide(_)) | None => {
                flying = self.flying()?;
                floating::Main::Flying(&flying.0, flying.1)
            }
        };
        let stages = floating::Floats {
            main: main_values,
            channels: self.shape.channels,
            real_channels: self.shape.real_channels,
            bs: floating::FloatStage::new(&self.bs, self.shape.processing),
            bn: floating::FloatStage::new(&self.bn, self.shape.processing),
            ew,
            processing: self.shape.processing,
            out: self.out,
        };
        let mut scratch = floating::Scratch::default();
        if self.layout == Layout::Maximum {
            return maxima(self.blocks, &self.shape, &self.output, work, |first, count, bits| {
                stages.run(first, count, bits, &mut scratch)
            });
        }
        if self.layout != Layout::Plain {
            let mode = Setting::read(self.blocks, dpu::FEATURE_MODE_CFG)?;
            return Err(mode.undecoded_layout("a re-layout in floating point"));
        }
        chunks(&self.shape, &self.output, work, |first, count, bits| {
            stages.run(first, count, bits, &mut scratch)
        })
    }

    /// Moves 16-bit lanes without a change.
    fn relayout(mut self, plain: bool, work: &mut TaskWork) -> Result<(), SimError> {
        let mode = Setting::read(self.blocks, dpu::FEATURE_MODE_CFG)?;
        let sixteen = self.shape.input == Precision::Int16 && self.shape.output == Precision::Int16;
        if self.layout == Layout::Maximum || !plain || !sixteen || !self.shape.flying {
            return Err(mode.undecoded_layout("a re-layout of something other than 16-bit lanes from memory"));
        }
        let size =
            self.reads.as_ref().map(|reads| reads.size).ok_or_else(|| mode.illegal("DPU_RDMA is off"))?;
        let (main, _) = self.flying()?;
        let relayout = Relayout { blocks: self.blocks, main: &main, size, output: &self.output };
        relayout.run(self.layout, &self.shape, work)
    }

    /// MRDMA's cube and its channels.
    fn flying(&mut self) -> Result<(super::rdma::Feature, usize), SimError> {
        let mode = Setting::read(self.blocks, dpu::FEATURE_MODE_CFG)?;
        let reads = self.reads.as_mut().ok_or_else(|| mode.illegal("flying mode without DPU_RDMA"))?;
        let main = reads.main.take().ok_or_else(|| mode.illegal("flying mode without MRDMA"))?;
        Ok((main, reads.size.channels))
    }
}

/// Calls `stages` for one run of pixels after the other and writes what it computes.
fn chunks(
    shape: &Shape,
    output: &Output,
    work: &mut TaskWork,
    mut stages: impl FnMut(usize, usize, &mut [u32]) -> Result<u64, SimError>,
) -> Result<(), SimError> {
    let step = (CHUNK / shape.channels).max(1);
    let mut bits = vec![0; step.min(shape.pixels()) * shape.channels];
    let mut bytes = Vec::new();
    for first in (0..shape.pixels()).step_by(step) {
        let count = step.min(shape.pixels() - first);
        let bits = &mut bits[..count * shape.channels];
        work.read_bytes += stages(first, count, bits)?;
        work.write_bytes += output.write(first, count, bits, shape.channels, &mut bytes)?;
    }
    Ok(())
}

/// Calls `stages` likewise and writes the largest channel of every pixel, packed.
fn maxima(
    blocks: &Blocks,
    shape: &Shape,
    output: &Output,
    work: &mut TaskWork,
    mut stages: impl FnMut(usize, usize, &mut [u32]) -> Result<u64, SimError>,
) -> Result<(), SimError> {
    if shape.output != Precision::Float16 {
        let format = Setting::read(blocks, dpu::DATA_FORMAT)?;
        return Err(format.undecoded_layout("MINMAX_CTL in a format other than fp16"));
    }
    let mut packed = Packed::new(blocks, output, shape.pixels() * 2)?;
    let step = (CHUNK / shape.channels).max(1);
    let mut bits = vec![0; step.min(shape.pixels()) * shape.channels];
    for first in (0..shape.pixels()).step_by(step) {
        let count = step.min(shape.pixels() - first);
        let bits = &mut bits[..count * shape.channels];
        work.read_bytes += stages(first, count, bits)?;
        let rows = bits.chunks_exact(shape.channels).map(|row| &row[..shape.real_channels]);
        let largest =
            rows.map(|row| row.iter().map(|bits| from_f16(*bits as u16)).fold(f32::NEG_INFINITY, f32::max));
        packed.write(largest.flat_map(|value| to_f16(value).to_le_bytes()).collect())?;
    }
    work.write_bytes += packed.finish()? as u64;
    Ok(())
}

#[cfg(test)]
mod tests;
