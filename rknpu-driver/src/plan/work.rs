//! What a planned task asks of the hardware, before anything runs.

use std::sync::OnceLock;

use super::geometry::{pixel_tile_bytes, resident_groups};
use super::options::OutputStage;
use super::partition::Stack;
use crate::regcmd::{TaskBuilder, TaskKind};
use crate::shape::{Precision, TILE_BYTES, TILE_COLUMNS};
use crate::timing::{MacFormat, TaskWork, mac_cycles};

/// What a task finds in the buffer and does not fetch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Reuse {
    /// The weights of the task before it.
    pub(crate) weights: bool,
    /// The features of the task before it.
    pub(crate) features: bool,
}

/// The sizes of one task: a product of `pixels` rows, `tiles` tiles of K and `groups` kernel groups as the
/// hardware sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TaskSize {
    /// Element types.
    pub(crate) precision: Precision,
    /// Rows, times the slices stacked.
    pub(crate) pixels: usize,
    /// Tiles of K.
    pub(crate) tiles: usize,
    /// Kernel groups, times the slices stacked.
    pub(crate) groups: usize,
    /// What the DPU does.
    pub(crate) stage: Stage,
}

/// How the DPU treats accumulators, as far as sizes depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Writes them as they are.
    Accumulators,
    /// Writes int8; one addend per channel.
    PerTensor,
    /// Writes int8; addend, zero point and multiplier per channel.
    PerChannel,
}

impl Stage {
    pub(crate) const fn of(output: &OutputStage) -> Stage {
        match output {
            OutputStage::Accumulators => Stage::Accumulators,
            OutputStage::Requantised(requantise) if requantise.per_channel => Stage::PerChannel,
            OutputStage::Requantised(_) => Stage::PerTensor,
        }
    }

    /// The blocks that take part.
    pub(crate) const fn kind(self) -> TaskKind {
        match self {
            Stage::Accumulators => TaskKind::Convolution,
            Stage::PerTensor | Stage::PerChannel => TaskKind::ConvolutionWithOperands,
        }
    }

    /// Bytes of operands per channel.
    pub(crate) const fn operand_bytes(self) -> usize {
        match self {
            Stage::Accumulators => 0,
            Stage::PerTensor => 4,
            Stage::PerChannel => 8,
        }
    }

    /// Bytes of one output element.
    pub(crate) const fn output_bytes(self, precision: Precision) -> usize {
        match self {
            Stage::Accumulators => precision.output_bytes(),
            Stage::PerTensor | Stage::PerChannel => 1,
        }
    }
}

impl TaskSize {
    /// The task that computes a stack of slices for some rows and groups of the product.
    pub(crate) fn new(
        precision: Precision,
        output: &OutputStage,
        stack: &Stack,
        rows: usize,
        groups: usize,
    ) -> TaskSize {
        let (pixels, groups) = (rows * stack.slices, groups * stack.slices);
        TaskSize { precision, pixels, tiles: stack.tiles, groups, stage: Stage::of(output) }
    }

    /// Bytes of one row of features.
    pub(crate) const fn channel_bytes(&self) -> usize {
        self.tiles * pixel_tile_bytes(self.precision)
    }

    /// Columns, K.
    pub(crate) const fn columns(&self) -> usize {
        self.tiles * TILE_COLUMNS
    }

    /// Output channels, N.
    pub(crate) const fn kernels(&self) -> usize {
        self.groups * self.precision.tile_rows()
    }

    /// Bytes of weights.
    pub(crate) const fn weight_bytes(&self) -> usize {
        self.groups * self.tiles * TILE_BYTES
    }

    /// Bytes of one output element.
    pub(crate) const fn output_bytes(&self) -> usize {
        self.stage.output_bytes(self.precision)
    }

    /// What the task asks of the hardware.
    pub(crate) fn work(&self, reuse: Reuse) -> TaskWork {
        let features = if reuse.features { 0 } else { self.pixels * self.channel_bytes() };
        let weights = if reuse.weights { 0 } else { self.weight_bytes() };
        let operands = self.kernels() * self.stage.operand_bytes();
        let format = match self.precision {
            Precision::Int8 => MacFormat::Int8,
            Precision::Int4 => MacFormat::Int4,
            Precision::Fp16 => MacFormat::Sixteen,
        };
        let (pixels, columns) = (self.pixels as u64, self.columns() as u64);
        TaskWork {
            tasks: 1,
            mac_cycles: mac_cycles(pixels, columns, self.kernels() as u64, format),
            read_bytes: (features + weights + operands) as u64,
            write_bytes: (self.pixels * self.kernels() * self.output_bytes()) as u64,
            command_bytes: command_bytes(self.stage.kind()),
        }
    }

    /// Whether weights can arrive while others are used: there are none to fetch, or the banks beside the
    /// features hold two kernel groups. How far the hardware prefetches is not known; this only steers which
    /// plan is taken for faster.
    pub(crate) fn overlaps(&self, data_banks: usize, reuse: Reuse) -> bool {
        reuse.weights || (self.groups > 1 && resident_groups(data_banks, self.tiles) > 1)
    }
}

/// Bytes of commands that the program controller fetches for a task: its words and the tail of four, in
/// pairs.
fn command_bytes(kind: TaskKind) -> u64 {
    static WORDS: [OnceLock<usize>; 2] = [OnceLock::new(), OnceLock::new()];
    let words = &WORDS[usize::from(kind == TaskKind::ConvolutionWithOperands)];
    let words = *words.get_or_init(|| TaskBuilder::new(kind).finish().words.len());
    ((words + 4).div_ceil(2) * 16) as u64
}
