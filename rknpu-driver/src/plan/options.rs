//! What a plan may assume and use.

use thiserror::Error;

use super::requantise::{MOST_SCALE, MOST_SHIFT, Requantise};
use crate::device::Interface;
use crate::regcmd::{BindError, TaskError};
use crate::shape::{MatmulShape, Precision, ShapeError, TILE_COLUMNS};
use crate::timing::Board;

/// What a plan may use.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Cores to spread over, 1–3. Fewer are used when more would not be faster.
    pub cores: usize,
    /// Limits of the hardware as far as they are known.
    pub limits: Limits,
    /// Whose times decide between ways to compute the same product.
    pub board: Board,
    /// Cut K into slices of exactly this many columns (the last may be shorter) and keep their sums apart: a
    /// multiple of 32. `w4` needs 128. None lets the planner choose.
    pub slice: Option<usize>,
    /// How the weights lie.
    pub weights: WeightOrder,
    /// What the device writes.
    pub output: OutputStage,
}

/// How weights lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightOrder {
    /// As stored: `[N/group][K/32]` tiles. A part of K is contiguous within one kernel group only.
    #[default]
    Stored,
    /// Region by region of K ([`MatmulPlan::weight_regions`](super::MatmulPlan::weight_regions)), each
    /// `[N/group][its K/32]`: what a host that writes weights anyway (expansion of int4, staging) can choose,
    /// so that K can be cut freely.
    Sliced,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions {
            cores: 1,
            limits: Limits::default(),
            board: Board::rk3588_vendor(),
            slice: None,
            weights: WeightOrder::Stored,
            output: OutputStage::Accumulators,
        }
    }
}

/// What the device makes of the accumulators.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum OutputStage {
    /// Writes them: int32, int16 (int4 products) or binary32. The numeric contract rests on this one.
    #[default]
    Accumulators,
    /// int8 products only: adds a bias, scales, rounds and saturates to int8.
    Requantised(Requantise),
}

/// Limits a task must keep. The defaults are what has been seen to work on silicon, or what the vendor's
/// compiler emits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// K of one int8 task. The default, 8,192, ran on silicon (one open driver says so); the vendor's
    /// compiler stops at 3,072 without giving a reason. A kernel group of 32 rows must fit the buffer beside
    /// the features whatever this says.
    pub int8_inner: usize,
    /// K of one fp16 task. The default, 10,240, ran on silicon (one source); the vendor's compiler stops at
    /// 1,536.
    pub fp16_inner: usize,
    /// K of one int4 task: 480·8·8 is the longest sum, in whole tiles, that cannot leave int16.
    pub int4_inner: usize,
    /// Output channels of one task. 8,128 is the most that the vendor's compiler emits; the cube fields hold
    /// 8,192.
    pub outputs: usize,
    /// Rows of one task: the width fields have 11 bits.
    pub rows: usize,
    /// Whether a task may use the weights that the one before it left in the buffer (the vendor's streams
    /// do, within a kick). Whatever this says, the first task of a kick fetches its own; see
    /// [`on`](Self::on).
    pub weight_reuse: bool,
    /// Whether a task may use the features that the one before it left. One source says the hardware honours
    /// it; the vendor's compiler does not ask for it in any stream seen. Off by default.
    pub data_reuse: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            int8_inner: 8192,
            fp16_inner: 10_240,
            int4_inner: 480,
            outputs: 8128,
            rows: 2047,
            weight_reuse: true,
            data_reuse: false,
        }
    }
}

impl Limits {
    /// Only what the vendor's compiler does: for a board on which a self-test with the defaults fails.
    pub fn vendor() -> Self {
        Limits { int8_inner: 3072, fp16_inner: 1536, ..Limits::default() }
    }

    /// These limits on a device of this interface. `rocket` kicks each task alone, and that the buffer keeps
    /// its contents from one kick to the next is in no source: nothing is reused there. Binding a plan leaves
    /// reuse out in any case; only with these limits does the plan reckon with it.
    pub fn on(self, interface: Interface) -> Self {
        match interface {
            Interface::Vendor => self,
            Interface::Rocket => Limits { weight_reuse: false, data_reuse: false, ..self },
        }
    }

    /// Longest slice of K in tiles, at least one.
    pub(crate) fn inner_tiles(&self, precision: Precision) -> usize {
        let inner = match precision {
            Precision::Int8 => self.int8_inner,
            Precision::Int4 => self.int4_inner.min(480),
            Precision::Fp16 => self.fp16_inner,
        };
        (inner / TILE_COLUMNS).max(1)
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The shape itself is impossible.
    #[error("impossible shape")]
    Shape(#[from] ShapeError),
    /// The number of cores is not 1–3.
    #[error("{0} cores asked for, the chip has 1 to 3")]
    Cores(usize),
    /// The slice of K is not a positive multiple of 32, or longer than a task can take.
    #[error("slices of {columns} columns: multiples of 32 up to {limit} are possible for {precision:?}")]
    Slice {
        /// Columns asked for.
        columns: usize,
        /// Longest slice of one task.
        limit: usize,
        /// Element type.
        precision: Precision,
    },
    /// Requantisation needs int8 and a K that one task can take.
    #[error("{shape}: only int8 products of K up to {limit} can be requantised")]
    Requantise {
        /// What was to be planned.
        shape: MatmulShape,
        /// Longest K of one task.
        limit: usize,
    },
    /// The output converter has no such multiplier or shift.
    #[error("requantisation by {scale} / 2^{shift}: at most {MOST_SCALE} / 2^{MOST_SHIFT} is possible")]
    Converter {
        /// Multiplier asked for.
        scale: u16,
        /// Shift asked for.
        shift: u8,
    },
    /// Buffers would not fit an address space.
    #[error("{shape}: the buffers take {bytes} bytes, an address space has 4 GiB")]
    TooManyBytes {
        /// What was to be planned.
        shape: MatmulShape,
        /// Bytes of the largest buffer.
        bytes: u64,
    },
    /// So many tasks that their commands alone would fill memory.
    #[error("{shape}: {tasks} tasks on one core, at most {limit} are planned")]
    TooManyTasks {
        /// What was to be planned.
        shape: MatmulShape,
        /// Tasks of the busiest core.
        tasks: u64,
        /// The most that are planned.
        limit: u64,
    },
    /// No way to cut the product keeps the limits given.
    #[error("{shape}: no cut of the product keeps the limits")]
    NoFit {
        /// What was to be planned.
        shape: MatmulShape,
    },
    /// A task does not fit its registers: limits above what the fields hold.
    #[error("a task cannot be encoded")]
    Encode(#[from] TaskError),
    /// The tasks do not fit one command buffer.
    #[error("the tasks cannot be laid out")]
    Layout(#[from] BindError),
}
