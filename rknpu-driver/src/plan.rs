//! Matrix products planned onto the NPU: which tasks, over which parts of the matrices, on which core.
//!
//! A product is a 1×1 convolution: the rows of A are pixels, K the input channels, N the output channels. A
//! task computes some rows × some kernel groups × all or a part of K. Weights are read where they lie, in
//! whole tiles; input and output have layouts of the plan's own, which [`MatmulPlan::pack_input_i8`] writes
//! and [`MatmulPlan::read_output_i32`] reads, adding up where K is cut.
//!
//! ```text
//! shape, options ──choose──► Choice ──tasks──► blocks, chains of tasks ──encode──► words ──bind──► a job
//! ```
//!
//! What comes out, and on which facts of the hardware it rests (docs/npu.md says how well each is known):
//!
//! * Few rows: each core streams its share of the weights once, in one task. Tasks may have more weights than
//!   the buffer holds; the vendor's compiler does the same with 12 MB in a task. Up to 16 rows take the time
//!   of one.
//! * K beyond 3,072 bytes: stacked ([`Stack`]) as long as the rows leave it free, because the vendor's
//!   compiler gives no task more; beyond that, whole up to [`Limits::int8_inner`], which one source has run.
//! * Many rows: as many as fit beside two kernel groups of weights, features outside, so that weights are
//!   fetched once per row tile. Chunks of weights that stay while row tiles pass (WEIGHT_REUSE, used by the
//!   vendor) win only where tasks cost little. Features that stay (DATA_REUSE) are off unless asked for: one
//!   source. Both are left out of a task that begins a kick: that the buffer outlives one is not known.
//! * Many rows and a long K, with weights as stored: the poorest case, as a part of K is contiguous within a
//!   kernel group only. Where the host writes the weights anyway, [`WeightOrder::Sliced`] takes up to five
//!   sixths off.
//! * Every task writes every register; chains of several cores are independent of each other.
//!
//! A [`MatmulPlan`] knows no addresses: it is made once per shape (see [`PlanCache`]) and bound to buffers as
//! often as wanted.

mod bind;
mod cache;
mod choose;
mod cost;
mod encode;
pub mod geometry;
mod options;
mod output_cube;
mod pack;
mod partition;
mod requantise;
mod tasks;
#[cfg(test)]
mod tests;
pub mod w4;
mod work;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

pub use bind::{BindError, Binding, BoundMatmul, Operands};
pub use cache::PlanCache;
pub use choose::{Axis, Choice, Order, Tiling};
pub use cost::Cost;
pub use options::{Limits, OutputStage, PlanError, PlanOptions, WeightOrder};
pub use output_cube::OutputCube;
pub use partition::Stack;
pub use requantise::{MOST_SCALE, MOST_SHIFT, MULTIPLIER_SHIFT, Requantise, shift_ties_even};

use self::encode::TaskForm;
use self::tasks::{Block, PlannedTask};
use crate::regcmd::{self, AddressSlot, Chaining, EncodedTask, Program, ProgramOptions};
use crate::shape::{MatmulShape, Precision, TILE_COLUMNS};
use crate::timing::TaskWork;
use crate::uapi::vendor::RKNPU_MAX_SUBMIT_NUMBER;

/// Most tasks of a core: their commands take 220 MB.
const MOST_TASKS: u64 = 1 << 18;

/// How one matrix product is computed.
#[derive(Debug)]
pub struct MatmulPlan {
    shape: MatmulShape,
    options: PlanOptions,
    choice: Choice,
    cost: Cost,
    /// `[row tile][stack]`.
    blocks: Vec<Block>,
    /// `[core]`.
    chains: Vec<Vec<PlannedTask>>,
    /// The words of each form of task, with and without reuse.
    templates: HashMap<TaskForm, EncodedTask>,
    input_bytes: usize,
    output_bytes: usize,
}

