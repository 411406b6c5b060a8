//! What a plan may assume and use.

use thiserror::Error;

use crate::shape::{MatmulShape, ShapeError};

/// What a plan may use.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Cores to spread over, 1–3.
    pub cores: usize,
    /// Limits of the hardware as far as they are known.
    pub limits: Limits,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions { cores: 1, limits: Limits::default() }
    }
}

/// Limits a task must keep. The defaults are what has been seen to work on silicon.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of one kernel (K of one output channel) in a task.
    pub kernel_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { kernel_bytes: 8192 }
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The shape itself is impossible.
    #[error("impossible shape")]
    Shape(#[from] ShapeError),
    /// The number of cores is not 1–3.
    #[error("{0} cores asked for, the chip has 1 to 3")]
    Cores(usize),
    /// Buffers would not fit an address space.
    #[error("{shape}: the buffers take {bytes} bytes, an address space has 4 GiB")]
    TooManyBytes {
        /// What was planned.
        shape: MatmulShape,
        /// Bytes of all buffers.
        bytes: u64,
    },
}
