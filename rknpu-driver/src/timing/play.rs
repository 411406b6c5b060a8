//! Chains of tasks, played against each other.
//!
//! Each core works through its chain; within a task, computing and moving bytes overlap perfectly (what the vendor compiler
//! assumes). All cores that move bytes at a moment share the memory evenly, none faster than one core can stream.

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
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CoreTime {
    /// From the job's start on the hardware to the end of the chain's last task.
    pub busy: Duration,
    /// Time in which the array computed.
    pub computing: Duration,
}

/// How long `task` takes on a core that has the memory to itself, without the job's submission.
#[must_use]
pub fn task_time(board: &Board, task: &TaskWork) -> Duration {
    let seconds_moving = task.bytes() as f64 / board.core_bytes_per_s.min(board.streamed_bytes_per_s());
    seconds(overhead(board, task) + computing(board, task).max(seconds_moving))
}

/// How long a job takes whose chains, one per core, start at the same time.
#[must_use]
pub fn job_time(board: &Board, chains: &[Vec<TaskWork>]) -> JobTime {
    let mut cores: Vec<Core<'_>> = chains.iter().map(|tasks| Core::start(board, tasks)).collect();
    let mut now = 0.0;
    loop {
        let streaming = cores.iter().filter(|core| core.is_streaming()).count();
        let share = board.streamed_bytes_per_s() / streaming.max(1) as f64;
        let bytes_per_s = board.core_bytes_per_s.min(share);
        let next = cores.iter().filter_map(|core| core.next_event(bytes_per_s)).min_by(f64::total_cmp);
        let Some(step) = next else { break };
        now += step;
        for core in &mut cores {
            core.advance(board, step, bytes_per_s, now);
        }
    }
    let times = chains.iter().zip(&cores).map(|(tasks, core)| CoreTime {
        busy: seconds(core.ended),
        computing: seconds(tasks.iter().map(|task| computing(board, task)).sum()),
    });
    JobTime {
        elapsed: board.submit_overhead.saturating_add(seconds(now)),
        cores: times.collect(),
        bytes: chains.iter().flatten().map(TaskWork::bytes).sum(),
    }
}

/// Seconds in which the array computes `task`.
fn computing(board: &Board, task: &TaskWork) -> f64 {
    task.mac_cycles as f64 / (board.clock_hz * board.mac_efficiency)
}

/// Seconds that starting `task` costs.
fn overhead(board: &Board, task: &TaskWork) -> f64 {
    board.task_overhead.as_secs_f64() * task.tasks.max(1) as f64
}

/// A duration of a sum of non-negative parts; a board with a rate of zero takes for ever rather than panicking.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// One core within its chain.
struct Core<'a> {
    waiting: std::slice::Iter<'a, TaskWork>,
    /// What is left of the current task: seconds of starting, seconds of computing, bytes.
    starting: f64,
    computing: f64,
    bytes: f64,
    ended: f64,
    done: bool,
}

impl<'a> Core<'a> {
    fn start(board: &Board, tasks: &'a [TaskWork]) -> Self {
        let mut core = Self {
            waiting: tasks.iter(),
            starting: 0.0,
            computing: 0.0,
            bytes: 0.0,
            ended: 0.0,
            done: false,
        };
        core.take_next(board);
        core
    }

    fn take_next(&mut self, board: &Board) {
        // A task that asks for nothing at all is over at once.
        for task in self.waiting.by_ref() {
            self.starting = overhead(board, task);
            self.computing = computing(board, task);
            self.bytes = task.bytes() as f64;
            if self.starting > 0.0 || self.computing > 0.0 || self.bytes > 0.0 {
                return;
            }
        }
        self.done = true;
    }

    fn is_streaming(&self) -> bool {
        !self.done && self.starting == 0.0 && self.bytes > 0.0
    }

    /// Seconds until something ends here.
    fn next_event(&self, bytes_per_s: f64) -> Option<f64> {
        if self.done {
            return None;
        }
        if self.starting > 0.0 {
            return Some(self.starting);
        }
        let parts = [self.computing, self.bytes / bytes_per_s];
        parts.into_iter().filter(|left| *left > 0.0).min_by(f64::total_cmp)
    }