impl MatmulPlan {
    /// Plans a product.
    ///
    /// # Errors
    /// [`PlanError`]: a shape or options that no tasks can compute.
    pub fn new(shape: MatmulShape, options: &PlanOptions) -> Result<Self, PlanError> {
        let shape = MatmulShape::new(shape.rows, shape.inner, shape.outputs, shape.precision)?;
        check(&shape, options)?;
        let (choice, cost) = choose::choose(&shape, options).ok_or(PlanError::NoFit { shape })?;
        if cost.work.tasks > MOST_TASKS {
            return Err(PlanError::TooManyTasks { shape, tasks: cost.work.tasks, limit: MOST_TASKS });
        }
        let (blocks, shares) = tasks::blocks(&shape, &choice, options);
        let input_bytes = blocks.last().map_or(0, |block| block.input_at + block.input.bytes());
        let output_bytes = blocks.last().map_or(0, |block| block.output_at + block.output.bytes());
        let most = input_bytes.max(output_bytes).max(shape.weight_bytes()) as u64;
        if most >= 1 << 32 {
            return Err(PlanError::TooManyBytes { shape, bytes: most });
        }
        let chains = tasks::chains(&shape, &choice, options, &blocks, &shares);
        let mut templates = HashMap::new();
        for form in chains.iter().flatten().flat_map(|task| [task.form, task.form.fetching()]) {
            if let Entry::Vacant(entry) = templates.entry(form) {
                entry.insert(encode::encode(&form, &options.output)?);
            }
        }
        let options = options.clone();
        Ok(MatmulPlan { shape, options, choice, cost, blocks, chains, templates, input_bytes, output_bytes })
    }

    /// The product this is the plan of.
    pub fn shape(&self) -> MatmulShape {
        self.shape
    }

    /// How it is cut.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// What it is expected to cost on the options' board, one submission included.
    pub fn cost(&self) -> &Cost {
        &self.cost
    }

    /// Cores that have something to do.
    pub fn cores(&self) -> usize {
        self.chains.len()
    }

    /// Tasks of all cores.
    pub fn task_count(&self) -> usize {
        self.chains.iter().map(Vec::len).sum()
    }

    /// Bytes of the input buffer, padding included.
    pub fn input_bytes(&self) -> usize {
        self.input_bytes
    }

    /// Bytes of the output buffer, padding included.
    pub fn output_bytes(&self) -> usize {
        self.output_bytes
    }

    /// Bytes of the weights, in whole tiles.
    pub fn weight_bytes(&self) -> usize {
        self.shape.weight_bytes()
    }

    /// Bytes of per-channel operands; 0 unless outputs are requantised.
    pub fn operand_bytes(&self) -> usize {
        self.shape.padded_outputs() * work::Stage::of(&self.options.output).operand_bytes()
    }

    /// Slices of K whose sums the host adds.
    pub fn slices(&self) -> usize {
        self.choice.stacks.iter().map(|stack| stack.slices).sum()
    }

    /// Columns of each slice of K, in order (the last ones may reach into the padding of K).
    pub fn slice_columns(&self) -> Vec<Range<usize>> {
        let slices = self.choice.stacks.iter().flat_map(|stack| {
            (0..stack.slices).map(|slice| stack.first + slice * stack.tiles).map(|tile| (tile, stack.tiles))
        });
        let inner = self.shape.inner;
        slices.map(|(tile, tiles)| tile * TILE_COLUMNS..inner.min((tile + tiles) * TILE_COLUMNS)).collect()
    }

    /// The tiles of K in each region of the weights: all of them, or with [`WeightOrder::Sliced`] one range a
    /// region, in the order in which the regions lie.
    pub fn weight_regions(&self) -> Vec<Range<usize>> {
        match self.options.weights {
            WeightOrder::Stored => std::iter::once(0..self.shape.inner_tiles()).collect(),
            WeightOrder::Sliced => self.choice.stacks.iter().map(Stack::range).collect(),
        }
    }

    /// Whether rows packed for this plan are packed for the other as well: products of the same rows can then
    /// share an input buffer.
    pub fn shares_input_with(&self, other: &MatmulPlan) -> bool {
        let (a, b) = (&self.blocks, &other.blocks);
        let (precision, inner) = (self.shape.precision, self.shape.inner);
        let same =
            |(a, b): (&Block, &Block)| (&a.rows, a.stack, a.input_at) == (&b.rows, b.stack, b.input_at);
        (precision, inner) == (other.shape.precision, other.shape.inner)
            && a.len() == b.len()
            && a.iter().zip(b).all(same)
    }

