//! Checked settings of the NPU backend.

use std::{path::PathBuf, time::Duration};

use super::FaultLimits;
use crate::config::{NpuFused, NpuInterface, NpuPolicy, NpuSection, NpuW4};

/// Checked settings of the NPU backend; [`crate::config::NpuSection`] says what each means.
#[derive(Debug, Clone, PartialEq)]
pub struct NpuSettings {
    /// The kernel's interface.
    pub interface: NpuInterface,
    /// Device node.
    pub node: Option<PathBuf>,
    /// What goes to the NPU.
    pub policy: NpuPolicy,
    /// How int4 weights are multiplied.
    pub w4: NpuW4,
    /// Operations between linear layers that the NPU computes in fp16.
    pub fused: Vec<NpuFused>,
    /// Cores to use, from 1 to 3.
    pub cores: u8,
    /// Longest time for one job.
    pub job_timeout: Duration,
    /// Whether every result is checked before it is used.
    pub check_results: bool,
    /// Prepared products that are kept.
    pub max_plans: usize,
    /// When a failing device is reset, set aside and tried again.
    pub faults: FaultLimits,
    /// What the cost model assumes of the board.
    pub board: BoardSettings,
}

/// What the cost model assumes of the board; [`crate::config::BoardSection`] says what each means.
#[derive(Debug, Clone, PartialEq)]
pub struct BoardSettings {
    /// Clock of the NPU in Hz.
    pub npu_clock_hz: Option<f64>,
    /// Bytes per second that the NPU reads from memory.
    pub npu_bytes_per_second: Option<f64>,
    /// Time to submit a job and to learn of its end.
    pub submit_overhead: Option<Duration>,
    /// Time for each task of a job.
    pub task_overhead: Option<Duration>,
    /// Bytes of weights per second that all threads together read.
    pub cpu_bytes_per_second: f64,
    /// Multiply-adds per second of one thread.
    pub cpu_macs_per_second: f64,
    /// Bytes per second that one thread packs or unpacks.
    pub cpu_pack_bytes_per_second: f64,
}

impl Default for NpuSettings {
    fn default() -> Self {
        NpuSection::default().validate().expect("defaults are valid, as a test shows")
    }
}