    fn advance(&mut self, board: &Board, step: f64, bytes_per_s: f64, now: f64) {
        if self.done {
            return;
        }
        if self.starting > 0.0 {
            self.starting = less(self.starting, step);
            if self.starting > 0.0 || self.computing > 0.0 || self.bytes > 0.0 {
                return;
            }
        }
        self.computing = less(self.computing, step);
        self.bytes = less(self.bytes, step * bytes_per_s);
        if self.computing == 0.0 && self.bytes == 0.0 {
            self.ended = now;
            self.take_next(board);
        }
    }
}

/// `left - taken`, exactly 0 where rounding alone keeps them apart: the part whose end is this event must end.
fn less(left: f64, taken: f64) -> f64 {
    if left <= taken * (1.0 + 1e-12) { 0.0 } else { left - taken }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving(bytes: u64) -> TaskWork {
        TaskWork { tasks: 1, read_bytes: bytes, ..TaskWork::default() }
    }

    fn computing(mac_cycles: u64) -> TaskWork {
        TaskWork { tasks: 1, mac_cycles, ..TaskWork::default() }
    }

    /// 1 GHz, 2 GB/s for one core, 3 GB/s for all, 10 us a job, 1 us a task.
    fn board() -> Board {
        Board {
            clock_hz: 1e9,
            ddr_bytes_per_s: 4e9,
            ddr_efficiency: 0.75,
            core_bytes_per_s: 2e9,
            mac_efficiency: 1.0,
            submit_overhead: Duration::from_micros(10),
            task_overhead: Duration::from_micros(1),
            cores: 3,
        }
    }

    fn micros(time: Duration) -> f64 {
        (time.as_secs_f64() * 1e9).round() / 1e3
    }

    #[test]
    fn computing_and_moving_overlap() {
        let task =
            TaskWork { tasks: 1, mac_cycles: 5_000, read_bytes: 3_000, write_bytes: 1_000, command_bytes: 0 };
        assert_eq!(micros(task_time(&board(), &task)), 6.0);
        let longer = TaskWork { read_bytes: 19_000, ..task };
        assert_eq!(micros(task_time(&board(), &longer)), 11.0);
        assert_eq!(micros(job_time(&board(), &[vec![longer]]).elapsed), 21.0);
    }

    #[test]
    fn cores_share_the_memory() {
        let alone = job_time(&board(), &[vec![moving(6_000)]]);
        let two = job_time(&board(), &[vec![moving(6_000)], vec![moving(6_000)]]);
        let three = job_time(&board(), &[vec![moving(6_000)], vec![moving(6_000)], vec![moving(6_000)]]);
        assert_eq!(micros(alone.elapsed), 14.0);
        assert_eq!(micros(two.elapsed), 15.0);
        assert_eq!(micros(three.elapsed), 17.0);
        assert_eq!(three.bytes, 18_000);
    }

    #[test]
    fn a_core_that_computes_leaves_the_memory_to_others() {
        let job = job_time(&board(), &[vec![computing(50_000)], vec![moving(6_000), moving(6_000)], vec![]]);
        assert_eq!(micros(job.elapsed), 61.0);
        assert_eq!(micros(job.cores[0].busy), 51.0);
        assert_eq!(micros(job.cores[1].busy), 8.0);
        assert_eq!(micros(job.cores[0].computing), 50.0);
        assert_eq!(job.cores[2], CoreTime::default());
    }

    #[test]
    fn the_last_one_to_stream_speeds_up() {
        // Both at 1.5 GB/s until the shorter ends at 1 + 2 us, then the longer at 2 GB/s for the 3,000 bytes left.
        let job = job_time(&board(), &[vec![moving(3_000)], vec![moving(6_000)]]);
        assert_eq!(micros(job.cores[0].busy), 3.0);
        assert_eq!(micros(job.cores[1].busy), 4.5);
    }

    #[test]
    fn degenerate_boards_and_jobs_end() {
        assert_eq!(job_time(&board(), &[]).elapsed, Duration::from_micros(10));
        let free = Board { submit_overhead: Duration::ZERO, task_overhead: Duration::ZERO, ..board() };
        assert_eq!(job_time(&free, &[vec![TaskWork::default(); 3]]).elapsed, Duration::ZERO);
        let stopped = Board { core_bytes_per_s: 0.0, ..board() };
        assert_eq!(job_time(&stopped, &[vec![moving(1)]]).elapsed, Duration::MAX);
    }
}
