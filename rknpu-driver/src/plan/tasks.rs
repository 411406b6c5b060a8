//! A choice spelled out: where each part of input and output lies, and each core's tasks.

use std::ops::Range;

use super::choose::{Axis, Choice, Order};
use super::cost::Share;
use super::encode::TaskForm;
use super::geometry::data_banks;
use super::options::{PlanOptions, WeightOrder};
use super::partition::Stack;
use super::work::{Reuse, TaskSize};
use crate::layout::{ATOM, Cube, output_surface};
use crate::shape::{MatmulShape, TILE_BYTES};

/// Input and output cubes of one row tile and one stack of slices. Pixel `slice · rows + row` is a row of one
/// slice; output channel `(group · slices + slice) · tile rows + n` is a column of the product with that
/// slice of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Rows of A.
    pub(crate) rows: Range<usize>,
    pub(crate) stack: Stack,
    /// Slices of K before this stack.
    pub(crate) first_slice: usize,
    pub(crate) input: Cube,
    /// Byte offset in the input buffer.
    pub(crate) input_at: usize,
    pub(crate) output: Cube,
    /// Byte offset in the output buffer.
    pub(crate) output_at: usize,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedTask {
    pub(crate) form: TaskForm,
    /// Index of the block it reads and writes.
    pub(crate) block: usize,
    /// Kernel groups of N.
    pub(crate) groups: Range<usize>,
    /// Byte offset of its weights.
    pub(crate) weights_at: usize,
}

/// Cubes start at multiples of this many bytes: a cache line.
const CUBE_ALIGN: usize = 64;

/// Every block, `[row tile][stack]`, and each core's share of the row tiles.
pub(crate) fn blocks(
    shape: &MatmulShape,
    choice: &Choice,
    options: &PlanOptions,
) -> (Vec<Block>, Vec<Range<usize>>) {
    let tiling = &choice.tiling;
    let share = Share::new(shape, tiling.cores, tiling.axis).rows;
    let mut tiles = Vec::new();
    let mut shares = Vec::new();
    for first in (0..shape.rows).step_by(share) {
        let end = shape.rows.min(first + share);
        let start = tiles.len();
        let step = tiling.tile_rows;
        tiles.extend((first..end).step_by(step).map(|row| row..end.min(row + step)));
        shares.push(start..tiles.len());
    }
    if tiling.axis == Axis::Outputs {
        shares = vec![0..tiles.len(); tiling.cores];
    }
    let (mut input_at, mut output_at) = (0, 0);
    let mut blocks = Vec::with_capacity(tiles.len() * choice.stacks.len());
    for rows in tiles {
        let mut first_slice = 0;
        for &stack in &choice.stacks {
            let size = TaskSize::new(shape.precision, &options.output, &stack, rows.len(), shape.groups());
            let input = Cube {
                pixels: size.pixels,
                channels: size.columns(),
                surface: size.pixels,
                atom: shape.precision.input_atom(),
            };
            let output = Cube {
                pixels: size.pixels,
                channels: size.kernels(),
                surface: output_surface(size.pixels),
                atom: ATOM / size.output_bytes(),
            };
            let rows = rows.clone();
            blocks.push(Block { rows, stack, first_slice, input, input_at, output, output_at });
            input_at += input.bytes().next_multiple_of(CUBE_ALIGN);
            output_at += output.bytes().next_multiple_of(CUBE_ALIGN);
            first_slice += stack.slices;
        }
    }
    (blocks, shares)
}

/// Each core's tasks in order.
pub(crate) fn chains(
    shape: &MatmulShape,
    choice: &Choice,
    options: &PlanOptions,
    blocks: &[Block],
    shares: &[Range<usize>],
) -> Vec<Vec<PlannedTask>> {
    let tiling = &choice.tiling;
    let share = Share::new(shape, tiling.cores, tiling.axis).groups;
    let mut chains = Vec::with_capacity(tiling.cores);
    for (core, tiles) in shares.iter().enumerate() {
        let first = if tiling.axis == Axis::Outputs { core * share } else { 0 };
        let groups = first.min(shape.groups())..shape.groups().min(first + share);
        let stacks = choice.stacks.len();
        let chunks = || groups.clone().step_by(tiling.chunk).map(|g| g..groups.end.min(g + tiling.chunk));
        let mut chain = Vec::new();
        let mut push = |tile: usize, stack: usize, chunk: Range<usize>, reuse: Reuse| {
            chain.push(task(shape, choice, options, blocks, tile * stacks + stack, chunk, reuse));
        };
        match tiling.order {
            Order::FeaturesOutside => {
                for tile in tiles.clone() {
                    for stack in 0..stacks {
                        for (index, chunk) in chunks().enumerate() {
                            let features = tiling.data_reuse && index > 0;
                            push(tile, stack, chunk, Reuse { weights: false, features });
                        }
                    }
                }
            }
            Order::WeightsOutside => {
                for chunk in chunks() {
                    for stack in 0..stacks {
                        for tile in tiles.clone() {
                            let weights = tiling.weight_reuse && tile > tiles.start;
                            push(tile, stack, chunk.clone(), Reuse { weights, features: false });
                        }
                    }
                }
            }
        }
        chains.push(chain);
    }
    chains
}

fn task(
    shape: &MatmulShape,
    choice: &Choice,
    options: &PlanOptions,
    blocks: &[Block],
    block: usize,
    groups: Range<usize>,
    reuse: Reuse,
) -> PlannedTask {
    let Block { rows, stack, .. } = &blocks[block];
    let size = TaskSize::new(shape.precision, &options.output, stack, rows.len(), groups.len());
    let tile = match options.weights {
        // A stack of several groups begins with the first tile of K.
        WeightOrder::Stored => groups.start * shape.inner_tiles() + stack.first,
        WeightOrder::Sliced => stack.first * shape.groups() + groups.start * stack.range().len(),
    };
    let tiling = &choice.tiling;
    // A run that reuses what lies in the buffer keeps its split; others take what they need, as the vendor's
    // compiler does.
    let data_banks = if tiling.weight_reuse || tiling.data_reuse {
        tiling.data_banks
    } else {
        data_banks(size.channel_bytes(), size.pixels)
    };
    PlannedTask { form: TaskForm { size, data_banks, reuse }, block, groups, weights_at: tile * TILE_BYTES }
}

impl PlannedTask {
    /// Byte offset of the first output this task writes.
    pub(crate) fn output_at(&self, shape: &MatmulShape, blocks: &[Block]) -> usize {
        let block = &blocks[self.block];
        let channel = self.groups.start * block.stack.slices * shape.precision.tile_rows();
        block.output_at + block.output.atom_offset(0, channel)
    }
}
