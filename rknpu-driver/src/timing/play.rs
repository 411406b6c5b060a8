//! Chains of tasks, played against each other.

use std::time::Duration;

use super::{Board, TaskWork};

/// How long a job takes.
#[derive(Debug, Clone, PartialEq)]
pub struct JobTime {
    /// From submission to completion.
    pub elapsed: Duration,
    /// One entry per chain, in the order given.
    pub cores: Vec<CoreTime>,
    /// Bytes that crossed the memory interface.
    pub bytes: u64,
}

/// How long one chain kept its core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoreTime {
    /// From the first task's start to the last one's end.
    pub busy: Duration,
    /// Time in which the array computed.
    pub computing: Duration,
}

/// How long `task` takes on a core that has the memory to itself.
#[must_use]
pub fn task_time(board: &Board, task: &TaskWork) -> Duration {
    let seconds_computing = task.mac_cycles as f64 / board.clock_hz;
    let seconds_moving = task.bytes() as f64 / board.core_bytes_per_s.min(board.streamed_bytes_per_s());
    board.task_overhead + Duration::from_secs_f64(seconds_computing.max(seconds_moving))
}

/// How long a job takes whose chains, one per core, start at the same time.
#[must_use]
pub fn job_time(board: &Board, chains: &[Vec<TaskWork>]) -> JobTime {
    let cores: Vec<CoreTime> = chains
        .iter()
        .map(|chain| CoreTime {
            busy: chain.iter().map(|task| task_time(board, task)).sum(),
            computing: Duration::ZERO,
        })
        .collect();
    let busiest = cores.iter().map(|core| core.busy).max().unwrap_or_default();
    let bytes = chains.iter().flatten().map(TaskWork::bytes).sum();
    JobTime { elapsed: board.submit_overhead + busiest, cores, bytes }
}
