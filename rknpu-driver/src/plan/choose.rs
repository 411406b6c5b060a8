//! Which way of cutting a product is fastest.
//!
//! Every combination of a cut of K, banks for features, loop order, cores and what they share is costed in
//! closed form ([`super::cost`]). The loop order decides what is fetched again: with features outside, every
//! row tile streams all weights; with weights outside, every chunk of groups streams all features and later
//! row tiles reuse the chunk.

use super::cost::{Cost, Share};
use super::geometry::{BANKS, most_pixels, pixel_tile_bytes, resident_groups};
use super::options::{OutputStage, PlanOptions, WeightOrder};
use super::partition::{Stack, partitions};
use crate::shape::{MatmulShape, TILE_COLUMNS};

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
    /// How rows and outputs are.
    pub tiling: Tiling,
}

/// How rows and outputs are cut, and in which order the parts are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
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

/// The fastest way by the board's times; None where no cut keeps the limits.
pub(crate) fn choose(shape: &MatmulShape, options: &PlanOptions) -> Option<(Choice, Cost)> {
    let longest = options.limits.inner_tiles(shape.precision);
    let exact = options.slice.map(|columns| columns / TILE_COLUMNS);
    let cuts = partitions(shape.inner_tiles(), exact.unwrap_or(longest), exact);
    let mut best: Option<(usize, Tiling, Cost)> = None;
    for (index, stacks) in cuts.iter().enumerate() {
        let whole = matches!(&stacks[..], [Stack { slices: 1, .. }]);
        if matches!(options.output, OutputStage::Requantised(_)) && !whole {
            continue;
        }
        let cut = Cut::new(shape, options, stacks);
        for tiling in cut.tilings() {
            let cost = super::cost::cost(shape, options, &cut, &tiling);
            if best.as_ref().is_none_or(|(_, _, least)| cost.is_better(least)) {
                best = Some((index, tiling, cost));
            }
        }
    }
    let (index, tiling, cost) = best?;
    Some((Choice { stacks: cuts[index].clone(), tiling }, cost))
}

/// A cut of K, and what all its tilings have in common.
pub(crate) struct Cut<'a> {
    shape: &'a MatmulShape,
    options: &'a PlanOptions,
    /// The different stacks, and how many of each there are.
    pub(crate) kinds: Vec<(Stack, u64)>,
    /// Whether all of a slice's weights of several groups lie side by side.
    contiguous: bool,
    /// Whether a task gets more of K than the vendor's compiler would give it.
    pub(crate) longer_than_vendors: bool,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(shape: &'a MatmulShape, options: &'a PlanOptions, stacks: &[Stack]) -> Self {
        // Equal stacks are neighbours: at most three kinds.
        let runs = stacks.chunk_by(|a, b| (a.tiles, a.slices) == (b.tiles, b.slices));
        let kinds: Vec<(Stack, u64)> = runs.map(|run| (run[0], run.len() as u64)).collect();
        let tiles = stacks.iter().map(|stack| stack.tiles).max().unwrap_or(0);
        Cut {
            shape,
            options,
            kinds,
            contiguous: stacks.len() == 1 || options.weights == WeightOrder::Sliced,
            longer_than_vendors: tiles * pixel_tile_bytes(shape.precision) > VENDOR_KERNEL_BYTES,
        }
    }

    /// Every tiling that keeps the limits.
    fn tilings(&self) -> impl Iterator<Item = Tiling> {
        let shares = (1..=self.options.cores).flat_map(|cores| {
            let axes: &[Axis] = if cores == 1 { &[Axis::Outputs] } else { &[Axis::Outputs, Axis::Rows] };
            axes.iter().map(move |&axis| (cores, axis))
        });
        shares.flat_map(move |(cores, axis)| {
            (1..BANKS).flat_map(move |banks| {
                [Order::FeaturesOutside, Order::WeightsOutside]
                    .into_iter()
                    .filter_map(move |order| self.tiling(cores, axis, banks, order))
            })
        })
    }

    /// The sizes that follow from one combination; None where it keeps no limit, leaves a core idle, or is
    /// the same as another.
    fn tiling(&self, cores: usize, axis: Axis, banks: usize, order: Order) -> Option<Tiling> {
        let (limits, precision) = (&self.options.limits, self.shape.precision);
        let share = Share::new(self.shape, cores, axis);
        if share.leaves_a_core_idle(self.shape, cores, axis) {
            return None;
        }
        let (mut most_rows, mut resident, mut most_stacked) = (share.rows, usize::MAX, 1);
        for (stack, _) in &self.kinds {
            let pixels = most_pixels(stack.tiles * pixel_tile_bytes(precision), banks).min(limits.rows);
            most_rows = most_rows.min(pixels / stack.slices);
            // What the hardware calls a kernel group is one slice of a group of N.
            let groups = resident_groups(banks, stack.tiles);
            if groups == 0 {
                return None;
            }
            resident = resident.min(groups / stack.slices);
            most_stacked = most_stacked.max(stack.slices);
        }
        if most_rows == 0 {
            return None;
        }
        let several_tiles = share.rows > most_rows;
        let weight_reuse =
            order == Order::WeightsOutside && several_tiles && limits.weight_reuse && resident > 0;
        if order == Order::WeightsOutside && !weight_reuse {
            return None;
        }
        let mut chunk = share.groups.min(limits.outputs / (precision.tile_rows() * most_stacked));
        if !self.contiguous {
            chunk = chunk.min(1);
        }
        if weight_reuse {
            chunk = chunk.min(resident);
        }
        if chunk == 0 {
            return None;
        }
        let data_reuse = limits.data_reuse && order == Order::FeaturesOutside;
        let tile_rows = balanced(share.rows, most_rows);
        Some(Tiling { tile_rows, chunk, data_banks: banks, order, axis, cores, weight_reuse, data_reuse })
    }
}

/// Rows of a tile when `rows` are cut into as few tiles of at most `most` as possible: nearly equal, in steps
/// of 16 (the array's) where that fits.
fn balanced(rows: usize, most: usize) -> usize {
    let equal = rows.div_ceil(rows.div_ceil(most));
    let stepped = equal.next_multiple_of(16);
    if stepped <= most { stepped } else { equal }
}