    /// What each core's tasks ask of the hardware, `[core][task]`: for predictions without running. Tasks that
    /// are kicked one by one reuse nothing and read more than is said here, unless the limits are
    /// [`Limits::on`] the interface.
    pub fn work(&self) -> Vec<Vec<TaskWork>> {
        let chains = self.chains.iter();
        chains.map(|chain| chain.iter().map(|task| task.form.size.work(task.form.reuse)).collect()).collect()
    }

    /// The tasks in one command buffer, and which of [`Program::tasks`] are whose core's. Bases are, in
    /// order, weights, input, output and per-channel operands ([`Program::bind`] takes an address for each,
    /// whether used or not).
    ///
    /// # Errors
    /// [`regcmd::BindError`]: the tasks do not fit one buffer.
    pub fn program(
        &self,
        options: ProgramOptions,
    ) -> Result<(Program, Vec<Range<usize>>), regcmd::BindError> {
        let per_kick = tasks_per_kick(options.chaining);
        let mut program = Program::new(options);
        let chains = self.chains.iter().map(|chain| self.encoded(chain, 0, per_kick));
        let ranges = chains.map(|chain| program.chain(&chain)).collect::<Result<_, _>>()?;
        Ok((program, ranges))
    }

    /// The encoded tasks of one core's chain, of which the first is task `first` of what the core runs;
    /// addresses are bases plus offsets. The first of every `per_kick` tasks fetches all it needs, whatever
    /// the plan says of reuse.
    fn encoded(&self, chain: &[PlannedTask], first: usize, per_kick: usize) -> Vec<EncodedTask> {
        let tasks = chain.iter().zip(first..);
        tasks.map(|(task, index)| self.encoded_task(task, index.is_multiple_of(per_kick))).collect()
    }

    fn encoded_task(&self, task: &PlannedTask, fetching: bool) -> EncodedTask {
        let form = if fetching { task.form.fetching() } else { task.form };
        let mut encoded = self.templates[&form].clone();
        let output_at = task.output_at(&self.shape, &self.blocks);
        let operands_at =
            task.groups.start * self.shape.precision.tile_rows() * task.form.size.stage.operand_bytes();
        for relocation in &mut encoded.relocations {
            // `new` checked that every buffer is shorter than 4 GiB.
            relocation.offset = match relocation.slot {
                AddressSlot::Feature => self.blocks[task.block].input_at,
                AddressSlot::Weights => task.weights_at,
                AddressSlot::Output => output_at,
                AddressSlot::Bias => operands_at,
                AddressSlot::Source
                | AddressSlot::Scale
                | AddressSlot::Operand
                | AddressSlot::PoolSource
                | AddressSlot::PoolOutput => continue,
            } as u32;
        }
        encoded
    }
}

/// Tasks that the driver starts at once, between which the buffer keeps what it holds: all that the program
/// controller counts (12 bits, to which the vendor's driver cuts chains), or with `rocket` each alone.
/// Reuse is in the vendor's streams within a kick only; whether the buffer outlives one is in no source.
fn tasks_per_kick(chaining: Chaining) -> usize {
    match chaining {
        Chaining::Linked => RKNPU_MAX_SUBMIT_NUMBER as usize,
        Chaining::Separate => 1,
    }
}

impl PlanOptions {
    pub(crate) fn is_requantised(&self) -> bool {
        matches!(self.output, OutputStage::Requantised(_))
    }
}

/// Refuses options that no choice can satisfy.
fn check(shape: &MatmulShape, options: &PlanOptions) -> Result<(), PlanError> {
    if !(1..=3).contains(&options.cores) {
        return Err(PlanError::Cores(options.cores));
    }
    let precision = shape.precision;
    let limit = options.limits.inner_tiles(precision) * TILE_COLUMNS;
    if let Some(columns) = options.slice
        && (columns == 0 || !columns.is_multiple_of(TILE_COLUMNS) || columns > limit)
    {
        return Err(PlanError::Slice { columns, limit, precision });
    }
    if options.is_requantised() && (precision != Precision::Int8 || shape.inner > limit) {
        return Err(PlanError::Requantise { shape: *shape, limit });
    }
    match &options.output {
        OutputStage::Accumulators => Ok(()),
        OutputStage::Requantised(requantise) => requantise.check(),
    }
}
