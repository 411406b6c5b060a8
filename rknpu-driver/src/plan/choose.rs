//! Which way of cutting a product is fastest.
//!
//! Every combination of a cut of K, banks for features, loop order, cores and what they share is costed in closed form: each task takes its
//! overhead plus the longer of computing and moving its bytes, or both where weights cannot arrive while others are
//! used. The loop order decides what is fetched again: with features outside, every row tile streams all weights; with
//! weights outside, every chunk of groups streams all features and later row tiles reuse the chunk.

use super::geometry::{BANKS, most_pixels, pixel_tile_bytes, resident_groups};
use super::options::{OutputStage, PlanOptions};
use super::partition::{Stack, partitions};
use super::work::{Reuse, TaskSize};
use crate::shape::MatmulShape;
use crate::timing::TaskWork;

/// What is kept while the other is walked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// For each row tile all weights.
    FeaturesOutside,
    /// For each chunk of kernel groups all row tiles.
    WeightsOutside,
}

/// What cores share out among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Kernel groups; every core reads all features.
    Outputs,
    /// Rows; every core reads all weights.
    Rows,
}

/// A way to compute a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// How K is cut.
    pub stacks: Vec<Stack>,
    /// Rows of A in a task; the last tile may have fewer.
    pub tile_rows: usize,
    /// Kernel groups of N in a task; the last chunk may have fewer.
    pub chunk: usize,
    /// Banks left to features; the others hold weights.
    pub data_banks: usize,
    /// Loop order.
    pub order: Order,
    /// What is shared out.
    pub axis: Axis,
    /// Cores used.
    pub cores: usize,
    /// Whether later row tiles use the weights left in the buffer.
    pub weight_reuse: bool,
    /// Whether later chunks use the features left in the buffer.
    pub data_reuse: bool,
}

/// Bytes of K that the vendor's compiler gives one task at most.
const VENDOR_KERNEL_BYTES: usize = 3072;

impl Choice {
    fn is_longer_than_vendors(&self, shape: &MatmulShape) -> bool {
        let tiles = self.stacks.iter().map(|stack| stack.tiles).max().unwrap_or(0);
        tiles * pixel_tile_bytes(shape.precision) > VENDOR_KERNEL_BYTES
    }
}

/// What a choice costs, the better one being less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Of the busiest core.
    pub seconds: f64,
    /// All tasks of that core.
    pub work: TaskWork,
}

impl Cost {
    /// Whether this is to be preferred. A K longer than the vendor's compiler gives a task must save two per cent to be worth it, as only
    /// one source has run it. Differences below a thousandth are noise of the model: then fewer tasks, then fewer bytes.
    fn is_better(&self, longer: bool, other: &Cost, other_longer: bool) -> bool {
        let weigh = |cost: &Cost, longer: bool| cost.seconds * if longer { 1.02 } else { 1.0 };
        let (mine, others) = (weigh(self, longer), weigh(other, other_longer));
        if (mine - others).abs() <= others * 1e-3 {
            let key = |cost: &Cost| (cost.work.tasks, cost.work.bytes());
            return key(self) < key(other);
        }
        mine < others
    }
}

/// The fastest way by the board's times; None where no cut keeps the limits.
pub(crate) fn choose(shape: &MatmulShape, options: &PlanOptions) -> Option<(Choice, Cost)> {
    let longest = options.limits.inner_tiles(shape.precision);
    let exact = options.slice.map(|columns| columns / crate::shape::TILE_COLUMNS);
    let mut best: Option<(Choice, Cost)> = None;
    for stacks in partitions(shape.inner_tiles(), exact.unwrap_or(longest).min(longest), exact) {
        let whole = matches!(&stacks[..], [Stack { slices: 1, .. }]);
        if matches!(options.output, OutputStage::Requantised(_)) && !whole {
            continue;
        }
        for cores in 1..=options.cores {
            for axis in [Axis::Outputs, Axis::Rows] {
                if cores == 1 && axis == Axis::Rows {
                    continue;
                }
                for banks in 1..BANKS {
                    for order in [Order::FeaturesOutside, Order::WeightsOutside] {
                        let Some(choice) = candidate(shape, options, &stacks, cores, axis, banks, order)
                        else {
                            continue;
                        };
                        let cost = cost(shape, options, &choice);
                        let longer = choice.is_longer_than_vendors(shape);
                        let better = best.as_ref().is_none_or(|(other, least)| {
                            cost.is_better(longer, least, other.is_longer_than_vendors(shape))
                        });
                        if better {
                            best = Some((choice, cost));
                        }
                    }
                }
            }
        }
    }
    best
}

