//! What a way of cutting a product costs, in closed form.
//!
//! Each task takes its overhead plus the longer of computing and moving its bytes, or both where weights
//! cannot arrive while others are used. The busiest core sets the time, unless all cores together need longer
//! for their bytes than the memory does.

use super::choose::{Axis, Cut, Tiling};
use super::options::PlanOptions;
use super::work::{Reuse, TaskSize};
use crate::shape::MatmulShape;
use crate::timing::{Board, TaskWork};

/// Bytes of results that the host reads and adds in a second: about what one big core of the chip copies (13
/// GB/s measured, both ways). It only keeps cuts of K from looking free.
const HOST_BYTES_PER_S: f64 = 6.5e9;

/// What a choice costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// From submission to the last interrupt.
    pub seconds: f64,
    /// The host's reading of results, slices of K added up.
    pub host_seconds: f64,
    /// All tasks of the busiest core.
    pub work: TaskWork,
    /// Whether a task gets more of K than the vendor's compiler would give it.
    pub longer_than_vendors: bool,
}

impl Cost {
    /// Whether this is to be preferred. A K longer than the vendor's compiler gives a task must save five per
    /// cent to be worth it, as only one source has run it. Differences below one per cent are noise of the
    /// model: then fewer tasks in a row, then fewer bytes on the busiest core, which means more cores:
    /// measurements of streaming weights found a single core further from the memory's rate than the model
    /// has it.
    pub(crate) fn is_better(&self, other: &Cost) -> bool {
        let weigh = |cost: &Cost| {
            (cost.seconds + cost.host_seconds) * if cost.longer_than_vendors { 1.05 } else { 1.0 }
        };
        let (mine, others) = (weigh(self), weigh(other));
        if (mine - others).abs() > others * 0.01 {
            return mine < others;
        }
        let key = |cost: &Cost| (cost.work.tasks, cost.work.bytes());
        key(self) < key(other)
    }
}

/// What the busiest core computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Rows of A.
    pub(crate) rows: usize,
    /// Kernel groups.
    pub(crate) groups: usize,
}

impl Share {
    /// Cores share groups evenly, rows in steps of the array's 16.
    pub(crate) fn new(shape: &MatmulShape, cores: usize, axis: Axis) -> Share {
        let (rows, groups) = (shape.rows, shape.groups());
        match axis {
            _ if cores == 1 => Share { rows, groups },
            Axis::Outputs => Share { rows, groups: groups.div_ceil(cores) },
            Axis::Rows => Share { rows: rows.div_ceil(cores).next_multiple_of(16).min(rows), groups },
        }
    }

    pub(crate) fn leaves_a_core_idle(&self, shape: &MatmulShape, cores: usize, axis: Axis) -> bool {
        match axis {
            Axis::Outputs => self.groups * (cores - 1) >= shape.groups(),
            Axis::Rows => cores > 1 && self.rows * (cores - 1) >= shape.rows,
        }
    }
}

/// `count` pieces of `size` and what remains, as (size, how many).
fn pieces(total: usize, size: usize) -> [(usize, u64); 2] {
    [(size, (total / size) as u64), (total % size, u64::from(!total.is_multiple_of(size)))]
}

/// What a tiling of a cut costs.
pub(crate) fn cost(shape: &MatmulShape, options: &PlanOptions, cut: &Cut<'_>, tiling: &Tiling) -> Cost {
    let board = &options.board;
    let share = Share::new(shape, tiling.cores, tiling.axis);
    let (row_tiles, chunks) = (pieces(share.rows, tiling.tile_rows), pieces(share.groups, tiling.chunk));
    let reusing = Reuse { weights: tiling.weight_reuse, features: tiling.data_reuse };
    let (mut busy, mut work) = (0.0, TaskWork::default());
    for &(stack, stack_count) in &cut.kinds {
        for (row_kind, (rows, row_count)) in row_tiles.into_iter().enumerate() {
            for (chunk_kind, (groups, chunk_count)) in chunks.into_iter().enumerate() {
                let size = TaskSize::new(shape.precision, &options.output, &stack, rows, groups);
                let all = row_count * chunk_count * stack_count;
                // Only the first row tile of a run fetches weights that are reused, only the first chunk
                // features.
                let fetching = match (tiling.weight_reuse, tiling.data_reuse) {
                    (true, _) if row_kind == 0 => all / row_count.max(1),
                    (_, true) if chunk_kind == 0 => all / chunk_count.max(1),
                    (true, _) | (_, true) => 0,
                    (false, false) => all,
                };
                for (reuse, count) in [(Reuse::default(), fetching), (reusing, all - fetching)] {
                    let task = size.work(reuse);
                    let overlaps = size.overlaps(tiling.data_banks, reuse);
                    busy += count as f64 * task_seconds(board, &task, overlaps);
                    work += times(&task, count);
                }
            }
        }
    }
    // Cores share the memory: their bytes in proportion to what the busiest has of the product.
    let parts = match tiling.axis {
        Axis::Outputs => shape.groups() as f64 / share.groups as f64,
        Axis::Rows => shape.rows as f64 / share.rows as f64,
    };
    let starting = work.tasks as f64 * board.task_overhead.as_secs_f64();
    let streaming = starting + work.bytes() as f64 * parts / board.streamed_bytes_per_s();
    let seconds = board.submit_overhead.as_secs_f64() + busy.max(streaming);
    let slices = cut.kinds.iter().map(|(stack, count)| stack.slices as u64 * count).sum::<u64>();
    let size = shape.precision.output_bytes() as u64;
    let results = slices * shape.rows as u64 * shape.outputs as u64 * size;
    let host_seconds = results as f64 / HOST_BYTES_PER_S;
    Cost { seconds, host_seconds, work, longer_than_vendors: cut.longer_than_vendors }
}

fn task_seconds(board: &Board, task: &TaskWork, overlaps: bool) -> f64 {
    let computing = task.mac_cycles as f64 / (board.clock_hz * board.mac_efficiency);
    let moving = task.bytes() as f64 / board.core_bytes_per_s.min(board.streamed_bytes_per_s());
    let working = if overlaps { computing.max(moving) } else { computing + moving };
    board.task_overhead.as_secs_f64() + working
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