/// The sizes that follow from one combination; None where it keeps no limit or is the same as another.
fn candidate(
    shape: &MatmulShape,
    options: &PlanOptions,
    stacks: &[Stack],
    cores: usize,
    axis: Axis,
    banks: usize,
    order: Order,
) -> Option<Choice> {
    let (limits, precision) = (&options.limits, shape.precision);
    let most_stacked = stacks.iter().map(|stack| stack.slices).max()?;
    let rows = rows_of_core(shape.rows, cores, axis);
    let groups = groups_of_core(shape.groups(), cores, axis);
    if cores > 1 && (axis == Axis::Rows && rows * (cores - 1) >= shape.rows) {
        return None;
    }
    if cores > 1 && (axis == Axis::Outputs && groups * (cores - 1) >= shape.groups()) {
        return None;
    }
    let mut most_rows = rows;
    let mut resident = usize::MAX;
    for stack in stacks {
        let pixels = most_pixels(stack.tiles * pixel_tile_bytes(precision), banks).min(limits.rows);
        most_rows = most_rows.min(pixels / stack.slices);
        // A stack's groups are short ones; the hardware's group is one slice of one group.
        let groups = resident_groups(banks, stack.tiles);
        if groups == 0 {
            return None;
        }
        resident = resident.min(groups / stack.slices);
    }
    if most_rows == 0 {
        return None;
    }
    let most_groups = limits.outputs / (precision.tile_rows() * most_stacked);
    let contiguous = stacks.len() == 1;
    let tiles = rows.div_ceil(most_rows);
    let keeps_weights = order == Order::WeightsOutside && tiles > 1 && limits.weight_reuse && resident > 0;
    if order == Order::WeightsOutside && !keeps_weights {
        return None;
    }
    let most = if !contiguous { most_groups.min(1) } else { most_groups };
    let most = if keeps_weights { most.min(resident) } else { most };
    if most == 0 {
        return None;
    }
    let chunk = most.min(groups);
    let data_reuse = limits.data_reuse && order == Order::FeaturesOutside;
    let tile_rows = balanced(rows, most_rows);
    let stacks = stacks.to_vec();
    let weight_reuse = keeps_weights;
    let data_banks = banks;
    Some(Choice { stacks, tile_rows, chunk, data_banks, order, axis, cores, weight_reuse, data_reuse })
}

/// Rows of a tile when `rows` are cut into as few tiles of at most `most` as possible: nearly equal, in steps of 16 (the array's)
/// where that fits.
fn balanced(rows: usize, most: usize) -> usize {
    let equal = rows.div_ceil(rows.div_ceil(most));
    let stepped = equal.next_multiple_of(16);
    if stepped <= most { stepped } else { equal }
}

/// Rows that the busiest core computes.
pub(crate) fn rows_of_core(rows: usize, cores: usize, axis: Axis) -> usize {
    match axis {
        Axis::Outputs => rows,
        Axis::Rows if cores == 1 => rows,
        Axis::Rows => rows.div_ceil(cores).next_multiple_of(16).min(rows),
    }
}

/// Kernel groups that the busiest core computes.
pub(crate) fn groups_of_core(groups: usize, cores: usize, axis: Axis) -> usize {
    match axis {
        Axis::Outputs => groups.div_ceil(cores),
        Axis::Rows => groups,
    }
}

/// `count` pieces of `size` and what remains, as (size, how many).
fn pieces(total: usize, size: usize) -> [(usize, u64); 2] {
    [(size, (total / size) as u64), (total % size, u64::from(!total.is_multiple_of(size)))]
}

/// What the busiest core's tasks take.
pub(crate) fn cost(shape: &MatmulShape, options: &PlanOptions, choice: &Choice) -> Cost {
    let board = &options.board;
    let shared = board.streamed_bytes_per_s() / choice.cores as f64;
    let bytes_per_s = board.core_bytes_per_s.min(shared);
    let rows = rows_of_core(shape.rows, choice.cores, choice.axis);
    let groups = groups_of_core(shape.groups(), choice.cores, choice.axis);
    let row_tiles = pieces(rows, choice.tile_rows);
    let chunks = pieces(groups, choice.chunk);
    let mut total = Cost { seconds: board.submit_overhead.as_secs_f64(), work: TaskWork::default() };
    // Stacks come in at most three kinds, each a run of equals.
    for stacks in choice.stacks.chunk_by(|a, b| (a.tiles, a.slices) == (b.tiles, b.slices)) {
        for (row_kind, &(rows, row_count)) in row_tiles.iter().enumerate() {
            for (chunk_kind, &(groups, chunk_count)) in chunks.iter().enumerate() {
                let size = TaskSize::new(shape.precision, &options.output, &stacks[0], rows, groups);
                let all = row_count * chunk_count * stacks.len() as u64;
                // Only the first row tile of a run fetches weights that are reused, only the first chunk features.
                let fetching = match (choice.weight_reuse, choice.data_reuse) {
                    (true, _) if row_kind == 0 => all / row_count.max(1),
                    (_, true) if chunk_kind == 0 => all / chunk_count.max(1),
                    (true, _) | (_, true) => 0,
                    (false, false) => all,
                };
                let reusing = Reuse { weights: choice.weight_reuse, features: choice.data_reuse };
                for (reuse, count) in [(Reuse::default(), fetching), (reusing, all - fetching)] {
                    let work = size.work(reuse);
                    let computing = work.mac_cycles as f64 / board.clock_hz;
                    let moving = work.bytes() as f64 / bytes_per_s;
                    let busy = if size.overlaps(choice.data_banks, reuse) {
                        computing.max(moving)
                    } else {
                        computing + moving
                    };
                    total.seconds += count as f64 * (board.task_overhead.as_secs_f64() + busy);
                    total.work += times(&work, count);
                }
            }
        }
    }
    total
}

/// What `count` such tasks take.
fn times(work: &TaskWork, count: u64) -> TaskWork {
    TaskWork {
        tasks: work.tasks * count,
        mac_cycles: work.mac_cycles * count,
        read_bytes: work.read_bytes * count,
        write_bytes: work.write_bytes * count,
        command_bytes: work.command_bytes * count,
    }
}
